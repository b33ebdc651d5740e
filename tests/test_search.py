"""Beam search against transformers' generate, contrastive decoding against its formula uncached."""

import math

import pytest
import torch
from conftest import tiny
from oracles import in_transformers
from test_model import ids_of

from evaluate import Variants, beam_search, contrast, greedy
from model import save_model
from plumbing.compute.decoder import Decoder

LENGTHS = [4, 17, 9, 1, 12, 5, 26]


def prompts_of(seed, lengths=LENGTHS):
    return [part.tolist() for part in ids_of(lengths, seed).split(lengths)]


VOCABULARY = 40  # small, so that outputs end early by chance


def both(folder, **changes):
    """A random model, and the same in transformers."""
    model = tiny(seed=3, vocab_size=VOCABULARY, **changes)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim == 2 else None
    save_model(model, folder)
    return model, in_transformers(folder)


def theirs(model, prompt, ends, room, beams, length_penalty):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=room,
        num_beams=beams,
        do_sample=False,
        length_penalty=length_penalty,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = out.sequences[0, len(prompt) :].tolist()
    stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop], out.sequences_scores[0].item()


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 7}], ids=["full", "window"])
@pytest.mark.parametrize("many", [False, True], ids=["few ends", "many ends"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
def test_beams_are_those_of_transformers(tmp_path, many, length_penalty, changes):
    ours, peer = both(tmp_path, **changes | ({"model_type": "mistral"} if changes else {}))
    ends = [0, 5, 8, 11, 23, 28, 33, 38] if many else [5, 11, 23]
    prompts, early = [[i % VOCABULARY for i in p] for p in prompts_of(1)], []
    for beams, room in ((4, 14), (2, 9), (3, 1)):
        decoder = Decoder(ours, beams=beams)
        found = beam_search(decoder, prompts, set(ends), room, length_penalty)
        alone = [beam_search(decoder, [p], set(ends), room, length_penalty)[0] for p in prompts]
        assert [beam.ids for beam in alone] == [beam.ids for beam in found]
        for beam, prompt in zip(found, prompts, strict=True):
            ids, score = theirs(peer, prompt, ends, room, beams, length_penalty)
            assert beam.ids == ids and beam.score == pytest.approx(score, abs=1e-4)
            early.append(len(ids) < room)
    assert any(early) or length_penalty > 1  # which rewards what is long


def test_with_a_static_cache_beams_are_the_same():
    model = tiny(seed=3)
    plain, static = (Decoder(model, static, beams=3) for static in (False, True))
    assert beam_search(plain, prompts_of(1), {-1}, 8) == beam_search(static, prompts_of(1), {-1}, 8)


def contrasted(model, prompt, others, weights):
    """The formula, written out, of one step without a cache: log-scores of the next token."""
    p, *variants = (
        model(torch.tensor(ids), [len(ids)])[-1].double().softmax(-1) for ids in (prompt, *others)
    )
    rest = p - sum(weight * q for weight, q in zip(weights, variants, strict=True))
    return p.log() if (rest <= 0).all() else torch.where(rest > 0, rest, 0.0).log()


@torch.no_grad()
def uncached_greedy(model, prompt, others, weights, ends, room):
    ids = []
    for _ in range(room):
        new = int(contrasted(model, prompt + ids, [o + ids for o in others], weights).argmax())
        if new in ends:
            break
        ids.append(new)
    return ids


@torch.no_grad()
def uncached_beams(model, prompt, others, weights, ends, room, n, length_penalty):
    """Textbook beam search over all continuations, by the rules of transformers."""
    live, kept = [(0.0, [])], []
    for length in range(1, room + 1):
        every = []
        for score, ids in live:
            new = contrasted(model, prompt + ids, [o + ids for o in others], weights)
            best = new.topk(40)
            every += [
                (score + s, [*ids, t])
                for s, t in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        every = sorted(every, key=lambda x: -x[0])[: n * max(2, 1 + len(ends))]
        over = [x[1][-1] in ends or length == room for x in every]
        kept += [
            (x[0] / length**length_penalty, x[1])
            for x, o in zip(every[:n], over[:n], strict=True)
            if o
        ]
        kept = sorted(kept, key=lambda x: -x[0])[:n]
        live = [x for x, o in zip(every, over, strict=True) if not o][:n]
        if len(kept) == n and (not live or live[0][0] / length**length_penalty <= kept[-1][0]):
            break
    return kept[0]


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7], [0.1, 0.3, 0.2], [2.0]])
def test_contrastive_decoding_is_its_formula(weights):
    model, prompts = tiny(seed=3), prompts_of(1)
    others = [prompts_of(7 + i, LENGTHS[i:] + LENGTHS[:i]) for i in range(len(weights))]
    variants = [Variants(w, p) for w, p in zip(weights, others, strict=True)]
    ends = set(greedy(Decoder(model), prompts, set(), 9, variants)[1][4:5])
    expected = [
        uncached_greedy(model, p, [o[i] for o in others], weights, ends, 9)
        for i, p in enumerate(prompts)
    ]
    assert len({len(ids) for ids in expected}) > 1
    plain = greedy(Decoder(model), prompts, ends, 9)
    assert greedy(Decoder(model), prompts, ends, 9, variants) == expected and plain != expected
    for i, prompt in enumerate(prompts):
        alone = [Variants(v.weight, [v.prompts[i]]) for v in variants]
        assert greedy(Decoder(model), [prompt], ends, 9, alone) == [expected[i]]
    found = beam_search(Decoder(model, beams=3), prompts, ends, 7, 1.0, variants)
    for i, (prompt, beam) in enumerate(zip(prompts, found, strict=True)):
        of_it = [o[i] for o in others]
        score, ids = uncached_beams(model, prompt, of_it, weights, ends, 7, 3, 1.0)
        assert beam.ids == ids and beam.score == pytest.approx(score, abs=1e-3)
        alone = [Variants(v.weight, [v.prompts[i]]) for v in variants]
        (single,) = beam_search(Decoder(model, beams=3), [prompt], ends, 7, 1.0, alone)
        assert single.ids == ids


def test_where_every_token_is_excluded_the_model_speaks_alone():
    logits = torch.randn(2, 1, 3, 9)
    same = torch.cat([logits, logits], 1)
    log_p = logits[:, 0].log_softmax(-1)
    torch.testing.assert_close(contrast(same, [Variants(1.0, [])]), log_p)
    torch.testing.assert_close(contrast(same, [Variants(0.25, [])]), log_p + math.log(0.75))
    other = torch.cat([logits, logits.roll(1, -1)], 1)
    scores = contrast(other, [Variants(1.0, [])])
    assert scores.isinf().any() and scores.max(-1).values.isfinite().all()


@pytest.mark.parametrize("vocabulary, beams, ends", [(6, 5, {2, 5}), (4, 8, {3}), (3, 2, {0, 1})])
def test_fewer_tokens_than_beams(vocabulary, beams, ends):
    model = tiny(vocab_size=vocabulary).eval()
    found = beam_search(Decoder(model, beams=beams), [[1, 2], [2]], ends, 6)
    for prompt, beam in zip([[1, 2], [2]], found, strict=True):
        ids, total = list(prompt), 0.0
        for token in beam.ids:
            log_p = model(torch.tensor(ids), [len(ids)])[-1].log_softmax(-1)
            total += log_p[token].item()
            ids.append(token)
        assert beam.score == pytest.approx(total / len(beam.ids), abs=1e-4)
