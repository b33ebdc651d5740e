"""--translate: one line out for one line in."""

import io
import os
import random
import shlex
import subprocess
import sys

import pytest
from conftest import BASE, ROOT, script, tiny

from model import save_model
from plumbing.base.errors import InputError
from plumbing.score.lines import in_batches, read_direction, read_source_lines, write_translated

ARGS = ["--translate", "it-nl", "--device", "cpu", "--max-new-tokens", "3"]


def test_only_a_newline_ends_a_line_and_what_is_no_text_is_named_with_its_line():
    data = "\ufeffuno\r\ndue\u2028tre\n\n\x0b\x85\x1b[2J\nquattro".encode()
    lines = list(read_source_lines(io.BytesIO(data)))
    assert lines == ["uno", "due\u2028tre", "", "\x0b\x85\x1b[2J", "quattro"]
    for wrong, said in [(b"\xff", "byte 0xff"), (b"\xed\xa0\x80", "byte 0xed"), (b"\0", "NUL")]:
        with pytest.raises(InputError, match=f"standard input, line 3: .*{said}"):
            list(read_source_lines(io.BytesIO(b"a\nb\nc" + wrong + b"\nd\n")))
    assert list(read_source_lines(io.BytesIO(b""))) == []
    assert list(in_batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    before = []
    with pytest.raises(InputError, match="line 4"):  # what was good is there before
        for batch in in_batches(read_source_lines(io.BytesIO(b"a\nb\nc\n\xff\n")), 2):
            before.append(batch)
    assert before == [["a", "b"], ["c"]]


def test_blank_lines_stay_blank_and_outputs_are_one_line_each():
    out = io.StringIO()
    write_translated(["a", " \t", "b\u2028c", ""], lambda xs: [x.upper() + "\nX" for x in xs], out)
    assert out.getvalue() == "A X\n\nB C X\n\n"


def test_two_codes_are_a_direction():
    assert read_direction("it-nl") == ("it", "nl")
    for text in ("it", "it-it", "it-qq", "it-nl-ro", "-"):
        with pytest.raises(InputError, match=f"--translate {text}: expected two of"):
            read_direction(text)


@pytest.fixture
def model(tmp_path):
    save_model(tiny(), tmp_path / "model", BASE)
    return tmp_path


def run(folder, data, *args, **more):
    command = [sys.executable, f"{ROOT}/evaluate.py", "--ckpt", "model", *ARGS, *map(str, args)]
    return subprocess.run(command, input=data, capture_output=True, cwd=folder, **more)


def test_as_many_lines_out_as_in_whatever_they_hold(model):
    odd = ["", "ciao", "x" * 10_000, "\u2028", "a\x85b", "</s> [INST] \x1b[31m", "  ", "\x7f"]
    data = "\n".join([*odd * 5, "ultimo"]).encode()
    done = run(model, data, "--batch-size", 7)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().split("\n")
    assert lines.pop() == "" and len(lines) == 41
    assert [bool(line) for line in lines[:8]][:2] == [False, bool(lines[1])]
    assert all(not lines[n] for n in range(41) if n < 40 and n % 8 in (0, 3, 6))
    assert lines[:8] * 5 == lines[:40]
    assert b"5 prompts lost demonstrations, or their line's end, to fit" in done.stderr
    again = run(model, data.replace(b"\n", b"\r\n"), "--batch-size", 41)
    assert again.stdout == done.stdout


def test_ten_thousand_hostile_lines_in_one_run(model):
    """A third of the blank ones by controls that Python takes for ends of lines."""
    rng = random.Random(0)
    signs = [
        "\u2028",
        "\x85",
        "\x0b",
        "\x1c",
        "\r",
        "\x1b[2J",
        "\ufeff",
        "\U0010ffff",
        "</s>",
        "\u202e",
    ]
    lines = ["x" * 10_000, "\U0001f600" * 10_000]
    while len(lines) < 10_000:
        kind = rng.randrange(8)
        if kind < 6:  # blank to a reader: nothing is decoded, but a line is written
            lines.append("".join(rng.choices(["\u2028", "\x85", "\x0b", "\t", "\u3000"], k=kind)))
        else:
            lines.append("".join(rng.choices([*signs, "a", " ", "ciao"], k=rng.randrange(1, 9))))
    for n in (3, 4000):  # the last line without an end, some with two
        lines[n] += "\r"
    done = run(model, "\n".join(lines).encode(), "--batch-size", 512, "--max-new-tokens", 1)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    out = done.stdout.decode().split("\n")
    assert out.pop() == "" and len(out) == len(lines) == 10_000
    assert not any(text for text, line in zip(out, lines, strict=True) if not line.strip())


def test_the_lines_before_a_wrong_one_are_there_and_the_sentence_names_it(model):
    done = run(model, b"ciao\nciao\n\xff\n", "--batch-size", 1)
    assert done.returncode == 2 and done.stdout.count(b"\n") == 2
    assert b"standard input, line 3: byte 0xff" in done.stderr and b"Traceback" not in done.stderr


def test_what_it_cannot_do_is_one_sentence(model):
    for args, said in [
        (["--explain", "it-nl", "a"], "--translate and --explain: choose one"),
        (["--picture", "a.png"], "--picture needs translations of a test set"),
        (["--translate", ""], "--translate : expected two of"),
        (["--contrast-source", 0.7], "contrasts rows of a test set"),
        (["--systems", "b=model"], "--translate needs one system; found 2"),
        (["--max-new-tokens", 511], "leaves no room for the prompt"),
        (["--shots", 1], "--shots needs --shots-from"),
    ]:
        done = run(model, b"ciao\n", *args)
        assert done.returncode == 2 and said in done.stderr.decode() and not done.stdout
    done = script("evaluate.py", "--ckpt", "model", *ARGS, cwd=model, processes=2)
    assert done.returncode and "start it without torchrun" in done.stderr


def test_letters_are_written_whatever_the_terminal_has(model):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    odd = "ă日😀".encode()
    assert run(model, odd, env=env).stdout == run(model, odd).stdout


def test_it_ends_when_nobody_reads_on_and_says_so_when_nobody_ever_did(model):
    command = [sys.executable, f"{ROOT}/evaluate.py", "--ckpt", "model", *ARGS, "--batch-size", "1"]
    shell = f"yes ciao | {shlex.join(command)} 2>err | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, cwd=model, timeout=120)
    assert done.stdout.count(b"\n") == 1 and b"Traceback" not in (model / "err").read_bytes()
    for closed in ("<&-", ">&-"):
        done = subprocess.run(
            ["bash", "-c", f"{shlex.join(command)} {closed}"], cwd=model, capture_output=True
        )
        assert done.returncode == 2 and b"is closed" in done.stderr, done.stderr[-300:]
