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
COLUMNS = {"bleu": "BLEU", "chrf": "chrF++", "otr": "OTR, %"}


def base_of(start: str, model: str | None = None) -> dict[str, str]:
    """{"folder": its last name, "name": on the Hub, where it is known} of the base of a run that
    starts from a folder. model: replaces the base that an adapter names."""
    path = os.path.join(start, SETTINGS)
    known = read_json(path).get("base") if os.path.exists(path) else None
    if isinstance(known, dict):
        return known
    _, folder = read_adapter(start, model)
    folder = os.path.realpath(folder)
    name = str(read_json(os.path.join(folder, "config.json")).get("_name_or_path"))
    if in_cache := IN_CACHE.search(folder):
        name = "/".join(in_cache.groups())
    known = HUB_NAME.fullmatch(name) and not os.path.exists(name)  # else a path perhaps
    return {"folder": os.path.basename(folder)} | ({"name": name} if known else {})


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
    """The text of a card: YAML, whose texts are all quoted ("no" is Norwegian), and Markdown."""
    s = read_json(os.path.join(folder, SETTINGS))
    adapter, base = os.path.exists(config_path(folder)), s.get("base") or {}
    supervised = s.get("supervised") or []
    front = {
        "language": sorted({code for pair in supervised for code in pair.split("-")}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "translation",
        "base_model": base.get("name"),
        "tags": ["translation", "arxiv:2403.14399"] + ["lora"] * adapter,
        "metrics": ["sacrebleu", "chrf"],
    }
    yaml = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value]
    kind = f"A LoRA adapter of rank {s.get('lora_rank')}" if adapter else "A whole model"
    origin = base.get("name") or base.get("folder", "its base")
    parts = ["\n".join(["---", ABOUT, *yaml, "---"]), f"# {name}"]
    parts.append(f"{kind} tuned from `{origin}` with an implementation of {PAPER}.")
    if supervised:
        parts.append(f"Directions of the tuning data: {', '.join(supervised)}.")
    if "stage" in s:
        loss = (
            f"L_MLE + {s['alpha']:g} L_UL (--conflict {s['conflict']})" if s["alpha"] else "L_MLE"
        )
        parts.append(f"Stage {s['stage']}: {loss}, learning rate {s['lr']:g}, seed {s['seed']}.")
    if isinstance(s.get("prompt"), list):
        prompt = "\n".join(s["prompt"])
        parts.append(f"It is asked, with the languages' names in English:\n\n```\n{prompt}\n```")
    return "\n\n".join([*parts, *tables(folder)]) + "\n"


def tables(folder: str) -> list[str]:
    """A table of each evaluation of a folder."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "scores.json")
        whole = name.startswith("eval-") and ".train-py-" not in name  # the marks of folders.py
        if whole and os.path.isfile(path):
            report = read_json(path)
            rows = report["directions"] | {f"{x}, average": y for x, y in report["average"].items()}
            lines = [
                f"## {name.removeprefix('eval-')}",
                "",
                f"| | {' | '.join(COLUMNS.values())} |",
            ]
            lines.append("|---|" + "---:|" * len(COLUMNS))
            for label, scores in rows.items():
                figures = (f"{scores[key]:.1f} ± {scores['intervals'][key]:.1f}" for key in COLUMNS)
                lines.append(f"| {label} | {' | '.join(figures)} |")
            about = f"Decoding: {report['decoding']}. ±: 95 % of bootstraps over sentences."
            found.append("\n".join([*lines, "", about]))
    return found
