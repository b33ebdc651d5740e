"""Adapters of PEFT in both directions: its logits are the oracle."""

import json
import os

import pytest
import torch
from oracles import in_transformers, peft, peft_adapter, theirs_of
from safetensors.torch import load_file, save_file

from model import load_model, merge_lora, save_model
from plumbing.base.errors import InputError


def require_logits(model, ids, expected):
    torch.testing.assert_close(model(ids, [20]), expected, rtol=1e-5, atol=1e-5)


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
        {"rank_pattern": {r"layers\.0.*proj": 2, "q_proj": 5}},  # the first that matches
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
    base, ids = tmp_path / "base", torch.randint(97, (20,))
    theirs_of(family).save_pretrained(base)
    expected = peft_adapter(base, tmp_path / "adapter", **settings)(ids[None]).logits[0]
    ours = load_model(tmp_path / "adapter").eval()
    assert (expected - load_model(base)(ids, [20])).abs().max() > 0.01
    require_logits(ours, ids, expected)
    save_model(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(in_transformers(base), tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5)
    merge_lora(ours)
    require_logits(ours, ids, expected)
    save_model(ours, tmp_path / "merged")
    merged = in_transformers(tmp_path / "merged")
    torch.testing.assert_close(merged(ids[None]).logits[0], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def adapter(tmp_path):
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save .*merge_and_unload\(\)"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"layers_to_transform": 0}, "layers_to_transform 0"),
        ({"something_new": 3}, "something_new 3"),
        ({"peft_type": "IA3", "feedforward_modules": ["x"]}, "peft_type 'IA3'"),
        ({"base_model_name_or_path": "haoranxu/ALMA-7B"}, "no folder here; .*--model.*hf download"),
        ({"r": "absent"}, "r is missing"),
        ({"r": 0}, "= 0; expected a positive int"),
        ({"r": 3}, r"lora_A.weight has shape \(4, ..\), expected \(3, ..\)"),
        ({"lora_alpha": "8"}, "positive float"),
        ({"lora_dropout": 2.0}, "dropout 2.0"),
        ({"target_modules": ["q_proj"]}, "expected no such tensor"),
        ({"target_modules": ["no_proj"]}, "expected some of down_proj"),
        ({"target_modules": None}, "target_modules None"),
        ({"target_modules": "("}, "no regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    ],
)
def test_an_adapter_that_would_be_computed_wrongly_is_refused_by_name(adapter, changes, said):
    raw = json.loads((adapter / "adapter_config.json").read_text()) | changes
    raw = {name: value for name, value in raw.items() if value != "absent"}
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"adapter.*{said}"):
        load_model(adapter)


@torch.no_grad()
def test_what_is_refused_is_taken_once_peft_has_merged_it(tmp_path):
    """As the sentence says."""
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path / "base")
    settings = {"modules_to_save": ["embed_tokens", "lm_head"], "use_dora": True}
    theirs, ids = peft_adapter(tmp_path / "base", tmp_path / "run", **settings), torch.arange(20)
    expected = theirs(ids[None]).logits[0]
    with pytest.raises(InputError, match="merge_and_unload"):
        load_model(tmp_path / "run")
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    require_logits(load_model(tmp_path / "merged").eval(), ids, expected)


def test_an_adapter_moved_away_from_its_base_takes_the_base_by_name(adapter):
    expected = load_model(adapter).state_dict()
    os.rename(adapter.parent / "base", adapter.parent / "moved")
    found = load_model(adapter, base=str(adapter.parent / "moved")).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    os.unlink(adapter / "adapter_config.json")
    with pytest.raises(InputError, match="adapter_config.json: no such file"):
        load_model(adapter)


@pytest.mark.parametrize("family", ["LLaMA-2-7B", "LLaMA-3.2-1B"])
@torch.no_grad()
def test_the_copy_of_lm_head_that_peft_saves_is_accepted_where_it_is_the_bases(tmp_path, family):
    """As PEFT saves an adapter of lm_head by default: with the base's own weight in it."""
    theirs_of(family).save_pretrained(tmp_path / "base")
    adapter, ids = tmp_path / "adapter", torch.randint(97, (20,))
    theirs = peft_adapter(tmp_path / "base", adapter, target_modules=["lm_head", "q_proj"])
    theirs.save_pretrained(adapter, save_embedding_layers="auto")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (copy,) = [name for name in tensors if name.endswith("lm_head.base_layer.weight")]
    require_logits(load_model(adapter).eval(), ids, theirs(ids[None]).logits[0])
    save_file(tensors | {copy: tensors[copy].bfloat16()}, path)  # of a base that was loaded so
    load_model(adapter)
    save_file(tensors | {copy: tensors[copy] + 0.01}, path)
    with pytest.raises(InputError, match="lm_head.weight is not that of .*base"):
        load_model(adapter)
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(64)}, path)
    with pytest.raises(InputError, match="norm.weight has shape .* expected no such tensor"):
        load_model(adapter)
