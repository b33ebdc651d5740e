"""Prompts, conflicting instructions, twins, batches."""

import doctest
import random
from collections import Counter

import pytest
import torch
from conftest import TSV, script

import data
from data import (
    EncodedSample,
    Prompter,
    Sample,
    TuningSet,
    TwinPair,
    collate,
    draw_conflict,
    micro_batches,
    read_samples,
    visited,
    write_prompt,
)
from plumbing.base.errors import InputError

FOUR = ["en", "it", "nl", "ro"]
ENGLISH = [(s, t) for s in FOUR for t in FOUR if s != t and "en" in (s, t)]
EN_IT = ("en", "it")


@pytest.fixture
def prompter(tokenizer):
    return Prompter(tokenizer, "alpaca")


def test_the_prompt_is_the_papers():
    assert write_prompt("alpaca", Sample(("it", "nl"), "Apri il file", "")) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Translate the following sentences from Italian to Dutch.\n\n"
        "### Input:\nApri il file\n\n### Response:"
    )


def test_another_instruction_has_alpacas_prompt_with_an_input_or_without():
    with_input = write_prompt("ptl", Sample(None, "uno due", "2", "Count the words."))
    assert "### Instruction:\nCount the words.\n\n### Input:\nuno due\n" in with_input
    alone = write_prompt("alpaca", Sample(None, "", "Hi", "Say hello."))
    assert "### Input:" not in alone and "Say hello.\n\n### Response:" in alone


def test_prompt_and_response_are_tokenized_apart_and_eos_is_an_id(prompter, tokenizer):
    quoted = Sample(EN_IT, '"Hi"', '"Ciao" </s>')
    (encoded,) = TuningSet([quoted], prompter, 512).encode([quoted])
    assert encoded.prompt == tokenizer.bos + tokenizer.encode(write_prompt("alpaca", quoted))
    assert encoded.response == tokenizer.encode('"Ciao" </s>') + [tokenizer.eos]
    assert encoded.response.count(tokenizer.eos) == 1  # the text stays text


def test_only_the_response_and_its_eos_are_supervised_literal_ids():
    a, b, twin = (
        EncodedSample(Sample(EN_IT, name, ""), prompt, response)
        for name, prompt, response in [
            ("a", [1, 50, 51], [60, 61, 2]),
            ("b", [1, 70], [80, 2]),
            ("a", [1, 52, 53], [60, 61, 2]),
        ]
    )
    pairs = [TwinPair(a, twin), TwinPair(b, None)]
    batch = collate(pairs)
    assert batch.ids.tolist() == [1, 50, 51, 60, 61, 2, 1, 70, 80, 2, 1, 52, 53, 60, 61, 2]
    assert batch.lengths == [6, 4, 6]
    assert batch.at.tolist() == [2, 3, 4, 7, 8, 12, 13, 14]
    assert batch.y.tolist() == [60, 61, 2, 80, 2, 60, 61, 2]
    assert torch.equal(batch.ids[batch.at + 1], batch.y)
    assert batch.positives == 5 and batch.weight.tolist() == [1] * 8
    means = collate(pairs, "sentence").weight.tolist()
    assert means == pytest.approx([1 / 3] * 3 + [1 / 2] * 2 + [1 / 3] * 3)


def test_truncation_cuts_the_source_and_never_the_response(prompter, tokenizer, capsys):
    long = Sample(EN_IT, "open the file " * 100, "apri il file " * 5)
    (whole,) = TuningSet([long], prompter, 2000).encode([long])
    assert "over-long" not in capsys.readouterr().out
    (cut,) = TuningSet([long], prompter, 120).encode([long])
    assert "en-it: 1 over-long sources cut" in capsys.readouterr().out
    assert cut.response == whole.response and cut.tokens <= 120 < whole.tokens
    text = tokenizer.decode(cut.prompt)
    assert text.endswith("\n\n### Response:") and "open the file open" in text


def test_a_pair_whose_response_leaves_no_room_is_left_out_aloud(prompter, capsys):
    short, long = Sample(EN_IT, "a", "b"), Sample(EN_IT, "a", "apri il file " * 50)
    assert TuningSet([short, long], prompter, 120).samples == [short]
    assert "en-it: 1 over-long pairs left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of 1 samples fits --max-length 20"):
        TuningSet([short], prompter, 20)


