"""Greedy decoding and beam search against transformers' generate, batched against alone."""

import math
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import BASE, ids_of, script, tiny
from oracles import in_transformers

import evaluate
from data import Prompter
from evaluate import beam_search, greedy, translate
from model import save_model
from plumbing.base.errors import InputError
from plumbing.base.flags import parse
from plumbing.compute import decoder as decoder_file
from plumbing.compute.decoder import Decoder, Graphs

LENGTHS = [4, 17, 9, 1, 12, 5, 26]
VOCABULARY = 40  # small, so that outputs end early by chance


def prompts_of(seed, lengths=LENGTHS):
    return [part.tolist() for part in ids_of(lengths, seed).split(lengths)]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_said_to_be_so(beams, damage):
    """In fp16 a model may overflow: its outputs would be the first token again and again."""
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight[3] = damage
    with pytest.raises(InputError, match="scores are not finite.*fp16"):
        if beams == 1:
            greedy(Decoder(model), [[3, 4], [5]], {2}, 4)
        else:
            beam_search(Decoder(model, beams), [[3, 4], [5]], {2}, 4)


def test_outputs_that_end_at_the_limit_are_counted(tokenizer):
    model, prompter = tiny(seed=3), Prompter(tokenizer, "alpaca")
    prompts = prompts_of(1, [4, 17, 9, 1])
    for beams in (1, 2):
        free = translate(Decoder(model, beams), prompter, prompts, None, 40)
        ids = [len(x) for x in greedy(Decoder(model), prompts, {prompter.encoder.end}, 40)]
        assert beams > 1 or free[1] == [n == 40 for n in ids]
        assert translate(Decoder(model, beams), prompter, prompts, None, 1)[1] == [True] * 4


def test_batched_greedy_decoding_equals_single_and_uncached():
    model, prompts = tiny(seed=3), prompts_of(1, [4, 17, 9, 1])

    def uncached(prompt, eos):
        ids = list(prompt)
        for _ in range(12):
            new = int(model(torch.tensor(ids), [len(ids)])[-1].argmax())
            if new == eos:
                break
            ids.append(new)
        return ids[len(prompt) :]

    free = [uncached(p, eos=-1) for p in prompts]
    # a token that ends at least one row early: rows must leave the batch without a trace
    eos = free[1][4]
    expected = [uncached(p, eos) for p in prompts]
    assert len({len(e) for e in expected}) > 1
    assert greedy(Decoder(model), prompts, {eos}, 12) == expected
    assert [greedy(Decoder(model), [p], {eos}, 12)[0] for p in prompts] == expected


def both(folder, **changes):
    """A random model, and the same in transformers."""
    model = lively(**changes)
    save_model(model, folder)
    return model, in_transformers(folder)


def lively(**changes):
    """A random model that does not repeat itself at once."""
    model = tiny(seed=3, vocab_size=VOCABULARY, **changes)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim == 2 else None
    return model


def short_prompts(lengths):
    return [[i % VOCABULARY for i in p] for p in prompts_of(1, lengths)]


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 7}], ids=["full", "window"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_a_prompt_that_takes_a_free_row_is_decoded_as_alone(size, changes):
    """Rows of every age stand beside each other, some behind ones that ended at the limit."""
    model = lively(**changes | ({"model_type": "mistral"} if changes else {}))
    prompts = short_prompts([9, 4, 17, 1, 26, 12, 5, 4, 8, 9, 3])
    ends = {5, 11, 23}
    expected = [greedy(Decoder(model), [p], ends, 12)[0] for p in prompts]
    assert len({len(ids) for ids in expected}) > 3
    decoder = Decoder(model)
    assert greedy(decoder, prompts, ends, 12, size) == expected
    assert len(decoder.cache.lengths) == min(size, len(prompts))


def test_no_batch_waits_for_its_longest_output():
    """Of 32 outputs some go on to the limit, and the others are much shorter."""
    model, steps = lively(), []
    prompts, ends = short_prompts([4, 17, 9, 1, 12, 5, 26, 8] * 4), {5, 11, 23}
    lengths = [len(ids) for ids in greedy(Decoder(model), prompts, ends, 60)]
    batches = [lengths[i : i + 4] for i in range(0, 32, 4)]
    decoder = Decoder(model)
    step = decoder.step
    decoder.step = lambda new: steps.append(len(new)) or step(new)
    greedy(decoder, prompts, ends, 60, 4)
    assert len(steps) < 0.8 * sum(map(max, batches))


class OnCPU:
    """What a CUDA graph does: the recorded step again, from and to the same tensors."""

    def __init__(self, graphs, ids, logits):
        self.graphs, self.ids, self.logits, self.slots = graphs, ids, logits, graphs.cache.least

    def replay(self):
        cache = self.graphs.cache
        assert cache.least == self.slots  # as recorded
        lengths = [*cache.lengths]
        self.logits.copy_(self.graphs.model(self.ids, [1] * len(self.ids), cache))
        cache.lengths[:] = lengths


@pytest.mark.parametrize("size", [1, 3, 64])
def test_recorded_steps_are_the_steps(size, monkeypatch):
    model, ends, recorded = lively(), {5, 11, 23}, []
    prompts = short_prompts([9, 4, 17, 1, 26, 12, 5, 4, 8, 9, 3])
    expected = greedy(Decoder(model), prompts, ends, 12, size)

    def record(self, B):
        assert self.seen[B] > 1  # it has run before, with whatever happens once
        recorded.append((B, self.cache.least))
        ids, logits = torch.zeros(B, dtype=torch.long), torch.zeros(B, VOCABULARY)
        return OnCPU(self, ids, logits), ids, logits

    monkeypatch.setattr(Graphs, "record", record)
    monkeypatch.setattr(decoder_file, "SLOTS", 8)
    decoder = Decoder(model)
    decoder.reserve(prompts, size, 12)
    decoder.graphs = Graphs(model, decoder.cache)
    for _ in range(2):  # in the same cache
        assert greedy(decoder, prompts, ends, 12, size) == expected
        assert len(recorded) == len(set(recorded)) > 0  # each once
    assert decoder.cache is decoder.graphs.cache


def test_recording_counts_no_tokens_and_shares_one_memory(monkeypatch):
    """While a graph is recorded nothing is computed, so the host must not count it."""
    pools = []

    def capture(graph, pool, capture_error_mode):
        pools.append(pool)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: "memory"))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    model = lively()
    graphs = Graphs(model, model.new_cache(3, 16))
    graphs.cache.lengths[:] = [4, 2, 7]
    for B in (3, 2):
        graphs.recorded[B] = graphs.record(B)
        _, ids, logits = graphs.recorded[B]
        assert ids.shape == (B,) and logits.shape == (B, VOCABULARY)
    assert graphs.cache.lengths == [4, 2, 7] and pools == [None, "memory"]


