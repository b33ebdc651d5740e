"""A step on a GPU, without one: devices, the dtype of each product, how often the host waits."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from plumbing.compute.attention import flash_attention

TORCH = pathlib.Path(torch.__file__).parent
COMPILER = shutil.which("g++")
NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
HALVES = [
    dict(dtype=dtype, lora=lora, varlen=varlen, twins=True)
    for dtype in ("bf16", "fp16")
    for lora in (True, False)
    for varlen in (True, False)
]
TRAINING = [
    *HALVES,
    dict(dtype="fp32", lora=True, twins=True),
    dict(dtype="fp32", lora=False, twins=False),
    dict(dtype="bf16", lora=True, varlen=True, twins=False, recompute=True),
    dict(dtype="bf16", lora=True, varlen=True, twins=True, window=4),
    dict(dtype="bf16", lora=True, twins=True, window=4),
]
DECODING = [
    dict(dtype=dtype, lora=lora, beams=beams, window=window)
    for dtype, lora, beams, window in [
        ("bf16", True, 1, None),
        ("bf16", True, 3, None),
        ("fp16", True, 1, 4),
        ("fp32", False, 1, None),
        ("fp32", False, 3, 4),
    ]
]
DECODING.append(dict(dtype="bf16", lora=True, beams=1, rows=2))  # a prompt takes a free row
RECORDED = [
    dict(dtype="bf16", lora=True, beams=1, window=window, recorded=True) for window in (None, 4)
]
# What may only fall: of a step of bf16 with LoRA, kernels of a layer, without a compiler.
TRAINED, DECODED = 222, 62.5


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{a case as JSON: what fake_cuda.py counted}, of two layers and of three."""
    if not COMPILER or sys.platform != "linux" or torch.cuda.is_available():
        pytest.skip("a fake CUDA device needs g++, Linux and a machine without a real one")
    library = tmp_path_factory.mktemp("fake") / "device.so"
    source = os.path.join(ROOT, "tests", "fake_cuda.cpp")
    command = [COMPILER, "-shared", "-fPIC", "-std=c++20", source, "-o", library]
    command += [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
    built = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    cases = [case | {"layers": 2} for case in TRAINING + DECODING + RECORDED]
    cases += [case | {"layers": 3} for case in (TRAINING[0], DECODING[0])]
    env = os.environ | {"PYTHONPATH": ROOT, "LD_PRELOAD": str(library)}
    env["LD_LIBRARY_PATH"] = str(TORCH / "lib")
    script = os.path.join(ROOT, "tests", "fake_cuda.py")
    command = [sys.executable, script, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {json.dumps(case): line for case, line in zip(cases, lines, strict=True)}


def of(found, case, layers=2):
    return found[json.dumps(case | {"layers": layers})]


@pytest.mark.parametrize("case", TRAINING + DECODING, ids=str)
def test_a_step_mixes_no_devices_and_multiplies_in_its_dtype(found, case):
    counts = of(found, case)
    assert counts["mixed"] == []
    assert [*counts["products"]] == [NAMES[case["dtype"]]] and counts["launches"] > 100
    assert bool(counts["names"].get("addmm_")) == case["lora"]  # LoRA's update, in place
    assert "addmm" not in counts["names"]


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_the_host_seldom_waits_for_a_step_of_training(found, case):
    reads = of(found, case)["reads"]
    assert sum(reads.values()) <= (7 if case["dtype"] == "fp16" else 5), reads


@pytest.mark.parametrize("case", DECODING, ids=str)
def test_the_host_waits_for_the_new_tokens_alone(found, case):
    """Whether they are finite, and their ids; with beams their scores too, and those and the chosen
    beams go back."""
    reads = of(found, case)["reads"]
    steps = 4 if case.get("rows", 3) == 3 else 8
    assert sum(reads.values()) <= steps * (2 if case["beams"] == 1 else 5), reads


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_a_step_that_a_cuda_graph_records_reads_nothing(found, case):
    counts = of(found, case)
    assert not sum(counts["reads"].values()) and not counts["copies"]
    assert counts["mixed"] == [] and counts["launches"] > 100


@pytest.mark.parametrize("case", TRAINING + DECODING, ids=str)
def test_what_is_compiled_sums_over_no_tokens(found, case):
    """With every weight tuned RMSNorm's gradient is such a sum, whose order must not hang on the
    first batch of a process."""
    names = {"rms_norm", "rotate", "swiglu"}
    tuned = "twins" in case and not case["lora"]
    assert {*of(found, case)["compiled"]} == names - ({"rms_norm"} if tuned else set())


def test_a_layer_launches_no_more_kernels_than_it_did(found):
    torch_version = tuple(map(int, torch.__version__.split(".")[:2]))
    assert bool(flash_attention()) == (torch_version >= (2, 11))
    if torch_version < (2, 11):
        pytest.skip("needs torch 2.11, which has FlashAttention with windows")
    for case, most, steps in ((TRAINING[0], TRAINED, 1), (DECODING[0], DECODED, 4)):
        two, three = (of(found, case, layers)["launches"] for layers in (2, 3))
        assert 0 < (three - two) / steps <= most, case
