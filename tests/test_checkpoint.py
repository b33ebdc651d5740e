"""Folders of transformers in both directions, its logits the oracle; what is refused, and when."""

import json
import os
import random
import shutil
import zlib
from contextlib import nullcontext

import pytest
import torch
from conftest import BASE, tiny
from oracles import FAMILIES, LLAMA3, change_config, in_transformers, theirs_of, transformers
from safetensors.torch import load_file, save_file

from data import Prompter, Sample, write_prompt
from evaluate import greedy
from model import add_lora, build_model, load_model, merge_lora, save_model
from plumbing.base.errors import InputError
from plumbing.checkpoint import tensors
from plumbing.checkpoint.folder import model_files
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.decoder import Decoder


def require_same(folder, ids, expected, tolerance=1e-5):
    """The folder's logits are the expected ones, here and in transformers when saved again."""
    ours = load_model(folder).eval()
    how = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours(ids, [len(ids)]), expected, **how)
    save_model(ours, folder / "again")
    theirs = in_transformers(folder / "again")(ids[None]).logits[0]
    torch.testing.assert_close(theirs, expected, **how)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_has_the_logits_of_transformers_and_goes_back(tmp_path, family, sharded):
    theirs, ids = theirs_of(family), torch.randint(97, (40,))
    theirs.save_pretrained(tmp_path, max_shard_size="60KB" if sharded else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    ours, expected = load_model(tmp_path).eval(), theirs(ids[None]).logits[0]
    assert expected.std() > 0.5
    require_same(tmp_path, ids, expected)
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    new = theirs.generate(ids[None, :12], attention_mask=torch.ones(1, 12), **how)[0, 12:].tolist()
    prompt, ends = ids[:12].tolist(), set(ours.config.eos_token_id)  # beyond the sliding window
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    assert greedy(Decoder(ours), [prompt, prompt[:5]], ends, 12)[0] == new[:stop]
    save_model(ours, tmp_path / "ours", limit=60_000 if sharded else 5e9)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == sharded
    again = load_model(tmp_path / "ours")
    assert {**vars(again.config), "rest": 0} == {**vars(ours.config), "rest": 0}
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@torch.no_grad()
def test_the_demo_base_translates_the_same_in_transformers(tokenizer):
    theirs, ours = in_transformers(BASE), load_model(BASE, torch.float32).eval()
    encode = transformers.AutoTokenizer.from_pretrained(BASE)
    for text in ('Apri il file "è qui"', "Impossibile aprire il file"):
        sample = Sample(("it", "nl"), text, "")
        ids = encode(write_prompt("alpaca", sample)).input_ids
        assert ids == Prompter(tokenizer, "alpaca").encode(sample, 512)[0]
        new = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0]
        found = greedy(Decoder(ours), [ids], {tokenizer.eos}, 20)[0]
        expected = encode.decode(new[len(ids) :], skip_special_tokens=True)
        assert tokenizer.decode(found) == expected.strip()


# config.json

ROPE = {"rope_type": "llama3"} | LLAMA3


@pytest.mark.parametrize(
    "family, changes",
    [
        ("LLaMA-3.1-8B-Instruct", {"rope_theta": "absent"}),  # the newer schema
        (
            "LLaMA-3.1-8B-Instruct",  # the older one
            {"rope_parameters": "absent", "rope_theta": 500000.0, "rope_scaling": ROPE},
        ),
        # added by hand beside the newer one, it counts
        ("LLaMA-2-7B", {"rope_scaling": ROPE}),
        ("Mistral-7B-v0.3", {"rope_scaling": ROPE | {"rope_theta": 4_000_000_000}}),
        # as old conversions have it
        ("LLaMA-1-7B", {"rope_parameters": "absent", "rope_scaling": None, "head_dim": None}),
        ("LLaMA-1-7B", {"num_key_value_heads": "absent", "tie_word_embeddings": "absent"}),
        ("LLaMA-2-7B", {"rms_norm_eps": "absent", "hidden_act": "swish", "pretraining_tp": 2}),
        ("LLaMA-2-7B", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}),
        ("Mistral-7B-v0.1", {"layer_types": ["sliding_attention"] * 2}),
        ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 2}),
        ("Mistral-7B-v0.1", {"layer_types": None, "use_sliding_window": False}),
        ("Mistral-7B-v0.1", {"attention_bias": True, "max_position_embeddings": "absent"}),
        ("Mistral-7B-v0.3", {"rope_scaling": ROPE | {"factor": 0.5}}),
        ("Mistral-7B-v0.3", {"rope_scaling": ROPE, "original_max_position_embeddings": 64}),
    ],
)
@torch.no_grad()
def test_config_json_means_what_it_means_to_transformers(tmp_path, family, changes):
    theirs_of(family).save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    ids = torch.randint(97, (1500,))
    require_same(tmp_path, ids, in_transformers(tmp_path)(ids[None]).logits[0], 1e-4)