@pytest.mark.parametrize("room", range(70, 100, 3))
def test_what_fits_is_what_encodes_within_the_room(prompter, room):
    """Most samples are not tokenized to know whether they fit."""
    texts = ["b" * 5, "Ș" * 9, "ﷺ", "apri il file " * 3, "x y z " * 6]
    samples = [Sample(d, "aaaa " * 4, text) for d in ENGLISH for text in texts]
    samples += [Sample(None, "", text, "Say it.") for text in texts]
    fitting = []
    for sample in samples:
        response = prompter.encode_response(sample.target)
        prompt, _ = prompter.encode(sample, room - len(response))
        fitting += [sample] * bool(prompt)
    if fitting:
        assert TuningSet(samples, prompter, room).samples == fitting


def test_only_the_samples_that_the_steps_visit_are_tokenized(tuning_set):
    tuning_set.prepare(2, 5, 10, 1, 0.2)
    needed = {x for step in range(2) for x in tuning_set.of_step(step, 5, 10, 1)}
    assert set(tuning_set.encoded) == needed and len(needed) == 10 < len(tuning_set.samples)


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(tuning_set):
    n = len(tuning_set.samples)
    epochs = [visited(range(first, first + n), n, 1) for first in (0, n)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n)) and epochs[0] != epochs[1]
    steps = [x for step in range(4) for x in tuning_set.of_step(step, 40, n, 1)]
    assert Counter(steps) == Counter(tuning_set.samples)


def test_other_instructions_come_on_top_and_change_nothing_else(prompter, tuning_set):
    general = [Sample(None, "", "Hi", "Say hello.")]
    mixed = TuningSet(tuning_set.samples, prompter, 512, general)
    alone, both = (x.of_step(3, 8, 100, 1, 0.2) for x in (tuning_set, mixed))
    assert both[:8] == alone and both[8:] == general * 2
    (*_, last) = mixed.with_twins(both, "target", random.Random(0))
    pairs = mixed.with_twins(both, "target", random.Random(0))
    assert [pair.twin is None for pair in pairs] == [
        pair.positive.sample.direction is None for pair in pairs
    ]


def test_pairs_are_n_per_direction_and_drawn_by_the_seed(tmp_path):
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    paths = [tmp_path / "train.tsv"]
    chosen = read_samples(paths, "supervised", pairs=7, seed=1)
    assert Counter(s.direction for s in chosen) == {d: 7 for d in ENGLISH}
    assert chosen == read_samples(paths, "supervised", pairs=7, seed=1)
    assert chosen != read_samples(paths, "supervised", pairs=7, seed=2)
    all_of_them = read_samples(paths, "supervised", seed=1)
    assert len(set(all_of_them)) == 240
    for direction in ENGLISH:  # the first so many of all, in the order of the draw
        first = [x for x in all_of_them if x.direction == direction][:7]
        assert first == [x for x in chosen if x.direction == direction]


# Conflicting instructions


@pytest.mark.parametrize("mode", ["any", "target"])
def test_conflicting_instructions_are_wrong_and_cover_all_that_may_be_drawn(mode):
    counts, rng = {d: 1 for d in ENGLISH}, random.Random(0)
    for direction in ENGLISH:
        drawn = Counter(draw_conflict(direction, counts, mode, rng) for _ in range(2000))
        allowed = {d for d in ENGLISH if d != direction and (mode == "any" or d[1] != direction[1])}
        assert set(drawn) == allowed
        assert all(abs(n - 2000 / len(allowed)) < 150 for n in drawn.values())
    assert counts == {d: 1 for d in ENGLISH}


def test_frequent_instructions_are_drawn_more_often():
    counts = {EN_IT: 5, ("en", "nl"): 90, ("en", "ro"): 10}
    drawn = Counter(draw_conflict(EN_IT, counts, "any", random.Random(i)) for i in range(1000))
    assert 850 < drawn["en", "nl"] < 950


