"""A user's error is one sentence."""

import pytest

from plumbing.errors import InputError, require, require_positive, require_supported, require_type


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