@pytest.mark.parametrize("at", [5, [5, 3], None])
@torch.no_grad()
def test_decoding_ends_where_generation_config_json_says(tmp_path, at):
    """Chat models name the end of a turn there alone. at: which of the new tokens are ends."""
    theirs, ids = theirs_of("LLaMA-2-7B"), torch.arange(20, 32)
    theirs.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"

    def generate(ends):
        path.write_text(json.dumps({"eos_token_id": ends, "max_new_tokens": 12}))
        peer = in_transformers(tmp_path / "model")
        new = peer.generate(ids[None], attention_mask=torch.ones(1, 12), pad_token_id=0)
        return new[0, 12:].tolist()

    free = generate(None)
    ends = [free[i] for i in at] if isinstance(at, list) else at and free[at]
    expected = generate(ends)
    assert (len(expected) < 12) == (at is not None)
    save_model(load_model(tmp_path / "model"), tmp_path / "again", tmp_path / "model")
    for name in ("model", "again"):
        ours = load_model(tmp_path / name).eval()
        found = greedy(Decoder(ours), [ids.tolist()], set(ours.config.eos_token_id), 12)[0]
        assert found == (expected if at is None else expected[:-1])


def test_an_adapter_ends_where_its_bases_generation_config_json_says(tmp_path):
    save_model(tiny(), tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text('{"eos_token_id": [7, 2]}')
    model = load_model(tmp_path / "base")
    add_lora(model, LoraSettings(2, 4.0, ["q_proj"]))
    save_model(model, tmp_path / "run")
    model = load_model(tmp_path / "run")
    assert model.config.eos_token_id == [2, 7]
    merge_lora(model)
    save_model(model, tmp_path / "merged")
    assert load_model(tmp_path / "merged").config.eos_token_id == [2, 7]
    assert str(path) in model_files(str(tmp_path / "run"))  # --resume sees where it has changed
    for bad in ('{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "{"):
        path.write_text(bad)
        with pytest.raises(InputError, match="base/generation_config.json: "):
            load_model(tmp_path / "run")


@torch.no_grad()
def test_a_mistral_whose_file_is_silent_about_its_window_has_4096_tokens(tmp_path):
    theirs_of("Mistral-7B-v0.1").save_pretrained(tmp_path)
    change_config(tmp_path, sliding_window="absent")
    ids, ours, theirs = torch.randint(97, (4100,)), load_model(tmp_path), in_transformers(tmp_path)
    assert ours.config.sliding_window == theirs.config.sliding_window == 4096
    last = ours.eval()(ids, [4100], at=torch.tensor([4099]))
    torch.testing.assert_close(last, theirs(ids[None]).logits[0, -1:], rtol=1e-4, atol=1e-4)


def test_what_config_json_says_beyond_the_network_is_kept(tmp_path):
    theirs_of("SmolLM2-135M").save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", pretraining_tp=1, is_llama_config=True)
    save_model(load_model(tmp_path / "theirs", torch.bfloat16), tmp_path / "ours")
    saved = json.load(open(tmp_path / "ours" / "config.json"))
    assert saved["is_llama_config"] is True and saved["pad_token_id"] == 2
    assert saved["eos_token_id"] == 0 and saved["dtype"] == saved["torch_dtype"] == "bfloat16"


BIG = 2**31 - 1


def rope(rope_type, **more):
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 5e5} | more}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .*before it was quantised"),
        (rope("yarn"), "RoPE type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE type 'linear'"),
        (rope("llama3", factor=8.0), "RoPE's low_freq_factor = None"),
        (
            rope(**ROPE | {"low_freq_factor": 4.0, "high_freq_factor": 1}),
            "low_freq_factor = 4.0 is",
        ),
        (rope(**ROPE | {"low_freq_factor": 4.0}), "low_freq_factor = 4.0 is"),
        (rope("default", partial_rotary_factor=0.5), "partial_rotary_factor"),
        (rope("default", full_attention={"rope_theta": 1e4}), "RoPE of its own for full_attention"),
        ({"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, "same"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"per_layer_config": {"1": {"sliding_window": 8}}}, "per_layer_config"),
        ({"hidden_size": "big"}, "hidden_size = 'big'"),
        ({"hidden_size": "absent"}, "'hidden_size'"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"hidden_size": BIG, "vocab_size": BIG, "head_dim": 2}, "a weight of"),
        ({"hidden_size": BIG, "intermediate_size": BIG, "head_dim": 2}, "a weight of"),
        ({"hidden_size": BIG, "num_attention_heads": 2**30, "head_dim": BIG - 1}, "a weight of"),
        ({"num_hidden_layers": BIG}, "layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"vocab_size": True}, "vocab_size = True"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused_by_name(tmp_path, changes, said):
    save_model(tiny(), tmp_path)
    change_config(tmp_path, **changes)
    os.remove(tmp_path / "model.safetensors")  # never looked for
    with pytest.raises(InputError, match=f"config.json: .*{said}"):
        load_model(tmp_path)


# Weights

NORM, HEAD, TABLE = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda t: t.pop(NORM), f"tensor {NORM} of shape .* is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra has shape .*expected no such tensor"),
        (lambda t: t.update({NORM: torch.zeros(31)}), r"norm.weight has shape \(31,\)"),
        (lambda t: t.update({NORM: torch.zeros(32, dtype=torch.int8)}), "norm.weight holds I8"),
        (lambda t: t[NORM][3:4].fill_(float("nan")), f"tensor {NORM} is damaged"),
        (lambda t: t[NORM][3:4].fill_(float("-inf")), f"tensor {NORM} is damaged"),
        (lambda t: t.update({HEAD: torch.zeros(4000, 32)}), f"ties .*{HEAD} differs"),
        (lambda t: t.update({HEAD: t[TABLE].clone()}), None),
        (lambda t: t.update({"model.layers.0.rotary_emb.inv_freq": torch.zeros(8)}), None),
    ],
)
def test_a_missing_unknown_misshapen_or_damaged_tensor_is_named(tmp_path, damage, said):
    save_model(tiny(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=said) if said else nullcontext():
        load_model(tmp_path)


def test_others_may_read_what_is_written_as_the_umask_says(tmp_path):
    """safetensors itself writes for its user alone; a companion may come from a read-only place."""
    shutil.copytree(BASE, tmp_path / "base", ignore=shutil.ignore_patterns("eval-*"))
    os.chmod(tmp_path / "base" / "tokenizer.model", 0o400)
    model = load_model(tmp_path / "base")
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode & 0o777
    save_model(model, tmp_path / "model", tmp_path / "base", limit=1e7)
    files = list((tmp_path / "model").iterdir())
    assert len([f for f in files if f.suffix == ".safetensors"]) > 1
    assert {f.stat().st_mode & 0o777 for f in files} == {expected}


@pytest.mark.parametrize("depth", [450, 900, 950, 980, 3000])
def test_a_config_that_cannot_be_written_back_is_said_when_it_is_read(tmp_path, depth):
    save_model(tiny(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    deep = f', "deep": {"[" * depth}{"]" * depth}}}'
    path.write_text(path.read_text().rstrip().removesuffix("}") + deep)
    try:
        model = load_model(tmp_path / "model")
    except InputError as error:
        assert "config.json: " in str(error) and depth > 450
    else:
        save_model(model, tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["deep"]


@pytest.mark.parametrize("cut", [0, 4, 100, 30_000, -1])
def test_a_cut_weight_file_is_named_with_its_size(tmp_path, cut):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=f"model.safetensors: {path.stat().st_size:,} bytes"):
        load_model(tmp_path)


def test_headers_are_checked_before_memory_is_taken_or_weights_are_read(tmp_path, monkeypatch):
    """A broken config.json once took 12 GB for LoRA first."""
    save_model(tiny(), tmp_path)
    monkeypatch.setattr(tensors, "read_tensors", None)
    build_model(str(tmp_path))
    change_config(tmp_path, hidden_size=2**20, intermediate_size=2**20, head_dim=2**18)
    with pytest.raises(InputError, match="do not belong together"):
        build_model(str(tmp_path))


def test_shards_that_do_not_fit_their_index_are_named(tmp_path):
    save_model(tiny(), tmp_path, limit=200_000)
    path = tmp_path / "model.safetensors.index.json"
    index, paths = json.loads(path.read_text()), model_files(str(tmp_path))
    names, first = index["weight_map"], os.path.basename(paths[0])
    (tmp_path / "twice.safetensors").write_bytes(open(paths[0], "rb").read())
    for weight_map, said in [
        (dict.fromkeys(names, first), "is missing in 1 files"),
        (names | {"x": "twice.safetensors"}, "expected no such tensor"),
        (names | {"x": "other.safetensors"}, "other.safetensors: no such file"),
        (names | {"x": "../other.safetensors"}, "files beside it"),
        ({"x": 3}, "no weight_map"),
        (7, "no weight_map"),
    ]:
        path.write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(InputError, match=said):
            load_model(tmp_path)


def test_what_is_no_file_of_weights_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder.*hf download NAME --local-dir"):
        load_model("meta-llama/Llama-2-7b-hf")
    with pytest.raises(InputError, match="config.json: no such file"):
        load_model(tmp_path)
    save_model(tiny(), tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights .*pytorch_model.bin"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors: is a pipe"):
        load_model(tmp_path)


def test_the_checksum_is_the_crc_of_the_contents(tmp_path):
    for name, text in [("a", b"one"), ("b", b"two")]:
        (tmp_path / name).write_bytes(text)
    assert tensors.checksum_of([tmp_path / "a", tmp_path / "b"]) == zlib.crc32(b"onetwo")
    assert tensors.checksum_of([tmp_path / "b", tmp_path / "a"]) != zlib.crc32(b"onetwo")


# What a stranger's file may hold

HOSTILE = [None, True, 0, -1, 1.5, 2**31, 10**400, 1e308, "", "x" * 10_000, "\ud800", "a\nerror: b"]
HOSTILE += [[], [None], {}, {"a": {}}, [[[]]], "(", "../../etc/passwd", float("nan")]


def hostile(text, rng):
    """A JSON object cut short, of wrong bytes, and with each of its fields made hostile."""
    for _ in range(30):
        yield text[: rng.randrange(len(text))]
        at = rng.randrange(len(text))
        yield text[:at] + rng.choice(b'09,:."{}[] \n\0\xff').to_bytes(1, "big") + text[at + 1 :]
    whole = json.loads(text)
    for name, value in whole.items():
        for bad in HOSTILE:
            yield json.dumps(whole | {name: bad}).encode()
            if value and isinstance(value, dict):
                yield json.dumps(whole | {name: value | {next(iter(value)): bad}}).encode()


@pytest.mark.parametrize("name", ["model/config.json", "adapter/adapter_config.json"])
@torch.no_grad()
def test_hostile_json_ends_in_one_sentence_or_in_a_model_that_computes(tmp_path, name):
    small = dict(vocab_size=97, hidden_size=16, intermediate_size=24, rope_scaling=LLAMA3)
    save_model(tiny(**small), tmp_path / "model")
    model = load_model(tmp_path / "model")
    patterns = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.1.*q_proj": 2}}
    add_lora(model, LoraSettings(2, 4.0, ["q_proj", "up_proj"], **patterns))
    save_model(model, tmp_path / "adapter")
    path, refused, loaded = tmp_path / name, 0, 0
    for text in hostile(path.read_bytes(), random.Random(0)):
        path.write_bytes(text)
        try:
            assert load_model(path.parent).eval()(torch.arange(9), [9]).shape == (9, 97)
            loaded += 1
        except InputError as error:
            assert len(str(error)) < 1100 and str(error).isprintable()
            refused += 1
    assert refused > 50 and loaded > 50