def test_evaluation_records_its_steps(folder, monkeypatch):
    """evaluate.py's weights stay where they are; those of train.py's --dev may be sharded."""
    found = []

    class Seen(Decoder):
        def __init__(self, model, beams=1, record=False):
            found.append(record)
            super().__init__(model, beams)

    monkeypatch.setattr(evaluate, "Decoder", Seen)
    args = ["--ckpt", folder / "model", "--data", folder / "train.tsv", "--rows", 1]
    args += ["--directions", "en-it", "--lid", "none", "--device", "cpu", "--max-new-tokens", 2]
    evaluate.main(parse(evaluate.Settings, "", [*map(str, args)]))
    assert found == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("size", [1, 3, 64])
def test_recorded_steps_are_the_steps_on_cuda(size, monkeypatch):
    model, ends = lively().cuda(), {5, 11, 23}
    prompts = short_prompts([9, 4, 17, 1, 26, 12, 5, 4, 8, 9, 3] * 3)
    expected = greedy(Decoder(model), prompts, ends, 24, size)
    monkeypatch.setattr(decoder_file, "SLOTS", 8)  # so that graphs are made anew
    decoder = Decoder(model, record=True)
    for _ in range(3):
        assert greedy(decoder, prompts, ends, 24, size) == expected
    assert decoder.graphs.recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_translations_on_cuda_are_those_of_the_cpu(tmp_path):
    """In fp32, through evaluate.py."""
    texts = {}
    for device in ("cpu", "cuda"):
        shutil.copytree(BASE, tmp_path / device, ignore=shutil.ignore_patterns("eval-*"))
        args = ["--rows", 4, "--lid", "none", "--dtype", "fp32", "--device", device]
        result = script("evaluate.py", "--ckpt", tmp_path / device, *args)
        assert result.returncode == 0, result.stderr
        files = (tmp_path / device / "eval-test").glob("*-*.txt")
        texts[device] = {path.name: path.read_text() for path in files}
    same = [texts["cuda"][name] == text for name, text in texts["cpu"].items()]
    assert len(same) > 12 and sum(same) >= len(same) - 2  # a rare token may tie


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
        decoder = Decoder(ours, beams)
        found = beam_search(decoder, prompts, set(ends), room, length_penalty)
        alone = [beam_search(decoder, [p], set(ends), room, length_penalty)[0] for p in prompts]
        assert [beam.ids for beam in alone] == [beam.ids for beam in found]
        for beam, prompt in zip(found, prompts, strict=True):
            ids, score = theirs(peer, prompt, ends, room, beams, length_penalty)
            assert beam.ids == ids and beam.score == pytest.approx(score, abs=1e-4)
            early.append(len(ids) < room)
    assert any(early) or length_penalty > 1  # which rewards what is long


@pytest.mark.parametrize("vocabulary, beams, ends", [(6, 5, {2, 5}), (4, 8, {3}), (3, 2, {0, 1})])
def test_fewer_tokens_than_beams(vocabulary, beams, ends):
    model = tiny(vocab_size=vocabulary).eval()
    found = beam_search(Decoder(model, beams), [[1, 2], [2]], ends, 6)
    for prompt, beam in zip([[1, 2], [2]], found, strict=True):
        ids, total = list(prompt), 0.0
        for token in beam.ids:
            log_p = model(torch.tensor(ids), [len(ids)])[-1].log_softmax(-1)
            total += log_p[token].item()
            ids.append(token)
        assert beam.score == pytest.approx(total / len(beam.ids), abs=1e-4)
