"""A user's error as one sentence."""


class InputError(ValueError):
    """The user's input is at fault: one sentence says what was found, where, and what to do."""


def require(good, sentence):
    if not good:
        raise InputError(sentence)


def check(name, value, kind):
    """Raise InputError unless `value` is of the type `kind`; numbers must be positive and below 2^31."""
    number = kind in (int, float)
    require(
        type(value) in (int, kind) and 0 < value < 2**31 if number else type(value) is kind,
        f"{name} = {value!r}; expected {'a positive ' * number}{kind.__name__}",
    )


def supported(path, name, value, values):
    require(
        value in values,
        f"{path}: {name} {value!r} is not supported; expected {' or '.join(map(repr, values))}",
    )
