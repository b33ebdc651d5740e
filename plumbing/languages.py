"""prompts.json: the names of the languages, and the templates of the prompts."""

import os

from plumbing.files import ROOT, read_json

PROMPTS = read_json(os.path.join(ROOT, "prompts.json"))
LANGUAGES, TEMPLATES = PROMPTS["languages"], PROMPTS["templates"]  # {code: name}, {name: lines}
