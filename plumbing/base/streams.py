"""stdout and stderr that cannot end a run: what reads them may go away, or lack a letter."""

import os
import sys


class Stream:
    """A text stream; once nobody reads it any more (`| head -1`), it is silent."""

    def __init__(self, stream):
        self.stream, self.gone = stream, False
        stream.reconfigure(errors="replace")  # a letter that the terminal lacks is "?"

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.silence()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.silence()

    def silence(self) -> None:
        """Send what is still to come, and what waits to be sent, nowhere."""
        self.gone = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


def steady() -> None:
    """Make stdout and stderr of this process such streams."""
    for name in ("stdout", "stderr"):  # None where it was closed from the first
        there = getattr(sys, name)
        setattr(sys, name, Stream(there or open(os.devnull, "w")))
        getattr(sys, name).gone = there is None


def in_colour() -> bool:
    """Whether standard output is a terminal that wants colours (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdout.isatty() and not plain
