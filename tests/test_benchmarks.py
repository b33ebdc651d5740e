"""The benchmarks run through on tiny shapes, and do not time a peer that does other work."""

import functools
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

sides = pytest.importorskip("benchmarks.sides")
from benchmarks import common, gpu, llama_7b  # noqa: E402
from benchmarks import train as benchmark  # noqa: E402
from plumbing.base.errors import InputError  # noqa: E402

TINY = {
    "train": ["train.py", "--quick"],
    "decode": ["decode.py", "--quick"],
    "growth": ["growth.py", "--quick", "--rows", "50", "--pairs", "20"],
    "gpu": ["gpu.py", "--tiny", "--device", "cpu", "--limit", "600"],
    "no card": ["gpu.py"],
    "no time": ["gpu.py", "--limit", "0"],
}
# One thread each: two processes whose threads wait for each other on two cores crawl.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def outputs():
    """What each script says; they run at the same time. Without a card that is an error."""
    pipes, started = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}, {}
    for name, (file, *args) in TINY.items():
        command = [sys.executable, f"{ROOT}/benchmarks/{file}", *args]
        started[name] = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
    said = {name: process.communicate(timeout=900)[0] for name, process in started.items()}
    codes = {name: process.returncode for name, process in started.items()}
    assert codes == dict.fromkeys(TINY, 0) | {"no card": 2, "no time": 2}, said
    return said


def test_train_prints_a_row_for_each_setting(outputs):
    rows = common.ratios(outputs["train"])
    trainer = "accelerate is not installed" not in outputs["train"]
    assert [name for name, *_ in rows] == [r.name for r in benchmark.ROWS if r.micro or trainer]
    assert [goal for *_, goal in rows if goal] == [4, 2, 2, 3.5, 3, 7]


def test_growth_and_decode_print_a_row_for_each_setting(outputs):
    rows = re.findall(r"^\| (\w+) \| 50 \| 40 \|", outputs["growth"], re.M)
    assert rows == ["tsv", "jsonl", "json", "paired"]
    assert len(common.ratios(outputs["decode"])) == 8 and "3 of 3" in outputs["decode"]


def test_gpu_runs_every_section(outputs):
    words = ["7B, batch 3", "same to the bit", "memory ratio (0.5)", "losses are finite"]
    words += ["the demo's prompts", "| training: ", "| decoding: "]
    assert "Failed" not in outputs["gpu"] and all(x in outputs["gpu"] for x in words)


def test_a_section_ends_at_its_limit_with_its_children():
    started = []

    def endless(device, tiny):
        nested = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
        started.append(gpu.start("-c", nested, "-c", "import time; time.sleep(600)"))
        started[0].communicate()

    said = gpu.guarded(endless, "cpu", True, 1)
    assert "Failed" in said and "more than 1 s" in said and started[0].poll() is not None
    started[0].communicate(timeout=30)  # nobody is left who could write


def test_sections_that_were_written_before_stay(tmp_path):
    assert gpu.parts_there(tmp_path) == {}
    parts = {"Precision": "fine.\n\n| a |\n| --- |", "Decoding 7B": "**Failed:** OSError: no"}
    text = "\n\n".join(f"**{title}.** {part}" for title, part in parts.items())
    common.write("gpu", f"## One GPU\n\n{text}", tmp_path)
    assert gpu.parts_there(tmp_path) == parts


def test_tiny_runs_write_nothing_and_no_card_is_one_sentence(outputs):
    assert not any("wrote" in said for said in outputs.values())
    assert re.fullmatch("error: --device cuda:0: not possible here.*\n", outputs["no card"])
    assert re.fullmatch("error: --limit 0: expected seconds.*\n", outputs["no time"])


def test_sections_that_cannot_be_written_do_not_end_those_that_follow(
    tmp_path, monkeypatch, capsys
):
    sections = {name: (name, lambda device, tiny: "fine", 9) for name in ("one", "two")}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(common, "HERE", tmp_path)
    write = functools.partial(common.write, folder=tmp_path)
    monkeypatch.setattr(common, "write", write)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)  # this process keeps its own
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--write"])
    (tmp_path / "RESULTS.md").write_text("# Speed\n<!-- gpu -->\nedited by hand\n")
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    said = capsys.readouterr().out
    assert not ended.value.code and "**two.** fine" in said
    assert said.count("not written: ") == 2 and "<!-- gpu --> without <!-- /gpu -->" in said


@pytest.mark.parametrize("row", [benchmark.AS_THEY_COME, benchmark.AUTHORS])
def test_a_peer_with_wrong_labels_is_not_timed(tmp_path, monkeypatch, row):
    right, folders = sides.pad, {"demo": (f"{tmp_path}/base", f"{tmp_path}/adapter")}
    sides.make_model(f"{tmp_path}/base", benchmark.NARROW)
    sides.make_adapter(*folders["demo"], 4)

    def wrong(encoded, device):  # the prompt's last token counts too
        batch = right(encoded, device)
        for labels, (_, prompt, _) in zip(batch["labels"], encoded, strict=True):
            labels[len(prompt) - 1] = prompt[-1]
        return batch

    assert benchmark.compare(benchmark.quick(row), folders, 1)["tokens"] > 0
    monkeypatch.setattr(sides, "pad", wrong)
    with pytest.raises(InputError, match="they do different work"):
        benchmark.compare(benchmark.quick(row), folders, 1)


def test_a_script_replaces_its_own_section_alone(tmp_path):
    header = "| what | ratio | goal |\n| --- | ---: | ---: |\n"
    rows = ["train| a & b | 2.50 | 4 |", "decode| c | 1.25 | - |", "gpu| d | 9.00 | 2 |"]
    for row in [*rows, "train| a & b | 3.50 | 4 |"]:
        name, cells = row.split("|", 1)
        common.write(name, f"{header}|{cells}", tmp_path)
    report = (tmp_path / "RESULTS.md").read_text()
    assert report.startswith("# Speed") and "2.50" not in report and report.count("<!-- ") == 6
    assert common.ratios(report) == [("a & b", 3.5, 4.0), ("c", 1.25, None)]
    picture = (tmp_path / "ratios.svg").read_text()
    assert "a &amp; b" in picture and "3.50" in picture and "9.00" not in picture


def test_both_models_of_the_7b_section_are_one_function():
    model, peer = llama_7b.make_models(llama_7b.TINY, "cpu", "fp32", 4)
    llama_7b.copy_lora(model, peer)
    ids = torch.arange(5, 25)
    with torch.no_grad():
        torch.testing.assert_close(peer(ids[None]).logits[0], model(ids, [20]), atol=1e-4, rtol=0)
