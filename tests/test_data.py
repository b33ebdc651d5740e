"""Prompts, twins, batches."""

import doctest
import random
from collections import Counter

import pytest
import torch
from conftest import TSV, prompt_of, tuning_set

import data
from data import (
    EncodedSample,
    Prompter,
    TwinPair,
    collate,
    draw_conflict,
    micro_batches,
    write_prompt,
)
from plumbing.corpus.corpus import Sample, read_corpus
from plumbing.base.errors import InputError

FOUR = ["en", "it", "nl", "ro"]
ENGLISH = [(s, t) for s in FOUR for t in FOUR if s != t and "en" in (s, t)]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def test_the_prompt_is_the_papers(tokenizer):
    text = tokenizer.decode(prompt_of(tokenizer, ("it", "nl"), "Apri il file", 512)[0])
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Translate the following sentences from Italian to Dutch.\n\n"
        "### Input:\nApri il file\n\n### Response:"
    )


@pytest.mark.parametrize("template", ["alpaca", "ptl", "post-instruction", "alma"])
def test_demonstrations_are_whole_prompts_with_their_responses_in_lines_before(tokenizer, template):
    shots = [Sample(("it", "nl"), "Ciao", "Hoi"), Sample(("it", "nl"), "Apri", "Openen")]
    sample = Sample(("it", "nl"), "Chiudi il file", "Bestand sluiten")
    prompter = Prompter(tokenizer, template)
    ids, lost = prompter.encode(sample, 999, shots)
    # The space is SentencePiece's, which begins a response in training too.
    parts = [f"{write_prompt(template, x.direction, x.source)} {x.target}" for x in shots]
    prompt = write_prompt(template, sample.direction, sample.source)
    assert tokenizer.decode(ids) == "\n".join([*parts, prompt]) and not lost
    assert ids[0] == tokenizer.bos[0] and tokenizer.eos not in ids and ids.count(ids[0]) == 1
    alone, _ = prompter.encode(sample, 999)
    fewer, lost = prompter.encode(sample, len(ids) - 1, shots)
    assert lost == "shots" and tokenizer.decode(fewer) == "\n".join([parts[1], prompt])
    assert prompter.encode(sample, len(alone), shots) == (alone, "shots")
    shorter, lost = prompter.encode(sample, len(alone) - 1, shots)
    assert lost == "source" and len(shorter) < len(alone)
    assert prompter.encode(sample, 3, shots) == (None, "source")


