"""Both stages for a few steps on a two-layer model, called as a user calls them."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import BASE, LINEARS, ROOT, RUN, TSV, log, one_sentence, python, same, script, tiny
from safetensors.torch import load_file

import evaluate
import train as train_file
from data import EncodedSample, Prompter, Sample, TwinPair, collate, micro_batches
from evaluate import greedy
from loss import language_aware
from model import LlamaForCausalLM, add_lora, load_model, save_model
from plumbing.base import flags
from plumbing.base.errors import InputError
from plumbing.base.flags import DTYPES, parse, users_sentence
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.decoder import Decoder
from plumbing.compute.optimizer import Optimizer, learning_rate
from plumbing.run.settings import describe_preset, fill_usual_rate
from train import CLIP, Settings, loss_sums, main, train_step

FAST = ["--pairs", 20, "--steps", 3, "--batch-size", 8, "--device", "cpu"]


def train(folder, *args):
    usual = ["--data", folder / "train.tsv", "--model", folder / "model", *FAST]
    result = script("train.py", *usual, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout


def train_here(folder, *args):
    """The same in this process, which has imported all already."""
    usual = ["--data", folder / "train.tsv", *FAST]
    if not {"--full", "--init"} <= {*args}:
        usual += ["--model", folder / "model"]
    main(parse(Settings, "", [*map(str, [*usual, *args])]))


def weights(run):
    name = "adapter_model" if (run / "adapter_config.json").exists() else "model"
    return load_file(run / f"{name}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A stage-1 run, its stage-2 run with a higher alpha, and the alpha = 0 control."""
    folder = tmp_path_factory.mktemp("runs")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    train(folder, "--stage", 1, "--out", folder / "s1", "--steps", 25, "--lr", 0.01)
    two = ["--stage", 2, "--init", folder / "s1", "--lr", 0.01, "--steps", 12]
    train_here(folder, *two, "--alpha", 0.5, "--out", folder / "s2")
    train_here(folder, *two, "--alpha", 0, "--out", folder / "control")
    return folder


# One step


def step_parts(tuning_set, alpha=0.3, dtype="fp32", **changes):
    """(model, a step's pairs, its optimizer, settings), every weight to be trained."""
    model = tiny(**changes)
    s = Settings(stage=2, alpha=alpha, device="cpu", dtype=dtype)
    samples = tuning_set.of_step(0, 6, 6, 1)
    pairs = tuning_set.with_twins(samples, "target", random.Random(0))
    return model, pairs, Optimizer(model.named_parameters(), dtype, "cpu"), s


