"""A stopped run: what --resume finds, what it refuses, and that it ends as if never stopped."""

import os
import random
import resource
import shutil

import pytest
import stress
import torch
from conftest import BARE, BASE, RUN, TSV, log, one_sentence, same, script, tiny
from safetensors.torch import load_file

import evaluate
from model import load_model, save_model
from plumbing.base.errors import InputError
from plumbing.base.files import NEW, read_json, write_json
from plumbing.base.flags import parse
from plumbing.base.folders import strange_files
from plumbing.compute.optimizer import Optimizer
from train import Settings, main


def run_here(folder, *args):
    """train.py in this process, in a folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        main(parse(Settings, "", [*map(str, args)]))
    finally:
        os.chdir(before)


def resume(folder, *args):
    run_here(folder, *RUN, "--out", "run", "--resume", *args)


# Ends at the worst moment


@pytest.mark.parametrize("name", ["stage 1, LoRA with dropout", "stage 2, full, fp16"])
def test_killed_runs_end_as_the_uninterrupted_one_bit_for_bit(tmp_path, name):
    """One kill at a random moment and one while a checkpoint is being written."""
    stress.make(tmp_path)
    done, _ = stress.torture(tmp_path, name, stress.SETTINGS[name], 2, random.Random(1), steps=60)
    assert done == 2


@pytest.mark.parametrize("kind", ["crash", "full"])
@pytest.mark.parametrize("name", ["stage 1, full", "stage 2, LoRA"])
def test_a_run_ends_well_after_a_crash_or_a_full_disk_at_any_write(tmp_path, name, kind):
    """Some of the points of tests/stress.py, which tries them all."""
    stress.make(tmp_path)
    first = 1 + len(name + kind) % 4  # so that the four differ
    assert stress.faults(tmp_path, name, stress.SETTINGS[name], kind, every=13, first=first) > 4


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path):
    stress.make(tmp_path)
    assert stress.second(tmp_path, "run", stress.SETTINGS["stage 2, LoRA"], steps=21) > 0


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(finished, tmp_path):
    def limited():  # files may grow to so many bytes: then a checkpoint cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    args = [*BARE, "--out", tmp_path / "run", "--full"]
    result = script("train.py", *args, cwd=finished, preexec_fn=limited)
    one_sentence(result, "step-000002 was not written", "--resume")
    assert not (tmp_path / "run").exists() and not list((tmp_path / "run.partial").glob("step-*"))
    run_here(finished, *args, "--resume")
    assert (tmp_path / "run" / "model.safetensors").exists()


# Going on


def test_a_run_goes_on_from_its_newest_whole_checkpoint(stopped, capsys):
    steps = stopped / "run.partial"
    shutil.copytree(steps / "step-000006", steps / f"step-000008{NEW}")
    resume(stopped)
    said = capsys.readouterr().out
    assert f"step-000008{NEW}: an incomplete checkpoint, deleted" in said
    assert "resuming from run.partial/step-000006" in said and same(stopped)
    assert not list(stopped.rglob(f"*{NEW}")) and not (stopped / "run.partial").exists()
    resume(stopped)
    assert "run is finished" in capsys.readouterr().out and same(stopped)


def test_deleting_checkpoints_goes_further_back(stopped, capsys):
    shutil.rmtree(stopped / "run.partial" / "step-000006")
    resume(stopped)
    assert "resuming from run.partial/step-000004" in capsys.readouterr().out and same(stopped)
    shutil.rmtree(stopped / "run")
    resume(stopped)  # nothing there: from the first step
    assert "resuming" not in capsys.readouterr().out and same(stopped)


def test_a_stopped_run_is_not_overwritten(stopped):
    with pytest.raises(InputError, match="run.partial: a stopped run; --resume goes on with it"):
        run_here(stopped, *RUN, "--out", "run")
    resume(stopped)
    assert same(stopped)


def test_what_may_change_on_the_way_does(stopped):
    resume(stopped, "--dtype", "bf16", "--lr", 0.001, "--micro-batch-tokens", 300)
    rates = [row["lr"] for row in log(stopped / "run")]
    assert rates[:6] == [row["lr"] for row in log(stopped / "whole")][:6] and rates[6] < 0.001


def test_a_rate_and_a_batch_that_are_left_out_are_those_of_the_stopped_run(stopped):
    args, left_out = [*map(str, RUN)], ("--lr", "--batch-size")
    at = [i for i, word in enumerate(args) if word in left_out]
    args = [word for i, word in enumerate(args) if i not in at and i - 1 not in at]
    settings = read_json(stopped / "run.partial" / "settings.json")
    write_json(stopped / "run.partial" / "settings.json", settings | {"lr": 0.0003})
    run_here(stopped, *args, "--out", "run", "--resume")
    found = read_json(stopped / "run" / "settings.json")
    assert (found["lr"], found["batch_size"]) == (0.0003, settings["batch_size"])
    run_here(stopped, *args, "--out", "run", "--resume")  # finished
    (stopped / "run.partial").mkdir()  # of a run that was killed before it had begun
    run_here(stopped, *args, "--out", "run", "--resume")


def test_a_link_to_a_run_is_the_run(stopped):
    """Beside the link there is no folder of a stopped run."""
    os.symlink("run", stopped / "link")
    at = RUN.index("--batch-size")
    args = RUN[:at] + RUN[at + 2 :]
    run_here(stopped, *args, "--out", "link", "--resume")
    assert same(stopped) and (stopped / "link").is_symlink()


@pytest.mark.parametrize(
    "args, said",
    [
        (["--batch-size", 4], "batch_size is 4, was 8"),
        (["--seed", 2], "seed is 2, was 1"),
        (["--directions", "en-it,it-en,en-nl"], "directions is en-it,it-en,en-nl, was supervised"),
        (["--lora-rank", 2], "lora_rank is 2"),
        (["--steps", 9], "steps is 9, was 8"),
        (["--template", "alma"], "template is alma, was alpaca"),
    ],
)
def test_another_run_under_the_same_name_is_refused(stopped, args, said):
    before = sorted(os.listdir(stopped / "run.partial"))
    with pytest.raises(InputError, match=f"{said}.*choose another --out"):
        resume(stopped, *args)
    assert sorted(os.listdir(stopped / "run.partial")) == before


def test_settings_are_compared_without_a_checkpoint_and_where_the_run_is_finished(stopped, capsys):
    for step in (stopped / "run.partial").glob("step-*"):
        shutil.rmtree(step)
    with pytest.raises(InputError, match="seed is 2, was 1.* when run.partial"):
        resume(stopped, "--seed", 2)
    with pytest.raises(InputError, match="seed is 2, was 1.* when .*whole"):
        run_here(stopped, *RUN, "--out", "whole", "--resume", "--seed", 2)
    run_here(stopped, *RUN, "--out", "whole", "--resume", "--lr", 0.1)
    assert "whole is finished" in capsys.readouterr().out


def own_copies(folder):
    """The links of a stopped run replaced by copies, which may be changed."""
    for name in ("model", "train.tsv"):
        source = (folder / name).resolve()
        (folder / name).unlink()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)


def edit_base(folder):
    path = folder / "model" / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-9] ^= 1
    path.write_bytes(blob)


def edit_tokenizer(folder):
    path = folder / "model" / "tokenizer_config.json"
    write_json(path, read_json(path) | {"add_bos_token": False})


def edit_data(folder):
    text = TSV.replace("apri il file", "apri un file")
    (folder / "train.tsv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "edit, said",
    [(edit_base, "start_crc32"), (edit_tokenizer, "start_crc32"), (edit_data, "data_crc32")],
)
def test_an_edited_base_or_tokenizer_or_corpus_is_noticed(stopped, edit, said):
    own_copies(stopped)
    edit(stopped)
    with pytest.raises(InputError, match=f"{said} is .*choose another --out"):
        resume(stopped)


def test_a_run_of_another_version_is_refused_in_one_sentence(stopped):
    for path in (stopped / "run.partial").rglob("settings.json"):
        settings = read_json(path)
        del settings["start_crc32"]
        write_json(path, settings)
    with pytest.raises(InputError, match="this version of train.py.*choose another --out"):
        resume(stopped)


def test_a_stopped_run_in_a_moved_project_is_gone_on_with(stopped, tmp_path_factory):
    """--model names the base that moved, and is no other setting."""
    place = tmp_path_factory.mktemp("moved")
    for name in ("train.tsv", "whole", "run.partial"):
        source = stopped / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    shutil.copytree(stopped / "model", place / "elsewhere" / "model")
    for path in place.rglob("adapter_config.json"):
        write_json(path, read_json(path) | {"base_model_name_or_path": "/nowhere/model"})
    run_here(place, *RUN, "--model", "elsewhere/model", "--out", "run", "--resume")
    assert same(place)


@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("optimizer.safetensors", "cut", "optimizer.safetensors: .* bytes; expected a whole"),
        ("optimizer.safetensors", "delete", "optimizer.safetensors: no such file"),
        ("adapter_model.safetensors", "delete", "adapter_model.safetensors: no such file"),
        ("adapter_config.json", "cut", "adapter_config.json: "),
        ("adapter_config.json", "alpha", "adapter_config.json: .*step-000006"),
        ("state.json", "cut", "state.json: "),
        ("state.json", "delete", "state.json: no such file"),
        ("state.json", "step", "log.jsonl: missing or damaged"),
        ("settings.json", "delete", "settings.json: no such file"),
        ("log.jsonl", "delete", "log.jsonl: missing or damaged; delete that checkpoint"),
        ("speed.jsonl", "cut", "log.jsonl: missing or damaged; delete that checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(stopped, file, damage, said):
    path = stopped / "run.partial" / "step-000006" / file
    blob = path.read_bytes()
    if damage == "cut":
        blob = blob[:-40]
    elif damage == "alpha":
        blob = blob.replace(b'"lora_alpha": 128.0', b'"lora_alpha": 120.0')
    elif damage == "step":
        blob = blob.replace(b'"step": 6', b'"step": 5')
    path.write_bytes(blob) if damage != "delete" else path.unlink()
    with pytest.raises(InputError, match=said):
        resume(stopped)
    shutil.rmtree(path.parent)  # what the sentence advises
    resume(stopped)
    assert same(stopped)


@pytest.mark.parametrize("odd", [{"base": "a text"}, {"lr": None}, {"supervised": 3, "lr": "x"}])
def test_a_run_that_is_continued_may_have_odd_settings(stopped, odd):
    own_copies(stopped)
    shutil.copytree(stopped / "whole", stopped / "first")
    path = stopped / "first" / "settings.json"
    write_json(path, read_json(path) | odd)
    run_here(stopped, "--stage", 2, "--init", "first", *BARE, "--steps", 1, "--out", "second")
    assert (stopped / "second" / "README.md").exists()


def test_a_name_without_room_for_a_mark_is_refused_before_the_first_step(stopped):
    with pytest.raises(InputError, match="no room for the marks"):
        run_here(stopped, *BARE, "--out", "x" * 245)


def test_what_a_kill_within_safetensors_leaves_is_not_published(stopped):
    for place in ("run.partial", f"run.partial/step-000008{NEW}"):
        (stopped / place).mkdir(exist_ok=True)
        (stopped / place / ".tmpAb3dEf").write_bytes(b"half")
    resume(stopped)
    assert same(stopped) and not strange_files(stopped / "run")
    assert not list(stopped.rglob(".tmp*"))


# What is not ours, and what another run needs


def test_what_the_user_put_beside_a_run_is_never_deleted(stopped):
    mine = ["run.old/notes", "run.partial/step-000002.backup/state.json", "run.partial/step-2/x"]
    mine += ["run.partial/step-000006.partial/x", "run.partial/notes.md"]
    for name in mine:
        (stopped / name).parent.mkdir(parents=True, exist_ok=True)
        (stopped / name).write_text("mine")
    resume(stopped)
    assert same(stopped)
    assert all((stopped / name.replace(".partial/", "/", 1)).read_text() == "mine" for name in mine)


def test_a_finished_run_with_something_of_the_user_in_it_is_not_replaced(stopped):
    (stopped / "run.partial").rename(stopped / "away")
    shutil.copytree(stopped / "whole", stopped / "run")
    (stopped / "run" / "eval-test").mkdir()
    (stopped / "run" / "eval-test" / "notes.md").write_text("mine")
    with pytest.raises(InputError, match="run holds run/eval-test/notes.md"):
        run_here(stopped, *RUN, "--out", "run")
    assert not (stopped / "run.partial").exists()


def test_folders_that_are_no_runs_are_left_alone(folder):
    args = ["--data", "train.tsv", "--model", "model", "--steps", 1, "--device", "cpu"]
    with pytest.raises(InputError, match="model exists and is no run of train.py"):
        run_here(folder, *args, "--model", BASE, "--out", "model")
    shutil.copytree(folder / "model", folder / "run.partial")
    with pytest.raises(InputError, match="and is no run of train.py: move it"):
        run_here(folder, *args, "--out", "run")
    load_model(folder / "run.partial"), load_model(folder / "model")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """full, a finished run, and ad, an adapter on it, in a folder with links to them."""
    folder = tmp_path_factory.mktemp("chain")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    few = ["--data", "train.tsv", "--pairs", 8, "--steps", 2, "--device", "cpu"]
    for out, args in [("full", ["--model", "model", "--full"]), ("ad", ["--model", "full"])]:
        run_here(folder, *few, *args, "--out", out)
    os.symlink(folder / "full", folder / "link")
    (folder / "deep").mkdir()
    os.symlink(folder, folder / "deep" / "up")
    return folder, few


@pytest.mark.parametrize(
    "args",
    [
        ["--model", "full", "--out", "./full/"],
        ["--model", "full", "--out", "link"],
        ["--model", "link", "--out", "deep/up/full"],
        ["--init", "ad", "--out", "full"],
        ["--stage", 2, "--init", "ad", "--out", "./ad"],
        ["--init", "ad", "--model", "link", "--out", "full"],
    ],
)
def test_a_run_cannot_replace_what_it_is_made_from(chain, args):
    folder, few = chain
    before = sorted(map(str, folder.rglob("*")))
    with pytest.raises(InputError, match="which the run is made from; choose another --out"):
        run_here(folder, *few, *args)
    assert sorted(map(str, folder.rglob("*"))) == before


def test_a_run_through_a_link_goes_where_the_link_leads(chain):
    folder, few = chain
    shutil.copytree(folder / "full", folder / "other")
    os.symlink(folder / "other", folder / "to-other")
    run_here(folder, *few, "--model", "model", "--out", "to-other")
    assert (folder / "to-other").is_symlink()
    assert (folder / "other" / "adapter_config.json").exists()


def test_nothing_of_a_run_that_failed_at_its_end_is_published_with_another(finished, tmp_path):
    """Files of an adapter once lay beside the full model of the next run."""
    (tmp_path / "run.partial").mkdir()
    write_json(tmp_path / "run.partial" / "settings.json", {})
    left = ["adapter_config.json", "adapter_model.safetensors", "generation_config.json"]
    for name in left:
        (tmp_path / "run.partial" / name).write_text("{}")
    run_here(finished, *BARE, "--full", "--out", tmp_path / "run")
    assert load_model(tmp_path / "run").lora is None
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {*left}


# A loss that is not finite, and --dev


def test_after_an_explosion_the_advice_works(stopped, capsys):
    """The state after the exploding update was once saved, and the good one pruned."""
    with pytest.raises(InputError, match="step 8: loss nan.*step-000006 is the last one with a"):
        resume(stopped, "--lr", 1e30, "--save-every", 1)
    load_model(stopped / "run.partial" / "step-000006")
    resume(stopped, "--lr", 0.002)
    assert "resuming from run.partial/step-000006" in capsys.readouterr().out
    assert same(stopped) and not list(stopped.rglob("*not-finite*"))


def test_an_explosion_of_the_last_update_is_no_finished_run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Optimizer, "is_finite", lambda self: False)
    args = [*RUN, "--save-every", 0, "--steps", 1, "--out", tmp_path / "run"]
    with pytest.raises(InputError, match="not finite; lower --lr"):
        run_here(finished, *args)
    assert not (tmp_path / "run").exists()


def test_trouble_with_dev_is_said_before_the_first_step(finished, tmp_path):
    (tmp_path / "ha.tsv").write_text("en\tha\nopen\tbude\n")
    args = [*RUN, "--out", tmp_path / "run", "--dev"]
    with pytest.raises(InputError, match="langid has no ha"):
        run_here(finished, *args, tmp_path / "ha.tsv")
    save_model(tiny(max_position_embeddings=130), tmp_path / "model", BASE)
    few = ["--model", tmp_path / "model", "--max-length", 130]
    with pytest.raises(InputError, match="leaves no room for the prompt in 130"):
        run_here(finished, *args, "dev.tsv", *few)
    assert not (tmp_path / "run.partial").exists()


def test_a_checkpoint_is_saved_before_dev_is_looked_at(finished, tmp_path, monkeypatch, capsys):
    """Decoding may run out of memory: the steps before it are not lost, and figures and choice are
    those of a run in peace."""
    args = [*RUN, "--dev", "dev.tsv", "--best", "otr", "--save-every", 3, "--lr", 0.3]
    run_here(finished, *args, "--out", tmp_path / "peace")
    peace, calls = capsys.readouterr().out, []

    def translate(*args, usual=evaluate.translate):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("all of it")
        return usual(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "translate", translate)
        with pytest.raises(MemoryError):
            run_here(finished, *args, "--out", tmp_path / "run")
    assert (tmp_path / "run.partial" / "step-000006").exists()
    capsys.readouterr()
    run_here(finished, *args, "--out", tmp_path / "run", "--resume")
    again = capsys.readouterr().out
    assert "step-000006" in again and same(tmp_path, "peace", "run")
    assert again.split("which is")[1] == peace.split("which is")[1]


def test_best_goes_on_where_the_best_checkpoint_was_deleted(finished, tmp_path, capsys):
    args = [*RUN, "--out", tmp_path / "run", "--dev", "dev.tsv", "--best", "mle", "--lr", 0.3]
    run_here(finished, *args)
    os.rename(tmp_path / "run", tmp_path / "run.partial")
    state = read_json(tmp_path / "run.partial" / "step-000008" / "state.json")
    state["best"] = [0, 0.0, 2]  # a step that was pruned
    write_json(tmp_path / "run.partial" / "step-000008" / "state.json", state)
    run_here(finished, *args, "--resume")
    assert "is gone: the best of the others" in capsys.readouterr().out
    load_model(tmp_path / "run")


def test_only_the_newest_checkpoints_stay_and_the_best(finished, tmp_path):
    run_here(finished, *RUN, "--out", tmp_path / "run", "--dev", "dev.tsv", "--lr", 0.3)
    steps = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert steps == ["step-000006", "step-000008"]  # --dev without --best keeps no more
    args = ["--dev", "dev.tsv", "--best", "mle", "--lr", 0.3]
    run_here(finished, *RUN, *args, "--out", tmp_path / "best")
    steps = sorted(path.name for path in (tmp_path / "best").glob("step-*"))
    rows = [row for row in log(tmp_path / "best") if "dev_mle" in row]
    best = min(rows, key=lambda row: row["dev_mle"])["step"]
    assert f"step-{best:06}" in steps and {*steps} >= {"step-000006", "step-000008"}
    a = load_file(tmp_path / "best" / "adapter_model.safetensors")
    b = load_file(tmp_path / "best" / f"step-{best:06}" / "adapter_model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: needs another user")
def test_a_read_only_folder_is_one_sentence(finished, tmp_path):
    tmp_path.chmod(0o500)
    result = script("train.py", *RUN, "--out", tmp_path / "run", cwd=finished)
    tmp_path.chmod(0o700)
    one_sentence(result, "Permission denied")