@pytest.mark.parametrize(
    "mode, counts", [("any", {EN_IT: 9}), ("target", {EN_IT: 9, ("nl", "it"): 9})]
)
def test_a_corpus_without_a_conflicting_instruction_is_refused(mode, counts):
    with pytest.raises(InputError, match=f"conflicts with en-it .*--conflict {mode}"):
        draw_conflict(EN_IT, counts, mode, random.Random(0))


def test_a_twin_has_the_same_input_and_response_under_another_instruction_drawn_anew(
    tuning_set, tokenizer
):
    samples, seen = tuning_set.of_step(0, 8, 8, seed=1), set()
    for step in range(20):
        pairs = tuning_set.with_twins(samples, "any", random.Random(step))
        texts = [[tokenizer.decode(encoded.prompt) for encoded in pair] for pair in pairs]
        for positive, twin in texts:
            assert positive != twin
            assert positive.split("### Input:")[1] == twin.split("### Input:")[1]
        assert all(pair.positive.response == pair.twin.response for pair in pairs)
        seen.add(tuple(twin for _, twin in texts))
    assert len(seen) == 20


def test_a_pair_whose_twin_does_not_fit_has_none(tokenizer, monkeypatch):
    wordy = {"it": ["a {input}"], "nl": ["many words more than that before {input}"]}
    template = {
        code: {"prompt": lines, "names": {"it": "it", "nl": "nl"}} for code, lines in wordy.items()
    }
    monkeypatch.setitem(data.TEMPLATES, "wordy", template)
    samples = [Sample(("nl", "it"), "x", "b"), Sample(("it", "nl"), "x", "b")]
    prompter = Prompter(tokenizer, "wordy")
    short, long = (x.tokens for x in TuningSet(samples, prompter, 99).encode(samples))
    for room, fits in ((long, True), (long - 1, True), (short, False)):
        tight = TuningSet(samples, prompter, room)
        tight.tuned = dict.fromkeys([("nl", "it"), ("it", "nl")], 1)
        (pair,) = tight.with_twins(samples[:1], "any", random.Random(0))
        assert (pair.twin is not None) == fits


def test_a_template_that_does_not_name_the_target_is_refused(tokenizer, monkeypatch):
    monkeypatch.setitem(data.TEMPLATES, "mute", ["{source}: {input}"])
    samples = [Sample(EN_IT, "a", "b"), Sample(("en", "nl"), "a", "c")]
    mute = TuningSet(samples, Prompter(tokenizer, "mute"), 512)
    with pytest.raises(InputError, match="--template mute has one prompt for"):
        mute.with_twins(samples, "any", random.Random(0))


# Batches


def test_micro_batches_hold_each_pair_once_within_the_budget_and_of_similar_length(tuning_set):
    samples = tuning_set.of_step(0, 64, 64, seed=1)
    pairs = tuning_set.with_twins(samples)
    (batches,) = micro_batches(pairs, 800)
    assert len(batches) > 3 and all(len(b.ids) <= 800 for b in batches)
    assert [pair for batch in batches for pair in batch.pairs] == pairs
    assert all(max(a.lengths) <= min(b.lengths) for a, b in zip(batches, batches[1:], strict=False))
    # a budget too small for one pair
    assert [len(b.lengths) for b in micro_batches(pairs, 1)[0]] == [1] * 64


def test_every_process_has_as_many_batches_and_what_is_repeated_weighs_nothing(tuning_set):
    pairs = tuning_set.with_twins(tuning_set.of_step(0, 5, 5, seed=1))
    shares = micro_batches(pairs, 1, world=4)
    assert [len(share) for share in shares] == [2, 2, 2, 2]
    idle = [batch for share in shares for batch in share if not batch.pairs]
    assert len(idle) == 3 and not any(batch.weight.any() for batch in idle)


def test_the_examples_in_the_docstrings_are_true():
    failed, tried = doctest.testmod(data)
    assert failed == 0 and tried >= 6


def test_show_prints_a_sample_with_its_twin_and_what_is_supervised():
    result = script("data.py", "--show", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Eq. 1") == result.stdout.count("Eq. 2") == 2
    assert result.stdout.count("[<end>]") == 4
