"""Model folders, ours and those of transformers, whose logits are the oracle; and bad ones."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import zlib

import pytest
import torch
from conftest import BASE, ROOT, tiny
from oracles import FAMILIES, LLAMA3, change_config, in_transformers, theirs_of
from safetensors.torch import load_file, save_file

from model import add_lora, build_model, load_model, save_model
from plumbing.base.errors import InputError
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.folder import model_files
from plumbing.checkpoint.peft import LoraSettings
from plumbing.checkpoint.tensors import checksum_of
from plumbing.checkpoint.tokenizer import Tokenizer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def logits_of(folder, ids):
    return load_model(folder).eval()(ids, [len(ids)])


def theirs_say(folder, ids):
    return in_transformers(folder)(ids[None]).logits[0]


# In both directions


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_has_the_logits_of_transformers_and_goes_back(tmp_path, family, sharded):
    theirs, ids = theirs_of(family), torch.randint(97, (40,))
    theirs.save_pretrained(tmp_path / "theirs", **{"max_shard_size": "60KB"} if sharded else {})
    expected = theirs(ids[None]).logits[0]
    assert expected.std() > 0.5
    ours = load_model(tmp_path / "theirs").eval()
    torch.testing.assert_close(ours(ids, [40]), expected, **CLOSE)

    save_model(ours, tmp_path / "ours", limit=60_000 if sharded else 5e9)
    assert os.path.exists(tmp_path / "ours" / "model.safetensors.index.json") == sharded
    torch.testing.assert_close(theirs_say(tmp_path / "ours", ids), expected, **CLOSE)
    again = load_model(tmp_path / "ours")
    assert vars(again.config) | {"rest": 0} == vars(ours.config) | {"rest": 0}
    for mine, same in zip(ours.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, same)


@torch.no_grad()
def test_the_demo_base_has_the_logits_of_transformers(tokenizer):
    ids = torch.tensor(tokenizer.encode_turns(["Translate from Italian to Dutch.\nApri il file"]))
    ours = load_model(BASE, torch.float32).eval()
    torch.testing.assert_close(ours(ids, [len(ids)]), theirs_say(BASE, ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_long_llama3_positions_are_scaled_as_in_transformers(tmp_path):
    theirs, ids = theirs_of("LLaMA-3.1-8B-Instruct"), torch.randint(97, (3000,))
    theirs.save_pretrained(tmp_path)
    expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(logits_of(tmp_path, ids), expected, rtol=1e-4, atol=1e-4)
    change_config(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert (logits_of(tmp_path, ids) - expected).abs().max() > 0.1  # the test can tell


ROPE = {"rope_type": "llama3"} | LLAMA3 | {"factor": 32.0}
OLDER = {"rope_parameters": "absent", "rope_theta": 500000.0, "rope_scaling": ROPE}
NEWER = {"rope_theta": "absent", "rope_scaling": "absent"}
NEWER |= {"rope_parameters": ROPE | {"rope_theta": 500000.0}}


@pytest.mark.parametrize("schema", [OLDER, NEWER], ids=["older", "newer"])
@torch.no_grad()
def test_both_rope_schemas_give_the_same_logits(tmp_path, schema):
    theirs, ids = theirs_of("LLaMA-3.2-1B"), torch.randint(97, (50,))
    theirs.save_pretrained(tmp_path)
    change_config(tmp_path, **schema)
    torch.testing.assert_close(logits_of(tmp_path, ids), theirs(ids[None]).logits[0], **CLOSE)


@pytest.mark.parametrize("family", ["LLaMA-2-7B", "LLaMA-3.1-8B-Instruct", "Mistral-7B-v0.3"])
@pytest.mark.parametrize("theta", [None, 5e5, 4_000_000_000])
@torch.no_grad()
def test_a_rope_scaling_that_was_added_by_hand_counts_as_in_transformers(tmp_path, family, theta):
    """Beside rope_parameters it was once ignored."""
    theirs_of(family).save_pretrained(tmp_path)
    added = {"rope_type": "llama3"} | LLAMA3 | ({"rope_theta": theta} if theta else {})
    change_config(tmp_path, rope_scaling=added)
    ids = torch.randint(97, (90,))
    expected = theirs_say(tmp_path, ids)
    ours = load_model(tmp_path).eval()
    torch.testing.assert_close(ours(ids, [90]), expected, **CLOSE)
    save_model(ours, tmp_path / "ours")
    torch.testing.assert_close(theirs_say(tmp_path / "ours", ids), expected, **CLOSE)


@torch.no_grad()
def test_old_conversions_load_with_their_extra_tensors_and_null_fields(tmp_path):
    theirs, ids = theirs_of("LLaMA-1-7B"), torch.randint(97, (20,))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    save_file(load_file(path) | constant, path, {"format": "pt"})
    absent = ("num_key_value_heads", "rope_parameters", "tie_word_embeddings")
    nulls = {"head_dim": None, "rope_scaling": None, "eos_token_id": None}
    change_config(tmp_path, **dict.fromkeys(absent, "absent"), **nulls)
    torch.testing.assert_close(logits_of(tmp_path, ids), theirs(ids[None]).logits[0], **CLOSE)
    assert Config.load(tmp_path).eos_token_id == []


def test_what_config_json_says_beyond_the_network_is_kept(tmp_path):
    theirs_of("SmolLM2-135M").save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", is_llama_config=True)
    save_model(load_model(tmp_path / "theirs", torch.bfloat16), tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["pad_token_id"] == 2 and saved["eos_token_id"] == 0
    assert saved["is_llama_config"] is True
    assert saved["dtype"] == saved["torch_dtype"] == "bfloat16"


def test_the_tokenizers_files_go_with_the_weights(tmp_path):
    model = load_model(BASE)
    save_model(model, tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.model").exists()
    add_lora(model, LoraSettings(2, 4.0, ["q_proj"]))
    save_model(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tokenizer.model").exists()  # an adapter has its base's


# Bad configurations

LLAMA3_WITHOUT_FIELDS = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
PARTIAL = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": "absent"}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "RoPE type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE type 'linear'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "RoPE type 'dynamic'"),
        ({"rope_scaling": None, "rope_parameters": "yes"}, "RoPE type 'yes'"),
        (
            {"rope_scaling": None, "rope_parameters": LLAMA3_WITHOUT_FIELDS},
            "RoPE's low_freq_factor = None",
        ),
        ({"rope_scaling": None, "rope_parameters": PARTIAL}, "partial_rotary_factor"),
        ({"hidden_size": "big"}, "hidden_size = 'big'; expected a positive int"),
        ({"hidden_size": "absent"}, "argument: 'hidden_size'; expected the config.json of"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1; expected bool"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"vocab_size": True}, "vocab_size = True"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused_by_name(tmp_path, changes, said):
    shutil.copy(f"{BASE}/config.json", tmp_path)  # the weights are never looked for
    change_config(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as error:
        load_model(tmp_path)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"attention_bias": True}, "layers.0.self_attn.q_proj.bias of shape .* is missing"),
        # a broken config.json once took 12 GB first
        ({"hidden_size": 2**20, "intermediate_size": 2**20, "head_dim": 2**18}, "do not belong"),
    ],
)
def test_a_config_of_other_weights_is_refused_before_memory_is_taken(tmp_path, changes, said):
    save_model(tiny(), tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        build_model(str(tmp_path))


# Bad weights


@pytest.mark.parametrize("cut", [0, 4, 100, -1, None])
def test_a_cut_weight_file_is_named_with_its_size(tmp_path, cut):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if cut is None else cut])
    size = f"{path.stat().st_size:,}"
    with pytest.raises(InputError, match=f"model.safetensors: {size} bytes; .*copy it again"):
        load_model(tmp_path)


NORM, HEAD, TABLE = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda t: t.pop(NORM), "tensor model.norm.weight of shape .32,. is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra has shape .*expected no such tensor"),
        (lambda t: t.update({NORM: torch.zeros(31)}), "norm.weight has shape .31,., expected .32,"),
        (lambda t: t.update({NORM: torch.zeros(32).to(torch.int8)}), "holds I8, expected floats"),
        (lambda t: t[NORM].fill_(float("nan")), "tensor model.norm.weight is damaged"),
        (lambda t: t[NORM].fill_(float("inf")), "tensor model.norm.weight is damaged"),
        (lambda t: t.update({HEAD: t[TABLE] * 2}), "ties the word embeddings, but lm_head.weight"),
    ],
)
def test_a_missing_unknown_misshapen_or_damaged_tensor_is_named(tmp_path, damage, said):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=said):
        load_model(tmp_path)


def test_a_head_that_is_tied_may_be_stored_too(tmp_path):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {HEAD: load_file(path)[TABLE].clone()}, path)
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda files: {}, "no weight_map"),
        (lambda files: 7, "no weight_map"),
        (lambda files: {NORM: 3}, "no weight_map"),
        (lambda files: dict.fromkeys(files, min(files.values())), "is missing in 1 files"),
        (lambda files: files | {"x": "other.safetensors"}, "other.safetensors: no such file"),
        (lambda files: files | {"x": "twice.safetensors"}, "twice.*expected no such tensor"),
        # not out of the folder, nor to names that no file has
        (lambda files: files | {"x": "../other.safetensors"}, "files beside it"),
        (lambda files: files | {"x": "/etc/hostname"}, "files beside it"),
        (lambda files: files | {"x": "a\0b"}, "files beside it"),
    ],
)
def test_a_broken_index_is_named(tmp_path, change, said):
    save_model(tiny(), tmp_path, limit=200_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    # the same tensors in two files: which would count?
    shutil.copy(tmp_path / min(index["weight_map"].values()), tmp_path / "twice.safetensors")
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    with pytest.raises(InputError, match=said):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_file_that_is_missing_or_a_pipe_is_named(tmp_path, name):
    save_model(tiny(), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if name != "generation_config.json":  # which may be missing
        with pytest.raises(InputError, match=f"{name}: no such file"):
            load_model(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is a pipe or a device"):
        load_model(tmp_path)


def test_pickled_weights_alone_are_named(tmp_path):
    save_model(tiny(), tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights alone .pytorch_model.bin.*save_pretr"):
        load_model(tmp_path)


# What a run compares, and memory


def test_a_model_is_its_weights_its_configuration_and_its_tokenizer(tmp_path):
    save_model(tiny(), tmp_path / "base", BASE, limit=200_000)
    model = load_model(tmp_path / "base")
    add_lora(model, LoraSettings(2, 4.0, ["q_proj"]))
    save_model(model, tmp_path / "adapter")
    names = {os.path.basename(path) for path in model_files(str(tmp_path / "base"))}
    shards = {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    assert len(shards) > 1 and names >= shards | {"config.json", "tokenizer.model"}
    both = model_files(str(tmp_path / "adapter"))
    assert names < {os.path.basename(path) for path in both}
    assert str(tmp_path / "adapter" / "adapter_model.safetensors") in both
    together = b"".join(open(path, "rb").read() for path in both)
    assert checksum_of(both) == zlib.crc32(together)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_loading_holds_one_copy_of_the_weights(tmp_path):
    """400 MB of fp32 become 200 MB of bf16: the peak stays near the latter."""
    wide = dict(vocab_size=97, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6)
    model = tiny(**wide, tied=False)
    save_model(model, tmp_path)
    copy = sum(p.numel() for p in model.parameters()) * 2 / 2**20
    code = (
        "import resource, sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from model import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); m = load_model(sys.argv[2], torch.bfloat16); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, ROOT, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert float(result.stdout) < copy * 1.25 + 30, (result, copy)


# Truncations, changed bytes and hostile fields: one sentence, or a model that computes

HOSTILE = [None, True, 0, -1, 1.5, 2**31, 10**400, "", "x" * 10_000, "\ud800", "a\nerror: b"]
HOSTILE += [[], [None], {}, {"a": {}}, {"content": 7}, [[[]]], "../../etc/passwd"]


@pytest.fixture
def folders(tmp_path):
    """A model, an adapter of it, and a folder with a tokenizer."""
    small = dict(vocab_size=97, hidden_size=16, intermediate_size=24, max_position_embeddings=64)
    model = tiny(**small)
    save_model(model, tmp_path / "model")
    model = load_model(tmp_path / "model")
    patterns = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.1.*q_proj": 2}}
    add_lora(model, LoraSettings(2, 4.0, ["q_proj", "up_proj"], **patterns))
    save_model(model, tmp_path / "adapter")
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(f"{BASE}/{name}", tmp_path / "tokenizer")
    return tmp_path


def use(folder):
    if folder.name == "tokenizer":
        Tokenizer([str(folder)], Config.load(BASE)).encode("open <|im_end|> </s>")
    else:
        load_model(folder)(torch.arange(9), [9])


def damaged(whole, rng):
    """A copy that is cut, or that has another byte somewhere near its beginning."""
    at = rng.randrange(min(3000, len(whole)))
    if rng.random() < 0.3:
        return whole[:at]
    return whole[:at] + bytes([rng.choice(b'0,:"{}[] \n\t\0\xff')]) + whole[at + 1 :]


@pytest.mark.parametrize(
    "name",
    [
        "model/model.safetensors",
        "model/config.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "tokenizer/tokenizer.model",
        "tokenizer/tokenizer_config.json",
    ],
)
@torch.no_grad()
def test_damaged_files_and_hostile_fields_are_refused_or_compute(folders, name):
    path, rng, refused = folders / name, random.Random(name), 0
    whole = path.read_bytes()
    texts = [damaged(whole, rng) for _ in range(100)]
    if name.endswith(".json"):
        for field, value in itertools.product(json.loads(whole), HOSTILE):
            texts.append(json.dumps(json.loads(whole) | {field: value}).encode())
    for text in texts:
        path.write_bytes(text)
        try:
            use(path.parent)
        except InputError as error:
            refused += 1
            assert path.parent.name in str(error)
            assert len(str(error)) < 1100 and str(error).isprintable()
    assert refused > 20
