"""prompts.json: the names of the languages, and the templates of the prompts."""

import os

from plumbing.files import read_json

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROMPTS = read_json(os.path.join(ROOT, "prompts.json"))
LANGUAGES, TEMPLATES = PROMPTS["languages"], PROMPTS["templates"]  # {code: name}, {name: lines}
