"""A chat model's own template: the turns of a conversation as ids, as transformers has them."""

import datetime
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """The chat_template of a tokenizer's folder, rendered by jinja2. tokenizer: a Tokenizer, which
    makes ids of what stands between the special tokens. Raises InputError."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        longest_first = sorted(tokenizer.special, key=len, reverse=True)
        patterns = [tokenizer.special[text].pattern for text in longest_first] or ["(?!)"]
        self.any_special = re.compile(f"({'|'.join(patterns)})")
        self.path, text = read_template(tokenizer.folder)
        environment = jinja_environment()
        with errors_of(self.path):
            self.template = environment.from_string(text)

    @functools.cache  # noqa: B019 - a template lives as long as its tokenizer
    def render(self, turns: int) -> str:
        """A conversation of so many turns, MARK in their places, up to where the model speaks."""
        messages = [
            {"role": "assistant" if n % 2 else "user", "content": MARK.format(n)}
            for n in range(turns)
        ]
        with errors_of(self.path):
            text = self.template.render(
                messages=messages, add_generation_prompt=bool(turns % 2), **self.tokenizer.names
            )
            text.encode()  # half a surrogate pair is no text
        found = [int(n) for n in MARKED.findall(text)]
        expected = "expected that each turn of the conversation is there once, in order"
        require(found == [*range(turns)], f"{self.path}: found turns {found}; {expected}")
        for part in self.any_special.split(text):
            token, rows = self.find_special(part), self.tokenizer.rows
            sentence = f"{self.path}: the chat template has {part!r}, whose id {token and token.id}"
            sentence += f" lies beyond the model's vocabulary of {rows:,}"
            advice = "take the model that belongs to this tokenizer, or choose another --template"
            require(not token or token.id < rows, f"{sentence}; {advice}")
        return text

    def encode_turns(self, texts: list[str]) -> list[int]:
        """The ids of [message, answer, message, ..., message] up to where the model answers. BOS is
        there where the template has it. What reads like a special token in a text stays text."""
        ids = []
        for part in self.any_special.split(self.render(len(texts))):
            if token := self.find_special(part):
                ids.append(token.id)
            elif part:
                text = MARKED.sub(lambda mark: texts[int(mark[1])], part)
                encode = self.tokenizer.behind_special if ids else self.tokenizer.encode
                ids += encode(text)
        return ids

    def find_special(self, part: str) -> Special | None:
        """The special token that a part of a rendering is, perhaps with its white space."""
        return self.tokenizer.special.get(part) or self.tokenizer.special.get(part.strip())

    @functools.cached_property
    def end(self) -> int:
        """The id that ends a response: the first special token that the template puts behind it,
        else EOS."""
        *_, after = MARKED.split(self.render(2))
        tokens = filter(None, map(self.find_special, self.any_special.split(after)))
        return next((token.id for token in tokens), self.tokenizer.eos)

    def encode_response(self, text: str) -> list[int]:
        """The ids of an answer, without the end of its turn: with what the template has before it,
        a space perhaps."""
        prompt, answered = self.render(1), self.render(2)
        before = ""
        if answered.startswith(prompt):
            before = MARKED.split(answered[len(prompt) :])[0]
        if self.any_special.search(before):
            before = ""
        behind_text = self.any_special.split(prompt)[-1]
        encode = self.tokenizer.continued if behind_text else self.tokenizer.behind_special
        return encode(before + text)


def jinja_environment():
    """jinja2 as transformers sets it up for chat templates. Raises InputError where it is not
    installed."""
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
    return environment


@contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Within it, any exception becomes an InputError that names the template's file: templates are
    programs of strangers, and may raise whatever Python can."""
    try:
        yield
    except Exception as error:
        found = plain(f"{type(error).__name__}: {error}", 200)
        sentence = f"{path}: the chat template fails ({found})"
        raise InputError(f"{sentence}; mend it, or choose another --template") from None


def read_template(folder: str) -> tuple[str, str]:
    """(the path, the text) of the chat template of a folder. Raises InputError."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        require_file(path, "a chat template")
        with open(path, encoding="utf-8", errors="replace") as file:
            return path, file.read()
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
