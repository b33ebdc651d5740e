"""Folders that appear whole or not at all; nobody else's file is ever deleted."""

import os

import pytest

from plumbing.run import removal
from plumbing.checkpoint.card import MARK
from plumbing.run.removal import NEW, OLD, TRASH, others, publish_folder, remove_folder, restore_folder


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def tree(folder):
    found = (
        os.path.relpath(os.path.join(p, f), folder)
        for p, ds, fs in os.walk(folder)
        for f in fs + ds
        if not os.path.isdir(f"{p}/{f}") or os.path.islink(f"{p}/{f}")
    )
    return sorted(found)


OURS = ["model.safetensors", "model-00001-of-00002.safetensors", "adapter_config.json"]
OURS += ["model.safetensors.index.json", "tokenizer.model", "settings.json", "log.jsonl"]
OURS += ["step-000002/state.json", "step-000002/optimizer.safetensors", "eval-test/en-it.txt"]
OURS += ["eval-test/en-it.ref2.txt", f"step-000004{NEW}/config.json", f"settings.json{NEW}"]
THEIRS = ["notes.md", "step-000002.backup/state.json", "step-000002/notes.md", "pytorch_model.bin"]
THEIRS += [
    "eval-test/mine.txt",
    "eval-mine/config.json",
    "model-old.safetensors",
    "sub/model.safetensors",
    "step-2/config.json",
]


def test_what_the_program_makes_goes_and_nothing_else(tmp_path, capsys):
    make(tmp_path / "run", *OURS)
    assert others(tmp_path / "run") == []
    remove_folder(str(tmp_path / "run"))
    assert os.listdir(tmp_path) == [] and capsys.readouterr().out == ""
    make(tmp_path / "run", *OURS, *THEIRS)
    os.symlink(tmp_path / "run" / "sub", tmp_path / "run" / "eval-link")
    found = {os.path.relpath(path, tmp_path / "run") for path in others(tmp_path / "run")}
    assert found == {
        os.path.dirname(p) if p.split("/")[0] in ("sub", "step-2", "step-000002.backup") else p
        for p in THEIRS
    } | {"eval-link"}
    remove_folder(str(tmp_path / "run"))
    assert tree(tmp_path / f"run{TRASH}") == sorted([*THEIRS, "eval-link"])
    assert f"run{TRASH} stays" in capsys.readouterr().out


def test_a_card_is_ours_until_somebody_takes_it_over(tmp_path):
    make(tmp_path, "run/config.json")
    (tmp_path / "run" / "README.md").write_text(f"---\n{MARK}\n---\nx")
    make(tmp_path, f"run/README.md{NEW}")
    assert others(tmp_path / "run") == []
    (tmp_path / "run" / "README.md").write_text("---\n---\nx, and my notes")
    assert [os.path.basename(path) for path in others(tmp_path / "run")] == ["README.md"]
    remove_folder(str(tmp_path / "run"))
    assert os.listdir(tmp_path / f"run{TRASH}") == ["README.md"]


def test_what_stays_is_not_in_the_way_of_the_next(tmp_path):
    for n in range(3):
        make(tmp_path / "run", "model.safetensors", f"notes{n}.md")
        remove_folder(str(tmp_path / "run"))
    kept = sorted(path.name for path in tmp_path.glob("*/notes*"))
    assert kept == ["notes0.md", "notes1.md", "notes2.md"] and len(tree(tmp_path)) == 3


def test_a_published_folder_replaces_the_one_before_it(tmp_path):
    make(tmp_path / "out", "model.safetensors", "log.jsonl")
    make(tmp_path / "out.partial", "config.json")
    publish_folder(str(tmp_path / "out.partial"), str(tmp_path / "out"))
    assert tree(tmp_path) == ["out/config.json"]


@pytest.mark.parametrize("names", [["out.old"], ["out.partial.bak"], ["out.train-py"]])
def test_backups_of_the_user_are_not_touched(tmp_path, names):
    for name in names:
        make(tmp_path / name, "model.safetensors")
    make(tmp_path / "out", "model.safetensors")
    make(tmp_path / "out.partial", "config.json")
    publish_folder(str(tmp_path / "out.partial"), str(tmp_path / "out"))
    assert tree(tmp_path) == sorted(["out/config.json", *(f"{n}/model.safetensors" for n in names)])


@pytest.mark.parametrize("crash", [1, 2, 3, 4, 5])
def test_wherever_a_replacement_ends_the_name_leads_to_the_old_or_the_new(
    tmp_path, monkeypatch, crash
):
    make(tmp_path / "out", "model.safetensors", "log.jsonl")
    make(tmp_path / "out.partial", "config.json")
    calls = []

    def count(act):
        def wrapped(*args):
            calls.append(args)
            if len(calls) == crash:
                raise KeyboardInterrupt
            return act(*args)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(removal.os, name, count(getattr(os, name)))
        try:
            publish_folder(str(tmp_path / "out.partial"), str(tmp_path / "out"))
        except KeyboardInterrupt:
            pass
    assert len(calls) >= crash
    restore_folder(str(tmp_path / "out"))
    left = tree(tmp_path)
    old = ["out.partial/config.json", "out/log.jsonl", "out/model.safetensors"]
    assert left in (["out/config.json"], old)


def test_a_name_that_cannot_be_given_leaves_the_old_one(tmp_path):
    make(tmp_path / "out", "model.safetensors")
    with pytest.raises(OSError):
        publish_folder(str(tmp_path / "none"), str(tmp_path / "out"))
    assert tree(tmp_path) == ["out/model.safetensors"] and not (tmp_path / f"out{OLD}").exists()
