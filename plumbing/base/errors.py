"""A user's error as one sentence."""

LONGEST = 1000  # characters of a sentence


def plain(text: str, longest: int = LONGEST) -> str:
    """The text as one line that any terminal can show: what is not printable is escaped, so that no
    input can forge a second line; of a long text the middle is left out."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """The user's input is at fault: one sentence says what was found, where, and what to do."""

    def __init__(self, sentence: str):
        super().__init__(plain(sentence))


def require(condition: object, sentence: str) -> None:
    """Raise InputError(sentence) unless the condition holds."""
    if not condition:
        raise InputError(sentence)


def require_type(name: str, value: object, kind: type) -> None:
    """Raise InputError unless `value` is of the type `kind` itself: a bool is no int."""
    require(type(value) is kind, f"{name} = {plain(repr(value), 200)}; expected {kind.__name__}")


def require_positive(name: str, value: object, kind: type) -> None:
    """Raise InputError unless `value` is a number above 0, an int below 2^31, a float (which may be
    written as an int) below 1e30."""
    fits = type(value) in (int, kind) and 0 < value < (2**31 if kind is int else 1e30)
    sentence = f"{name} = {plain(repr(value), 200)}; expected a positive {kind.__name__}"
    require(fits, sentence)


def require_supported(path: str, name: str, value: object, values: list, advice: str = "") -> None:
    """Raise InputError unless the field `name` of the file `path` has one of the values, and its
    type: 0 is not False. advice: a way out."""
    known = any(value == other and type(value) is type(other) for other in values)
    expected = " or ".join(map(repr, values))
    found = plain(repr(value), 200)
    sentence = f"{path}: {name} {found} is not supported; expected {expected}"
    require(known, f"{sentence}; {advice}" if advice else sentence)
