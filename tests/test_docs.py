"""What the texts say of the code is true: commands, flags, files, links, figures."""

import os
import re
import shlex

import pytest
from conftest import ROOT

import data
import evaluate
import train
from experiments import baselines, penalties
from experiments import run as grid
from plumbing.base.flags import flag
from tools import explain, merge, picture, plan, translate

SCRIPTS = {
    "train.py": train.Settings,
    "evaluate.py": evaluate.Settings,
    "data.py": data.ShowSettings,
    "experiments.baselines": baselines.Settings,
    "experiments.penalties": penalties.Settings,
    "experiments.run": grid.Settings,
    "tools.translate": translate.Settings,
    "tools.explain": explain.Settings,
    "tools.merge": merge.Settings,
    "tools.plan": plan.Settings,
    "tools.picture": picture.Settings,
}
PAGES = ["README.md", "demo/README.md", "experiments/README.md", "plumbing/README.md"]
PAGES += [f"docs/{name}" for name in sorted(os.listdir(os.path.join(ROOT, "docs")))]
PAGES = [page for page in PAGES if page.endswith(".md")]


def text_of(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def commands(page):
    """(script or module, its words) of the commands in a page's blocks of code."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", text_of(page), re.M | re.S):
        for line in block.replace("\\\n", " ").split("\n"):
            match = re.search(
                r"(?:python3?|torchrun .*?) (?:-m )?((?:[\w./]+\.py)|(?:tools|experiments)\.\w+)",
                line,
            )
            if match and match[1] in SCRIPTS:
                rest = line[match.end() :].split("|")[0].split(">")[0].split("<")[0]
                found.append((match[1], shlex.split(rest, comments=True)))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_of_every_command_exist(page):
    for script, words in commands(page):
        known = {flag(name) for name in SCRIPTS[script].__dataclass_fields__}
        known |= {"--no-full"}
        asked = {word.split("=")[0] for word in words if word.startswith("--")}
        assert asked <= known, f"{script} {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_in_the_text_exist_somewhere(page):
    known = {flag(name) for s in SCRIPTS.values() for name in s.__dataclass_fields__} | {
        "--no-full"
    }
    others = {"--size", "--more", "--quick", "--rows", "--locales", "--follow", "--index-url"}
    others |= {
        "--chrf-word-order",
        "--compile",
        "--local-dir",
        "--nproc-per-node",
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(page)))
    assert named <= known | others | {"--kills", "--every", "--paired-bs", "--write", "--repeats"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_are_named_exist(page):
    here = os.path.dirname(os.path.join(ROOT, page))
    text = text_of(page)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert link.startswith("http") or os.path.exists(os.path.join(here, link)), link
    named = re.findall(
        r"`((?:tests|plumbing|experiments|tools|benchmarks|demo|docs)/[\w/]+\.\w+)`", text
    )
    for path in named:
        assert os.path.exists(os.path.join(ROOT, path)), path


def test_the_readme_names_functions_where_they_are():
    for file, name in re.findall(r"`(\w+\.py)`, `(\w+)`", text_of("README.md")):
        source = text_of(file)
        assert re.search(rf"^(?:def|class) {name}\b", source, re.M), f"{file} {name}"


def test_plumbings_files_are_listed_once_each():
    text = text_of("plumbing/README.md")
    for room in os.listdir(os.path.join(ROOT, "plumbing")):
        folder = os.path.join(ROOT, "plumbing", room)
        if os.path.isdir(folder) and not room.startswith("__"):
            section = text.split(f"\n## {room}")[1].split("\n## ")[0]
            listed = re.findall(r"^\| `(\w+\.py)` \|", section, re.M)
            files = [x for x in os.listdir(folder) if x.endswith(".py") and x != "__init__.py"]
            assert sorted(listed) == sorted(files), room


def test_the_readmes_figures_are_those_of_the_experiments():
    """The table over five seeds, cell by cell."""
    results = text_of("experiments/RESULTS.md")
    rows = {}
    for line in results.split("## What cures it")[0].split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 5:
            rows[cells[0]] = cells
    readme = text_of("README.md")
    for name, label in [("mt", "| stage 1 |"), ("post-ins", "| Post-ins"), ("ours", "| stage 2:")]:
        line = next(line for line in readme.split("\n") if line.startswith(label))
        bleu, otr = rows[name][3], rows[name][4]
        assert bleu.split(" ")[0] in line and otr in line, name


def test_the_readmes_last_lines_are_those_of_the_demos_tables():
    demo = text_of("demo/README.md")
    lines = re.findall(r"^\| zero-shot, \w+ .*\|$", text_of("README.md"), re.M)
    assert len(lines) == 3 and all(line in demo for line in lines)
