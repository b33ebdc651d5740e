"""Both stages for a few steps on a two-layer model, called as a user calls them."""

import json
import math
import os

import pytest
import torch
from conftest import BASE, RUN, TSV, log, prompt_of, script, tiny, tuning_set
from safetensors.torch import load_file

from data import EncodedSample, TwinPair, collate, micro_batches
from evaluate import greedy
from model import LlamaForCausalLM, add_lora, load_model, save_model
from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.flags import DTYPES
from plumbing.corpus.corpus import read_corpus
from plumbing.compute.decoder import Decoder
from plumbing.base.files import write_json
from plumbing.checkpoint.folder import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.run.settings import LINEARS
from train import Settings, loss_sums

FAST = ["--pairs", "20", "--steps", "3", "--batch-size", "8", "--lora-rank", "4", "--device", "cpu"]


def train(folder, *args):
    result = script(
        "train.py", "--data", folder / "train.tsv", "--model", folder / "model", *FAST, *args
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A stage-1 run, its stage-2 run with a higher alpha, and the alpha = 0 control."""

    folder = tmp_path_factory.mktemp("runs")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    train(folder, "--stage", 1, "--out", folder / "s1", "--steps", 25, "--lr", 0.01)
    two = ["--stage", 2, "--init", folder / "s1", "--lr", 0.01, "--steps", 12]
    train(folder, *two, "--alpha", 0.5, "--out", folder / "s2")
    train(folder, *two, "--alpha", 0, "--out", folder / "control")
    return folder


def test_stage_one_learns_and_stage_two_lowers_the_unlikelihood(runs):
    one, two = log(runs / "s1"), log(runs / "s2")
    assert [row["step"] for row in one] == list(range(1, 26)) and one[-1]["mle"] < one[0]["mle"] - 1
    assert all(row["ul"] is None for row in one) and all(row["ul"] is not None for row in two)
    assert two[-1]["ul"] < two[0]["ul"]
    for row in two:
        assert row["loss"] == pytest.approx(row["mle"] + 0.5 * row["ul"])


def test_stage_two_with_alpha_zero_is_stage_one_continued(runs):
    """The same steps from the same run: stage 1's code path and the control end with the same
    weights."""
    train(
        runs,
        "--stage",
        1,
        "--init",
        runs / "s1",
        "--lr",
        0.01,
        "--steps",
        12,
        "--out",
        runs / "continued",
    )
    a, b = (load_file(runs / r / "adapter_model.safetensors") for r in ("control", "continued"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    other = load_file(runs / "s2" / "adapter_model.safetensors")
    assert any(not torch.equal(a[k], other[k]) for k in a)


def test_the_base_is_untouched_and_the_run_says_what_made_it(runs):
    assert set(os.listdir(runs / "s1")) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "log.jsonl",
        "settings.json",
        "speed.jsonl",
    }
    settings = json.load(open(runs / "s2" / "settings.json"))
    assert settings["alpha"] == 0.5 and settings["stage"] == 2 and len(settings["supervised"]) == 6
    expected, found = (
        dict(tiny().named_parameters()),
        load_file(runs / "model" / "model.safetensors"),
    )
    assert all(torch.equal(found[k], expected[k]) for k in found)


def test_a_full_run_is_a_whole_folder_that_trains_every_weight(folder):
    train(folder, "--stage", 1, "--full", "--out", folder / "full")
    before, after = (load_file(folder / r / "model.safetensors") for r in ("model", "full"))
    assert all(not torch.equal(before[k], after[k]) for k in before)
    train(folder, "--stage", 2, "--full", "--init", folder / "full", "--out", folder / "full2")
    assert load_model(folder / "full2").lora is None


def test_a_reloaded_run_decodes_the_same_text_through_the_command_line(runs, tokenizer):
    result = script(
        "evaluate.py",
        "--ckpt",
        runs / "model",
        runs / "s2",
        "--data",
        runs / "train.tsv",
        "--rows",
        3,
        "--max-new-tokens",
        6,
        "--device",
        "cpu",
    )
    assert result.returncode == 0, result.stderr
    model = load_model(runs / "s2").eval()
    for pair in [("en", "it"), ("nl", "ro")]:
        samples = read_corpus([runs / "train.tsv"])[0][pair][:3]
        ids = greedy(
            Decoder(model),
            [prompt_of(tokenizer, pair, s.source, 500)[0] for s in samples],
            {tokenizer.eos},
            6,
        )
        written = (
            (runs / "s2" / "eval-train" / f"{'-'.join(pair)}.txt")
            .read_text(encoding="utf-8")
            .split("\n")[:-1]
        )
        assert written == [" ".join(tokenizer.decode(i).split()) for i in ids]
    scores = json.load(open(runs / "s2" / "eval-train" / "scores.json"))
    assert (
        len(scores["directions"]) == 12 and "tok:13a" in scores["directions"]["en-it"]["signature"]
    )
    zero = [scores["directions"][d] for d in ("it-nl", "it-ro", "nl-it", "nl-ro", "ro-it", "ro-nl")]
    assert scores["average"]["zero-shot"]["otr"] == pytest.approx(sum(r["otr"] for r in zero) / 6)
    assert (
        "**zero-shot, average**" in result.stdout
        and "model OTR" in result.stdout
        and "s2 OTR" in result.stdout
    )


def test_training_continues_from_an_adapter_of_peft_and_merges_into_a_full_folder(folder):
    """PEFT's adapter -> one step here -> PEFT; and --merge -> transformers. Patterns, tokenizer
    files and template stay."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_json(folder / "model" / "generation_config.json", {"max_length": 77})
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
    result = script(
        "train.py",
        "--init",
        folder / "adapter",
        "--model",
        folder / "moved",
        "--data",
        folder / "train.tsv",
        "--out",
        folder / "run",
        "--template",
        "alma",
        "--lr",
        0.01,
        *FAST,
    )
    assert result.returncode == 0, result.stderr
    assert (
        load_model(folder / "run").lora.rank_pattern == {"up_proj": 2}
        and (folder / "run" / "tokenizer.model").exists()
    )
    before, after = (
        load_file(folder / r / "adapter_model.safetensors") for r in ("adapter", "run")
    )
    assert before.keys() == after.keys() and all(
        not torch.equal(before[k], after[k]) for k in before
    )
    result = script("train.py", "--merge", "--init", folder / "run", "--out", folder / "merged")
    assert result.returncode == 0, result.stderr
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "settings.json",
    } == set(os.listdir(folder / "merged"))
    ids = torch.arange(5, 40)
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(folder / "moved"), folder / "run"
    )
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
    ours = load_model(folder / "run").eval()
    with torch.no_grad():
        expected = theirs.eval()(ids[None]).logits[0]
        torch.testing.assert_close(ours(ids, [35]), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            merged.eval()(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5
        )
    result = script(
        "evaluate.py",
        "--ckpt",
        folder / "merged",
        folder / "run",
        "--data",
        folder / "train.tsv",
        "--rows",
        2,
        "--max-new-tokens",
        4,
        "--directions",
        "it-nl,en-it",
    )
    assert result.returncode == 0, result.stderr
    reports = [
        json.load(open(folder / r / "eval-train" / "scores.json"))["directions"]
        for r in ("merged", "run")
    ]
    assert [{k: v["bleu"] for k, v in r.items()} for r in reports][0] == {
        k: v["bleu"] for k, v in reports[1].items()
    }
    assert [
        json.load(open(folder / r / "settings.json"))["template"] for r in ("run", "merged")
    ] == ["alma", "alma"]


@pytest.mark.parametrize("stage_two", [[], ["--template", "post-instruction"]])
def test_the_template_of_stage_one_is_kept_unless_another_is_asked_for(folder, stage_two):
    train(
        folder,
        "--stage",
        1,
        "--template",
        "ptl",
        "--directions",
        "en-it,it-nl,nl-en",
        "--out",
        folder / "s1",
    )
    train(
        folder,
        "--stage",
        2,
        "--init",
        folder / "s1",
        "--directions",
        "en-it,it-nl,nl-en",
        "--out",
        folder / "s2",
        *stage_two,
    )
    settings = json.load(open(folder / "s2" / "settings.json"))
    assert settings["template"] == (stage_two[1] if stage_two else "ptl") and settings[
        "supervised"
    ] == ["en-it", "it-nl", "nl-en"]
    result = script(
        "evaluate.py",
        "--ckpt",
        folder / "s2",
        "--data",
        folder / "train.tsv",
        "--rows",
        1,
        "--max-new-tokens",
        2,
        "--directions",
        "zero-shot",
    )
    assert result.returncode == 0 and "it→en" in result.stdout and "it→nl" not in result.stdout, (
        result.stderr
    )


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.03), ("fp16", 0.005)])
@pytest.mark.parametrize("full", [[], ["--full"]])
def test_mixed_precision_agrees_with_fp32_over_fifty_steps_on_cuda(folder, dtype, tolerance, full):
    """Loss of each step, relative; steps that fp16's scaler skips at the start are left out on both
    sides."""
    args = [
        "--stage",
        1,
        "--steps",
        50,
        "--lr",
        0.002,
        "--lora-alpha",
        8,
        "--device",
        "cuda",
        *full,
    ]
    train(folder, *args, "--dtype", dtype, "--out", folder / "half")
    train(folder, *args, "--dtype", "fp32", "--out", folder / "fp32")
    half, fp32 = log(folder / "half"), log(folder / "fp32")
    assert sum(row["grad_norm"] is None for row in half) <= 3
    if all(row["grad_norm"] is not None for row in half):
        assert all(
            a["mle"] == pytest.approx(b["mle"], rel=tolerance)
            for a, b in zip(half, fp32, strict=True)
        )
    assert (
        half[-1]["mle"] == pytest.approx(fp32[-1]["mle"], rel=0.1)
        and half[-1]["mle"] < half[0]["mle"] - 1
    )


