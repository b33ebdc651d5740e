"""The tools: each does what its own page says, on a tiny run."""

import io
import math
import os
import re
import shutil

import pytest
import torch
from conftest import BASE, TEXT, TSV, one_sentence, script, tiny

from data import Prompter, Sample
from loss import log_not_p
from model import load_model, save_model
from plumbing.base.errors import InputError
from plumbing.base.files import read_json, write_json
from plumbing.base.flags import parse
from plumbing.checkpoint.folder import ModelFolder
from tools import explain, plan, translate
from tools.explain import response_terms, terms_table
from tools.merge import Settings as MergeSettings
from tools.merge import main as merge
from tools.picture import Settings as PictureSettings
from tools.picture import confusion_grid, off_target_grid
from tools.picture import main as draw
from train import Settings, main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a corpus and a run of one step."""
    folder = tmp_path_factory.mktemp("tools")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    args = ["--data", folder / "train.tsv", "--model", folder / "model", "--pairs", 8]
    args += ["--steps", 1, "--lora-rank", 2, "--device", "cpu", "--out", folder / "run"]
    main(parse(Settings, "", [*map(str, args)]))
    return folder


def tool(name, *args, **how):
    return script(f"tools.{name}", *args, module=True, **how)


def test_translate_writes_a_line_for_each_line(place):
    lines = "apri il file\n\n  \nchiudi\u2028il file\r\nfine"
    args = ["--ckpt", place / "run", "--direction", "it-nl", "--max-new-tokens", 5]
    both = [tool("translate", *args, "--batch-size", n, input=lines) for n in (1, 9)]
    assert all(result.returncode == 0 for result in both), both[0].stderr
    found = both[0].stdout.split("\n")
    assert len(found) == 6 and found[1] == found[2] == found[5] == ""
    assert found[0] and found[3] and found[4] and both[0].stdout == both[1].stdout


def test_bad_input_to_the_tools_is_one_sentence(place):
    one_sentence(tool("translate", "--direction", "it-xx", input="a\n"), "--direction 'it-xx'")
    one_sentence(tool("explain"), "--ckpt")
    one_sentence(tool("merge", "--ckpt", place / "model"), "is a whole model")
    one_sentence(tool("picture", "--ckpt", place / "run"), "scores.json: no such file")


def test_texts_are_read_without_byte_order_marks_and_what_is_no_text_is_refused():
    assert [*translate.read_lines(io.BytesIO("\ufeffa\n\ufeff\n b\r\n".encode()))] == ["a", "", "b"]
    with pytest.raises(InputError, match="standard input, line 2: NUL"):
        [*translate.read_lines(io.BytesIO(b"a\n\0\n"))]
    args = ["--ckpt", "x", "--direction", "it-nl", "--source", "a", "--target", "\udcff"]
    with pytest.raises(InputError, match="--target .* is not UTF-8"):
        explain.main(parse(explain.Settings, "", [*args, "--device", "cpu"]))


def test_explain_shows_the_terms_of_eq_1_and_2(place, tokenizer):
    model = load_model(place / "run").eval()
    prompter = Prompter(tokenizer, "alpaca")
    prompts = [prompter.encode(Sample(d, "a", ""), 400)[0] for d in [("it", "nl"), ("en", "ro")]]
    response = prompter.encode_response("openen")
    mle, ul = response_terms(model, prompts, response)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor(prompt + response)
        logits = model(ids, [len(ids)])[len(prompt) - 1 : -1]
        y = torch.tensor(response)
        expected = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        torch.testing.assert_close(mle[row], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ul[row], -log_not_p(logits, y), rtol=1e-4, atol=1e-5)
    tokens = [f"token {n}" for n in range(len(response))]
    table = terms_table(tokens, ["it→nl", "en→ro"], mle, ul)
    p = math.exp(-mle[0, 0])
    assert f"{p:.3f} ({mle[0, 0]:.2f})" in table and f"({ul[1, 0]:.2f})" in table


def test_explain_takes_the_reference_or_an_answer(place):
    args = ["--ckpt", place / "run", "--direction", "it-nl", "--data", place / "train.tsv"]
    result = tool("explain", *args, "--source", "apri il file 3 adesso")
    assert result.returncode == 0, result.stderr
    assert "open bestand 3 nu (the reference)" in result.stdout
    assert "en→ro (UL)" in result.stdout and "it→nl (MLE)" in result.stdout
    result = tool("explain", *args, "--source", "altro", "--max-new-tokens", 3)
    assert "(the answer of run)" in result.stdout


def test_merging_keeps_the_function(place):
    merge(MergeSettings(ckpt=str(place / "run"), out=str(place / "merged")))
    ids = torch.arange(5, 40)
    merged, run = (load_model(place / name).eval() for name in ("merged", "run"))
    assert merged.lora is None
    torch.testing.assert_close(merged(ids, [35]), run(ids, [35]), rtol=1e-4, atol=1e-5)
    assert os.path.exists(place / "merged" / "tokenizer.model")
    with pytest.raises(InputError, match="is no run of train.py"):
        merge(MergeSettings(ckpt=str(place / "run"), out=str(place / "model")))


def test_a_merged_model_has_the_tokenizer_of_its_adapter_and_the_ends_of_its_base(place):
    """Files of both once lay in one folder, and those of the base were read."""
    transformers = pytest.importorskip("transformers")
    run, base, out = (place / name for name in ("json", "ends", "json-merged"))
    shutil.copytree(place / "model", base)
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    shutil.copytree(place / "run", run)
    (run / "generation_config.json").write_text('{"eos_token_id": 9}')
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(run)
    (run / "tokenizer.model").unlink()
    merge(MergeSettings(ckpt=str(run), model=str(base), out=str(out)))
    assert (out / "tokenizer.json").exists() and not (out / "tokenizer.model").exists()
    for folder in (run, out):
        assert load_model(folder, base=str(base)).config.eos_token_id == [2, 7]


def test_the_plan_counts_what_a_step_holds_and_computes(place, capsys):
    args = ["--data", place / "train.tsv", "--model", place / "model", "--pairs", 4, "--steps", 9]
    s = parse(plan.Settings, "", [*map(str, args), "--gpu", "H100", "--batch-size", "8"])
    plan.main(s)
    said = capsys.readouterr().out
    assert "9 steps of" in said and "yes, a H100" in said
    full = parse(plan.Settings, "", [*map(str, args), "--full", "--gpu", "H100", "--gpus", "2"])
    plan.main(full)
    parameters = sum(p.nbytes for p in load_model(place / "model").parameters())
    moments = 2 * parameters / 2 / 2**30  # of two GPUs
    assert "time" in said and "kernels a step" in said  # of a tiny model, launches decide
    assert f"moments {moments:.3g}," in capsys.readouterr().out


def test_the_plan_is_of_the_largest_batch_and_has_a_time_on_this_cpu(place, capsys):
    rows = "".join(f"{'open ' * n}\t{'apri ' * n}\n" for n in range(1, 21))
    (place / "lengths.tsv").write_text(f"en\tit\n{rows}")
    args = ["--data", place / "lengths.tsv", "--model", place / "model"]
    found = {}
    for steps in (1, 9):
        more = ["--steps", steps, "--batch-size", 1, "--device", "cpu"]
        plan.main(parse(plan.Settings, "", [*map(str, [*args, *more])]))
        said = capsys.readouterr().out
        found[steps] = float(re.search(r"activations ([0-9.]+)", said)[1])
        assert re.search(r"time +[0-9.e-]+ min at .* of a product on this CPU", said)
    assert found[9] > found[1]


def test_the_plan_ranks_batches_by_what_is_computed(place, capsys):
    """Translations begin with much in common, which is computed once, other instructions not."""
    rows = "".join(f"{'open ' * 40}{n}\tapri {n}\n" for n in range(64))
    (place / "alike.tsv").write_text(f"en\tit\n{rows}")
    records = [
        {"instruction": f"{n} count on " * 5, "output": "apri il file " * 9} for n in range(64)
    ]
    write_json(place / "general.json", records)
    args = ["--data", place / "alike.tsv", "--model", place / "model", "--device", "cpu"]
    args += ["--steps", 1, "--batch-size", 64, "--micro-batch-tokens", 1200]
    args += ["--general", place / "general.json", "--general-share", 0.2]
    s = parse(plan.Settings, "", [*map(str, args)])
    plan.main(s)
    planned = float(re.search(r"activations ([0-9.]+)", capsys.readouterr().out)[1])
    folder = ModelFolder(str(place / "model"))
    batches, *_ = plan.first_batches(folder, s)
    found = [plan.measure(folder, batch, s)["activations"] for batch in batches]
    longest = max(range(len(batches)), key=lambda n: len(batches[n].ids))
    assert found[longest] < 0.9 * max(found)
    assert planned == pytest.approx(max(found) / 2**30, rel=0.01)


def test_a_larger_batch_and_no_recomputation_hold_more(place, tokenizer):
    folder = ModelFolder(str(place / "model"))
    samples = [Sample(("en", "it"), "open", "apri il file " * n) for n in (1, 30)]
    tuning_set = plan.TuningSet(samples, Prompter(tokenizer, "alpaca"), 512)
    args = ["--data", place / "train.tsv", "--model", place / "model", "--device", "cpu"]
    s = parse(plan.Settings, "", [*map(str, args)])
    found = {}
    for name, n, recompute in (("small", 1, False), ("large", 2, False), ("again", 2, True)):
        pairs = tuning_set.with_twins(samples[:n])
        (batch,) = plan.train.micro_batches(pairs, 10**6)[0]
        s.recompute = recompute
        found[name] = plan.measure(folder, batch, s)["activations"]
    assert found["small"] < found["again"] < found["large"]


def test_the_grids_of_a_picture_are_the_reports_figures():
    directions = {
        "it-nl": {"otr": 25.0, "answered": {"nl": 3, "fr": 1}},
        "nl-it": {"otr": 50.0, "answered": {"it": 1, "empty": 1}},
    }
    grid = off_target_grid(directions)
    assert grid.cells == [[None, 25.0], [50.0, None]] and grid.columns == ["it", "nl"]
    grid = confusion_grid(directions, ["it-nl"])
    assert grid.rows == ["nl"] and grid.cells == [[0, 75.0, 25.0, 0]]


def test_a_picture_is_drawn_of_evaluations(place):
    pytest.importorskip("matplotlib")
    text = "".join(f"{TEXT['en']}\t{TEXT['it']}\n" for _ in range(2))
    (place / "test.tsv").write_text("en\tit\n" + text, encoding="utf-8")
    few = ["--data", place / "test.tsv", "--max-new-tokens", 2, "--device", "cpu"]
    assert script("evaluate.py", "--ckpt", place / "run", *few).returncode == 0
    assert read_json(place / "run" / "eval-test" / "scores.json")["name"] == "run"
    result = tool("picture", "--ckpt", place / "run", "--out", place / "a.svg")
    assert result.returncode == 0, result.stderr
    assert "OTR" in (place / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"name": "x", "directions": {}},
        {"name": "x", "directions": []},
        {"name": "x", "directions": {"foo": {"otr": 1, "answered": {"en": 1}}}},
        {"name": "x", "directions": {"it-nl": {"otr": None, "answered": {}}}},  # --lid none
    ],
)
def test_a_picture_of_what_is_no_score_is_one_sentence(tmp_path, scores):
    pytest.importorskip("matplotlib")
    (tmp_path / "run" / "eval-test").mkdir(parents=True)
    write_json(tmp_path / "run" / "eval-test" / "scores.json", scores)
    args = ["--ckpt", tmp_path / "run", "--out", tmp_path / "x.svg"]
    with pytest.raises(InputError, match="scores.json: these are no scores with OTR"):
        draw(parse(PictureSettings, "", [*map(str, args)]))
    assert not (tmp_path / "x.svg").exists()


def test_flags_of_the_tools_that_cannot_count_are_refused(folder):
    save_model(tiny(), folder / "other", BASE)
    whole = ["--ckpt", folder / "model", "--model", folder / "other"]
    it_nl = ["--direction", "it-nl"]
    for run, settings, args, said in [
        (translate, translate.Settings, [*whole, *it_nl], "--model .* is no adapter"),
        (translate, translate.Settings, [*it_nl, "--length-penalty", 2], "greedy decoding"),
        (explain, explain.Settings, [*whole, *it_nl, "--source", "x"], "--model .* is no adapter"),
        (
            explain,
            explain.Settings,
            ["--ckpt", "x", *it_nl, "--source", "x", "--target", "y"] + ["--beam", 2],
            "--beam 2 would change nothing",
        ),
        (plan, plan.Settings, ["--mfu", 0.2], "there is no --gpu"),
        (plan, plan.Settings, ["--full", "--lora-rank", 4], "every weight is tuned"),
    ]:
        with pytest.raises(InputError, match=said):
            run.main(parse(settings, "", [*map(str, args)]))