def test_a_step_is_eq_3_clipped_and_adamw(tuning_set):
    """Against the same by hand: padded, one sequence at a time, means over all response tokens."""
    model, pairs, optimizer, s = step_parts(tuning_set)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sums, counts = [0.0, 0.0], [0, 0]
    for part in (0, 1):
        for pair in pairs:
            _, prompt, response = pair[part]
            ids = torch.tensor(prompt + response)
            log_p = model(ids, [len(ids)]).double().log_softmax(-1)
            for t, token in enumerate(response, start=len(prompt) - 1):
                term = log_p[t, token]
                sums[part] = sums[part] - (torch.log1p(-term.exp()) if part else term)
            counts[part] += len(response)
    loss = sums[0] / counts[0] + 0.3 * sums[1] / counts[1]
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, parameters.values())
    norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients))

    optimizer.set_rate(0.01)
    result = train_step(model, micro_batches(pairs, 300), optimizer, s)
    assert result.updated and not result.blamed
    assert result.figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert result.figures["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        clipped = gradient * min(1.0, CLIP / norm)
        update = -0.01 * clipped / (clipped.abs() + 1e-8)  # AdamW's first
        seen = clipped.abs() > 1e-5
        moved = (p.detach() - before[name])[seen]
        torch.testing.assert_close(moved, update[seen], rtol=2e-3, atol=1e-5)


def gradients_of(tuning_set, shares, s):
    """The gradients that the processes' shares add up to."""
    model = tiny()
    batches = [batch for share in shares for batch in share]
    mle_weight = sum(b.weight[: b.positives].double().sum().item() for b in batches)
    ul_weight = sum(b.weight[b.positives :].double().sum().item() for b in batches)
    for batch in batches:
        sums = loss_sums(model(batch.ids, batch.lengths, at=batch.at), batch)
        language_aware(sums[0], mle_weight, sums[1], ul_weight, s.alpha).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("reduction", ["token", "sentence"])
@pytest.mark.parametrize("twins", [False, True])
def test_the_gradient_is_the_same_for_every_split(tuning_set, reduction, twins):
    samples = tuning_set.of_step(0, 14, 14, 1)
    pairs = tuning_set.with_twins(samples, "any" if twins else None, random.Random(0))
    s, found = Settings(stage=2, alpha=0.3), []
    for world, tokens in [(1, 10**6), (1, 900), (1, 1), (2, 900), (4, 10**6), (4, 1)]:
        shares = micro_batches(pairs, tokens, reduction, world)
        found.append(gradients_of(tuning_set, shares, s))
    assert found[0].abs().max() > 0.01
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "args, parameters, found",
    [
        ([], 5e6, (2e-3, 128)),
        (["--stage", 2], 5e6, (2e-3, 32)),
        ([], 135e6, (2e-3, 16)),
        (["--stage", 2], 135e6, (2e-4, 16)),
        (["--lr", 0.1], 135e6, (0.1, 16)),
        (["--batch-size", 3], 135e6, (2e-3, 3)),
        (["--lr", 0.1, "--batch-size", 3], 7e9, (0.1, 3)),
        (["--full"], 5e6, (1e-3, 128)),
        (["--preset", "paper"], 7e9, (2e-5, 128)),
    ],
)
def test_the_rate_and_the_batch_are_those_of_the_bases_size(args, parameters, found):
    s = parse(Settings, "", [*map(str, args), "--device", "cpu"])
    fill_usual_rate(s, int(parameters))
    assert (s.lr, s.batch_size) == found


@pytest.mark.parametrize(
    "args, parameters, words",
    [
        ([], 7e9, ["--lr and --batch-size", "7,000 million", "--lr 2e-4 --batch-size 128"]),
        (["--lr", 1e-4], 7e9, ["--batch-size: nothing"]),
        (["--full"], 135e6, ["full tuning", "--preset paper"]),
        (["--stage", 2, "--init", "run"], 7e9, ["--lr 3e-05 --batch-size 8, a tenth"]),
        (["--stage", 2, "--init", "none"], 7e9, ["--lr 2e-5 --batch-size 8"]),
    ],
)
def test_where_nothing_was_measured_the_rate_and_the_batch_must_be_told(
    args, parameters, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"lr": 0.0003, "batch_size": 24}')
    s = parse(Settings, "", [*map(str, args), "--device", "cpu"])
    with pytest.raises(InputError) as error:
        fill_usual_rate(s, int(parameters))
    assert all(word in str(error.value) for word in words)


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_samples(tuning_set):
    model, pairs, optimizer, s = step_parts(tuning_set)
    model.model.norm.weight.data[0] = math.nan
    before = model.lm_head.weight.detach().clone()
    result = train_step(model, micro_batches(pairs, 300), optimizer, s)
    assert result.blamed and not result.updated
    assert torch.equal(model.lm_head.weight, before)


def test_an_fp16_scale_that_is_too_large_skips_the_update(tuning_set):
    model, pairs, optimizer, s = step_parts(tuning_set, dtype="fp16")
    optimizer.scaler.load_state_dict(optimizer.scaler.state_dict() | {"scale": 2.0**60})
    before = model.lm_head.weight.detach().clone()
    result = train_step(model, micro_batches(pairs, 10**6), optimizer, s)
    assert not result.updated and not result.blamed
    assert torch.equal(model.lm_head.weight, before)


