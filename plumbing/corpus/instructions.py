"""Rows of instruction data: which of them are plain translations, and in which direction.

An instruction that names a direction need not ask for a translation of its input: it may ask for a
score, a correction, a summary, or bring hints along. So a plain translation is what has one of a
few forms, in words of a closed list; anything else is another instruction.
"""

import functools
import re

from plumbing.corpus.languages import LANGUAGES

# Every word of a plain instruction, besides the names of its languages.
WORDS = set(
    "translate translating translation please kindly accurately can could would you your me us "
    "for provide give produce a an the this these that it following given "
    "below above provided next of from to into in language languages sentence sentences text texts "
    "phrase phrases passage passages paragraph paragraphs word words input source document "
    "documents article articles line lines segment segments content message messages excerpt "
    "piece".split()
)
# What is translated: "the following English sentence", "this English", "English text"
NOUN = r"(?:sentence|text|phrase|passage|paragraph|word|input|source|document|article|line)s?\b"
# "Provide the source of this translation": what is asked for is another thing.
REVERSED = re.compile(
    r"\b(?:this|these|given|following|above|below|provided|for the|of the) translation\b"
    r"|\b(?:source|input)\b.*\btranslation\b|\bword for word\b",
    re.IGNORECASE,
)
# Fields beside an instruction that a prompt of ours has no place for.
MORE_FIELDS = (
    "history",
    "system",
    "system_prompt",
    "context",
    "hint",
    "hints",
    "glossary",
    "terms",
)
MORE_FIELDS += ("terminology", "formality", "style", "tone", "examples", "demonstrations")
END = re.compile("[.!?。！？]")  # of a sentence
MARKER = re.compile(r"#{3,} ?\w")  # "### Hint: ..."
TAG = re.compile(r"</?[A-Za-z]+>")
HEAD = re.compile(r"^\s*[^\s:：][^:：\n]{0,60}[:：]", re.MULTILINE)  # a line that begins "Note:"


class Patterns:
    """Regular expressions with the names of the languages, which a user may add to."""

    def __init__(self, languages: tuple[str, ...]):
        names = "|".join(map(re.escape, sorted(languages, key=len, reverse=True)))
        name = rf"(?:the )?({names})(?![\w'])"
        begin = r"(?:^|[.:;!?(\"] ?|\b(?:[Ff]rom|[Tt]ranslat(?:e|ing)) )"
        self.any = re.compile(rf"(?<!\w)(?:{names})(?![\w'])", re.IGNORECASE)
        # "from German to Czech", "German into Czech", "to Czech from German"
        self.forward = re.compile(rf"{begin}{name}(?: language)?(?:-| )(?:in)?to(?:-| ){name}")
        self.backward = re.compile(rf"\b(?:in)?to {name} from {name}")
        self.into = re.compile(rf"\b(?:in)?to {name}")
        self.source = re.compile(
            rf"(?:\b(?:[Tt]ranslate|this|these|following|given) ({names})\b|\b({names}) {NOUN})"
        )
        labels = (
            f"hint|note|source|target|reference|translation|error|score|question|answer|{names}"
        )
        self.label = re.compile(rf"^\s*(?:{labels})s?\b[\w -]*[:：]", re.MULTILINE | re.IGNORECASE)


@functools.lru_cache
def patterns_of(languages: tuple[str, ...]) -> Patterns:
    return Patterns(languages)


def patterns() -> Patterns:
    """Those of the languages that are known now."""
    return patterns_of(tuple(LANGUAGES.values()))


def read_direction(instruction: object) -> tuple[str, str] | None:
    """(source, target) as codes of an instruction that asks for a plain translation: "from X to Y",
    "X to Y", "X into Y", "to Y from X", or "to Y" where what is translated is named as the text of
    one other language. None where there is doubt: another word than those of plain instructions,
    two directions, another target."""
    p, text = patterns(), " ".join(instruction.split()) if isinstance(instruction, str) else ""
    words = re.findall(r"\w+", p.any.sub(" ", text).lower())
    if not (text and {*words} <= WORDS and any(word.startswith("translat") for word in words)):
        return None
    if REVERSED.search(text):
        return None
    spelled = {name.lower(): name for name in LANGUAGES.values()}
    text = p.any.sub(lambda found: spelled[found[0].lower()], text)
    found = {match.groups() for match in p.forward.finditer(text)}
    found |= {match.groups()[::-1] for match in p.backward.finditer(text)}
    targets = set(p.into.findall(text))
    if not found and len(targets) == 1 and len(p.any.findall(text)) == 2:
        sources = {match[1] or match[2] for match in p.source.finditer(text)}
        found = {(source, target) for source in sources for target in targets}
    if len(found) != 1:
        return None
    source, target = found.pop()
    if source == target or targets - {target} or {*p.any.findall(text)} != {source, target}:
        return None
    codes = {name: code for code, name in LANGUAGES.items()}
    return codes[source], codes[target]


def read_translation(
    instruction: str, source: str, target: str
) -> tuple[tuple[str, str], str] | None:
    """(direction, source sentence) of a row that is a plain translation, else None. The sentence is
    the input; where that is blank it may stand in the instruction, behind its first line or
    colon."""
    direction = read_direction(instruction)
    if not source.strip() and not direction:
        direction, source = split_instruction(instruction.strip(), target)
    if not direction or len(MARKER.findall(source)) != len(MARKER.findall(target)):
        return None
    if {*TAG.findall(target)} - {*TAG.findall(source)}:  # "<p>this</p> rather than <p>that</p>"
        return None
    label, heads = patterns().label, [len(HEAD.findall(text)) for text in (source, target)]
    labels = [len(label.findall(text)) for text in (source, target)]
    if "\n" in source.strip() and heads[0] > heads[1]:  # whatever the labels are
        return None
    if labels[0] > heads[1] or labels[1] > heads[0]:
        return None
    if target.strip().count("\n\n") > source.strip().count("\n\n"):  # "Sure! Here it is: ..."
        return None
    return direction, source


def split_instruction(text: str, target: str) -> tuple[tuple[str, str] | None, str]:
    """(direction, sentence) of "Translate this from German to English: ...", where the sentence is
    one line, or stands between "German:" and "English:"; (None, "") where that is not certain."""
    for end in re.finditer(r":\s+|\n", text):
        head, rest = text[: end.start()], text[end.end() :].strip()
        if direction := read_direction(head):
            first, last = (re.escape(LANGUAGES[code]) for code in direction)
            framed = re.fullmatch(rf"{first}:(.+)\n\s*{last}:", rest, re.DOTALL)
            sentence = framed[1].strip() if framed else rest
            quoted = sentence[:1] in "\"'“«„" and sentence[:1] != target.strip()[:1]
            more = len(END.findall(sentence)) > len(END.findall(target))  # "Keep it formal."
            alone = end[0].startswith(":") and "\n" not in sentence and not more
            if quoted or not sentence or not (framed or alone):
                return None, ""
            return direction, sentence
    return None, ""


def what_else(fields: dict) -> str:
    """The first field of a row that belongs to its prompt, and for which ours have no place."""
    return next((name for name in MORE_FIELDS if fields.get(name)), "")
