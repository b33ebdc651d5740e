"""A user's error as one sentence."""


class InputError(ValueError):
    """The user's input is at fault: one sentence says what was found, where, and what to do."""


def require(condition: object, sentence: str) -> None:
    """Raise InputError(sentence) unless the condition holds."""
    if not condition:
        raise InputError(sentence)


def require_type(name: str, value: object, kind: type) -> None:
    """Raise InputError unless `value` is of the type `kind` itself: a bool is no int."""
    require(type(value) is kind, f"{name} = {value!r}; expected {kind.__name__}")


def require_positive(name: str, value: object, kind: type) -> None:
    """Raise InputError unless `value` is a number above 0 and below 2^31; an int may be a float."""
    fits = type(value) in (int, kind) and 0 < value < 2**31
    require(fits, f"{name} = {value!r}; expected a positive {kind.__name__}")


def require_supported(path: str, name: str, value: object, values: list) -> None:
    """Raise InputError unless the field `name` of the file `path` has one of the values."""
    expected = " or ".join(map(repr, values))
    require(value in values, f"{path}: {name} {value!r} is not supported; expected {expected}")
