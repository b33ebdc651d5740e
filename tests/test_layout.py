"""What sequences begin with in common is computed once, and nothing else changes."""

import random

import pytest
import torch
from conftest import tiny

import plumbing.compute.layout as layout_file
from model import add_lora
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.layout import CachedLayout, Layout, Ragged

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def family(seed, count=12):
    """Sequences with much in common: some begin alike, some are equal, some end inside another."""
    rng = random.Random(seed)
    sequences = []
    for _ in range(count):
        known = rng.choice(sequences)[: rng.randint(0, 9)] if sequences else []
        sequences.append(known + [rng.randint(3, 6) for _ in range(rng.randint(not known, 6))])
    return sequences


def laid(sequences, **how):
    flat = [token for sequence in sequences for token in sequence]
    return Layout(torch.tensor(flat), [len(s) for s in sequences], **how)


@pytest.mark.parametrize("seed", range(20))
def test_as_many_tokens_are_computed_as_there_are_different_beginnings(seed):
    sequences = family(seed)
    layout = laid(sequences)
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(layout.ids) == sum(layout.own) == len(beginnings)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [True, False])
def test_every_token_finds_itself_at_its_position(seed, share):
    sequences = family(seed)
    layout = laid(sequences, share=share)
    flat = [token for sequence in sequences for token in sequence]
    assert layout.expand(layout.ids).tolist() == flat
    columns = [i for sequence in sequences for i in range(len(sequence))]
    assert layout.expand(layout.position).tolist() == columns
    assert layout.pick(layout.ids, torch.tensor([0, len(flat) - 1])).tolist() == [flat[0], flat[-1]]
    assert share or len(layout.ids) == len(flat)


def test_long_sequences_share_nothing_since_their_mask_would_not_fit(monkeypatch):
    monkeypatch.setattr(layout_file, "LONG", 3)
    assert laid([[5, 6, 7], [5, 6, 8]]).own == [3, 1]
    assert laid([[5, 6, 7, 9], [5, 6, 8]]).own == [4, 3]


def test_rows_are_padded_and_back():
    ragged = Ragged([2, 0, 3])
    x = torch.randn(5, 4, 6)
    rectangle = ragged.pad(x)
    assert rectangle.shape == (3, 4, 3, 6) and not rectangle[1].any()
    assert torch.equal(ragged.unpad(rectangle), x)
    assert ragged.ends.tolist() == [0, 2, 2, 5]


def test_a_cached_token_sees_what_is_before_it_and_no_further_than_the_window():
    layout = CachedLayout(torch.tensor([7, 8]), [1, 1], torch.tensor([4, 1, 9]), 6, window=3)
    assert layout.position.tolist() == [4, 1]
    seen = (layout.mask(torch.float32)[:, 0, 0] == 0).tolist()
    assert seen == [[False, False, True, True, True, False], [True, True] + [False] * 4]


# In the model


def outcome(model, sequences, at=None):
    """Logits and gradients of a loss that every sequence enters with another weight."""
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    logits = model(ids, [len(s) for s in sequences], at=at)
    torch.manual_seed(0)
    (logits.logsumexp(-1) * torch.rand(len(logits))).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 4}, {"lora": True}, {"recompute": True}, {"at": True}]
)
def test_logits_and_gradients_are_those_of_sequences_computed_apart(changes):
    sequences = family(3)
    at = torch.tensor([0, 5, 5, 17]) if changes.pop("at", False) else None
    lora, recompute = changes.pop("lora", False), changes.pop("recompute", False)
    model = tiny(**changes).train()
    if lora:
        add_lora(model, LoraSettings(4, 8.0, LINEARS, 0.0))
    model.recompute = recompute
    shared, shared_gradients = outcome(model, sequences, at)
    computed = model.computed
    model.share_prefixes = False
    apart, gradients = outcome(model, sequences, at)
    assert computed < model.computed == sum(map(len, sequences))
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)
    assert shared_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        error = (shared_gradients[name] - gradient).norm() / (gradient.norm() + 1e-12)
        assert error < 1e-5, name


def test_with_dropout_equal_sequences_are_dropped_apart_in_training_alone():
    model = tiny().train()
    add_lora(model, LoraSettings(4, 8.0, LINEARS, 0.5))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    ids = torch.tensor([5, 6, 7] * 2)
    first, second = model(ids, [3, 3]).split(3)
    assert not torch.equal(first, second) and model.computed == 6
    first, second = model.eval()(ids, [3, 3]).split(3)
    torch.testing.assert_close(first, second)
    assert model.computed == 3
