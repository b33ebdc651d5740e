"""The network: its formulas, the textbook's attention, sharing, the cache, LoRA."""

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import BASE, LINEARS, ids_of, randomise_lora, tiny

import plumbing.compute.layout as layout_file
from model import (
    RMSNorm,
    add_lora,
    causal_attention,
    load_model,
    merge_lora,
    rms_norm,
    rope_table,
    rotate,
    save_model,
    swiglu,
)
from plumbing.base.errors import InputError
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute import attention, products
from plumbing.compute.cache import Paths
from plumbing.compute.layout import CachedLayout, Layout, Ragged
from plumbing.compute.products import FEW, linear

HAS_CUDA = torch.cuda.is_available()


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
    turned = rotate(torch.cat([pairs.real, pairs.imag], -1), *rope_table(config, torch.arange(5)))
    angle = torch.arange(5)[:, None] * 100.0 ** (-torch.arange(4) / 4)
    expected = pairs[:, 0] * torch.polar(torch.ones(5, 4), angle)
    torch.testing.assert_close(turned[:, 0], torch.cat([expected.real, expected.imag], -1))


def test_what_cuda_compiles_is_one_graph_and_computes_the_same():
    """The tracing alone, whatever compiler follows: no break, for any number of tokens."""
    graphs, x, cos, sin = [], torch.randn(5, 4, 8), torch.rand(5, 1, 8), torch.rand(5, 1, 8)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for function, *others in ((rms_norm, torch.rand(8), 1e-6), (rotate, cos, sin), (swiglu, x + 1)):
        plain = function.__wrapped__
        compiled = torch.compile(plain, dynamic=True, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(x, *others), plain(x, *others))
        before = len(graphs)
        few = [other[:3] if getattr(other, "ndim", 0) == 3 else other for other in others]
        torch.testing.assert_close(compiled(x[:3].clone(), *few), plain(x[:3], *few))
        assert len(graphs) == before


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


# Attention: the fast backends against the textbook's function


def inputs(sequences, window, device="cpu", dtype=torch.float32, share=True):
    layout = laid(sequences, device=device, window=window, share=share)
    g = torch.Generator().manual_seed(1)
    U, T = len(layout.ids), sum(layout.lengths)
    shapes = (U, 4, 16), (T, 2, 16), (T, 2, 16)
    q, k, v = (torch.randn(shape, generator=g).to(device, dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], layout


def by_textbook(q, k, v, layout):
    """causal_attention of every sequence's own tokens, end to end."""
    parts = zip(q.split(layout.own), k.split(layout.lengths), v.split(layout.lengths), strict=True)
    return torch.cat([causal_attention(*qkv, layout.window) for qkv in parts])


@pytest.mark.parametrize("window", [None, 3])
def test_the_textbooks_attention_is_torchs(window):
    q, k, v = (torch.randn(9, heads, 16) for heads in (4, 2, 2))
    visible = torch.ones(9, 9, dtype=torch.bool).tril().triu(1 - (window or 9))
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=visible, enable_gqa=True
    )
    torch.testing.assert_close(causal_attention(q, k, v, window), expected.transpose(0, 1))
    last = causal_attention(q[-2:], k, v, window)  # of tokens that continue a sequence
    torch.testing.assert_close(last, expected.transpose(0, 1)[-2:])


