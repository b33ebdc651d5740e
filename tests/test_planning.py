"""A plan is what the run then does: the same tensors, counted without memory."""

from dataclasses import replace

import pytest
import torch

import loss
from model import LlamaForCausalLM, add_lora
from plumbing.run import planning
from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.flags import DTYPES
from plumbing.checkpoint.folder import Config
from plumbing.run.settings import LINEARS
from train import Settings, loss_sums

CONFIG = Config(500, 64, 160, 5, 4, num_key_value_heads=2, tie_word_embeddings=True)


@pytest.fixture
def batch(tokenizer):
    from data import EncodedSample, TwinPair, collate
    from plumbing.corpus.corpus import Sample

    sample = Sample(("en", "it"), "", "")
    pairs = [
        TwinPair(
            EncodedSample(sample, [1, *range(5, 40), 50 + i], [60 + i] * (7 + i)),
            EncodedSample(sample, [1, *range(5, 40), 150 + i], [60 + i] * (7 + i)),
        )
        for i in range(12)
    ]
    return collate(pairs)


def maker(full, dtype):
    def make_model(layers):
        with planning.default_dtype(torch.float32 if full else DTYPES[dtype]):
            model = LlamaForCausalLM(replace(CONFIG, num_hidden_layers=layers))
        if not full:
            add_lora(model, LoraSettings(8, 16.0, LINEARS.split(","), 0.0))
        return model.train()

    return make_model


def loss_of(batch, dtype):
    def find_loss(model):
        mle_sum, ul_sum = loss_sums(model, batch, Settings(device="cpu", dtype=dtype))
        return loss.language_aware(mle_sum, 1, ul_sum, 1, 0.05)

    return find_loss


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bytes_and_parameters_are_those_of_a_real_pass(batch, full, dtype):
    make_model, find_loss = maker(full, dtype), loss_of(batch, dtype)
    plans, alone = (
        [
            planning.measure(make_model, find_loss, 5, 1, recompute, alone)
            for recompute in (False, True)
        ]
        for alone in (False, True)
    )
    model = make_model(5)
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        with planning.LiveBytes() as live:
            find_loss(model).backward()
        of_both = alone[recompute].activations + alone[recompute].gradients
        assert of_both == pytest.approx(live.peak, rel=0.03)
        with planning.LiveBytes() as live:
            find_loss(model).backward()
        assert plans[recompute].activations == pytest.approx(live.peak, rel=0.03)
    parameters = list(model.parameters())
    plan, trained = plans[0], [p for p in parameters if p.requires_grad]
    assert plan.parameters == sum(p.numel() for p in parameters)
    assert plan.trained == sum(p.numel() for p in trained)
    assert plan.weights == sum(p.nbytes for p in parameters)
    assert plan.moments == 2 * plan.gradients == 2 * sum(p.grad.nbytes for p in trained)
    assert plans[1].activations < plan.activations and plans[1].flops > plan.flops


def test_flops_are_those_that_the_layers_multiply(batch):
    """LoRA: 2 forward and 2 for the gradient of the input, of every weight and token; of A and B
    2 more for their own. What nothing trains before, the first block's input, has no gradient."""
    case = maker(False, "fp32"), loss_of(batch, "fp32"), 5, 1
    plan, recompute = (planning.measure(*case, recompute) for recompute in (False, True))
    model = maker(False, "fp32")(5)
    logits = model(batch.ids, batch.lengths, at=batch.at)
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora" in name)
    body = sum(p.numel() for name, p in model.named_parameters() if "_proj.weight" in name)
    head = 4 * model.lm_head.weight.numel() * len(logits)
    attention = model.model.layers[0].self_attn
    first = [getattr(attention, f"{name}_proj") for name in "qkv"]
    spared = sum(layer.weight.numel() + layer.lora_A.weight.numel() for layer in first)
    expected = model.computed * (4 * body + 6 * lora - 2 * spared) + head
    assert expected <= plan.flops < 1.2 * expected  # attention, where PyTorch counts it
    assert recompute.flops == pytest.approx(plan.flops * 1.45, rel=0.1)


def test_what_several_gpus_split_becomes_less_on_each(batch):
    one, four = (
        planning.measure(maker(True, "fp32"), loss_of(batch, "fp32"), 5, gpus, False)
        for gpus in (1, 4)
    )
    assert four.moments == one.moments / 4 and four.gradients == one.gradients / 4
    assert one.weights / 4 < four.weights


def test_live_bytes_fall_when_tensors_go():
    with planning.LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a, b
        assert (live.now, live.peak) == (4000, 8000)  # the view holds all of b
        del view
        assert live.now == 0


def test_live_bytes_are_not_those_of_what_was_there_before():
    weight = torch.zeros(10, 100)
    with planning.LiveBytes() as live:
        view = weight.T[:5]
        weight.add_(1)
        assert live.peak == 0 and view.shape == (5, 10)


def test_gpus_without_work_save_no_time(batch):
    """Of three steps' shares of one, two, two GPUs."""
    short = batch._replace(ids=batch.ids[:43], lengths=batch.lengths[:1])
    idle = short._replace(samples=[])
    spread = [[short, short, short], [idle, idle, idle]]
    even = [[short, short], [short, idle]]

    def work(steps):
        return planning.Planner(None, lambda tokens, gpus: steps, None, 5, True).work(4096, 2)

    assert work([spread]).pace == work([spread]).computed == 3 * 43
    found = work([spread, even])
    assert (found.tokens, found.computed, found.pace) == (3 * 43, 3 * 43, 2.5 * 43)
    both = work([[[batch], [short]]])
    assert both.largest is batch and both.pace == both.tried < both.computed < both.tokens
