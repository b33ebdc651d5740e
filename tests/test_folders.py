"""Folders of transformers in both directions: their logits are the oracle."""

import json
import os

import pytest
import torch
from conftest import BASE, prompt_of, tiny
from oracles import FAMILIES, LLAMA3, change_config, in_transformers, theirs_of, transformers
from safetensors.torch import load_file, save_file

from data import write_prompt
from evaluate import greedy
from model import add_lora, build_model, load_model, save_model
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.decoder import Decoder
from plumbing.base.errors import InputError
from plumbing.checkpoint.folder import Config


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
    assert greedy(Decoder(ours), [prompt, prompt[:5]], ends, 12)[0] == new[:stop]
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
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True)
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
    # the test can tell
    assert (load_model(tmp_path)(ids, [3000]) - theirs(ids[None]).logits[0]).abs().max() > 0.1


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
        found = greedy(Decoder(ours), [ids], {tokenizer.eos}, 20)[0]
        assert tokenizer.decode(found) == encode.decode(new, skip_special_tokens=True).strip()


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


def test_config_objects_check_their_own_fields():
    with pytest.raises(InputError, match="vocab_size = -1"):
        Config(-1, 8, 8, 1, 1)
    with pytest.raises(InputError, match="LoRA targets \\[\\]: expected some of"):
        add_lora(tiny(), LoraSettings(2, 2.0, [], 0.0))


@torch.no_grad()
@pytest.mark.parametrize("family", ["LLaMA-2-7B", "LLaMA-3.1-8B-Instruct", "Mistral-7B-v0.3"])
@pytest.mark.parametrize("theta", [None, 5e5, 4_000_000_000, 8e11])
def test_a_rope_scaling_that_was_added_by_hand_counts_as_in_transformers(tmp_path, family, theta):
    """Beside rope_parameters it was once ignored."""
    theirs_of(family).save_pretrained(tmp_path)
    added = {"rope_type": "llama3", "rope_theta": theta} | LLAMA3
    changes = {"rope_scaling": {k: v for k, v in added.items() if v is not None}}
    change_config(tmp_path, **changes)
    ids = torch.randint(97, (90,))
    expected = in_transformers(tmp_path)(ids[None]).logits[0]
    ours = load_model(tmp_path).eval()
    torch.testing.assert_close(ours(ids, [90]), expected, rtol=1e-5, atol=1e-5)
    save_model(ours, tmp_path / "ours")
    again = in_transformers(tmp_path / "ours")
    torch.testing.assert_close(again(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "longrope"])
def test_another_rope_scaling_is_refused_wherever_it_stands(tmp_path, kind):
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path)
    change_config(tmp_path, rope_scaling={"rope_type": kind, "factor": 2.0})
    with pytest.raises(InputError, match=f"config.json: RoPE type '{kind}' is not supported"):
        load_model(tmp_path)


def test_memory_is_not_taken_before_the_headers_are_read(tmp_path, monkeypatch):
    """A broken config.json once took 12 GB for LoRA first."""
    save_model(tiny(), tmp_path)
    change_config(tmp_path, hidden_size=2**20, intermediate_size=2**20, head_dim=2**18)
    with pytest.raises(InputError, match="config and weights do not belong together"):
        build_model(str(tmp_path))


def test_pickled_weights_alone_are_named(tmp_path):
    save_model(tiny(), tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    with pytest.raises(
        InputError, match="pickled weights alone .pytorch_model.bin.*save_pretrained"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_in_a_model_folder_is_not_waited_for(tmp_path, name):
    save_model(tiny(), tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is a pipe or a device"):
        load_model(tmp_path)
