"""README.md of a model that was made: its model card in the Hugging Face Hub's format.

It says what the folder's settings.json and evaluations say, without a path of this machine.
"""

import json
import os
import re

from plumbing.base.files import read_json, write_whole
from plumbing.base.folders import CARD, CARD_MARK, SETTINGS
from plumbing.checkpoint.peft import config_path, read_adapter

ABOUT = f"# {CARD_MARK}; evaluate.py adds its figures until you delete this line"
PAPER = (
    "[Building Accurate Translation-Tailored LLMs with Language Aware Instruction Tuning]"
    "(https://arxiv.org/abs/2403.14399)"
)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+")  # of huggingface_hub


def base_of(start: str, model: str | None = None) -> dict[str, str]:
    """{"folder": its last name, "name": on the Hub, where it is known} of the base of a run that
    starts from a folder. model: replaces the base that an adapter names. Raises InputError."""
    path = os.path.join(start, SETTINGS)
    known = read_json(path).get("base") if os.path.exists(path) else None
    if isinstance(known, dict):
        return known
    _, folder = read_adapter(start, model)
    folder = os.path.realpath(folder)
    name = str(read_json(os.path.join(folder, "config.json")).get("_name_or_path"))
    if in_cache := IN_CACHE.search(folder):
        name = "/".join(in_cache.groups())
    base = {"folder": os.path.basename(folder)}
    if HUB_NAME.fullmatch(name) and not os.path.exists(name):  # else a path perhaps
        base["name"] = name
    return base


def write_card(folder: str, name: str) -> None:
    """Write the card of a folder that this program made, under the name that it has or will have; a
    README.md of somebody else's stays."""
    path = os.path.join(folder, CARD)
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            if CARD_MARK not in file.read(1000):
                return print(f"{path} is not this program's: it stays as it is")
    write_whole(path, make_card(folder, name))


def make_card(folder: str, name: str) -> str:
    """The text of a card. Raises InputError where the folder has no settings.json."""
    settings = read_json(os.path.join(folder, SETTINGS))
    adapter = os.path.exists(config_path(folder))
    parts = [front_matter(settings, adapter), f"# {name}", *description(settings, adapter)]
    for entry in sorted(os.listdir(folder)):
        scores = os.path.join(folder, entry, "scores.json")
        whole = entry.startswith("eval-") and ".train-py-" not in entry  # the marks of folders.py
        if whole and os.path.exists(scores):
            parts.append(table(entry.removeprefix("eval-"), read_json(scores)))
    return "\n\n".join(parts) + "\n"


def front_matter(settings: dict, adapter: bool) -> str:
    """What the Hub reads, as YAML. Every text is quoted, as in JSON: a bare no is false, and not
    Norwegian."""
    pairs = settings.get("supervised") or []
    fields = {
        "language": sorted({code for pair in pairs for code in pair.split("-")}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "translation",
        "base_model": (settings.get("base") or {}).get("name"),
        "tags": ["translation", "arxiv:2403.14399"] + ["lora"] * adapter,
        "metrics": ["sacrebleu", "chrf"],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]
    return "\n".join(["---", ABOUT, *lines, "---"])


def description(settings: dict, adapter: bool) -> list[str]:
    """How the model was made and how it is asked, in paragraphs."""
    base = settings.get("base") or {}
    kind = f"A LoRA adapter of rank {settings.get('lora_rank')}" if adapter else "A whole model"
    origin = base.get("name") or base.get("folder", "its base")
    parts = [f"{kind} tuned from `{origin}` with an implementation of {PAPER}."]
    if settings.get("supervised"):
        parts.append(f"Directions of the tuning data: {', '.join(settings['supervised'])}.")
    if "stage" in settings:
        loss = "L_MLE"
        if settings["alpha"]:
            loss += f" + {settings['alpha']:g} L_UL (--conflict {settings['conflict']})"
        how = f"learning rate {settings['lr']:g}, seed {settings['seed']}"
        parts.append(f"Stage {settings['stage']}: {loss}, {how}.")
    if isinstance(settings.get("prompt"), list):
        prompt = "\n".join(settings["prompt"])
        parts.append(f"It is asked, with the languages' names in English:\n\n```\n{prompt}\n```")
    return parts


def table(title: str, report: dict) -> str:
    """BLEU, chrF++ and OTR of an evaluation, by direction and on average."""
    averages = {f"{kind}, average": scores for kind, scores in report["average"].items()}
    lines = [f"## {title}", "", "| | BLEU | chrF++ | OTR, % |", "|---|---:|---:|---:|"]
    for label, scores in (report["directions"] | averages).items():
        figures = [
            f"{scores[key]:.1f} ± {scores['intervals'][key]:.1f}" for key in ("bleu", "chrf", "otr")
        ]
        lines.append(f"| {label} | {' | '.join(figures)} |")
    about = f"Decoding: {report['decoding']}. ±: 95 % of bootstraps over sentences."
    return "\n".join([*lines, "", about])
