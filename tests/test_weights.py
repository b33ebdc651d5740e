"""Weight files: what is read of them, and the sentence that damaged ones get."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, tiny
from safetensors.torch import load_file, save_file

from model import load_model, save_model
from plumbing.base.errors import InputError
from plumbing.checkpoint.folder import fingerprint


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
        "import resource, sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from model import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); m = load_model(sys.argv[2], torch.bfloat16); print(peak() - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, ROOT, tmp_path], capture_output=True, text=True
    )
    assert float(result.stdout) < copy * 1.25 + 30, (result, copy)


@pytest.mark.parametrize("cut", [0, 4, 100, -1, None])
def test_a_cut_weight_file_is_named_with_its_size(tmp_path, cut):
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if cut is None else cut])
    size = f"{path.stat().st_size:,}"
    with pytest.raises(
        InputError,
        match=f"model.safetensors: {size} bytes; "
        "expected a whole safetensors file .*; copy it again",
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
            "norm.weight holds I8, expected floats",
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
        (index["weight_map"] | {"x": "other.safetensors"}, "other.safetensors: no such file"),
        # not out of the folder, nor to names that no file has
        (index["weight_map"] | {"x": "../other.safetensors"}, "files beside it"),
        (index["weight_map"] | {"x": "/etc/hostname"}, "files beside it"),
        (index["weight_map"] | {"x": "a\ud800"}, "files beside it"),
        (index["weight_map"] | {"x": "a\0b"}, "files beside it"),
    ]:
        path.write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(InputError, match=said):
            load_model(tmp_path)
    # the same tensors in two shards: which would count?
    shutil.copy(tmp_path / first, tmp_path / "twice.safetensors")
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
        InputError,
        match="model.safetensors: no such file or directory; expected a whole safetensors",
    ):
        load_model(tmp_path)


def test_equal_weights_have_equal_fingerprints(tmp_path):
    """The order of a file's metadata is by chance."""
    found = set()
    for n in range(4):
        save_model(tiny(), tmp_path / str(n))
        found.add(fingerprint(str(tmp_path / str(n))))
    save_model(tiny(seed=1), tmp_path / "other")
    assert len(found) == 1 and fingerprint(str(tmp_path / "other")) not in found
