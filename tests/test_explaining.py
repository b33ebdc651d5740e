"""--explain: p of each token of a response under the right instruction and the wrong ones."""

import re

import pytest
import torch
from conftest import BASE, TSV, script, tiny

import evaluate
from data import Prompter
from evaluate import response_terms
from model import save_model
from plumbing.base.flags import parse
from plumbing.corpus.corpus import Sample
from plumbing.score.explaining import terms_table
from plumbing.base.files import write_json
from plumbing.checkpoint.tokenizer import Tokenizer


def test_terms_are_those_of_the_losses(tokenizer):
    model, prompter = tiny().eval(), Prompter(tokenizer, "alpaca")
    sample = Sample(("it", "nl"), "Apri il file", "Open het bestand")
    prompts = [
        prompter.encode(sample._replace(direction=d), 500)[0] for d in (("it", "nl"), ("it", "en"))
    ]
    response = prompter.encode_response(sample.target)
    mle, ul = response_terms(model, prompts, response)
    assert mle.shape == ul.shape == (2, len(response))
    for prompt, row, terms in zip(prompts, (-mle).exp(), ul, strict=True):
        ids = torch.tensor(prompt + response)
        expected = model(ids, [len(ids)])[len(prompt) - 1 : -1].softmax(-1)
        expected = expected.gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms, -torch.log1p(-expected), rtol=1e-3, atol=1e-6)


def test_tokens_are_what_they_add_to_the_text():
    tokenizer = Tokenizer([BASE], tiny().config)
    ids = [*tokenizer.encode("Open het bestand"), tokenizer.eos]
    texts = tokenizer.texts_of(ids, tokenizer.eos)
    assert len(texts) == len(ids) and texts[-1] == "<end>"
    assert "".join(texts[:-1]).replace("·", "") == "Open▁het▁bestand"
    assert "<end>" not in tokenizer.texts_of(ids[:-1], tokenizer.eos)  # a response that was cut


def test_a_loss_beyond_what_p_can_say_is_exact():
    mle = torch.tensor([[200.0], [0.0]])
    lines = terms_table(["x"], [("it", "nl"), ("it", "en")], mle, torch.zeros(2, 1)).split("\n")
    assert "0.000 (200.00)" in lines[2]


@pytest.mark.parametrize(
    "tuned, wrong",
    [
        ({"conflict": "any", "supervised": [1, "en", "xx-yy", "nl-en"]}, [("nl", "en")]),
        ({"conflict": "target", "tuned": {"conflict": "any"}}, [("en", "nl"), ("nl", "en")]),
        ({"conflict": "target"}, [("nl", "en")]),
        ({"conflict": "any"}, [("en", "nl"), ("nl", "en")]),
        ({"conflict": "keep-source"}, [("it", "en")]),
    ],
)
def test_wrong_instructions_are_those_of_the_runs_own_conflicts(tmp_path, capsys, tuned, wrong):
    save_model(tiny(), str(tmp_path / "run"), BASE)
    record = {"supervised": ["en-nl", "nl-en"], "template": "alpaca"} | tuned
    write_json(tmp_path / "run" / "settings.json", record)
    (tmp_path / "test.tsv").write_text(TSV, encoding="utf-8")
    s = parse(evaluate.Settings, ["--ckpt", str(tmp_path / "run"), "--device", "cpu"])
    s.data, s.explain = [str(tmp_path / "test.tsv")], ["it-nl", "Apri il file", "Open het bestand"]
    evaluate.evaluate(s)
    header = next(x for x in capsys.readouterr().out.split("\n") if x.startswith("| token"))
    assert re.findall(r"(\w\w)→(\w\w) \(UL\)", header) == wrong


def test_the_table_has_the_right_instruction_first_and_means_below():
    p, ul = torch.tensor([[0.5, 1.0], [0.25, 0.75]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    lines = terms_table(["a|b", "end"], [("it", "nl"), ("it", "en")], -p.log(), ul).split("\n")
    assert lines[0].split() == "| token | it→nl (MLE) | it→en (UL) |".split()
    assert lines[2].split()[1:] == "a\\|b | 0.500 (0.69) | 0.250 (1.00) |".split()
    assert lines[-1].split()[1:] == "**mean** | 0.750 (0.35) | 0.500 (1.50) |".split()


@pytest.fixture
def place(tmp_path):
    for seed, name in enumerate(("one", "two")):
        save_model(tiny(seed=seed), tmp_path / name, BASE)
    (tmp_path / "test.tsv").write_text(TSV, encoding="utf-8")
    return tmp_path


def test_systems_are_side_by_side_on_the_reference_or_their_own_answer(place):
    header, first, *_ = TSV.split("\n")
    row = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    args = ["--ckpt", "one", "two", "--data", "test.tsv", "--device", "cpu"]
    args += ["--max-new-tokens", 12]
    done = script("evaluate.py", *args, "--explain", "it-nl", row["it"], cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{row['it']} → {row['nl']} (the reference)") == 2
    assert "it→nl (MLE)" in done.stdout and "it→en (UL)" in done.stdout
    cut = script(
        "evaluate.py", *args[:-1], 2, "--explain", "it-nl", "ciao", "hoi daar jij", cwd=place
    )
    assert "(to fit, the response lost some tokens)" in cut.stdout and "<end>" not in cut.stdout
    done = script("evaluate.py", *args, "--explain", "it-nl", "mai vista prima", cwd=place)
    assert done.returncode == 0 and done.stdout.count("(the answer of one)") == 2
    one, two = (x for x in done.stdout.split("\n") if "(the answer of" in x)
    assert one.split(":")[1] == two.split(":")[1]
    done = script("evaluate.py", *args, "--explain", "it-nl", "ciao", "hoi daar", cwd=place)
    assert done.returncode == 0 and done.stdout.count("ciao → hoi daar (given)") == 2
    done = script("evaluate.py", *args, "--explain", "it-nl", "ciao", "", cwd=place)
    assert done.returncode == 0 and done.stdout.count("ciao → (empty) (given)") == 2


@pytest.mark.parametrize(
    "args, said",
    [
        (["it-nl"], "expected it-nl 'SENTENCE'"),
        (["it-nl", "a", "--contrast-language", "0.5"], "leave out contrast"),
        (["it-nl", " "], "the sentence is blank"),
        (["it-qq", "a"], "--explain it-qq: expected two of"),
    ],
)
def test_what_it_cannot_explain_is_one_sentence(place, args, said):
    done = script("evaluate.py", "--ckpt", "one", "--explain", *args, "--device", "cpu", cwd=place)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
