"""A stopped run: what --resume finds, what it refuses, and that it ends as if never stopped."""

import os
import random
import re
import resource
import shutil
import subprocess
import sys

import pytest
import stress
import torch
from conftest import BASE, ROOT, RUN, TSV, log, same, script, tiny
from safetensors.torch import load_file, save_file

from model import load_model, save_model
from plumbing.base.files import NEW, read_json, write_json
from plumbing.run.progress import Progress
from plumbing.run.record import read_setting
from plumbing.run.removal import LOCK
from plumbing.run.folder import Run
from train import Settings


def resume(folder, *args):
    return script("train.py", *RUN, "--out", "run", "--resume", *args, cwd=folder)


@pytest.mark.parametrize("name", ["stage 1, LoRA with dropout", "stage 2, full, fp16"])
def test_killed_runs_end_as_the_uninterrupted_one_bit_for_bit(tmp_path, name):
    """Three of the kills of tests/stress.py, one of them while a checkpoint is being written."""
    stress.make(tmp_path)
    done, _ = stress.torture(tmp_path, name, stress.SETTINGS[name], 3, random.Random(1), steps=120)
    assert done == 3


@pytest.mark.parametrize("kind", ["crash", "full"])
@pytest.mark.parametrize("name", ["stage 1, full", "stage 2, LoRA"])
def test_a_run_ends_well_after_a_crash_or_a_full_disk_at_any_write(tmp_path, name, kind):
    """Some of the points of tests/stress.py, which tries them all."""
    stress.make(tmp_path)
    first = 1 + len(name + kind) % 4  # so that the four differ
    assert stress.faults(tmp_path, name, stress.SETTINGS[name], kind, every=7, first=first) > 5


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path):
    stress.make(tmp_path)
    assert stress.second(tmp_path, "run", stress.SETTINGS["stage 2, LoRA"], steps=60) > 0


def test_a_run_goes_on_from_its_newest_whole_checkpoint(stopped):
    steps = stopped / "run.partial"
    shutil.copytree(steps / "step-000004", steps / f"step-000006{NEW}")
    result = resume(stopped)
    assert result.returncode == 0, result.stderr
    assert f"step-000006{NEW}: an incomplete checkpoint, deleted" in result.stdout
    assert "resuming from run.partial/step-000004" in result.stdout and same(stopped)
    assert not list(stopped.rglob(f"*{NEW}")) and not (stopped / "run.partial").exists()
    again = resume(stopped)
    assert again.returncode == 0 and "run is finished" in again.stdout and same(stopped)


def test_deleting_checkpoints_goes_further_back(stopped):
    shutil.rmtree(stopped / "run.partial" / "step-000004")
    result = resume(stopped)
    assert (
        result.returncode == 0
        and "resuming from run.partial/step-000002" in result.stdout
        and same(stopped)
    )
    shutil.rmtree(stopped / "run")
    result = resume(stopped)
    # nothing there: from the first step
    assert result.returncode == 0 and "resuming" not in result.stdout and same(stopped)


def test_a_stopped_run_is_not_overwritten(stopped):
    result = script("train.py", *RUN, "--out", "run", cwd=stopped)
    assert (
        result.returncode == 2
        and "run.partial: a stopped run; --resume goes on with it" in result.stderr
    )
    assert resume(stopped).returncode == 0 and same(stopped)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_dtype_and_the_rate_may_change_on_the_way(stopped, dtype):
    result = resume(stopped, "--dtype", dtype, "--lr", 0.001)
    assert result.returncode == 0, result.stderr
    rates = [row["lr"] for row in log(stopped / "run")]
    assert rates[:4] == [row["lr"] for row in log(stopped / "whole")][:4] and rates[4] < 0.001


def test_merging_does_not_delete_a_stopped_run(stopped):
    result = script("train.py", "--merge", "--init", "whole", "--out", "run", cwd=stopped)
    assert result.returncode == 2 and "run.partial: a stopped run" in result.stderr, result.stderr
    assert resume(stopped).returncode == 0 and same(stopped)


