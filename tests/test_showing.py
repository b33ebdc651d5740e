"""python data.py --show: samples as the trainer sees them."""

import random

from conftest import TSV, script

import data
from plumbing.run.showing import GREEN, PLAIN, RED, describe


def test_supervised_tokens_are_marked_with_their_equation(encoded):
    (pair,) = encoded.with_twins(encoded.samples[:1], "target", random.Random(1))
    tokenizer = encoded.prompter.tokenizer
    prompter = encoded.prompter
    lines = describe(data.collate([pair]), pair, prompter, coloured=False)
    texts = tokenizer.texts_of(pair.positive.response, tokenizer.eos)
    marked = " ".join(f"[{text}]" for text in texts)
    assert len(lines) == 6 and lines[2] == lines[5] == marked and marked.endswith("[<end>]")
    assert "(Eq. 1, more likely)" in lines[0] and "(Eq. 2, less likely)" in lines[3]
    assert f"{len(texts)} supervised" in lines[0] and lines[1].endswith("### Response:")
    source, target = pair.twin.sample.direction
    assert lines[3].startswith(f"--- {source}→{target}: {len(pair.twin.prompt)} tokens of prompt")
    coloured = describe(data.collate([pair]), pair, prompter, coloured=True)
    assert coloured[2].startswith(GREEN) and coloured[5].startswith(RED)
    assert coloured[2].count(PLAIN) == len(texts)
    alone = pair._replace(twin=None)
    assert len(describe(data.collate([alone]), alone, prompter, False)) == 3
    (pair,) = encoded.with_twins(encoded.samples[:1], "target", random.Random(1), False)
    lines = describe(data.collate([pair]), pair, prompter, coloured=False)
    assert lines[5] == " ".join(f"[{text}]" for text in texts[:-1])  # no EOS to be punished


def test_the_command_shows_so_many(tmp_path):
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    from conftest import BASE

    args = ["--model", BASE, "--data", "train.tsv", "--show", 2]
    done = script("data.py", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("=== ") == 2 and done.stdout.count("(Eq. 2, less likely)") == 2
    assert done.stdout == script("data.py", *args, cwd=tmp_path).stdout
    done = script("data.py", *args, "--data", "nowhere.tsv", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere.tsv: no such file" in done.stderr
