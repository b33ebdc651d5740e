"""The direction that an instruction in English asks for, where that is certain."""

import re

from plumbing.languages import LANGUAGES

CODES = {name: code for code, name in LANGUAGES.items()}
NAME = rf"(?:the )?({'|'.join(map(re.escape, CODES))})(?![\w'])"
ONE = re.compile(rf"\b{NAME}")
INTO = re.compile(rf"\binto {NAME}")
# "from German to Czech", "German into Czech", "to Czech from German"
FORWARD = re.compile(rf"\b{NAME}(?: language)?(?:-| )(?:in)?to(?:-| )(?={NAME})")
BACKWARD = re.compile(rf"\b(?:in)?to {NAME} from (?={NAME})")


def read_direction(instruction: object) -> tuple[str, str] | None:
    """(source, target) as codes, of "from X to Y", "X to Y", "X into Y", "to Y from X", or of "into
    Y" where one other language is named, once; None where that leaves doubt."""
    text = " ".join(instruction.split()) if isinstance(instruction, str) else ""
    found = {match.groups() for match in FORWARD.finditer(text)}
    found |= {match.groups()[::-1] for match in BACKWARD.finditer(text)}
    if not found:
        named, targets = ONE.findall(text), INTO.findall(text)
        if len(targets) == 1 and len(named) == 2:
            found = {(source, targets[0]) for source in named if source != targets[0]}
    if len(found) != 1:
        return None
    source, target = (CODES[name] for name in found.pop())
    return (source, target) if source != target else None