@pytest.mark.parametrize(
    "args, said",
    [
        (["--batch-size", 4], "batch_size is 4, was 8"),
        (["--seed", 2], "seed is 2, was 1"),
        (["--full"], "full is True, was False"),
        (["--directions", "en-it,it-en,en-nl"], "directions is en-it,it-en,en-nl, was supervised"),
        (["--lora-rank", 2], "lora_rank is 2"),
        (["--steps", 9], "steps is 9, was 8"),
    ],
)
def test_another_run_under_the_same_name_is_refused(stopped, args, said):
    before = sorted(os.listdir(stopped / "run.partial"))
    result = resume(stopped, *args)
    assert (
        result.returncode == 2 and said in result.stderr and "choose another --out" in result.stderr
    )
    assert sorted(os.listdir(stopped / "run.partial")) == before


def test_changed_data_is_refused_and_a_changed_split_is_not(stopped):
    os.unlink(stopped / "train.tsv")
    (stopped / "train.tsv").write_text(
        TSV.replace("apri il file 3 ", "apri il file tre "), encoding="utf-8"
    )
    result = resume(stopped)
    assert result.returncode == 2 and "data_crc32 is" in result.stderr
    (stopped / "train.tsv").write_text(TSV, encoding="utf-8")
    result = resume(stopped, "--micro-batch-tokens", 300, "--keep", 1)  # out of memory at 4096, say
    assert result.returncode == 0, result.stderr
    kept = [name for name in os.listdir(stopped / "run") if name.startswith("step-")]
    assert kept == ["step-000006"] and log(stopped / "run")[-1]["mle"] == pytest.approx(
        log(stopped / "whole")[-1]["mle"], rel=0.02
    )


@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("optimizer.safetensors", "flip", "optimizer.safetensors: tensor .* is damaged"),
        ("adapter_model.safetensors", "flip", "adapter_model.safetensors: tensor .* is damaged"),
        (
            "optimizer.safetensors",
            "cut",
            "optimizer.safetensors: .* bytes; expected a whole safetensors file",
        ),
        ("optimizer.safetensors", "delete", "optimizer.safetensors: no such file"),
        ("adapter_model.safetensors", "delete", "adapter_model.safetensors: no such file"),
        ("adapter_config.json", "delete", "adapter_config.json: no such file"),
        ("adapter_config.json", "cut", "adapter_config.json: "),
        ("adapter_config.json", "alpha", "adapter_config.json: .*step-000004"),
        ("state.json", "cut", "state.json: "),
        ("state.json", "delete", "state.json: no such file"),
        ("state.json", "step", "state.json: damaged"),
        ("settings.json", "delete", "settings.json: no such file"),
        ("log.jsonl", "delete", "log.jsonl: missing or damaged; delete that checkpoint"),
        ("log.jsonl", "cut", "log.jsonl: missing or damaged; delete that checkpoint"),
        ("speed.jsonl", "delete", "log.jsonl: missing or damaged; delete that checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(stopped, file, damage, said):
    path = stopped / "run.partial" / "step-000004" / file
    blob = bytearray(path.read_bytes())
    if damage == "flip":
        blob[-9] ^= 4
    elif damage == "cut":
        blob = blob[:-40]
    elif damage == "alpha":
        blob = blob.replace(b'"lora_alpha": 128.0', b'"lora_alpha": 120.0')
    elif damage == "step":
        blob = blob.replace(b'"step": 4', b'"step": 3')
    path.write_bytes(blob) if damage != "delete" else path.unlink()
    result = resume(stopped)
    assert (
        result.returncode == 2
        and "Traceback" not in result.stderr
        and result.stderr.count("\n") == 1
    ), result.stderr
    assert re.search(said, result.stderr), result.stderr
    shutil.rmtree(path.parent)  # what the sentence advises
    assert resume(stopped).returncode == 0 and same(stopped)


def limited(bytes):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))