def test_the_rate_rises_then_falls_to_zero_along_a_cosine():
    rates = [learning_rate(step, 100, 2.0, 0.03) for step in range(100)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0]) and max(rates) == 2.0
    assert rates[51] == pytest.approx(1.0, abs=0.03) and 0 <= rates[99] < 0.01


# Both stages


def test_stage_one_learns_and_stage_two_lowers_the_unlikelihood(runs):
    one, two = log(runs / "s1"), log(runs / "s2")
    assert [row["step"] for row in one] == list(range(1, 26)) and one[-1]["mle"] < one[0]["mle"] - 1
    assert all(row["ul"] is None for row in one) and two[-1]["ul"] < two[0]["ul"]
    for row in two:
        assert row["loss"] == pytest.approx(row["mle"] + 0.5 * row["ul"])


def test_stage_two_with_alpha_zero_is_stage_one_continued(runs):
    args = ["--init", runs / "s1", "--lr", 0.01, "--steps", 12, "--out", runs / "continued"]
    train_here(runs, "--stage", 1, *args)
    a, b, other = (weights(runs / run) for run in ("control", "continued", "s2"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], other[k]) for k in a)


def test_the_base_is_untouched_and_the_run_says_what_made_it(runs):
    expected = dict(tiny().named_parameters())
    found = load_file(runs / "model" / "model.safetensors")
    assert all(torch.equal(found[k], expected[k]) for k in found)
    settings = json.load(open(runs / "s2" / "settings.json"))
    assert settings["alpha"] == 0.5 and settings["stage"] == 2 and len(settings["supervised"]) == 6
    assert "{input}" in settings["prompt"]
    assert "translation" in (runs / "s2" / "README.md").read_text()


def test_an_adapter_that_is_continued_is_recorded_as_it_is(folder):
    args = ["--stage", 1, "--lora-rank", 4, "--lora-alpha", 6, "--lora-targets", "v_proj,q_proj"]
    train_here(folder, *args, "--out", folder / "s1")
    train_here(folder, "--stage", 2, "--init", folder / "s1", "--out", folder / "s2")
    record = json.load(open(folder / "s2" / "settings.json"))
    assert (record["lora_rank"], record["lora_alpha"]) == (4, 6)
    assert record["lora_targets"] == "v_proj,q_proj"
    assert "adapter of rank 4 " in (folder / "s2" / "README.md").read_text()
    # the same flags again, in another order, are no other adapter
    train_here(
        folder, *args[2:-1], "q_proj,v_proj", "--init", folder / "s1", "--out", folder / "s2"
    )


@pytest.mark.parametrize(
    "args, said",
    [
        (["--init", "s1", "--lora-rank", 32], "--lora-rank 32, but the adapter of .*s1 has 64"),
        (["--init", "s1", "--lora-alpha", 1], "--lora-alpha 1.0, but"),
        (["--init", "s1", "--lora-dropout", 0.5], "--lora-dropout 0.5, but"),
        (["--init", "s1", "--lora-targets", "k_proj"], "--lora-targets k_proj, but"),
        (["--full", "--lora-rank", 4], "--lora-rank 4 would change nothing: every weight"),
        (["--full", "--lora-dropout", 0.1], "--lora-dropout 0.1 would change nothing"),
        (["--preset", "paper", "--lora-targets", "q_proj"], "--lora-targets q_proj would"),
        (["--stage", 1, "--alpha", 0.1], "--alpha 0.1 with --stage 1"),
        (["--stage", 1, "--conflict", "any"], "--conflict any would change nothing: alpha is 0"),
        (["--general-share", 0.5], "--general-share 0.5 would change nothing"),
        (["--init", "model", "--model", "s1"], "--model .*s1 would change nothing: .* whole model"),
        (["--model", "s1"], "s1 is an adapter, and no base model"),
    ],
)
def test_a_flag_that_cannot_count_is_refused_and_changes_nothing(runs, args, said):
    before = sorted(os.listdir(runs))
    places = [runs / x if (runs / str(x)).exists() else x for x in map(str, args)]
    with pytest.raises(InputError, match=said):
        train_here(runs, *places, "--out", runs / "none")
    assert sorted(os.listdir(runs)) == before


