"""docs/method.md, run: what its code prints, and that its step is train.py's."""

import ast
import contextlib
import io
import os
import re

import pytest
import torch
from conftest import BASE, ROOT

import data
import train
from model import load_model
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.optimizer import Optimizer

PAGE = open(os.path.join(ROOT, "docs", "method.md"), encoding="utf-8").read()
STEPS = re.findall(r"^```python\n(.*?)^```\n```\n(.*?)^```$", PAGE, re.M | re.S)
FLOAT = r"-?\d+\.\d+"


@pytest.fixture(scope="module")
def page():
    """(the names that the page's code leaves behind, what each of its steps printed)."""
    names, printed = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for code, _ in STEPS:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed.append(out.getvalue())
    return names, printed


def test_every_step_prints_what_the_page_says(page):
    assert len(STEPS) == PAGE.count("```python") == PAGE.count("\n## ")
    for (_, stated), printed in zip(STEPS, page[1], strict=True):
        assert re.sub(FLOAT, "#", printed) == re.sub(FLOAT, "#", stated)
        figures = [re.findall(FLOAT, text) for text in (printed, stated)]
        for ours, theirs in zip(*figures, strict=True):
            last_digit = 10.0 ** -len(theirs.split(".")[1])
            assert float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=1.01 * last_digit)


def test_it_needs_nothing_of_this_project():
    tree = ast.parse("".join(code for code, _ in STEPS))
    imports = [x for x in ast.walk(tree) if isinstance(x, (ast.Import, ast.ImportFrom))]
    modules = [getattr(x, "module", None) or a.name for x in imports for a in x.names]
    allowed = {"json", "math", "safetensors", "sentencepiece", "torch"}
    assert {m.split(".")[0] for m in modules} == allowed


class Kept(Optimizer):
    """Keeps the gradients of its last step."""

    def step(self):
        self.gradients = {name: p.grad.clone() for name, p in self.parameters.items()}
        return super().step()


def test_its_step_is_train_step(page):
    names, model = page[0], load_model(BASE, torch.float32)
    prompter = data.Prompter(Tokenizer([BASE], model.config), "alpaca")
    encoded, samples = [], [data.Sample(*x) for x in names["samples"] + names["twins"]]
    for sample, (prompt, response) in zip(samples, names["rows"], strict=True):
        assert (prompt, False) == prompter.encode(sample, 512)
        assert response == prompter.encode_response(sample.target)
        assert response[-1] == prompter.tokenizer.eos
        encoded.append(data.EncodedSample(sample, prompt, response))
    n, tuned = len(names["samples"]), dict.fromkeys(names["tuned"], 1)
    pairs = list(map(data.TwinPair, encoded[:n], encoded[n:]))
    for positive, twin in pairs:
        assert twin.sample.direction in data.other_targets(positive.sample.direction, tuned)

    s = train.Settings(stage=2, full=True, lr=1e-3, device="cpu", dtype="fp32")
    optimizer = Kept(model.named_parameters(), s.dtype, s.device)
    optimizer.set_rate(s.lr)
    figures = train.train_step(model, [[data.collate(pairs)]], optimizer, s).figures
    for figure, name in zip(figures, ["loss", "mle", "ul", "gradient_norm"], strict=True):
        assert names[name].item() == pytest.approx(figures[figure], rel=1e-5), name
    assert {*optimizer.gradients} == {*names["W"]}
    for name, theirs in optimizer.gradients.items():  # both are clipped
        assert (names["W"][name].grad - theirs).norm() <= 1e-5 * theirs.norm(), name
    updated = model.model.embed_tokens.weight[names["place"]]
    assert names["weight"][names["place"]].item() == pytest.approx(updated.item(), abs=1e-7)