@pytest.mark.parametrize(
    "room, said", [(20_000, "step-000002 was not written"), (300, "File too large")]
)
def test_a_full_disk_is_one_sentence_and_older_checkpoints_are_untouched(
    finished, tmp_path, room, said
):
    """Files may grow to so many bytes: then a checkpoint, or a log, cannot be written."""
    args = ["--out", tmp_path / "run", "--full", "--lora-dropout", 0]
    result = script("train.py", *RUN, *args, cwd=finished, preexec_fn=limited(room))
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert not (tmp_path / "run").exists() and not list((tmp_path / "run.partial").glob("step-*"))
    result = script("train.py", *RUN, *args, "--resume", cwd=finished)
    assert result.returncode == 0 and (tmp_path / "run" / "model.safetensors").exists(), (
        result.stderr
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: needs another user")
def test_a_read_only_folder_is_one_sentence(finished, tmp_path):
    tmp_path.chmod(0o500)
    result = script("train.py", *RUN, "--out", tmp_path / "run", cwd=finished)
    tmp_path.chmod(0o700)
    assert (
        result.returncode == 2
        and "Permission denied" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_a_place_that_cannot_be_written_is_one_sentence(finished):
    result = script("train.py", *RUN, "--out", "train.tsv/run", cwd=finished)
    assert (
        result.returncode == 2
        and "Not a directory" in result.stderr
        and "Traceback" not in result.stderr
    ), result.stderr


def test_bad_input_leaves_a_stopped_run_as_it_was(folder):
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "log.jsonl").write_text("the log of a stopped run")
    result = script(
        "train.py",
        "--data",
        folder / "none.tsv",
        "--model",
        folder / "model",
        "--out",
        folder / "out",
        cwd=folder,
    )
    assert (
        result.returncode == 2
        and (folder / "out.partial" / "log.jsonl").read_text() == "the log of a stopped run"
    )


def test_a_model_without_a_run_takes_no_settings_from_the_current_folder(folder, monkeypatch):
    write_json(folder / "settings.json", {"template": "alma"})
    monkeypatch.chdir(folder)
    assert read_setting(Settings(stage=1).init, "template", "alpaca") == "alpaca"
    assert read_setting(Settings(stage=1, init=str(folder)).init, "template", "alpaca") == "alma"


class Unmoved:
    """Stands in for an optimizer."""

    moments = {"a": torch.zeros(2)}
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    @staticmethod
    def is_finite():
        return True


@pytest.mark.parametrize("best_by, kept", [("", [3]), ("mle", [1, 3]), ("otr", [2, 3])])
def test_only_the_newest_checkpoints_stay_and_the_best_where_one_is_asked_for(
    tmp_path, best_by, kept
):
    """--dev without --best once kept one more than --keep says."""
    run = Run(str(tmp_path / "run"), keep=1)
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / LOCK).touch()
    run.begin({"seed": 1})
    run.open(None, lambda folder: os.makedirs(folder, exist_ok=True), Unmoved)
    progress = Progress(None)
    for otr, mle in [(50.0, 1.0), (10.0, 2.0), (20.0, 3.0)]:
        progress.advance(1, True)
        progress.compare({"dev_otr": otr, "dev_mle": mle}, best_by)
        run.logs.write({"step": progress.step}, {"step": progress.step})
        run.save(progress)
        run.prune(progress)
    assert run.checkpoints() == [run.step_folder(step) for step in kept]
    assert log(tmp_path / "run.partial" / "step-000003") == [{"step": n} for n in (1, 2, 3)]


# What is not ours, and what another run needs


def test_what_the_user_put_beside_a_run_is_never_deleted(stopped):
    mine = ["run.old/notes", "run.partial/step-000002.backup/state.json", "run.partial/step-2/x"]
    mine += ["run.partial/step-000006.partial/x", "run.partial/notes.md"]
    for name in mine:
        (stopped / name).parent.mkdir(parents=True, exist_ok=True)
        (stopped / name).write_text("mine")
    result = resume(stopped, "--keep", 1)
    assert result.returncode == 0 and same(stopped), result.stderr
    assert all((stopped / name.replace(".partial/", "/", 1)).read_text() == "mine" for name in mine)


def test_a_finished_run_with_something_of_the_user_in_it_is_not_replaced(stopped):
    (stopped / "run.partial").rename(stopped / "away")
    shutil.copytree(stopped / "whole", stopped / "run")
    (stopped / "run" / "notes.md").write_text("mine")
    result = script("train.py", *RUN, "--out", "run", cwd=stopped)
    said = "error: run holds run/notes.md, which is no part of that run: move it, or choose another"
    assert result.returncode == 2 and result.stderr.startswith(said), result.stderr
    assert not (stopped / "run.partial").exists()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """full, a finished run, and ad, an adapter on it, in a folder with links to them."""
    folder = tmp_path_factory.mktemp("chain")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    few = ["--data", "train.tsv", "--pairs", 8, "--steps", 2, "--lora-rank", 2, "--device", "cpu"]
    for out, args in [("full", ["--model", "model", "--full"]), ("ad", ["--model", "full"])]:
        result = script("train.py", *few, *args, "--out", out, cwd=folder)
        assert result.returncode == 0, result.stderr
    os.symlink(folder / "full", folder / "link")
    (folder / "deep").mkdir()
    os.symlink(folder, folder / "deep" / "up")
    return folder, few