def test_what_does_not_count_is_not_recorded(runs):
    one = json.load(open(runs / "s1" / "settings.json"))
    assert not {"conflict", "general_share"} & one.keys() and one["lora_rank"] == 64


def test_a_run_on_another_base_of_equal_shapes_is_refused_wherever_a_base_is_named(runs, tmp_path):
    """Evaluation, a merge and a further stage; the run's own base, moved, serves."""
    save_model(tiny(seed=1), tmp_path / "other", BASE)
    (tmp_path / "moved").symlink_to(runs / "model")
    said = "other has other weights, .* than the base that .*s1"
    for place, fits in (("other", False), ("moved", True)):
        for begin in (
            lambda base: load_model(runs / "s1", base=base),
            lambda base: train_here(
                runs, "--init", runs / "s1", "--model", base, "--out", tmp_path / "run"
            ),
        ):
            if fits:
                begin(str(tmp_path / place))
            else:
                with pytest.raises(InputError, match=said):
                    begin(str(tmp_path / place))
    load_model(runs / "s1", base=str(tmp_path / "moved"))
    with pytest.raises(InputError, match="is an adapter, and no base model"):
        load_model(runs / "s2", base=str(runs / "s1"))


def test_a_full_run_is_a_whole_folder_that_trains_every_weight(folder):
    train_here(folder, "--stage", 1, "--full", "--out", folder / "full")
    before, after = (weights(folder / run) for run in ("model", "full"))
    assert all(not torch.equal(before[k], after[k]) for k in before)
    train_here(folder, "--stage", 2, "--full", "--init", folder / "full", "--out", folder / "two")
    assert load_model(folder / "two").lora is None


