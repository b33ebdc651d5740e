"""Folders that appear whole or not at all, one writer at a time; nobody else's file is deleted."""

import multiprocessing
import os
import shutil
import threading
import time

import pytest

from plumbing.base import folders
from plumbing.base.errors import InputError
from plumbing.base.lock import in_turn, locked

OURS = ["model.safetensors", "model-00001-of-00002.safetensors", "adapter_config.json"]
OURS += ["model.safetensors.index.json", "tokenizer.model", "settings.json", "log.jsonl"]
OURS += [
    "step-000002/state.json",
    "step-000002/optimizer.safetensors",
    "eval-test/en-it.txt",
    "eval-test/ceb-en.src.txt",
]
OURS += ["step-000002/.tmpa1B2c3"]  # safetensors was killed
OURS += [f"step-000004{folders.NEW}/config.json", f"settings.json{folders.NEW}"]
THEIRS = ["notes.md", "step-000002.backup/state.json", "step-000002/notes.md", "pytorch_model.bin"]
THEIRS += [
    "eval-test/mine.txt",
    "model-old.safetensors",
    "sub/model.safetensors",
    "README.md",
    ".tmp",
]


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_what_the_program_makes_goes_as_a_whole(tmp_path):
    make(tmp_path / "run", *OURS)
    (tmp_path / "run" / "README.md").write_text(f"---\n# {folders.CARD_MARK}\n---\nx")
    assert folders.strange_files(tmp_path / "run") == []
    folders.remove_folder(str(tmp_path / "run"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", THEIRS)
def test_a_folder_with_a_strange_file_stays_as_it_is(tmp_path, capsys, name):
    make(tmp_path / "run", *OURS, name)
    before = tree(tmp_path)
    folders.remove_folder(str(tmp_path / "run"))
    assert tree(tmp_path) == before and "run stays" in capsys.readouterr().out
    folders.clear_folder(str(tmp_path / "run"), keep=r"log\.jsonl")
    kept = set(tree(tmp_path / "run"))
    assert {name, "log.jsonl"} <= kept and "model.safetensors" not in kept


def test_a_link_to_a_folder_is_not_followed(tmp_path):
    make(tmp_path, "elsewhere/model.safetensors", "run/config.json")
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "eval-link")
    assert folders.strange_files(tmp_path / "run") == [str(tmp_path / "run" / "eval-link")]
    folders.clear_folder(str(tmp_path / "run"))
    assert (tmp_path / "run" / "eval-link" / "model.safetensors").exists()


class Killed(BaseException):
    """Nothing runs behind a kill."""


@pytest.mark.parametrize("strange", [[], ["notes.md"]])
@pytest.mark.parametrize("kill", [1, 2, 3, 4, 9])
def test_wherever_a_replacement_ends_the_name_leads_to_the_old_or_the_new(
    tmp_path, monkeypatch, kill, strange
):
    old, new, calls = ["model.safetensors", "log.jsonl", *strange], ["config.json"], []
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    make(out, *old)
    make(partial, *new)
    make(tmp_path / "out.old", "mine")  # a backup of the user's

    def killing(act):
        def wrapped(*args):
            calls.append(args)
            if len(calls) == kill:
                raise Killed
            return act(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killing(os.rename))
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        try:
            folders.publish_folder(str(partial), str(out))
        except Killed:
            pass
    folders.restore_folder(str(out))
    assert tree(out) == (sorted(old) if kill < 3 else new)
    assert tree(tmp_path / "out.old") == ["mine"] and partial.exists() == (kill < 3)
    if strange:  # it is somewhere, whatever happened
        assert len(list(tmp_path.glob("*/notes.md"))) == 1
    else:
        assert not list(tmp_path.glob(f"*{folders.OLD}")) + list(tmp_path.glob(f"*{folders.TRASH}"))


def test_a_name_that_cannot_be_given_leaves_the_old_one(tmp_path):
    make(tmp_path / "out", "model.safetensors")
    with pytest.raises(OSError):
        folders.publish_folder(str(tmp_path / "none"), str(tmp_path / "out"))
    assert tree(tmp_path) == ["out/model.safetensors"]


def test_what_stays_is_not_in_the_way_of_the_next(tmp_path):
    for n in range(4):
        make(tmp_path / "new", "scores.json", f"notes{n}.md")
        folders.restore_folder(str(tmp_path / "out"))
        folders.publish_folder(str(tmp_path / "new"), str(tmp_path / "out"))
    assert len({path.name for path in tmp_path.glob("*/notes*")}) == 4
    assert (tmp_path / "out" / "notes3.md").exists()


# Locks


def hold(kind, folder, held):
    with kind(folder):
        held.set()
        time.sleep(600)


def holder(kind, folder):
    """Another process, within kind(folder)."""
    forked = multiprocessing.get_context("fork")  # which need not import torch
    held = forked.Event()
    process = forked.Process(target=hold, args=(kind, str(folder), held), daemon=True)
    process.start()
    assert held.wait(60)
    return process


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    run = tmp_path / "run"
    process = holder(locked, run)
    with pytest.raises(InputError, match=f"being written by process {process.pid} on"):
        with locked(str(run)):
            pass
    process.kill()
    process.join()
    assert (run / folders.LOCK).exists()
    with locked(str(run)):
        assert os.listdir(run) == [folders.LOCK]
    assert not run.exists()  # it was empty
    with locked(str(run)):
        make(run, "log.jsonl")
    assert os.listdir(run) == ["log.jsonl"]


def test_a_folder_may_get_another_name_while_it_is_held(tmp_path):
    with locked(str(tmp_path / "run.partial")):
        os.rename(tmp_path / "run.partial", tmp_path / "run")
        with locked(str(tmp_path / "run.partial")):  # that of another run, which is refused nothing
            pass
    assert os.listdir(tmp_path) == ["run"]


def test_who_comes_second_waits_for_his_turn_even_under_another_name(tmp_path):
    (tmp_path / "a").mkdir()
    process, turns = holder(in_turn, tmp_path / "a"), []

    def take_turn():
        with in_turn(str(tmp_path / "b")):
            turns.append("second")

    os.rename(tmp_path / "a", tmp_path / "b")
    second = threading.Thread(target=take_turn)
    second.start()
    time.sleep(0.3)
    assert turns == []
    process.kill()
    second.join(20)
    assert turns == ["second"] and os.listdir(tmp_path / "b") == []