@pytest.mark.parametrize(
    "args",
    [
        ["--model", "full", "--out", "full"],
        ["--model", "full", "--out", "./full/"],
        ["--model", "full", "--out", "link"],
        ["--model", "link", "--out", "deep/up/full"],
        ["--init", "ad", "--out", "full"],
        ["--merge", "--init", "ad", "--out", "full"],
        ["--merge", "--init", "ad", "--out", "ad"],
        ["--stage", 2, "--init", "ad", "--out", "./ad"],
        ["--init", "ad", "--model", "link", "--out", "full"],
    ],
)
def test_a_run_cannot_replace_what_it_is_made_from(chain, args):
    folder, few = chain
    before = sorted(map(str, folder.rglob("*")))
    result = script("train.py", *few, *args, cwd=folder)
    assert result.returncode == 2 and "which the run is made from; choose" in result.stderr
    assert sorted(map(str, folder.rglob("*"))) == before and result.stderr.count("\n") == 1
    load_model(folder / "full"), load_model(folder / "ad")


def test_a_run_through_a_link_goes_where_the_link_leads(chain):
    folder, few = chain
    shutil.copytree(folder / "full", folder / "other")
    os.symlink(folder / "other", folder / "to-other")
    result = script("train.py", *few, "--model", "model", "--out", "to-other", cwd=folder)
    assert result.returncode == 0 and (folder / "to-other").is_symlink(), result.stderr
    assert (folder / "other" / "adapter_config.json").exists()


# Begin and go on


def test_nothing_of_a_run_that_failed_at_its_end_is_published_with_another(finished, tmp_path):
    """Files of an adapter once lay beside the full model of the next run."""
    (tmp_path / "run.partial").mkdir()
    write_json(tmp_path / "run.partial" / "settings.json", {})
    for name in ("adapter_config.json", "adapter_model.safetensors", "generation_config.json"):
        source = finished / "whole" / name
        target = tmp_path / "run.partial" / name
        shutil.copy(source, target) if source.exists() else target.write_text("{}")
    args = ["--full", "--out", tmp_path / "run"]
    result = script("train.py", *RUN, "--lora-dropout", 0, *args, cwd=finished)
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "run").lora is None
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}


def test_settings_are_compared_without_a_checkpoint_too(stopped):
    for step in (stopped / "run.partial").glob("step-*"):
        shutil.rmtree(step)
    result = resume(stopped, "--seed", 2)
    assert result.returncode == 2 and "--resume: seed is 2, was 1 when run.partial" in result.stderr
    assert resume(stopped).returncode == 0 and same(stopped)


def test_settings_are_compared_where_the_run_is_finished_too(finished):
    for args, code, said in [
        (["--seed", 2], 2, "--resume: seed is 2, was 1 when whole was begun; choose another --out"),
        (["--lr", 0.1, "--keep", 3], 0, "whole is finished, there is nothing to resume"),
    ]:
        result = script("train.py", *RUN, "--out", "whole", "--resume", *args, cwd=finished)
        assert result.returncode == code and said in result.stdout + result.stderr, result.stderr


def own_copies(folder):
    """The links of a stopped run replaced by copies, which may be changed."""
    for name in ("model", "train.tsv", "dev.tsv"):
        source = (folder / name).resolve()
        (folder / name).unlink()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)


def edit_base(folder):
    model = load_model(folder / "model")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] += 0.01
    save_model(model, folder / "model", BASE)


def edit_config(folder):
    path = folder / "model" / "tokenizer_config.json"
    write_json(path, read_json(path) | {"add_bos_token": False})


@pytest.mark.parametrize(
    "edit, said",
    [
        (edit_base, "start_crc32 is"),
        (edit_config, "tokenizer and prompts.json do not give the ids"),
    ],
)
def test_an_edited_base_or_tokenizer_is_noticed(stopped, edit, said):
    own_copies(stopped)
    config = stopped / "run.partial" / "step-000004" / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": str(stopped / "model")})
    edit(stopped)
    result = resume(stopped)
    assert result.returncode == 2 and said in result.stderr, result.stderr
    assert "choose another --out" in result.stderr


