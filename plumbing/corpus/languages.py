"""prompts.json: the names of the languages, and the templates of the prompts."""

import os
import re
import sys

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import ROOT, read_json

SLOTS = ["source", "target", "input"]
Template = list[str] | dict[str, dict]  # lines; or {target: {"prompt": lines, "names": names}}


def read_prompts(path: str) -> tuple[dict[str, str], dict[str, Template]]:
    """({code: name}, {name: template}) of prompts.json, which may be added to. Raises InputError
    where a template would fail later."""
    expected = "an object of languages and templates, as the repository has it"
    prompts = read_json(path, expected)
    languages, templates = prompts.get("languages"), prompts.get("templates")
    for value in (languages, templates):
        require(isinstance(value, dict) and value, f"{path}: expected {expected}")
    require(is_texts(languages), f"{path}: languages: expected names by code")
    for name, template in templates.items():
        parts = [template]
        if isinstance(template, dict):
            parts = [part if isinstance(part, dict) else {} for part in template.values()]
            names = all(is_texts(part.get("names")) for part in parts)
            require(names, f"{path}: template {name}: expected names in each language")
            parts = [part.get("prompt") for part in parts]
        for lines in parts:
            require(
                is_template(lines, SLOTS, ["input"]),
                f"{path}: template {name}: expected lines with {{input}}",
            )
    return languages, templates


def read_general_prompts(path: str) -> dict[str, list[str]]:
    """{"with input": lines, "without input": lines} of prompts.json, for instructions other than
    translations; {} where it has none. Raises InputError."""
    general = read_json(path).get("general", {})
    slots = {"with input": ["instruction", "input"], "without input": ["instruction"]}
    for name, needed in slots.items() if general != {} else ():
        sentence = f"{path}: general, {name}: expected lines with {{{'} and {'.join(needed)}}}"
        lines = general.get(name) if isinstance(general, dict) else None
        require(is_template(lines, needed, needed), sentence)
    return general


def add_languages(path: str) -> None:
    """Add the languages of a user's own file, {code: name in English}, to those of prompts.json; ""
    is no file. Raises InputError."""
    if not path:
        return
    expected = 'JSON like {"my": "Burmese"}, codes of two or three letters and English names'
    more = read_json(path, expected)
    for code, name in more.items():
        found = f"{path}: {plain(repr(code), 40)}: {plain(repr(name), 60)}"
        fits = re.fullmatch("[a-z]{2,3}", code) and isinstance(name, str) and name.strip() == name
        require(fits and name.isprintable() and name, f"{found}; expected {expected}")
        codes = {known: code for code, known in LANGUAGES.items()}
        free = LANGUAGES.get(code, name) == name and codes.get(name, code) == code
        taken = f"the code {code} means {LANGUAGES.get(code)} already"
        if name in codes:
            taken = f"{name} has the code {codes[name]} already"
        require(free, f"{found}: {taken}; choose another")
        LANGUAGES[code] = name


def is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def is_template(lines: object, slots: list[str], needed: list[str]) -> bool:
    """Whether they are lines with no other slots than these, {input} perhaps, and with those that
    are needed."""
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        return False
    try:
        text = "\n".join(lines).format(**{name: f"<{name}>" for name in slots})
    except (LookupError, ValueError, AttributeError):
        return False
    return all(f"<{name}>" in text for name in needed)


try:
    LANGUAGES, TEMPLATES = read_prompts(os.path.join(ROOT, "prompts.json"))
    GENERAL_PROMPTS = read_general_prompts(os.path.join(ROOT, "prompts.json"))
except InputError as error:  # while a script is imported
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def template_of(template: str, direction: tuple[str, str]) -> tuple[dict[str, str], list[str]]:
    """(names of the languages, lines) of a template for a direction. Raises InputError."""
    sentence = f"--template {template}: prompts.json has no such; it has {' '.join(TEMPLATES)}"
    require(template in TEMPLATES, sentence)
    lines = TEMPLATES[template]
    if isinstance(lines, list):
        return LANGUAGES, lines
    sentence = f"no prompt for {'-'.join(direction)}; it has {' '.join(lines)}"
    require({*direction} <= {*lines}, f"--template {template}: {sentence}")
    return lines[direction[1]]["names"], lines[direction[1]]["prompt"]
