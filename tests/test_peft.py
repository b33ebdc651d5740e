"""Adapters of PEFT in both directions: its logits are the oracle."""

import json
import os

import pytest
import torch
from conftest import tiny
from oracles import in_transformers, peft, peft_adapter, theirs_of
from safetensors.torch import load_file, save_file

from model import add_lora, load_model, merge_lora, save_model
from plumbing.base.errors import InputError
from plumbing.checkpoint.peft import LoraSettings, lora_targets

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = [f"model.layers.{i}.{end}" for i in range(2) for end in ("self_attn.q_proj", "mlp.up_proj")]


@pytest.fixture
def made(tmp_path):
    """A base and an adapter of it that PEFT wrote."""
    theirs_of("LLaMA-2-7B").save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "base", tmp_path / "adapter")
    return tmp_path


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
    base, ids = tmp_path / "base", torch.randint(97, (20,))
    theirs_of(family).save_pretrained(base)
    expected = peft_adapter(base, tmp_path / "adapter", **settings)(ids[None]).logits[0]
    ours = load_model(tmp_path / "adapter").eval()
    assert (ours(ids, [20]) - load_model(base)(ids, [20])).abs().max() > 0.01
    torch.testing.assert_close(ours(ids, [20]), expected, **CLOSE)

    save_model(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(in_transformers(base), tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids[None]).logits[0], expected, **CLOSE)

    merge_lora(ours)
    torch.testing.assert_close(ours(ids, [20]), expected, **CLOSE)
    save_model(ours, tmp_path / "merged")
    merged = in_transformers(tmp_path / "merged")
    torch.testing.assert_close(merged(ids[None]).logits[0], expected, **CLOSE)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"lora_bias": True}, "lora_bias True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"layers_to_transform": 0}, "layers_to_transform 0 is not supported"),
        ({"peft_type": "IA3", "feedforward_modules": ["x"]}, "peft_type 'IA3' is not supported"),
        ({"peft_type": "absent"}, "peft_type None is not supported"),
        ({"something_new": 3}, "something_new 3 is not supported"),
        ({"base_model_name_or_path": "haoranxu/ALMA-7B"}, "'haoranxu/ALMA-7B' is no folder here"),
        ({"r": "absent"}, "r is missing; expected a LoRA adapter"),
        ({"r": 0}, "= 0; expected a positive int"),
        ({"r": 3}, r"lora_A.weight has shape \(4, ..\), expected \(3, ..\)"),
        ({"lora_alpha": "8"}, "expected a positive float"),
        ({"lora_dropout": 2.0}, "LoRA dropout 2.0: expected 0 to 1"),
        ({"rank_pattern": [1]}, "rank_pattern = .*expected dict"),
        ({"target_modules": ["q_proj"]}, "expected no such tensor"),
        ({"target_modules": 7}, "target_modules 7: expected names"),
        ({"target_modules": None}, "target_modules None: expected names"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "is no regular expression"),
        ({"rank_pattern": {"a{999999999999}": 2}}, "is no regular expression"),
    ],
)
def test_an_adapter_that_would_be_computed_wrongly_is_refused_by_name(made, changes, said):
    path = made / "adapter" / "adapter_config.json"
    raw = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "absent"}
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=said) as error:
        load_model(made / "adapter")
    assert str(made / "adapter") in str(error.value)


def test_an_adapter_without_its_configuration_is_said_so(made):
    os.unlink(made / "adapter" / "adapter_config.json")
    with pytest.raises(InputError, match="adapter_config.json: no such file"):
        load_model(made / "adapter")


def test_an_adapter_moved_away_from_its_base_takes_the_base_by_name(made):
    expected = load_model(made / "adapter").state_dict()
    os.rename(made / "base", made / "moved")
    with pytest.raises(InputError, match="is no folder here; name the folder with --model"):
        load_model(made / "adapter")
    found = load_model(made / "adapter", base=str(made / "moved")).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["LLaMA-2-7B", "LLaMA-3.2-1B"])
@torch.no_grad()
def test_the_copy_of_lm_head_that_peft_saves_is_accepted_where_it_is_the_bases(tmp_path, family):
    """As PEFT saves an adapter of lm_head by default: with the base's own weight in it."""
    theirs_of(family).save_pretrained(tmp_path / "base")
    targets = {"target_modules": ["lm_head", "q_proj"]}
    theirs = peft_adapter(tmp_path / "base", tmp_path / "adapter", **targets)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers="auto")
    path, ids = tmp_path / "adapter" / "adapter_model.safetensors", torch.randint(97, (20,))
    tensors = load_file(path)
    (copy,) = [name for name in tensors if name.endswith("lm_head.base_layer.weight")]
    ours = load_model(tmp_path / "adapter").eval()
    torch.testing.assert_close(ours(ids, [20]), theirs(ids[None]).logits[0], **CLOSE)

    save_file(tensors | {copy: tensors[copy].bfloat16()}, path)  # of a base that was loaded so
    load_model(tmp_path / "adapter")
    save_file(tensors | {copy: tensors[copy] + 0.01}, path)
    with pytest.raises(InputError, match="lm_head.weight is not that of .*base; name the right"):
        load_model(tmp_path / "adapter")


def test_the_first_pattern_that_the_end_of_a_name_matches_counts():
    patterns = {"layers.1.*q_proj": 3, "q_proj": 5, "up": 7}
    settings = LoraSettings(2, 4.0, ["q_proj", "up_proj"], rank_pattern=patterns)
    assert [target.r for target in lora_targets(NAMES, settings)] == [5, 2, 3, 2]


@pytest.mark.parametrize("targets", [[], ["nothing"], ["q_proj", "nothing"], "q_proj"])
def test_targets_that_no_layer_has_are_refused_with_those_that_there_are(targets):
    with pytest.raises(InputError, match="LoRA targets .*expected some of .*q_proj, up_proj"):
        add_lora(tiny(), LoraSettings(2, 2.0, targets))