def test_a_reloaded_run_decodes_the_same_text_through_the_command_line(runs, tokenizer):
    few = ["--data", runs / "train.tsv", "--rows", 3, "--max-new-tokens", 6, "--device", "cpu"]
    result = script("evaluate.py", "--ckpt", runs / "model", runs / "s2", *few)
    assert result.returncode == 0, result.stderr
    model, prompter = load_model(runs / "s2").eval(), Prompter(tokenizer, "alpaca")
    for pair in ["en-it", "nl-ro"]:
        out = runs / "s2" / "eval-train"
        sources = (out / f"{pair}.src.txt").read_text(encoding="utf-8").split("\n")[:-1]
        samples = [Sample(tuple(pair.split("-")), text, "") for text in sources]
        prompts = [prompter.encode(sample, 500)[0] for sample in samples]
        ids = greedy(Decoder(model), prompts, {tokenizer.eos}, 6)
        written = (out / f"{pair}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        assert written == [" ".join(tokenizer.decode(i).split()) for i in ids]
    scores = json.load(open(out / "scores.json"))
    zero = [scores["directions"][d] for d in scores["zero_shot"]]
    assert len(zero) == 6 and len(scores["directions"]) == 12
    assert scores["average"]["zero-shot"]["otr"] == pytest.approx(sum(r["otr"] for r in zero) / 6)
    assert "## train" in (runs / "s2" / "README.md").read_text()  # the card has the table


def test_an_adapter_of_peft_is_continued_and_merged_into_a_folder_of_transformers(folder):
    """PEFT's adapter -> three steps here -> PEFT; and tools.merge -> transformers. Patterns,
    tokenizer files and template stay."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"up_proj": 2},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(base, config).save_pretrained(folder / "adapter")
    os.rename(folder / "model", folder / "moved")
    args = ["--init", folder / "adapter", "--model", folder / "moved", "--template", "alma"]
    train_here(folder, *args, "--lr", 0.01, "--out", folder / "run")
    assert load_model(folder / "run").lora.rank_pattern == {"up_proj": 2}
    before, after = (weights(folder / run) for run in ("adapter", "run"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)
    merge = ["--ckpt", folder / "run", "--out", folder / "merged"]
    result = script("tools.merge", *merge, module=True)
    assert result.returncode == 0, result.stderr
    ids = torch.arange(5, 40)
    moved = transformers.AutoModelForCausalLM.from_pretrained(folder / "moved")
    theirs = peft.PeftModel.from_pretrained(moved, folder / "run")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
    ours = load_model(folder / "run").eval()
    with torch.no_grad():
        expected = theirs.eval()(ids[None]).logits[0]
        torch.testing.assert_close(ours(ids, [35]), expected, rtol=1e-5, atol=1e-5)
        found = merged.eval()(ids[None]).logits[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    settings = [json.load(open(folder / x / "settings.json")) for x in ("run", "merged")]
    assert [s["template"] for s in settings] == ["alma", "alma"]


@pytest.mark.parametrize("stage_two", [[], ["--template", "post-instruction"]])
def test_the_template_of_stage_one_is_kept_unless_another_is_asked_for(folder, stage_two):
    args = ["--directions", "en-it,it-nl,nl-en"]
    train_here(folder, "--stage", 1, "--template", "ptl", *args, "--out", folder / "s1")
    two = ["--stage", 2, "--init", folder / "s1", *args, "--out", folder / "s2", *stage_two]
    train_here(folder, *two)
    settings = json.load(open(folder / "s2" / "settings.json"))
    assert settings["template"] == (stage_two[1] if stage_two else "ptl")
    assert settings["supervised"] == ["en-it", "it-nl", "nl-en"]


def test_other_instructions_are_mixed_in_without_twins(folder):
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(9)]
    records.append({"instruction": "Translate from English to Dutch.", "output": "x"})
    (folder / "general.json").write_text(json.dumps(records))
    args = ["--general", folder / "general.json", "--general-share", 0.2]
    train_here(folder, "--stage", 2, "--init", folder / "model", *args, "--out", folder / "mixed")
    rows = log(folder / "mixed")
    assert [row["general"] for row in rows] == [2, 2, 2]
    assert all(0 < row["general_tokens"] < row["response_tokens"] for row in rows)


def test_a_flag_of_several_texts_may_come_twice():
    s = parse(Settings, "", ["--data", "a", "b", "--data", "c", "--device", "cpu"])
    assert s.data == ["a", "b", "c"] and s.given == {"data", "device"} and s.general == ()


def test_the_presets_values_count_unless_a_flag_says_otherwise():
    one = parse(Settings, "", ["--preset", "paper"])
    two = parse(Settings, "", ["--stage", "2", "--preset", "paper", "--no-full", "--lr", "1e-4"])
    assert (one.lr, one.batch_size, one.epochs, one.full, one.pairs) == (2e-5, 128, 3.0, True, 2000)
    assert (two.lr, two.batch_size, two.steps, two.full) == (1e-4, 8, 100, False)
    assert two.conflict == "any" and two.loss_reduction == "sentence"
    for args, words in [
        (["--steps", "2"], ["--epochs 3.0", "; but --steps 2"]),
        (["--stage", "2", "--epochs", "1"], ["--steps 100", "; but --epochs 1.0"]),
    ]:
        said = describe_preset(parse(Settings, "", ["--preset", "paper", *args]))
        assert all(word in said for word in words)


# The best by --dev


def test_the_figures_of_dev_are_those_of_evaluate_and_the_best_checkpoint_is_the_run(
    finished, tmp_path
):
    args = ["--dev", "dev.tsv", "--best", "mle", "--lr", 0.3, "--save-every", 4]
    result = script("train.py", *RUN, *args, "--out", tmp_path / "run", cwd=finished)
    assert result.returncode == 0, result.stderr
    rows = [row for row in log(tmp_path / "run") if "dev_mle" in row]
    assert [row["step"] for row in rows] == [4, 8]  # and at the end
    best = min(rows, key=lambda row: row["dev_mle"])["step"]
    assert f"which is step {best}, the best by mle of --dev" in result.stdout
    steps = [tmp_path / "run" / f"step-{row['step']:06}" for row in rows]
    few = ["--data", "dev.tsv", "--device", "cpu"]
    result = script("evaluate.py", "--ckpt", *steps, *few, cwd=finished)
    assert result.returncode == 0, result.stderr
    for row, step in zip(rows, steps, strict=True):
        found = json.load(open(step / "eval-dev" / "scores.json"))["directions"].values()
        assert row["dev_otr"] == pytest.approx(sum(r["otr"] for r in found) / len(found))
    a, b = (weights(tmp_path / "run" / place) for place in ("", f"step-{best:06}"))
    assert all(torch.equal(a[k], b[k]) for k in a) and len(log(tmp_path / "run")) == 8


# What users do wrong


def corpus(text):
    return lambda f: (f / "train.tsv").write_text(text, encoding="utf-8")


def cut(f):
    path = f / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def swap(f):
    save_model(tiny(hidden_size=64), f / "other")
    os.replace(f / "other" / "model.safetensors", f / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "damage, args, said",
    [
        (lambda f: (f / "model" / "model.safetensors").unlink(), [], "model.safetensors: no such"),
        (cut, [], "expected a whole safetensors file"),
        (swap, [], "config and weights do not belong together"),
        (corpus("en\na\n"), [], "line 1: 'en'; expected JSON, a TSV whose first line is"),
        (corpus("en\txx\na\tb\n"), [], "line 2: found en xx; expected some of"),
        (corpus("en\tit\tnl\tro\na\tb\n"), [], "line 2: 2 columns, expected 4"),
        (None, ["--directions", "en-de"], "--directions en-de: pairs found in"),
        (
            None,
            ["--stage", "2", "--init", "no"],
            "no: no such run.*--stage 1 --out no.*hf download",
        ),
        (None, ["--model", "owner/no"], "owner/no: no such folder.*hf download"),
        (None, ["--max-length", "513"], "--max-length 513: the model has 512 positions"),
        (None, ["--alpha", "-1"], "--alpha -1.0: expected at least 0"),
        (None, ["--lr", "nan"], "--lr nan: expected"),
        (None, ["--epochs", "2"], "--steps and --epochs: choose one"),
        (None, ["--device", "tpu"], "--device tpu: not possible here"),
        (None, ["--best", "otr"], "--best needs --dev"),
        (None, ["--dev", "train.tsv", "--save-every", "0"], "--dev needs --save-every"),
        # before a model is loaded
        (None, ["--dev", "nowhere.tsv", "--model", "model"], "nowhere.tsv: no such file"),
        (None, ["--lora-targets", "query"], "LoRA targets .*query.*: expected some of"),
        (None, ["--lora-dropout", "2"], "--lora-dropout 2.0: expected 0 to 1"),
        (None, ["--out", "train.tsv"], "is a file; choose another --out"),
        (None, ["--out", "run.partial"], ".partial is for runs on their way"),
        (None, ["--general", "train.tsv"], "expected JSON of"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(folder, monkeypatch, damage, args, said):
    monkeypatch.chdir(folder)
    if damage:
        damage(folder)
    with pytest.raises(InputError, match=said):
        train_here(folder, "--out", folder / "out", *args)
    assert not any(name.startswith("out") for name in os.listdir(folder))


def test_a_users_error_is_one_sentence_and_exit_code_2(folder):
    result = script("train.py", "--data", "none.tsv", "--out", folder / "out", *FAST, cwd=folder)
    one_sentence(result, "none.tsv: no such file")
    assert result.stderr.count("\n") == 1
    result = script("train.py", "--alhpa", 1)
    assert result.returncode == 2 and "--alhpa" in result.stderr


def test_training_asks_for_the_same_bits_and_dev_does_not(folder, monkeypatch):
    """As on a GPU. What cannot give them is refused."""
    pytest.importorskip("langid")
    enabled, asked, found = torch.are_deterministic_algorithms_enabled, [], {}

    def on_cuda(device):
        asked.append(device)
        flags.make_deterministic("cuda:0")

    def watched(name, function):
        def run(*args):
            found[name] = enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
            return function(*args)

        return run

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC", raising=False)
    monkeypatch.setattr(train_file, "make_deterministic", on_cuda)
    monkeypatch.setattr(train_file, "train_step", watched("step", train_step))
    monkeypatch.setattr(evaluate, "greedy", watched("dev", greedy))
    (folder / "dev.tsv").write_text("".join(TSV.splitlines(True)[:2]), encoding="utf-8")
    try:
        train_here(folder, "--dev", folder / "dev.tsv", "--steps", 1, "--out", folder / "run")
        assert asked == ["cpu"] and found == {"step": True, "dev": False}
        assert enabled() and not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    flags.make_deterministic("cpu")
    assert not enabled()


@pytest.mark.parametrize(
    "world, count, given, words",
    [
        (1, 0, "cuda:9", "expected cpu"),
        (1, 2, "cuda:9", "cpu, or cuda:0 to cuda:1"),
        (4, 2, "cuda", "at most 2 processes"),
        (4, 4, "cuda:0", "expected cuda"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch, world, count, given, words):
    monkeypatch.setattr(flags, "WORLD", world)
    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=f"--device cuda:.*{words}"):
        flags.resolve_device(given)


@pytest.mark.parametrize(
    "device, capability, dtype",
    [
        ("cuda:1", (9, 0), "bf16"),
        ("cuda:0", (8, 0), "bf16"),
        ("cuda:0", (7, 5), "fp16"),
        ("cpu", None, "fp32"),
    ],
)
def test_the_dtype_that_is_meant_by_auto(monkeypatch, device, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(flags, "resolve_device", lambda given: device)
    assert parse(Settings, "", ["--device", device]).dtype == dtype
    assert parse(Settings, "", ["--device", device, "--dtype", "fp32"]).dtype == "fp32"


@pytest.mark.parametrize(
    "error, is_memory",
    [
        (MemoryError("no room"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorM"), True),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shape '[2]' is invalid"), False),
    ],
)
def test_only_what_is_out_of_memory_is_advised_to_take_less(error, is_memory):
    assert ("out of memory" in users_sentence(error)) == is_memory


def test_a_script_that_is_started_elsewhere_finds_the_demo(tmp_path):
    result = script("train.py", "--steps", 1, "--pairs", 4, "--out", "run", cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_can_spoil_the_weights(
    finished, tmp_path
):
    args = [*RUN, "--save-every", 0, "--out", tmp_path / "run"]
    result = script("train.py", *args, "--lr", 1e30, cwd=finished)
    one_sentence(result, "step 2: loss nan", "lower --lr 1e+30", "begin anew", "open file")
    assert [row["step"] for row in log(tmp_path / "run.partial")] == [1]
    # what the sentence advises is possible
    result = script("train.py", *args, "--lr", 1e-3, cwd=finished)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("save_every", [0, 3])
def test_after_ctrl_c_a_checkpoint_is_there_and_resume_goes_on(finished, tmp_path, save_every):
    args = [*RUN, "--steps", 60, "--save-every", save_every]
    peace = script("train.py", *args, "--out", tmp_path / "peace", cwd=finished)
    assert peace.returncode == 0, peace.stderr
    command = [sys.executable, os.path.join(ROOT, "train.py"), *map(str, args)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        cwd=finished,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    path = tmp_path / "run.partial" / "log.jsonl"
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said
    assert "is saved, and the same command with --resume goes on" in said
    result = script("train.py", *args, "--resume", "--out", tmp_path / "run", cwd=finished)
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stderr
    assert same(tmp_path, "peace", "run")


def test_both_stages_run_where_the_system_lacks_what_posix_has(folder):
    """As on Windows: no fcntl, no resource, no SIGHUP, no O_NOFOLLOW, no sync."""
    pytest.importorskip("langid")
    code = (
        "import sys, os, signal\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        "import torch, sacrebleu, langid\n"  # which may use them
        "for name in ('fcntl', 'resource'): sys.modules[name] = None\n"
        "for name in ('sync', 'O_NOFOLLOW'): delattr(os, name)\n"
        "del signal.SIGHUP\n"
        "import experiments.run, tools.merge\n"
        "import train\n"
        "from plumbing.base.flags import parse, run_script\n"
        "one = [*sys.argv[1:], '--model', 'model', '--out', 's1']\n"
        "train.main(parse(train.Settings, '', one))\n"
        "sys.argv += ['--stage', '2', '--init', 's1', '--out', 's2']\n"
        "run_script(train.main, train.Settings, '')\n"
    )
    result = python("-c", code, "--data", "train.tsv", *FAST, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no file locks") == 2
    assert (folder / "s2" / "adapter_model.safetensors").exists()


# On a card


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.03), ("fp16", 0.005)])
@pytest.mark.parametrize("full", [[], ["--full"]])
def test_mixed_precision_agrees_with_fp32_over_fifty_steps_on_cuda(folder, dtype, tolerance, full):
    """Loss of each step, relative, where fp16's scaler skipped none at the start."""
    args = ["--stage", 1, "--steps", 50, "--lr", 0.002, "--device", "cuda"]
    train(folder, *args, *full, "--dtype", dtype, "--out", folder / "half")
    train(folder, *args, *full, "--dtype", "fp32", "--out", folder / "fp32")
    half, fp32 = log(folder / "half"), log(folder / "fp32")
    assert sum(row["grad_norm"] is None for row in half) <= 3
    if all(row["grad_norm"] is not None for row in half):
        for a, b in zip(half, fp32, strict=True):
            assert a["mle"] == pytest.approx(b["mle"], rel=tolerance)
    assert half[-1]["mle"] == pytest.approx(fp32[-1]["mle"], rel=0.1)


@cuda
def test_lora_on_a_7b_shaped_model_fits_24_gb_on_cuda():
    config = Config(32000, 4096, 11008, 32, 32, max_position_embeddings=4096)
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(DTYPES["bf16"]).to_empty(device="cuda")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim == 2 else torch.nn.init.ones_(p)
    with torch.device("cuda"):
        add_lora(model, LoraSettings(16, 32.0, LINEARS))
    model.recompute = True
    optimizer = Optimizer(model.named_parameters(), "bf16", "cuda")
    ids = list(range(3, 515))
    batch = collate([TwinPair(EncodedSample(Sample(None, "", ""), ids[:256], ids[256:]), None)])
    result = train_step(model, [[batch]], optimizer, Settings(device="cuda", dtype="bf16"))
    assert result.figures["mle"] == pytest.approx(math.log(32000), rel=0.2)
    assert torch.cuda.max_memory_allocated() < 24e9


def test_a_config_of_another_model_is_named_before_a_rate_is_asked_for(finished, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "lie")
    config = json.loads((tmp_path / "lie" / "config.json").read_text())
    (tmp_path / "lie" / "config.json").write_text(json.dumps(config | {"vocab_size": 30_000_000}))
    args = ["--stage", "1", "--model", tmp_path / "lie", "--device", "cpu"]
    args += ["--data", finished / "train.tsv", "--out", tmp_path / "run"]
    with pytest.raises(InputError, match="shape"):
        main(parse(Settings, "", [*map(str, args)]))
