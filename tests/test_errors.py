"""A user's error is one sentence."""

import pytest

from plumbing.base.errors import InputError, require, require_positive, require_supported, require_type


def test_a_condition_that_holds_says_nothing_and_one_that_does_not_says_its_sentence():
    require(True, "no")
    with pytest.raises(InputError, match="^what was found, where$"):
        require([], "what was found, where")


@pytest.mark.parametrize("value", [0, -1, 2**31, True, 1.5, "1", None, float("nan"), float("inf")])
def test_a_number_is_positive_bounded_and_no_bool(value):
    require_positive("n", 1, int)
    require_positive("n", 2**31 - 1, float)
    with pytest.raises(InputError, match="^n = .*; expected a positive int$"):
        require_positive("n", value, int)


def test_a_type_is_the_type_itself():
    require_type("flag", False, bool)
    for value, kind in [(0, bool), (True, int), ("x", list)]:
        with pytest.raises(InputError, match=f"; expected {kind.__name__}$"):
            require_type("flag", value, kind)


def test_an_unsupported_value_is_named_with_its_file_and_what_would_do():
    require_supported("c.json", "act", "silu", ["silu"])
    said = r"^c\.json: act 'gelu' is not supported; expected 'silu' or None$"
    with pytest.raises(InputError, match=said):
        require_supported("c.json", "act", "gelu", ["silu", None])


@pytest.mark.parametrize(
    "text", ["a\nerror: all is well", "\x1b[2J", "\u202egnp.exe", "\ud800", "\r", "a\u2028b", "\0"]
)
def test_no_input_can_forge_a_line_or_move_the_cursor(text):
    said = str(InputError(f"file {text}"))
    assert said.isprintable() and said.startswith("file ") and len(said) > len("file ")
    assert str(InputError("perché 無 🙂")) == "perché 無 🙂"


def test_a_sentence_is_bounded_and_keeps_its_end():
    said = str(InputError("x" * 8_000_000 + "; copy it again"))
    assert len(said) < 1100 and said.endswith("; copy it again")


@pytest.mark.parametrize("value", [0, 1, 1.0, "", (), -0.0])
def test_a_field_is_known_by_value_and_type(value):
    with pytest.raises(InputError):
        require_supported("a.json", "x", value, [None, False, True])
