import random
from collections import Counter

import pytest
import torch
from conftest import BASE, TSV

from data import (PROMPT, Encoded, Sample, Tokenizer, collate, directions, draw_conflict, parallel, read_tsv,
                  tuning_samples)
from model import InputError

FOUR = ["en", "it", "nl", "ro"]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.fixture
def rows(tmp_path):
    return read_tsv(write(tmp_path / "train.tsv", TSV), FOUR)[1]


@pytest.fixture
def encoded(rows, tokenizer):
    return Encoded(tuning_samples(rows, directions(FOUR)[0], 20, 1), tokenizer, 512)


# Prompts and supervision

def test_the_prompt_is_the_papers(tokenizer):
    text = tokenizer.decode(tokenizer.prompt(("it", "nl"), "Apri il file", 512))
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nTranslate the following sentences from Italian to "
        "Dutch.\n\n### Input:\nApri il file\n\n### Response:")


def test_only_the_response_and_its_eos_are_supervised_literal_ids():
    batch = collate([([1, 50, 51], [60, 61, 2]), ([1, 70], [80, 2]), ([1, 52, 53], [60, 61, 2])], positives=2)
    assert batch.ids.tolist() == [1, 50, 51, 60, 61, 2, 1, 70, 80, 2, 1, 52, 53, 60, 61, 2]
    assert batch.lengths == [6, 4, 6]
    assert batch.at.tolist() == [2, 3, 4, 7, 8, 12, 13, 14]
    assert batch.y.tolist() == [60, 61, 2, 80, 2, 60, 61, 2]
    assert torch.equal(batch.ids[batch.at + 1], batch.y) and batch.positives == 5


def test_prompt_and_response_are_tokenized_apart_and_eos_is_an_id(tokenizer):
    quoted = Sample(("en", "it"), '"Hi"', '"Ciao" </s>')
    (_, prompt, response), = Encoded([quoted, ], tokenizer, 512).items
    assert prompt == [tokenizer.bos] + tokenizer.encode(PROMPT.format(source="English", target="Italian", input='"Hi"'))
    assert response == tokenizer.encode('"Ciao" </s>') + [tokenizer.eos]
    assert response.count(tokenizer.eos) == 1 and tokenizer.decode(response) == '"Ciao" </s>'  # the text stays text


def test_truncation_cuts_the_source_and_never_the_response(tokenizer):
    long = Sample(("en", "it"), "open the file " * 100, "apri il file " * 5)
    (_, whole, response), = Encoded([long], tokenizer, 2000).items
    (_, cut, same), = Encoded([long], tokenizer, 120).items
    assert same == response and len(cut) + len(same) <= 120 < len(whole)
    assert tokenizer.decode(cut).endswith("\n\n### Response:") and "open the file open" in tokenizer.decode(cut)
    short = Sample(("en", "it"), "a", "b")
    both = Encoded([short, Sample(("en", "it"), "a", "apri il file " * 50)], tokenizer, 120)
    assert both.dropped == 1 and [item[0] for item in both.items] == [short]
    with pytest.raises(InputError, match="none of 1 samples fits --max-length 20"):
        Encoded([short], tokenizer, 20)


# Directions and conflicting instructions

def test_directions_are_english_centric_and_the_rest_is_zero_shot():
    supervised, zero_shot = directions(["it", "en", "nl", "ro"])
    assert set(supervised) == {(s, t) for s in FOUR for t in FOUR if s != t and "en" in (s, t)} and len(supervised) == 6
    assert set(zero_shot) == {(s, t) for s in FOUR for t in FOUR if s != t and "en" not in (s, t)} and len(zero_shot) == 6
    with pytest.raises(InputError, match="no 'en'"):
        directions(["it", "nl"])


def test_pairs_are_n_per_direction_and_blank_sides_are_left_out(rows):
    rows[0]["it"] = ""
    supervised, _ = directions(FOUR)
    assert len(parallel(rows, ("en", "it"))) == 39 and len(parallel(rows, ("en", "nl"))) == 40
    chosen = tuning_samples(rows, supervised, 7, seed=1)
    assert Counter(s.direction for s in chosen) == {d: 7 for d in supervised}
    assert len(set(chosen)) == 42 and chosen == tuning_samples(rows, supervised, 7, seed=1)
    assert chosen != tuning_samples(rows, supervised, 7, seed=2)


@pytest.mark.parametrize("mode", ["any", "target"])
def test_conflicting_instructions_are_wrong_and_cover_all_that_may_be_drawn(mode):
    supervised, _ = directions(FOUR)
    counts, rng = {d: 1 for d in supervised}, random.Random(0)
    for direction in supervised:
        drawn = Counter(draw_conflict(direction, counts, mode, rng) for _ in range(2000))
        allowed = {d for d in supervised if d != direction and (mode == "any" or d[1] != direction[1])}
        assert set(drawn) == allowed
        assert all(abs(n - 2000 / len(allowed)) < 150 for n in drawn.values())
    assert counts == {d: 1 for d in supervised}


