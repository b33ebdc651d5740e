"""Folders of transformers and PEFT in both directions: their logits are the oracle."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import BASE, ROOT, prompt_of, tiny
from safetensors.torch import load_file, save_file

from data import write_prompt
from evaluate import greedy
from model import add_lora, load_model, merge_lora, save_model
from plumbing.adapters import LoraSettings
from plumbing.errors import InputError
from plumbing.folders import Config

transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Real field values, but for depth, width and vocabulary: heads, groups and head width keep their ratios.
FAMILIES = {
    "LLaMA-1-7B": dict(rms_norm_eps=1e-6, max_position_embeddings=2048),
    "LLaMA-2-7B": dict(rms_norm_eps=1e-5, max_position_embeddings=4096, pad_token_id=None),
    "LLaMA-2-70B": dict(num_attention_heads=8, num_key_value_heads=1, rms_norm_eps=1e-5),
    "LLaMA-3-8B": dict(
        num_key_value_heads=1, rms_norm_eps=1e-5, theta=500000.0, bos_token_id=90, eos_token_id=91
    ),
    "LLaMA-3.1-8B-Instruct": dict(
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        theta=500000.0,
        rope=LLAMA3,
        bos_token_id=90,
        eos_token_id=[91, 92, 93],
        max_position_embeddings=131072,
    ),
    "LLaMA-3.2-1B": dict(
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        theta=500000.0,
        rope=LLAMA3 | {"factor": 32.0},
        tie_word_embeddings=True,
    ),
    "TinyLlama-1.1B": dict(num_attention_heads=8, num_key_value_heads=1, rms_norm_eps=1e-5),
    "SmolLM2-135M": dict(
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=72,
        rms_norm_eps=1e-5,
        theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    ),
    "ALMA-7B": dict(rms_norm_eps=1e-5, max_position_embeddings=4096, pad_token_id=0),
    "Tower-7B": dict(rms_norm_eps=1e-5, vocab_size=103),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "Mistral-7B-v0.1": dict(
        kind="mistral", num_key_value_heads=1, rms_norm_eps=1e-5, sliding_window=8
    ),
    "Mistral-7B-v0.3": dict(
        kind="mistral",
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        theta=1000000.0,
        sliding_window=None,
    ),
    "Mistral-Nemo": dict(
        kind="mistral", num_key_value_heads=1, head_dim=24, theta=1000000.0, sliding_window=None
    ),
}


def theirs_of(family, dtype=torch.float32):
    """A random two-layer model of transformers, far enough from uniform that a wrong token shows."""
    fields = (
        dict(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=None,
            initializer_range=0.15,
        )
        | FAMILIES[family]
    )
    kind, theta, rope = (
        fields.pop("kind", "llama"),
        fields.pop("theta", 10000.0),
        fields.pop("rope", None),
    )
    fields["rope_parameters"] = {"rope_theta": theta} | (
        {"rope_type": "llama3"} | rope if rope else {"rope_type": "default"}
    )
    torch.manual_seed(0)
    config = (transformers.MistralConfig if kind == "mistral" else transformers.LlamaConfig)(
        **fields
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, p in model.named_parameters():
        if p.ndim == 1:  # norms and biases that do something
            p.data = torch.randn_like(p) * 0.3 + ("norm" in name)
    return model


def change_config(folder, **changes):
    path = os.path.join(folder, "config.json")
    raw = {k: v for k, v in (json.load(open(path)) | changes).items() if v != "absent"}
    json.dump(raw, open(path, "w"))


def in_transformers(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_has_the_logits_of_transformers_and_goes_back(tmp_path, family, sharded):
    theirs = theirs_of(family)
    theirs.save_pretrained(tmp_path / "theirs", **{"max_shard_size": "60KB"} if sharded else {})
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 if sharded else True
    ours, ids = load_model(tmp_path / "theirs").eval(), torch.randint(97, (40,))
    expected = theirs(ids[None]).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(ours(ids, [40]), expected, rtol=1e-5, atol=1e-5)
    prompt = ids[:12].tolist()  # with the cache, beyond the sliding window
    new = theirs.generate(
        ids[None, :12],
        attention_mask=torch.ones(1, 12),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )[0, 12:].tolist()
    ends = set(ours.config.eos_token_id)
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    assert greedy(ours, [prompt, prompt[:5]], ends, 12)[0] == new[:stop]
    save_model(ours, tmp_path / "ours", limit=60_000 if sharded else 5e9)
    assert os.path.exists(tmp_path / "ours" / "model.safetensors.index.json") == sharded
    torch.testing.assert_close(
        in_transformers(tmp_path / "ours")(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5
    )
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config or {**vars(again.config), "rest": 0} == {
        **vars(ours.config),
        "rest": 0,
    }
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values())
    )


@torch.no_grad()
def test_long_llama3_positions_are_scaled_as_in_transformers(tmp_path):
    theirs = theirs_of("LLaMA-3.1-8B-Instruct")
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(97, (3000,))
    torch.testing.assert_close(
        load_model(tmp_path)(ids, [3000]), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4
    )
    change_config(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert (
        load_model(tmp_path)(ids, [3000]) - theirs(ids[None]).logits[0]
    ).abs().max() > 0.1  # the test can tell


@pytest.mark.parametrize("schema", ["older", "newer"])
@torch.no_grad()
def test_both_rope_schemas_give_the_same_logits(tmp_path, schema):
    theirs, ids = theirs_of("LLaMA-3.2-1B"), torch.randint(97, (50,))
    theirs.save_pretrained(tmp_path)
    rope = {"rope_type": "llama3"} | LLAMA3 | {"factor": 32.0}
    if schema == "older":
        change_config(
            tmp_path,
            rope_parameters="absent",
            rope_theta=500000.0,
            rope_scaling=rope,
            dtype="absent",
            torch_dtype="float32",
        )
    else:
        change_config(
            tmp_path,
            rope_theta="absent",
            rope_scaling="absent",
            rope_parameters=rope | {"rope_theta": 500000.0},
        )
    torch.testing.assert_close(
        load_model(tmp_path)(ids, [50]), theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_old_conversions_load_with_their_extra_tensors_and_null_fields(tmp_path):
    theirs, ids = theirs_of("LLaMA-1-7B"), torch.randint(97, (20,))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    change_config(
        tmp_path,
        num_key_value_heads="absent",
        head_dim=None,
        rope_parameters="absent",
        rope_scaling=None,
        tie_word_embeddings="absent",
        eos_token_id=None,
    )
    ours = load_model(tmp_path)
    torch.testing.assert_close(ours(ids, [20]), theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5)
    assert ours.config.eos_token_id == []


def test_what_config_json_says_beyond_the_network_is_kept(tmp_path):
    theirs_of("SmolLM2-135M").save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", pretraining_tp=1, is_llama_config=True)
    save_model(load_model(tmp_path / "theirs", torch.bfloat16), tmp_path / "ours")
    saved = json.load(open(tmp_path / "ours" / "config.json"))
    assert (
        saved["pad_token_id"] == 2
        and saved["is_llama_config"] is True
        and saved["eos_token_id"] == 0
    )
    assert saved["dtype"] == saved["torch_dtype"] == "bfloat16"


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize("sharded", [False, True])
def test_loading_holds_one_copy_of_the_weights(tmp_path, sharded):
    """400 MB of fp32 become 200 MB of bf16: the peak stays near the latter."""
    model = tiny(
        vocab_size=97, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, tied=False
    )
    save_model(model, tmp_path, limit=1e8 if sharded else 5e9)
    copy = sum(p.numel() for p in model.parameters()) * 2 / 2**20
    code = (
        "import resource, sys, torch; sys.path.insert(0, sys.argv[1]); from model import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); m = load_model(sys.argv[2], torch.bfloat16); print(peak() - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, ROOT, tmp_path], capture_output=True, text=True
    )
    assert float(result.stdout) < copy * 1.25 + 30, (result, copy)


# LoRA, PEFT's own files


def peft_adapter(base, folder, **settings):
    """An adapter made and saved by PEFT, every matrix random; returns PEFT's model."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 6, "target_modules": LINEARS} | settings)
    )
    model = peft.get_peft_model(in_transformers(base), config).eval()
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p) * 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"]},
        {"use_rslora": True},
        {"target_modules": r".*layers\.1\..*(up|k)_proj"},
        {"rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\.up_proj": 7}},
        {"alpha_pattern": {"o_proj": 12, "model.layers.1.mlp.down_proj": 1}},
        {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "q_proj"]},
        {"lora_dropout": 0.3},
    ],
    ids=lambda s: "+".join(s) or "plain",
)
@pytest.mark.parametrize("family", ["biases", "LLaMA-3.2-1B"])
@torch.no_grad()
def test_an_adapter_of_peft_computes_the_same_here_merged_and_back_in_peft(
    tmp_path, family, settings
):
    theirs_of(family).save_pretrained(tmp_path / "base")
    theirs, ids = (
        peft_adapter(tmp_path / "base", tmp_path / "adapter", **settings),
        torch.randint(97, (20,)),
    )
    expected = theirs(ids[None]).logits[0]
    ours = load_model(tmp_path / "adapter").eval()
    assert (ours(ids, [20]) - load_model(tmp_path / "base")(ids, [20])).abs().max() > 0.01
    torch.testing.assert_close(ours(ids, [20]), expected, rtol=1e-5, atol=1e-5)
    save_model(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(
        in_transformers(tmp_path / "base"), tmp_path / "ours"
    ).eval()
    torch.testing.assert_close(again(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5)
    merge_lora(ours)
    torch.testing.assert_close(ours(ids, [20]), expected, rtol=1e-5, atol=1e-5)
    save_model(ours, tmp_path / "merged")
    torch.testing.assert_close(
        in_transformers(tmp_path / "merged")(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"lora_bias": True}, "lora_bias True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"peft_type": "absent"}, "peft_type None is not supported"),
        ({"something_new": 3}, "something_new 3 is not supported"),
        (
            {"base_model_name_or_path": "haoranxu/ALMA-7B"},
            "'haoranxu/ALMA-7B' is no folder here; name the folder with --model",
        ),
        ({"r": "absent"}, "missing 1 required positional argument: 'r'"),
        ({"r": 0}, "= 0; expected a positive int"),
        ({"r": 3}, r"lora_A.weight has shape \(4, ..\), expected \(3, ..\)"),
        ({"lora_alpha": "8"}, "expected a positive float"),
        ({"target_modules": ["q_proj"]}, "expected no such tensor"),
        ({"target_modules": None}, "adapter_config.json: "),
        ({"target_modules": "("}, "adapter_config.json: .*expected the settings of a LoRA adapter"),
        ({"rank_pattern": ["q_proj"]}, "adapter_config.json: "),
        ({"lora_dropout": 2.0}, "adapter_config.json: "),
    ],
)
def test_an_adapter_that_would_be_computed_wrongly_is_refused_by_name(tmp_path, changes, said):
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    raw = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "absent"}
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=said):
        load_model(tmp_path / "adapter")