def step_of(config, device, dtype, tokens):
    """One LoRA step with activation checkpointing on a random model of `config`, made where it will
    be; returns the loss."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(DTYPES[dtype]).to_empty(device=device)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim == 2 else torch.nn.init.ones_(p)
    with torch.device(device):
        add_lora(model, LoraSettings(16, 32.0, LINEARS.split(",")))
    model.recompute = True
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    ids = list(range(3, tokens + 3))
    encoded = EncodedSample(None, ids[: tokens // 2], ids[tokens // 2 :])
    mle_sum, _ = loss_sums(
        model, collate([TwinPair(encoded, None)]), Settings(device=device, dtype=dtype)
    )
    mle_sum.backward()
    optimizer.step()
    return mle_sum.item() / (tokens - tokens // 2)


def test_a_lora_step_with_recomputation_on_a_small_random_model():
    assert step_of(tiny(tied=False).config, "cpu", "fp32", 64) == pytest.approx(
        math.log(4000), rel=0.1
    )


@cuda
def test_lora_on_a_7b_shaped_model_fits_24_gb_on_cuda():
    config = Config(32000, 4096, 11008, 32, 32, max_position_embeddings=4096)
    torch.cuda.reset_peak_memory_stats()
    assert step_of(config, "cuda", "bf16", 512) == pytest.approx(math.log(32000), rel=0.2)
    print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    assert torch.cuda.max_memory_allocated() < 24e9


def corpus(text):
    return lambda f: (f / "train.tsv").write_text(text, encoding="utf-8")


def cut(f):
    path = f / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage, args, said",
    [
        (
            lambda f: (f / "model" / "model.safetensors").unlink(),
            [],
            "model.safetensors: no such file",
        ),
        (cut, [], "expected a whole safetensors file"),
        (
            lambda f: (
                save_model(tiny(hidden_size=64), f / "other")
                or os.replace(f / "other" / "model.safetensors", f / "model" / "model.safetensors")
            ),
            [],
            "config and weights do not belong together",
        ),
        (corpus("en\na\n"), [], "line 1: 'en'; expected JSON, a TSV whose first line is"),
        (corpus("en\txx\na\tb\n"), [], "line 2: found en xx; expected some of"),
        (corpus("en\tit\tnl\tro\na\tb\n"), [], "line 2: 2 columns, expected 4"),
        (None, ["--directions", "en-de"], "--directions en-de: pairs found in"),
        (None, ["--merge"], "is a full model; expected --init with a LoRA run"),
        (None, ["--stage", "2", "--init", "nowhere"], "nowhere: no such run"),
        (None, ["--max-length", "513"], "--max-length 513: the model has 512 positions"),
        (None, ["--alpha", "-1"], "--alpha -1.0: expected at least 0"),
        (None, ["--device", "tpu"], "--device tpu: not possible here; expected cpu"),
        (None, ["--best", "otr"], "--best needs --dev"),
        (None, ["--dev", "train.tsv", "--save-every", "0"], "--dev needs --save-every"),
        # before a model is loaded
        (None, ["--dev", "nowhere.tsv", "--model", "nowhere"], "nowhere.tsv: no such file"),
        (None, ["--keep", "0"], "--keep 0: expected at least 1"),
        (None, ["--lora-targets", "query"], "LoRA targets ['query']: expected some of"),
        (None, ["--lora-dropout", "2"], "LoRA dropout 2.0: expected 0 to 1"),
        (None, ["--merge", "--init", "nowhere"], "nowhere: no such run"),
        (None, ["--out", "."], "exists and is no run of train.py"),
        (None, ["--alhpa", "1"], "unrecognized arguments: --alhpa"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(folder, damage, args, said):
    if damage:
        damage(folder)
    result = script(
        "train.py",
        "--data",
        folder / "train.tsv",
        "--model",
        folder / "model",
        "--out",
        folder / "out",
        *FAST,
        *args,
        cwd=folder,
    )
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert result.stderr.startswith("usage") or result.stderr.count("\n") == 1
    assert not any(name.startswith("out") for name in os.listdir(folder))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_can_spoil_the_weights(
    finished, tmp_path
):
    args = [*RUN, "--save-every", 0, "--clip", 0, "--out", tmp_path / "run"]
    result = script("train.py", *args, "--lr", 1e30, cwd=finished)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    said = result.stderr[result.stderr.index("error: ") :]
    assert (
        "step 2: loss nan" in said and "no checkpoint was made before it: lower --lr 1e+30" in said
    )
    assert "samples: " in said and "open file" in said
    assert [row["step"] for row in log(tmp_path / "run.partial")] == [1]
    # what the sentence advises is possible
    result = script("train.py", *args, "--lr", 1e-3, cwd=finished)
    assert result.returncode == 0, result.stderr


def test_the_figures_of_dev_are_those_of_evaluate_and_the_best_checkpoint_is_the_run(
    finished, tmp_path
):
    args = [
        "--out",
        tmp_path / "run",
        "--dev",
        "dev.tsv",
        "--best",
        "mle",
        "--lr",
        0.3,
        "--save-every",
        3,
    ]
    result = script("train.py", *RUN, *args, cwd=finished)
    assert result.returncode == 0, result.stderr
    rows = [row for row in log(tmp_path / "run") if "dev_mle" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]  # and at the end
    best = min(rows, key=lambda row: row["dev_mle"])["step"]
    assert f"which is step {best}, the best by mle of --dev" in result.stdout
    steps = [tmp_path / "run" / f"step-{row['step']:06}" for row in rows]
    result = script(
        "evaluate.py", "--ckpt", *steps, "--data", "dev.tsv", "--device", "cpu", cwd=finished
    )
    assert result.returncode == 0, result.stderr
    for row, run in zip(rows, steps, strict=True):
        found = json.load(open(run / "eval-dev" / "scores.json"))["directions"].values()
        assert row["dev_otr"] == pytest.approx(sum(r["otr"] for r in found) / len(found))
        model = load_model(run).eval()
        corpus, _ = read_corpus([finished / "dev.tsv"])
        dev = tuning_set(corpus, Tokenizer([run], model.config), 512)
        with torch.no_grad():
            (batches,) = micro_batches(dev.with_twins(dev.samples), 500)
            nats = sum(
                loss_sums(model, b, Settings(device="cpu", dtype="fp32"))[0].item() for b in batches
            )
        assert row["dev_mle"] == pytest.approx(nats / sum(len(b.y) for b in batches), rel=1e-5)
    a, b = (
        load_file(tmp_path / "run" / place / "adapter_model.safetensors")
        for place in ("", f"step-{best:06}")
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and len(log(tmp_path / "run")) == 8
