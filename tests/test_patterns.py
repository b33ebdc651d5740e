"""Regular expressions out of files: what they match, and that they come to an end."""

import time

import pytest

from plumbing.checkpoint import patterns
from plumbing.base.errors import InputError
from plumbing.checkpoint.patterns import matching

NAMES = ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.up_proj"]


def test_each_pattern_gives_the_names_that_it_matches_whole():
    for chosen in (["q_proj", NAMES[0]], [r".*q_proj", "model.layers.0.*"]):
        assert matching(chosen, NAMES)[1] == [NAMES[0]]
    assert matching([r".*\.(q|k)_proj", r"(.*\.)?(up_proj)", "nothing"], NAMES) == [
        NAMES[:2],
        NAMES[2:],
        [],
    ]


@pytest.mark.parametrize(
    "pattern, said",
    [
        ("(a+)+b", "takes over 1 s"),
        ("(a|a)*b", "takes over 1 s"),
        ("(", "no regular expression .*unterminated subpattern"),
        ("(.*\\.)?(x", "no regular expression"),
        ("x)", "no regular expression .*unbalanced"),
        ("(" * 5000 + "a" + ")" * 5000, "no regular expression"),
        ("a{999999999999}", "no regular expression"),
    ],
)
def test_what_never_ends_or_is_no_pattern_is_said_soon(monkeypatch, pattern, said):
    monkeypatch.setattr(patterns, "SECONDS", 1)
    began = time.time()
    with pytest.raises(InputError, match=said) as error:
        matching(["q_proj", pattern], ["a" * 60])
    assert time.time() - began < 30 and len(str(error.value)) < 1000