@pytest.mark.parametrize("backend", [attention.padded, attention.each, attention.attend])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("share", [True, False])
def test_backends_compute_what_the_textbook_computes(backend, window, share):
    qkv, layout = inputs(family(5), window, share=share)
    results = []
    for function in (backend, by_textbook):
        out = function(*qkv, layout)
        torch.manual_seed(0)
        results.append([out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), qkv)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size):
    """FlashAttention for unequal lengths by its description (torch.nn.attention.varlen): the last
    query of a sequence is where its last key is, and sees so many keys to the left and right, -1
    for all."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    left, right = (len(k) if side < 0 else side for side in window_size)
    parts, longest = [], [0, 0]
    for i in range(len(cu_seq_q) - 1):
        (q0, q1), (k0, k1) = cu_seq_q[i : i + 2].tolist(), cu_seq_k[i : i + 2].tolist()
        n, s = q1 - q0, k1 - k0
        longest = [max(longest[0], n), max(longest[1], s)]
        offset = torch.arange(s) - torch.arange(s - n, s)[:, None]  # of a key from a query [n, s]
        mask = (offset >= -left) & (offset <= right)
        qkv = (x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out = F.scaled_dot_product_attention(*qkv, attn_mask=mask, enable_gqa=True)
        parts.append(out.transpose(0, 1))
    assert longest == [max_q, max_k]
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("share", [True, False])
def test_flash_attention_is_asked_for_what_the_textbook_computes(window, share, monkeypatch):
    monkeypatch.setattr(attention, "flash_attention", lambda: varlen_attn)
    qkv, layout = inputs(family(5), window, share=share)
    expected = by_textbook(*qkv, layout)
    torch.testing.assert_close(attention.varlen(*qkv, layout), expected, rtol=1e-4, atol=1e-5)


def test_cudnn_is_not_asked_for_attention():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("share", [True, False])
def test_flash_attention_is_the_padded_one_on_cuda(dtype, window, share):
    if not attention.has_flash_attention(torch.empty(1, 4, 16, dtype=dtype, device="cuda")):
        pytest.skip("needs a GPU since Ampere, and varlen_attn with window_size")
    results = []
    for backend in (attention.padded, attention.varlen):
        qkv, layout = inputs(family(7), window, "cuda", dtype, share)
        out = backend(*qkv, layout)
        torch.manual_seed(0)
        (out * torch.randn_like(out)).sum().backward()
        results.append([out, *(x.grad for x in qkv)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 15, 16, FEW, FEW + 1])
@pytest.mark.parametrize("shape", [(7, 5), (512, 300), (513, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("faster", [True, False])
def test_every_form_of_the_matrix_product_is_the_same(rows, shape, dtype, faster, monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda form: faster)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, shape[1], dtype=dtype), torch.randn(shape, dtype=dtype)
    bias = torch.randn(shape[0], dtype=dtype)
    with torch.no_grad():
        product = F.linear(x.double(), weight.double(), bias.double())
        torch.testing.assert_close(linear(x, weight, bias), product.to(dtype), rtol=0.02, atol=1e-4)


# What sequences begin with in common is computed once


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [True, False])
def test_every_different_beginning_is_computed_once_and_found_at_its_position(seed, share):
    sequences = family(seed)
    layout = laid(sequences, share=share)
    flat = [token for sequence in sequences for token in sequence]
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(layout.ids) == sum(layout.own) == (len(beginnings) if share else len(flat))
    assert layout.expand(layout.ids).tolist() == flat
    columns = [i for sequence in sequences for i in range(len(sequence))]
    assert layout.expand(layout.position).tolist() == columns


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
    model.share_prefixes = model.recompute = False
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
    randomise_lora(model)
    ids = torch.tensor([5, 6, 7] * 2)
    first, second = model(ids, [3, 3]).split(3)
    assert not torch.equal(first, second) and model.computed == 6
    first, second = model.eval()(ids, [3, 3]).split(3)
    torch.testing.assert_close(first, second)
    assert model.computed == 3


# The cache


def test_a_cached_token_sees_what_is_before_it_and_no_further_than_the_window():
    layout = CachedLayout(torch.tensor([7, 8]), [1, 1], torch.tensor([4, 1, 9]), 6, window=3)
    assert layout.position.tolist() == [4, 1]
    seen = (layout.mask(torch.float32, 1)[:, 0, 0] == 0).tolist()
    assert seen == [[False, False, True, True, True, False], [True, True] + [False] * 4]


@pytest.mark.parametrize(
    "chunks", [[[5, 2, 9]] + [[1, 1, 1]] * 4, [[3, 1, 4], [2, 5, 1], [1, 1, 1]]]
)
def test_cached_logits_equal_uncached_for_unequal_rows(chunks):
    model = tiny()
    totals = [sum(c[b] for c in chunks) for b in range(3)]
    rows = ids_of(totals).split(totals)
    full = [model(row, [len(row)]) for row in rows]
    cache, done = model.new_cache(3, max(totals)), [0, 0, 0]
    for chunk in chunks:
        ids = torch.cat([rows[b][done[b] : done[b] + chunk[b]] for b in range(3)])
        out = model(ids, chunk, cache).split(chunk)
        for b in range(3):
            expected = full[b][done[b] : done[b] + chunk[b]]
            torch.testing.assert_close(out[b], expected, rtol=1e-4, atol=1e-5)
            done[b] += chunk[b]


@pytest.mark.parametrize("window", [None, 5])
def test_beams_that_are_reordered_see_their_own_path_alone(window):
    model = tiny(seed=2, sliding_window=window)
    prompts = [part.tolist() for part in ids_of([7, 3]).split([7, 3])]
    cache = model.new_cache(2, 7 + 3 * 4)
    model(torch.tensor(sum(prompts, [])), [7, 3], cache)
    cache.paths = Paths(cache.used, 3, 7 + 3 * 4)
    beams = [[list(prompt)] * 3 for prompt in prompts]
    steps = [[[0, 0, 0], [0, 0, 0]], [[2, 0, 0], [1, 1, 2]], [[0, 1, 2], [2, 1, 0]]]
    for number, parents in enumerate([*steps, [[1, 1, 1], [2, 0, 2]]]):
        new = ids_of([6], seed=number).view(2, 3)
        beams = [
            [beams[row][parent] + [int(new[row, b])] for b, parent in enumerate(parents[row])]
            for row in range(2)
        ]
        cache.paths.extend(torch.tensor(parents))
        logits = model(new.flatten(), [3, 3], cache).view(2, 3, -1)
        for row in range(2):
            for b in range(3):
                ids = torch.tensor(beams[row][b])
                expected = model(ids, [len(ids)])[-1]
                torch.testing.assert_close(logits[row, b], expected, rtol=1e-4, atol=1e-5)


# LoRA, saving and loading


@pytest.mark.parametrize("kv_heads, tied", [(4, True), (2, False)])
def test_a_config_knows_how_many_numbers_the_weights_hold(kv_heads, tied):
    model = tiny(kv_heads=kv_heads, tied=tied, head_dim=12)
    assert model.config.parameters == sum(p.numel() for p in model.parameters())


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
