"""Regular expressions out of files, which may never come to an end."""

import json
import re
import subprocess
import sys

from plumbing.base.errors import InputError, plain

SECONDS = 10
HARMLESS = re.compile(
    r"[\w.-]*|\(\.\*\\\.\)\?\([\w.-]*\)"
)  # without repetition, but for PEFT's own
SCRIPT = """
import json, re, sys
patterns, names = json.load(sys.stdin)
json.dump([[name for name in names if re.fullmatch(p, name)] for p in patterns], sys.stdout)
"""


def matching(patterns: list[str], names: list[str]) -> list[list[str]]:
    """For each pattern the names that the whole of it matches. A pattern that repeats something is
    tried in a process of its own, which has SECONDS for all of them. Raises InputError."""
    if all(map(HARMLESS.fullmatch, patterns)):
        return [[name for name in names if re.fullmatch(p, name)] for p in patterns]
    shown = plain(", ".join(map(repr, patterns)), 200)
    command = [sys.executable, "-I", "-S", "-c", SCRIPT]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([patterns, names]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        sentence = f"matching {shown} takes over {SECONDS} s"
        raise InputError(f"{sentence}; expected a simpler regular expression") from None
    if done.returncode:
        last = plain(done.stderr.strip().split("\n")[-1], 200) or "no end"
        raise InputError(f"{shown} is no regular expression ({last})")
    return json.loads(done.stdout)
