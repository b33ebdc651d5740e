"""What the README says of the code must be true of the code."""

import ast
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import data
import evaluate
import loss
import model
import train

README = open(os.path.join(ROOT, "README.md"), encoding="utf-8").read()
PAGES = sorted(os.listdir(os.path.join(ROOT, "docs")))
TEXT = README + "".join(
    open(os.path.join(ROOT, "docs", page), encoding="utf-8").read()
    for page in PAGES
    if page.endswith(".md")
)
FILES = {
    "model.py": model,
    "data.py": data,
    "loss.py": loss,
    "train.py": train,
    "evaluate.py": evaluate,
}


LAW = {
    "loss": set(),
    "model": {"plumbing"},
    "data": {"plumbing"},
    "evaluate": {"model", "data", "loss", "plumbing"},
    "train": {"model", "data", "loss", "plumbing"},
}
PLUMBING = sorted(
    name
    for name in os.listdir(os.path.join(ROOT, "plumbing"))
    if name.endswith(".py") and name != "__init__.py"
)


def lines(name):
    return open(os.path.join(ROOT, name), encoding="utf-8").read().count("\n")


def test_line_counts_are_true_and_within_the_budget():
    stated = {name: int(n) for name, n in re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", README, re.M)}
    assert stated == {name: lines(name) for name in FILES}
    assert sum(stated.values()) <= 1150
    assert all(lines(f"plumbing/{name}") <= 250 for name in PLUMBING)


def test_the_loop_fits_a_screen():
    """Of the whole project, no function is longer than the loop of both stages."""
    for path in [*FILES, *(f"plumbing/{name}" for name in PLUMBING)]:
        for node in ast.walk(ast.parse(open(os.path.join(ROOT, path), encoding="utf-8").read())):
            if isinstance(node, ast.FunctionDef):
                most = 60 if (path, node.name) == ("train.py", "train") else 50
                assert node.end_lineno - node.lineno + 1 <= most, (path, node.name)


@pytest.mark.parametrize("name", [*FILES, *PLUMBING])
def test_every_file_has_a_test_file(name):
    assert os.path.exists(os.path.join(ROOT, "tests", f"test_{name}"))


def test_every_function_that_the_readme_maps_to_the_paper_exists():
    named = re.findall(r"`(\w+\.py)`, `([\w.]+)`", README)
    assert len(named) >= 6
    for file, name in named:
        thing = FILES[file]
        for part in name.split("."):
            thing = getattr(thing, part)


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_every_flag_in_the_readme_exists(name):
    known = subprocess.run(
        [sys.executable, os.path.join(ROOT, name), "-h"], capture_output=True, text=True
    ).stdout
    commands = re.findall(rf"python {name}((?:[^\n`\\]|\\\n)*)", TEXT)
    flags = {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)}
    assert flags and all(flag in known for flag in flags)


def test_make_targets_in_the_readme_exist():
    makefile = open(os.path.join(ROOT, "Makefile")).read()
    targets = set(
        re.findall(r"\bmake (\w+)", "".join(re.findall(r"`[^`]*`|```.*?```", TEXT, re.S)))
    )
    assert {"demo", "test"} <= targets and all(
        re.search(rf"^{t}:", makefile, re.M) for t in targets
    )


def imports(nodes):
    """The modules of ours, by their first names, that import statements among the nodes name."""
    named = {
        name
        for node in nodes
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "plumbing"]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return {name.split(".")[0] for name in named} & {*LAW, "plumbing"}


@pytest.mark.parametrize("path", [*FILES, *(f"plumbing/{name}" for name in PLUMBING)])
def test_imports_run_one_way(path):
    tree = ast.parse(open(os.path.join(ROOT, path), encoding="utf-8").read())
    assert imports(tree.body) <= LAW.get(path.removesuffix(".py"), {"plumbing"})
    inside = imports(ast.walk(tree)) - imports(tree.body)
    # --dev alone needs decoding and langid
    assert inside == ({"evaluate"} if path == "train.py" else set())


def test_every_page_and_file_that_is_linked_exists():
    folders = {"README.md": ROOT} | {f"docs/{page}": os.path.join(ROOT, "docs") for page in PAGES}
    for path, folder in folders.items():
        text = open(os.path.join(ROOT, path), encoding="utf-8").read()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("https://"):
                assert os.path.exists(os.path.join(folder, target)), (path, target)
    named = re.findall(r"`(tests/\w+\.py|plumbing/\w+\.py|experiments/\w+\.py)`", TEXT)
    assert named and all(os.path.exists(os.path.join(ROOT, path)) for path in named)
