"""`train.py --plan` as its user sees it."""

import json
import re

import pytest
from conftest import BASE, script


@pytest.fixture
def bare(tmp_path):
    """A folder with a config.json, and nothing else."""
    config = json.load(open(f"{BASE}/config.json"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 70}))
    return tmp_path


def plan_of(folder, *args):
    rows = "en\tit\n" + "".join(f"Open file {i}\tApri il file {i}\n" for i in range(40))
    (folder / "train.tsv").write_text(rows)
    args = ["--plan", "--model", "bare", "--data", "train.tsv", *args]
    return script("train.py", *args, cwd=folder)


def test_a_configuration_and_data_are_enough_and_nothing_is_written(bare):
    done = plan_of(bare, "--gpu", "H100", "--gpus", "2", "--stage", "2", "--alpha", "0.05")
    assert done.returncode == 0, done.stderr
    said = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:1] != " ")
    assert said["parameters"].startswith("73,") and "tokens are those of the demo's" in done.stdout
    assert {"memory,", "work", "time", "fits"} <= said.keys() and said["fits"].startswith("yes")
    assert sorted(p.name for p in bare.iterdir()) == ["bare", "train.tsv"]


def test_what_does_not_fit_is_said_with_what_would(bare):
    config = json.load(open(bare / "bare" / "config.json"))
    wide = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
    (bare / "bare" / "config.json").write_text(json.dumps(config | wide))
    done = plan_of(bare, "--gpu", "4090", "--gpus", "8", "--full")
    assert done.returncode == 0, done.stderr
    assert "fits         no, a 4090 has 21 GiB" in done.stdout and "GPUs" in done.stdout


def test_a_named_run_that_is_not_there_is_refused(bare):
    done = plan_of(bare, "--stage", "2", "--init", "typo", "--model", "bare")
    assert done.returncode == 2 and "typo" in done.stderr and "Traceback" not in done.stderr


def test_with_dropout_nothing_is_shared(bare):
    done = plan_of(bare, "--lora-dropout", "0.1")
    (whole, computed) = re.search(r"of (\S+) tokens, of which (\S+) are", done.stdout).groups()
    assert whole == computed


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--max-length", "4096"], "--max-length 4096: the model has 512 positions"),
        (["--full", "--init", "tuned"], "tuned is a LoRA run"),
    ],
)
def test_what_a_run_would_refuse_is_not_planned(bare, args, sentence):
    (bare / "tuned").mkdir()
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    adapter |= {"base_model_name_or_path": "bare", "task_type": "CAUSAL_LM"}
    (bare / "tuned" / "adapter_config.json").write_text(json.dumps(adapter))
    done = plan_of(bare, *args)
    assert done.returncode == 2 and sentence in done.stderr and not done.stdout.count("memory")


def test_an_unknown_gpu_is_refused(bare):
    done = plan_of(bare, "--gpu", "H1000")
    assert done.returncode == 2 and "H1000" in done.stderr and "Traceback" not in done.stderr
