import pytest
import torch
from conftest import BASE, tiny

from evaluate import greedy
from model import RMSNorm, add_lora, load_model, merge_lora, rope_table, rotate, save_model
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.decoder import Decoder
from plumbing.base.errors import InputError
from plumbing.checkpoint.folder import Config

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ids_of(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(3, 4000, (sum(lengths),), generator=g)


def randomise_lora(model):
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)


def test_norm_and_rotation_match_their_formulas():
    x = torch.randn(5, 8)
    norm = RMSNorm(8, 1e-6)
    norm.weight.data = torch.rand(8)
    torch.testing.assert_close(
        norm(x), norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    config = Config(10, 8, 8, 1, 1, rope_theta=100.0)
    # a feature and its partner half a head away
    pairs = torch.complex(*torch.randn(5, 1, 8).chunk(2, -1))
    turned = rotate(torch.cat([pairs.real, pairs.imag], -1), rope_table(config, torch.arange(5)))
    angle = torch.arange(5)[:, None] * 100.0 ** (-torch.arange(4) / 4)
    expected = pairs[:, 0] * torch.polar(torch.ones(5, 4), angle)
    torch.testing.assert_close(turned[:, 0], torch.cat([expected.real, expected.imag], -1))


def test_sequences_laid_end_to_end_do_not_see_each_other():
    model, lengths = tiny(), [7, 1, 12, 5]
    ids = ids_of(lengths)
    alone = torch.cat([model(part, [len(part)]) for part in ids.split(lengths)])
    torch.testing.assert_close(model(ids, lengths), alone, rtol=1e-4, atol=1e-5)


def test_no_token_sees_the_future():
    model, ids = tiny(), ids_of([10])
    changed = ids.clone()
    changed[6] = (ids[6] + 1) % 4000
    before, after = model(ids, [10]), model(changed, [10])
    assert torch.equal(before[:6], after[:6]) and not torch.equal(before[6:], after[6:])


def test_logits_at_chosen_positions_are_those_of_all_positions():
    model, ids, at = tiny(), ids_of([9, 4]), torch.tensor([2, 8, 11])
    torch.testing.assert_close(model(ids, [9, 4], at=at), model(ids, [9, 4])[at])


def test_batched_greedy_decoding_equals_single_and_uncached():
    model, lengths = tiny(seed=3), [4, 17, 9, 1]
    prompts = [p.tolist() for p in ids_of(lengths, seed=1).split(lengths)]

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


def test_lora_changes_nothing_at_first_and_alone_gets_gradients():
    model, ids = tiny(), ids_of([6, 3])
    before = model(ids, [6, 3])
    add_lora(model, LoraSettings(4, 8.0, LINEARS, 0.0))
    assert torch.equal(model(ids, [6, 3]), before)
    randomise_lora(model)
    model(ids, [6, 3]).logsumexp(-1).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) == ("lora_" in name), name


def test_lora_goes_where_it_is_told():
    model = tiny()
    add_lora(model, LoraSettings(2, 2.0, ["q_proj", "up_proj"], 0.0))
    assert {n.split(".")[-1] for n, m in model.named_modules() if getattr(m, "scale", None)} == {
        "q_proj",
        "up_proj",
    }
    with pytest.raises(InputError, match="qproj.*expected some of.*q_proj"):
        add_lora(tiny(), LoraSettings(2, 2.0, ["qproj"], 0.0))


def test_merging_keeps_the_function_and_leaves_a_plain_model():
    model, ids = tiny(), ids_of([8])
    names = {n for n, _ in model.named_parameters()}
    add_lora(model, LoraSettings(4, 6.0, LINEARS, 0.1))
    randomise_lora(model)
    before = model.eval()(ids, [8])
    merge_lora(model)
    torch.testing.assert_close(model(ids, [8]), before, rtol=1e-4, atol=1e-5)
    assert {n for n, _ in model.named_parameters()} == names
    merge_lora(model)  # a second time changes nothing
    torch.testing.assert_close(model(ids, [8]), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_and_reloaded_model_computes_the_same(tmp_path, lora, tied):
    save_model(tiny(tied=tied), tmp_path / "base")
    model, ids = load_model(tmp_path / "base").eval(), ids_of([11])
    if lora:
        add_lora(model, LoraSettings(4, 8.0, LINEARS, 0.0))
        randomise_lora(model)
    save_model(model, tmp_path / "run")
    assert torch.equal(load_model(tmp_path / "run").eval()(ids, [11]), model(ids, [11]))


def test_a_16_bit_base_computes_beside_its_fp32_adapter(tmp_path):
    save_model(tiny().bfloat16(), tmp_path / "base")
    model, ids = load_model(tmp_path / "base").eval(), ids_of([11])
    plain = model(ids, [11])
    add_lora(model, LoraSettings(4, 8.0, LINEARS, 0.0))
    randomise_lora(model)
    save_model(model, tmp_path / "run")
    model = load_model(tmp_path / "run").eval()
    kinds = {name.split(".")[-2]: p.dtype for name, p in model.named_parameters()}
    assert (kinds["q_proj"], kinds["lora_A"]) == (torch.bfloat16, torch.float32)
    found, exact = model(ids, [11]), load_model(tmp_path / "run", torch.float32).eval()(ids, [11])
    far = (exact - plain.float()).abs().max()
    assert (found.float() - exact).abs().max() < far / 5


def test_a_model_saves_over_the_folder_that_it_came_from(tmp_path):
    save_model(tiny(), tmp_path, BASE)
    model = load_model(tmp_path)
    model.model.norm.weight.data += 1
    save_model(model, tmp_path, tmp_path)
    assert torch.equal(load_model(tmp_path).model.norm.weight, model.model.norm.weight)