def test_base_weights_that_were_edited_without_their_header_are_noticed(stopped):
    """As those of others are, which have no checksums."""
    own_copies(stopped)
    path = stopped / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors, path)  # without checksums
    args = [*RUN, "--out", "other", "--lr", 0.1]
    assert script("train.py", *args, "--lora-dropout", 0, cwd=stopped).returncode == 0
    shutil.copytree(stopped / "other", stopped / "other.partial")
    shutil.rmtree(stopped / "other")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 1.001}, path)
    result = script("train.py", *args, "--lora-dropout", 0, "--resume", cwd=stopped)
    assert result.returncode == 2 and "base model's weights are not those" in result.stderr


def test_another_dev_file_under_best_is_noticed(finished, tmp_path):
    dev = tmp_path / "dev.tsv"
    shutil.copy(finished / "dev.tsv", dev)
    args = ["--out", tmp_path / "run", "--dev", dev, "--best", "mle", "--save-every", 4]
    assert script("train.py", *RUN, *args, cwd=finished).returncode == 0
    os.rename(tmp_path / "run", tmp_path / "run.partial")
    dev.write_text(TSV.replace("file 1 ", "file one "), encoding="utf-8")
    result = script("train.py", *RUN, *args, "--resume", cwd=finished)
    assert result.returncode == 2 and "dev_crc32 is" in result.stderr, result.stderr


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stopped_run_in_a_moved_project_is_gone_on_with(stopped, stage, tmp_path_factory):
    """--model names the base that moved, and is no other setting."""
    place = tmp_path_factory.mktemp("moved")
    args = [*RUN]
    if stage == 2:
        args += ["--stage", 2, "--alpha", 0.1, "--init", "whole", "--lora-dropout", 0]
        args.remove("--model"), args.remove("model")
        result = script("train.py", *args, "--out", "two", cwd=stopped)
        assert result.returncode == 0, result.stderr
        shutil.copytree(stopped / "two", stopped / "run.partial", dirs_exist_ok=True)
        shutil.rmtree(stopped / "run.partial" / "step-000006")
    for name in ("train.tsv", "whole", "run.partial"):
        source = stopped / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    shutil.copytree(stopped / "model", place / "elsewhere" / "model")
    for path in place.rglob("adapter_config.json"):
        write_json(path, read_json(path) | {"base_model_name_or_path": "/nowhere/model"})
    if stage == 2:
        result = script("train.py", *args, "--out", "run", "--resume", cwd=place)
        assert result.returncode == 2 and "name the folder with --model" in result.stderr
    moved = ["--model", "elsewhere/model", "--data", "train.tsv", "--out", "run", "--resume"]
    result = script("train.py", *args, *moved, cwd=place)
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stderr
    before = "two" if stage == 2 else "whole"
    x = load_file(stopped / before / "adapter_model.safetensors")
    y = load_file(place / "run" / "adapter_model.safetensors")
    assert all(torch.equal(x[name], y[name]) for name in x)


# A loss that is not finite


def test_after_an_explosion_the_advice_works(stopped):
    """The state after the exploding update was once saved, and the good one pruned."""
    result = resume(stopped, "--lr", 1e30, "--save-every", 1, "--keep", 1)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    said = "error: step 6: loss nan, gradient norm nan; run.partial/step-000004 is the last one"
    assert said in result.stderr and "lower --lr 1e+30" in result.stderr, result.stderr
    load_model(stopped / "run.partial" / "step-000004")
    assert resume(stopped, "--lr", 1e29, "--save-every", 1).returncode == 2  # and again
    result = resume(stopped)
    assert result.returncode == 0 and "resuming from run.partial/step-000004" in result.stdout
    assert same(stopped) and not list(stopped.rglob("*not-finite*"))


def test_an_explosion_of_the_last_update_is_no_finished_run(finished, tmp_path):
    args = [*RUN, "--save-every", 0, "--clip", 0, "--steps", 1, "--warmup", 0]
    result = script("train.py", *args, "--lr", 1e39, "--out", tmp_path / "run", cwd=finished)
    assert result.returncode == 2, result.stderr
    assert not (tmp_path / "run").exists()


