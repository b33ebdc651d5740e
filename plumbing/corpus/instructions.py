"""The direction that an instruction in English asks for, where that is certain."""

import re

from plumbing.corpus.languages import LANGUAGES

CODES = {name: code for code, name in LANGUAGES.items()}
NAMES = "|".join(map(re.escape, CODES))
NAME = rf"(?:the )?({NAMES})(?![\w'])"
ANY = re.compile(rf"(?<![\w-])(?:{NAMES})(?![\w'])")
AFTER = rf"(?!(?:,|/|,? (?:or|and|to|into|then))? ?(?:the )?(?:{NAMES}))"  # no second target
# "from German to Czech", "German into Czech", "to Czech from German"
BEGIN = r"(?:^|[.:;!?(\"] ?|\b(?:from|[Tt]ranslat(?:e|ing)) )"
FORWARD = re.compile(rf"{BEGIN}{NAME}(?: language)?(?:-| )(?:in)?to(?:-| ){NAME}{AFTER}")
BACKWARD = re.compile(rf"\b(?:in)?to {NAME} from {NAME}{AFTER}")
INTO = re.compile(rf"\binto {NAME}{AFTER}")
# What is translated: "the following English sentence", "this English", "English text"
NOUN = r"(?:sentence|text|phrase|passage|paragraph|word|input|source|document|article|line)s?\b"
SOURCE = re.compile(
    rf"(?:\b(?:[Tt]ranslate|this|these|following|given) ({NAMES})\b|\b({NAMES}) {NOUN})"
)
DOUBT = re.compile(
    r"\b(?:not|never|instead|rather|except|reverse|back|via|was|were|been|or|than)\b|n't\b",
    re.IGNORECASE,
)


def read_direction(instruction: object) -> tuple[str, str] | None:
    """(source, target) as codes, of "from X to Y", "X to Y", "X into Y", "to Y from X", or of "into
    Y" where what is translated is named as the text of one other language; None where that leaves
    doubt: two directions, another target, a sentence that negates or reverses it."""
    text = " ".join(instruction.split()) if isinstance(instruction, str) else ""
    found = {match.groups() for match in FORWARD.finditer(text)}
    found |= {match.groups()[::-1] for match in BACKWARD.finditer(text)}
    targets = set(INTO.findall(text))
    if not found and len(targets) == 1 and len(ANY.findall(text)) == 2:
        sources = {match[1] or match[2] for match in SOURCE.finditer(text)}
        found = {(source, target) for source in sources for target in targets}
    if len(found) != 1:
        return None
    source, target = found.pop()
    about = [part for part in re.split(r"[.!?]", text) if target in part]
    if source == target or targets - {target} or any(map(DOUBT.search, about)):
        return None
    return CODES[source], CODES[target]
