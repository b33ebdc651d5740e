"""prompts.json: the names of the languages, and the templates of the prompts."""

import os
import sys

from plumbing.errors import InputError, require
from plumbing.files import ROOT, read_json

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
            require(is_template(lines), f"{path}: template {name}: expected lines with {{input}}")
    return languages, templates


def is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def is_template(lines: object) -> bool:
    """Whether they are lines with {source}, {target} and {input}, the last at least."""
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        return False
    try:
        return "<text>" in "\n".join(lines).format(source="", target="", input="<text>")
    except (LookupError, ValueError, AttributeError):
        return False


try:
    LANGUAGES, TEMPLATES = read_prompts(os.path.join(ROOT, "prompts.json"))
except InputError as error:  # while a script is imported
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