# --dev


def test_trouble_with_dev_is_said_before_the_first_step(finished, tmp_path):
    (tmp_path / "ha.tsv").write_text("en\tha\nopen\tbude\n")
    args = [*RUN, "--out", tmp_path / "run", "--dev"]
    result = script("train.py", *args, tmp_path / "ha.tsv", cwd=finished)
    assert result.returncode == 2 and "langid has no ha, but" in result.stderr, result.stderr
    assert "--candidates" not in result.stderr and not (tmp_path / "run.partial").exists()
    save_model(tiny(max_position_embeddings=130), tmp_path / "model", BASE)
    few = ["--model", tmp_path / "model", "--max-length", 130]
    result = script("train.py", *args, "dev.tsv", *few, cwd=finished)
    assert result.returncode == 2 and "leaves no room for the prompt in 130" in result.stderr
    assert not (tmp_path / "run.partial").exists()


def test_a_checkpoint_is_saved_before_dev_is_looked_at(finished, tmp_path):
    """Decoding may run out of memory: the steps before it are not lost, and figures and choice are
    those of a run in peace."""
    args = ["--dev", "dev.tsv", "--best", "otr", "--save-every", 3, "--lr", 0.3]
    peace = script("train.py", *RUN, *args, "--out", tmp_path / "peace", cwd=finished)
    assert peace.returncode == 0, peace.stderr
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r})\n"
        "import train, evaluate; from plumbing import cli\n"
        "calls = []\n"
        "def translate(*args, old=evaluate.translate):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: raise MemoryError('all of it')\n"
        "    return old(*args)\n"
        "evaluate.translate = translate\n"
        "cli.run_script(train.main, train.Settings)"
    )
    command = [sys.executable, "-c", code, *map(str, [*RUN, *args, "--out", tmp_path / "run"])]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True)
    assert done.returncode == 2 and "error: out of memory: all of it" in done.stderr, done.stderr
    assert (tmp_path / "run.partial" / "step-000006").exists()
    again = script("train.py", *RUN, *args, "--out", tmp_path / "run", "--resume", cwd=finished)
    assert again.returncode == 0 and "step-000006" in again.stdout, again.stderr
    assert same(tmp_path, "peace", "run")
    assert again.stdout.split("which is")[1] == peace.stdout.split("which is")[1]


def test_best_goes_on_where_the_best_checkpoint_was_deleted(finished, tmp_path):
    args = [*RUN, "--out", tmp_path / "run", "--dev", "dev.tsv", "--best", "mle", "--lr", 0.3]
    assert script("train.py", *args, cwd=finished).returncode == 0
    os.rename(tmp_path / "run", tmp_path / "run.partial")
    for step in (2, 4, 8):  # of 2, 4, 6 and 8
        shutil.rmtree(tmp_path / "run.partial" / f"step-{step:06}")
    result = script("train.py", *args, "--resume", cwd=finished)
    assert result.returncode == 0 and "is gone: the best of the others" in result.stdout
    load_model(tmp_path / "run")


def test_a_folder_of_the_user_with_the_name_of_a_run_on_its_way_is_left_alone(folder):
    shutil.copytree(folder / "model", folder / "run.partial")
    args = ["--data", "train.tsv", "--model", "model", "--steps", 1, "--device", "cpu"]
    result = script("train.py", *args, "--out", "run", cwd=folder)
    assert result.returncode == 2 and "and is no run of train.py: move it" in result.stderr
    load_model(folder / "run.partial")
    for name in ("model.safetensors", "config.json"):  # with them went what could be replaced
        (folder / "run.partial" / name).rename(folder / "run.partial" / f"my-{name}")
    result = script("train.py", *args, "--out", "run.partial", cwd=folder)
    assert result.returncode == 2 and ".partial is for runs on their way" in result.stderr
    assert not (folder / "run.partial.partial").exists()


def test_names_that_json_and_safetensors_cannot_say_are_refused_first(folder):
    args = ["--data", "train.tsv", "--model", "model", "--steps", 1, "--device", "cpu"]
    result = script("train.py", *args, "--out", "a\udcff", cwd=folder)
    assert result.returncode == 2 and "--out a\\udcff: not UTF-8; write it anew" in result.stderr
    assert sorted(os.listdir(folder)) == ["model", "train.tsv"]
