"""A chat model's own template: the turns of a conversation as ids, as transformers has them."""

import datetime
import functools
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import read_json, require_file

MARK = "\ue000{}\ue001"  # stands for the text of a turn while the template is rendered
MARKED = re.compile(MARK.format("([0-9]+)"))
TODAY = datetime.date(2024, 7, 26)  # for templates that say it: a prompt is the same every day


class Special(NamedTuple):
    """A special token: its id, and what of the text around it belongs to it."""

    id: int
    pattern: str


class ChatTemplate:
    """The chat_template of a folder, rendered by jinja2. Raises InputError.

    special: the special tokens by their texts. eos: ends a response where the template has no
    special token behind it. encode, behind_special, continued: text to ids, of what begins a
    conversation, stands behind a special token, or goes on behind other text; what reads like a
    special token stays text. names: {"bos_token": text, ...}, which the template may use."""

    def __init__(
        self,
        folder: str,
        special: dict[str, Special],
        eos: int,
        encode: Callable[[str], list[int]],
        behind_special: Callable[[str], list[int]],
        continued: Callable[[str], list[int]],
        names: dict[str, str],
    ):
        self.special, self.eos, self.names = special, eos, names
        self.encode_first, self.behind_special, self.continued = encode, behind_special, continued
        longest_first = sorted(special, key=len, reverse=True)
        patterns = [special[text].pattern for text in longest_first] or ["(?!)"]  # which is nowhere
        self.any_special = re.compile(f"({'|'.join(patterns)})")
        self.path, text = read_template(folder)
        self.template = self.compile(text)

    def compile(self, text: str):
        """The template of a text."""
        try:
            import jinja2.ext  # optional: only for --template chat
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            needed = "--template chat needs jinja2 3.1.6 or newer: pip install jinja2"
            raise InputError(needed) from None

        class Generation(jinja2.ext.Extension):
            """{% generation %} marks what a model says; what is in it is rendered as it stands."""

            tags = {"generation"}

            def parse(self, parser):
                line = next(parser.stream).lineno
                body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
                return jinja2.nodes.Scope(body, lineno=line)

        def raise_exception(message: str):
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
        )
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": TODAY.strftime}
        with self.errors():
            return environment.from_string(text)

    def errors(self):
        """Turns what goes wrong in a template into one sentence."""
        return template_errors(f"{self.path}: the chat template fails")

    @functools.cache  # noqa: B019 - a template lives as long as its tokenizer
    def render(self, turns: int) -> str:
        """A conversation of so many turns, MARK in their places, up to where the model speaks."""
        messages = [
            {"role": "assistant" if n % 2 else "user", "content": MARK.format(n)}
            for n in range(turns)
        ]
        with self.errors():
            text = self.template.render(
                messages=messages, add_generation_prompt=bool(turns % 2), **self.names
            )
            text.encode()  # half a surrogate pair is no text
        found = [int(n) for n in MARKED.findall(text)]
        expected = "expected that each turn of the conversation is there once, in order"
        require(found == [*range(turns)], f"{self.path}: found turns {found}; {expected}")
        return text

    def encode_turns(self, texts: list[str]) -> list[int]:
        """The ids of [message, answer, message, ..., message] up to where the model answers. BOS is
        there where the template has it."""
        ids = []
        for part in self.any_special.split(self.render(len(texts))):
            if token := self.find_special(part):
                ids.append(token.id)
            elif part:
                text = MARKED.sub(lambda mark: texts[int(mark[1])], part)
                ids += self.behind_special(text) if ids else self.encode_first(text)
        return ids

    def find_special(self, part: str) -> Special | None:
        """The special token that a part of a rendering is, perhaps with its white space."""
        return self.special.get(part) or self.special.get(part.strip())

    @functools.cached_property
    def end(self) -> int:
        """The id that ends a response: the first special token that the template puts behind it."""
        *_, after = MARKED.split(self.render(2))
        parts = map(self.find_special, self.any_special.split(after))
        return next((token.id for token in parts if token), self.eos)

    def encode_response(self, text: str) -> list[int]:
        """The ids of an answer, without the end of its turn: with what the template has before it,
        a space perhaps."""
        before = ""
        prompt, answered = self.render(1), self.render(2)
        if answered.startswith(prompt):
            before = MARKED.split(answered[len(prompt) :])[0]
        if self.any_special.search(before):
            before = ""
        *_, last = self.any_special.split(prompt)
        return self.continued(before + text) if last else self.behind_special(before + text)


class template_errors:
    """Any exception inside becomes an InputError that begins with these words: templates are
    programs of strangers, and may raise whatever Python can."""

    def __init__(self, words: str):
        self.words = words

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, Exception):
            found = plain(f"{kind.__name__}: {error}", 200)
            advice = "mend it, or choose another --template"
            raise InputError(f"{self.words} ({found}); {advice}") from None


def read_template(folder: str) -> tuple[str, str]:
    """(the path, the text) of the chat template of a folder. Raises InputError."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        require_file(path, "a chat template")
        with open(path, encoding="utf-8", errors="replace") as f:
            return path, f.read()
    path = os.path.join(folder, "tokenizer_config.json")
    found = read_json(path).get("chat_template") if os.path.exists(path) else None
    if isinstance(found, list):  # several, by name
        named = (x for x in found if isinstance(x, dict) and x.get("name") == "default")
        found = next(named, {}).get("template")
    sentence = f"{folder}: no chat_template in tokenizer_config.json and no chat_template.jinja"
    require(isinstance(found, str), f"{sentence}; expected a chat model for --template chat")
    return path, found


def without_prefix(encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """encode for a text that goes on behind another: without the space that some tokenizers put
    before every text."""
    line, both, alone = encode("\n"), encode("\na"), encode("a")
    if both == line + alone or both[: len(line)] != line:
        return encode

    def continued(text: str) -> list[int]:
        for before in ("\n", MARK[0]):  # a newline may be one token with those of the text
            start, ids = encode(before), encode(before + text)
            if ids[: len(start)] == start:
                break
        return ids[len(start) :]

    return continued
