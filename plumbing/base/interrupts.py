"""Ctrl-C while packages are imported: one word, no traceback. Itself imported first of all."""

import os
import signal
import sys

from plumbing.base.files import ROOT


def stop(*_) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def until_the_script_begins() -> None:
    """Take Ctrl-C, where one of our scripts was started."""
    script = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
    folders = (ROOT, os.path.join(ROOT, "experiments"))
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored
    if usual and os.path.dirname(script) in folders:
        signal.signal(signal.SIGINT, stop)


def as_usual() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


until_the_script_begins()
