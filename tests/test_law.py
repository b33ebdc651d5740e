"""The law of the house: who may import whom, and that nothing is hidden."""

import ast
import os
import re

import pytest
from conftest import ROOT

FIVE = {"model", "data", "loss", "train", "evaluate"}
ABOVE = {"tools", "experiments", "benchmarks"}
LEVELS = {"run": 2, "score": 2, "corpus": 1, "checkpoint": 1, "compute": 1, "base": 0}


def sources():
    """{dotted name: path} of the five, of plumbing and of what lies above them."""
    found = {name: os.path.join(ROOT, f"{name}.py") for name in sorted(FIVE)}
    for top in ("plumbing", *ABOVE):
        for folder, _, files in os.walk(os.path.join(ROOT, top)):
            for file in files:
                if file.endswith(".py"):
                    path = os.path.join(folder, file)
                    name = os.path.relpath(path, ROOT).removesuffix(".py").replace(os.sep, ".")
                    found[name.removesuffix(".__init__")] = path
    return found


SOURCES = dict(sorted(sources().items()))


def imports(name, inside=False):
    """The first-party modules that a file imports; inside: those within its functions alone."""
    tree = ast.parse(open(SOURCES[name], encoding="utf-8").read())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, kinds) for n in ast.walk(f)}
    found = set()
    for node in ast.walk(tree):
        if inside and id(node) not in inner:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {x for x in found if x in SOURCES}


def room(name):
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in SOURCES if name.count(".") == 2])
def test_a_room_of_plumbing_imports_what_lies_below_it_and_itself(name):
    for other in imports(name):
        assert other.startswith("plumbing."), f"{name} imports {other}, which lies above"
        lower = LEVELS[room(other)] < LEVELS[room(name)]
        assert lower or room(other) == room(name), f"{name} imports {other}"


def test_plumbing_has_six_rooms_of_a_few_files():
    rooms = {}
    for name in SOURCES:
        if name.startswith("plumbing.") and name.count(".") == 2:
            rooms.setdefault(room(name), []).append(name)
    assert rooms.keys() == LEVELS.keys()
    assert all(len(files) <= 7 for files in rooms.values())


def test_the_five_know_each_other_in_one_direction():
    assert not imports("loss")
    assert not imports("data") & FIVE and not imports("model") & FIVE
    assert imports("evaluate") & FIVE == {"data", "loss", "model"}
    assert imports("train") & FIVE == {"data", "evaluate", "loss", "model"}


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_imports_what_lies_above_it(name):
    top = name.split(".")[0]
    tops = {other.split(".")[0] for other in imports(name)}
    if top not in ABOVE:
        assert not tops & ABOVE
    elif top == "tools":
        assert not tops & {"experiments", "benchmarks"}


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_hidden(name):
    """No import inside a function, no modules by another way, no import for another's sake."""
    assert not imports(name, inside=True)
    text = open(SOURCES[name], encoding="utf-8").read()
    hidden = re.findall(r"sys\.modules|ModuleType|importlib\.import_module|noqa: F401", text)
    assert not hidden