def test_only_the_response_and_its_eos_are_supervised_literal_ids():
    a, b, twin = (
        EncodedSample(Sample(("en", "it"), name, ""), prompt, response)
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
    assert (
        torch.equal(batch.ids[batch.at + 1], batch.y)
        and batch.positives == 5
        and batch.weight.tolist() == [1] * 8
    )
    assert batch.samples == [a.sample, b.sample]
    assert collate(pairs, "sentence").weight.tolist() == pytest.approx(
        [1 / 3] * 3 + [1 / 2] * 2 + [1 / 3] * 3
    )


def test_prompt_and_response_are_tokenized_apart_and_eos_is_an_id(tokenizer):
    quoted = Sample(("en", "it"), '"Hi"', '"Ciao" </s>')
    ((_, prompt, response),) = tuning_set({("en", "it"): [quoted]}, tokenizer, 512).samples
    assert prompt == tokenizer.bos + tokenizer.encode(write_prompt("alpaca", ("en", "it"), '"Hi"'))
    assert response == tokenizer.encode('"Ciao" </s>') + [tokenizer.eos]
    # the text stays text
    assert response.count(tokenizer.eos) == 1 and tokenizer.decode(response) == '"Ciao" </s>'


def test_a_twin_of_which_nothing_would_be_punished_is_none(encoded):
    """A response that is EOS alone, as a target may be that the tokenizer does not see."""
    sample = encoded.samples[0]
    empty = sample._replace(response=sample.response[-1:])
    rng = random.Random(1)
    for punish_eos in (True, False):
        pairs = encoded.with_twins([empty, sample], "target", rng, punish_eos)
        assert [pair.twin is None for pair in pairs] == [not punish_eos, False]
        batch = data.collate(pairs, "sentence")
        twins = [pair for pair in pairs if pair.twin]
        assert len(set(batch.pair.tolist())) == len(twins) and batch.weight.isfinite().all()


def test_truncation_cuts_the_source_and_never_the_response(tokenizer, capsys):
    long = Sample(("en", "it"), "open the file " * 100, "apri il file " * 5)
    ((_, whole, response),) = tuning_set({("en", "it"): [long]}, tokenizer, 2000).samples
    assert "over-long" not in capsys.readouterr().out
    ((_, cut, same),) = tuning_set({("en", "it"): [long]}, tokenizer, 120).samples
    assert capsys.readouterr().out == "  en-it: 1 over-long sources cut\n"
    assert same == response and len(cut) + len(same) <= 120 < len(whole)
    assert tokenizer.decode(cut).endswith(
        "\n\n### Response:"
    ) and "open the file open" in tokenizer.decode(cut)
    short = Sample(("en", "it"), "a", "b")
    both = tuning_set(
        {("en", "it"): [short, Sample(("en", "it"), "a", "apri il file " * 50)]}, tokenizer, 120
    )
    assert [item[0] for item in both.samples] == [short]
    said = "  en-it: 1 over-long pairs left out: too long without their source\n"
    assert capsys.readouterr().out == said
    with pytest.raises(InputError, match="none of 1 samples fits --max-length 20"):
        tuning_set({("en", "it"): [short]}, tokenizer, 20)


def test_directions_with_english_are_supervised_and_the_rest_is_zero_shot(tmp_path):
    path = write(tmp_path / "train.tsv", TSV)
    corpora = {name: read_corpus([path], name)[0] for name in ("all", "supervised", "zero-shot")}
    assert list(corpora["supervised"]) == ENGLISH and len(corpora["all"]) == 12
    assert set(corpora["zero-shot"]) == set(corpora["all"]) - set(ENGLISH)
    assert list(read_corpus([path], "it-nl,en-it")[0]) == [("it", "nl"), ("en", "it")]
    # what a run was tuned on
    tuned, supervised = read_corpus([path], "zero-shot", [("it", "nl"), ("nl", "it")])
    assert supervised == [("it", "nl"), ("nl", "it")] and len(tuned) == 10
    write(tmp_path / "no_english.tsv", "it\tnl\na\tb\n")
    with pytest.raises(
        InputError, match="--directions supervised: pairs found in .*: it-nl 1, nl-it 1"
    ):
        read_corpus([str(tmp_path / "no_english.tsv")], "supervised")


def test_pairs_are_n_per_direction_and_drawn_by_the_seed(tmp_path, tokenizer):
    corpus, _ = read_corpus([write(tmp_path / "train.tsv", TSV)], "supervised")
    before = {pair: list(found) for pair, found in corpus.items()}

    def drawn(pairs, seed):
        return [item[0] for item in tuning_set(corpus, tokenizer, 512, pairs, seed).samples]

    chosen = drawn(7, 1)
    assert Counter(s.direction for s in chosen) == {d: 7 for d in ENGLISH}
    assert len(set(chosen)) == 42 and chosen == drawn(7, 1) != drawn(7, 2)
    assert (
        set(drawn(0, 1)) == {s for samples in corpus.values() for s in samples} and corpus == before
    )


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
    counts = {("en", "it"): 5, ("en", "nl"): 90, ("en", "ro"): 10}
    drawn = Counter(
        draw_conflict(("en", "it"), counts, "any", random.Random(i)) for i in range(1000)
    )
    assert 850 < drawn["en", "nl"] < 950


@pytest.mark.parametrize(
    "mode, counts", [("any", {("en", "it"): 9}), ("target", {("en", "it"): 9, ("nl", "it"): 9})]
)
def test_a_corpus_without_a_conflicting_instruction_is_refused(mode, counts):
    with pytest.raises(
        InputError,
        match="no instruction in the tuning data conflicts with en-it "
        f"\\(--conflict {mode}\\); add",
    ):
        draw_conflict(("en", "it"), counts, mode, random.Random(0))


def test_micro_batches_hold_each_item_once_within_the_budget_and_of_similar_length(encoded):
    items = encoded.of_step(0, 64, 64, seed=1)
    pairs = encoded.with_twins(items)
    (batches,) = micro_batches(pairs, 800)
    assert len(batches) > 3 and all(
        len(b.ids) <= 800 and sum(b.lengths) == len(b.ids) for b in batches
    )
    assert sorted(sum((b.lengths for b in batches), [])) == sorted(
        len(p) + len(r) for _, p, r in items
    )
    assert all(max(a.lengths) <= min(b.lengths) for a, b in zip(batches, batches[1:], strict=False))
    # a budget too small for one item
    assert [len(b.lengths) for b in micro_batches(pairs, 1)[0]] == [1] * 64


def test_a_twin_has_the_same_input_and_response_under_another_instruction_drawn_anew(
    encoded, tokenizer
):
    items, seen = encoded.of_step(0, 8, 8, seed=1), set()
    for step in range(20):
        pairs = encoded.with_twins(items, "any", random.Random(step))
        ((batch,),) = micro_batches(pairs, 10**6)
        rows = [tokenizer.decode(row.tolist()) for row in batch.ids.split(batch.lengths)]
        positives, twins = rows[:8], rows[8:]
        for positive, twin in zip(positives, twins, strict=True):
            assert (
                positive != twin and positive.split("### Input:")[1] == twin.split("### Input:")[1]
            )
        assert batch.y[: batch.positives].tolist() == batch.y[batch.positives :].tolist()
        seen.add(tuple(twins))
    assert len(seen) == 20


def test_the_examples_in_the_docstrings_are_true():
    failed, tried = doctest.testmod(data)
    assert failed == 0 and tried >= 6


def test_a_pair_whose_twin_does_not_fit_has_none(tokenizer):
    corpus = {
        (s, t): [Sample((s, t), "a", "b" * 40)]
        for s, t in [("en", "it"), ("nl", "ro"), ("ro", "en")]
    }
    most = max(encoded.tokens for encoded in tuning_set(corpus, tokenizer, 512).samples)
    some = set()
    for room in range(most, most - 4, -1):  # "Romanian" takes another number of tokens than "Dutch"
        try:
            encoded = tuning_set(corpus, tokenizer, room)
            pairs = encoded.with_twins(encoded.samples, "any", random.Random(0))
        except InputError:
            break
        assert all(pair.twin is None or pair.twin.tokens <= room for pair in pairs)
        assert all(
            pair.twin is None or pair.twin.response == pair.positive.response for pair in pairs
        )
        some |= {pair.twin is None for pair in pairs}
    assert False in some


def test_a_twin_that_keeps_the_source_asks_for_another_of_the_target_languages():
    instructions = {("en", "it"): 5, ("en", "nl"): 1, ("it", "en"): 5, ("nl", "en"): 1}
    rng, found = random.Random(0), {}
    for direction in instructions:
        drawn = Counter(
            draw_conflict(direction, instructions, "keep-source", rng) for _ in "x" * 99
        )
        found[direction] = drawn
        assert all(d[0] == direction[0] and d[1] not in direction for d in drawn)
    assert set(found["it", "en"]) == {("it", "nl")}  # in no sample
    with pytest.raises(InputError, match="--conflict keep-source"):
        draw_conflict(("en", "it"), {("en", "it"): 5, ("it", "en"): 5}, "keep-source", rng)


def test_each_token_of_a_twin_knows_the_same_token_of_its_positive(encoded):
    pairs = encoded.with_twins(encoded.samples[:4], "any", random.Random(0))
    pairs[1] = pairs[1]._replace(twin=None)
    for punish_eos in (True, False):
        if not punish_eos:
            pairs = encoded.with_twins(encoded.samples[:4], "any", random.Random(0), punish_eos)
        batch = collate(pairs)
        n = batch.positives
        assert torch.equal(batch.y[batch.same], batch.y[n:]) and len(batch.pair) == len(batch.same)
        twins = [pair for pair in pairs if pair.twin]
        lengths = [len(pair.twin.response) for pair in twins]
        assert batch.pair.tolist() == [i for i, k in enumerate(lengths) for _ in range(k)]
        assert [k - len(x.positive.response) for k, x in zip(lengths, twins, strict=True)] == [
            0 if punish_eos else -1
        ] * len(twins)