def test_frequent_instructions_are_drawn_more_often():
    counts = {("en", "it"): 5, ("en", "nl"): 90, ("en", "ro"): 10}
    drawn = Counter(draw_conflict(("en", "it"), counts, "any", random.Random(i)) for i in range(1000))
    assert 850 < drawn["en", "nl"] < 950


@pytest.mark.parametrize("mode, counts", [("any", {("en", "it"): 9}), ("target", {("en", "it"): 9, ("nl", "it"): 9})])
def test_a_corpus_without_a_conflicting_instruction_is_refused(mode, counts):
    with pytest.raises(InputError, match=f"no instruction in the tuning data conflicts with en->it \\(--conflict {mode}\\)"):
        draw_conflict(("en", "it"), counts, mode, random.Random(0))


# Batches

def test_every_epoch_is_a_new_permutation_of_all_samples(encoded):
    n = len(encoded.items)
    first, second = ([item[0] for step in range(e * 4, e * 4 + 4) for item in encoded.step_items(step, n // 4, 2 * n, seed=1)]
                     for e in (0, 1))
    assert n % 4 == 0 and set(first) == set(second) and len(set(first)) == n and first != second
    assert [i[0] for i in encoded.step_items(3, n // 4, 2 * n, seed=1)] == first[-n // 4:]  # whatever was asked before
    assert len(encoded.step_items(1, n - 5, n + 3, seed=1)) == 8  # the last step is what is left, not a full batch


def test_micro_batches_hold_each_item_once_within_the_budget_and_of_similar_length(encoded):
    items = encoded.step_items(0, 64, 64, seed=1)
    batches = encoded.micro_batches(items, 800)
    assert len(batches) > 3 and all(len(b.ids) <= 800 and sum(b.lengths) == len(b.ids) for b in batches)
    assert sorted(sum((b.lengths for b in batches), [])) == sorted(len(p) + len(r) for _, p, r in items)
    assert all(max(a.lengths) <= min(b.lengths) for a, b in zip(batches, batches[1:]))
    assert [len(b.lengths) for b in encoded.micro_batches(items, 1)] == [1] * 64  # a budget too small for one item


def test_a_twin_has_the_same_input_and_response_under_another_instruction_drawn_anew(encoded, tokenizer):
    items, seen = encoded.step_items(0, 8, 8, seed=1), set()
    for step in range(20):
        batch, = encoded.micro_batches(items, 10 ** 6, "any", random.Random(step))
        rows = [tokenizer.decode(row.tolist()) for row in batch.ids.split(batch.lengths)]
        positives, twins = rows[:8], rows[8:]
        for positive, twin in zip(positives, twins):
            assert positive != twin and positive.split("### Input:")[1] == twin.split("### Input:")[1]
        assert batch.y[:batch.positives].tolist() == batch.y[batch.positives:].tolist()
        seen.add(tuple(twins))
    assert len(seen) == 20


# Bad input: one sentence each

@pytest.mark.parametrize("text, said", [
    (b"", "line 1: unknown language code ''"),
    ("en\txx\na\tb\n", "line 1: unknown language code 'xx'"),
    ("en\na\n", "line 1: found 1 language \\(en\\); translation needs at least two"),
    ("en\ten\na\tb\n", "line 1: en en names a language twice"),
    ("en\tit\n", "no sentences after the header"),
    ("en\tit\na\tb\nc\n", "line 3: 1 columns, expected 2: en it"),
    ("en\tit\na\tb\n\nc\td\n", "line 3: 1 columns, expected 2"),
    ("en\tit\na\tb\tc\n", "line 2: 3 columns, expected 2"),
    (b"en\tit\na\tb\n\xff\tc\n", "line 3: byte 0xff is not UTF-8"),
    ("en\tnl\na\tb\n", "no column 'it' among en nl")])
def test_a_bad_corpus_is_refused_with_file_and_line(tmp_path, text, said):
    with pytest.raises(InputError, match=f"bad.tsv.*{said}"):
        read_tsv(write(tmp_path / "bad.tsv", text), ["en", "it"])


def test_a_good_corpus_survives_bom_crlf_and_unusual_characters(tmp_path):
    path = write(tmp_path / "odd.tsv", b"\xef\xbb\xbfen\tit\r\na\xe2\x80\xa8b\tc\xc2\x85d\r\n\"x\t</s>\r\n\ty\r\n")
    assert read_tsv(path) == (["en", "it"], [{"en": "a\u2028b", "it": "c\x85d"}, {"en": '"x', "it": "</s>"}, {"en": "", "it": "y"}])
    with pytest.raises(InputError, match="none.tsv: no such file"):
        read_tsv(str(tmp_path / "none.tsv"), ["en", "it"])


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match="tokenizer.model: no such file"):
        Tokenizer(str(tmp_path), 4000)
    write(tmp_path / "tokenizer.model", b"not a model")
    with pytest.raises(InputError, match="tokenizer.model: 11 bytes that are not a SentencePiece model"):
        Tokenizer(str(tmp_path), 4000)
    with pytest.raises(InputError, match="4,000 pieces, but the model's vocabulary has 3,999"):
        Tokenizer(BASE, 3999)