def test_an_adapter_moved_away_from_its_base_takes_the_base_by_name(tmp_path):
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter")
    expected = load_model(tmp_path / "adapter").state_dict()
    os.rename(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(InputError, match="is no folder here"):
        load_model(tmp_path / "adapter")
    found = load_model(tmp_path / "adapter", base=str(tmp_path / "moved")).state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


# The embedded demo base, elsewhere


@torch.no_grad()
def test_the_demo_base_translates_the_same_in_transformers(tokenizer):
    theirs, ours = in_transformers(BASE), load_model(BASE, torch.float32).eval()
    encode = transformers.AutoTokenizer.from_pretrained(BASE)
    for text in ('Apri il file "è qui"', "Impossibile aprire il file"):
        ids = encode(write_prompt("alpaca", ("it", "nl"), text)).input_ids
        assert ids == prompt_of(tokenizer, ("it", "nl"), text, 512)[0]
        torch.testing.assert_close(
            ours(torch.tensor(ids), [len(ids)]),
            theirs(torch.tensor([ids])).logits[0],
            rtol=1e-4,
            atol=1e-4,
        )
        new = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[
            0, len(ids) :
        ]
        found = greedy(ours, [ids], {tokenizer.eos}, 20)[0]
        assert tokenizer.decode(found) == encode.decode(new, skip_special_tokens=True).strip()


# Refused, by name and before any weight is read


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": "absent"}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "RoPE type 'yarn'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
            "RoPE type 'linear'",
        ),
        ({"rope_parameters": "yes"}, "RoPE type 'yes'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            "RoPE's low_freq_factor = None",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e5,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor",
        ),
        ({"hidden_size": "big"}, "hidden_size = 'big'; expected a positive int"),
        (
            {"hidden_size": "absent"},
            "missing 1 required positional argument: 'hidden_size'; expected the config.json",
        ),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1; expected bool"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"attention_bias": True}, "layers.0.self_attn.q_proj.bias of shape .* is missing"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused_by_name(tmp_path, changes, said):
    save_model(tiny(), tmp_path)
    change_config(tmp_path, **changes)
    if "missing" not in said:
        os.remove(tmp_path / "model.safetensors")  # never looked for
    with pytest.raises(InputError, match=said):
        load_model(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 100, -1, None])
def test_a_cut_weight_file_is_named_with_its_size(tmp_path, cut):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if cut is None else cut])
    size = f"{path.stat().st_size:,}"
    with pytest.raises(
        InputError,
        match=f"model.safetensors: {size} bytes; expected a whole safetensors file .*; copy it again",
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda t: t.pop("model.norm.weight"),
            "tensor model.norm.weight of shape \\(32,\\) is missing",
        ),
        (
            lambda t: t.update(extra=torch.zeros(1)),
            "extra has shape \\(1,\\), expected no such tensor",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(31)}),
            "model.norm.weight has shape \\(31,\\), expected \\(32,\\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
            "norm.weight has shape .*, of floats, not I8",
        ),
        (
            lambda t: t["model.norm.weight"].fill_(float("nan")),
            "tensor model.norm.weight is damaged",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(4000, 32)}),
            "ties the word embeddings, but lm_head.weight differs",
        ),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}), None),
    ],
)
def test_a_missing_unknown_misshapen_or_damaged_tensor_is_named(tmp_path, damage, said):
    save_model(tiny(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=said) if said else nullcontext():
        load_model(tmp_path)


def test_missing_files_and_broken_indices_are_named(tmp_path):
    with pytest.raises(InputError, match="config.json: no such file"):
        load_model(tmp_path)
    save_model(tiny(), tmp_path, limit=200_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, last = sorted(set(index["weight_map"].values()))[
        :: len(set(index["weight_map"].values())) - 1
    ]
    for weight_map, said in [
        ({k: first for k in index["weight_map"]}, "is missing in 1 files"),
        ({}, "no weight_map"),
        (7, "no weight_map"),
        ({"model.norm.weight": 3}, "no weight_map"),
        (index["weight_map"] | {"x": "../other.safetensors"}, "other.safetensors: no such file"),
    ]:
        path.write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(InputError, match=said):
            load_model(tmp_path)
    shutil.copy(
        tmp_path / first, tmp_path / "twice.safetensors"
    )  # the same tensors in two shards: which would count?
    path.write_text(
        json.dumps(index | {"weight_map": index["weight_map"] | {"x": "twice.safetensors"}})
    )
    with pytest.raises(InputError, match="twice.safetensors: tensor .* expected no such tensor"):
        load_model(tmp_path)
    path.write_text(json.dumps(index))
    os.remove(tmp_path / last)
    with pytest.raises(InputError, match=f"{last}: no such file"):
        load_model(tmp_path)
    os.remove(path)
    with pytest.raises(
        InputError, match="model.safetensors: no such file; expected a whole safetensors file"
    ):
        load_model(tmp_path)


def test_config_objects_check_their_own_fields():
    with pytest.raises(InputError, match="vocab_size = -1"):
        Config(-1, 8, 8, 1, 1)
    with pytest.raises(InputError, match="LoRA targets \\[\\]: expected some of"):
        add_lora(tiny(), LoraSettings(2, 2.0, [], 0.0))
