"""README.md of a model that was made: its model card in the Hugging Face Hub's format.

It says what the folder's settings.json and evaluations say, without a path of this machine.
"""

import json
import os
import re
from contextlib import suppress

from plumbing.base.errors import InputError
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


def base_of(start: str, model: str | None = None, inherit: bool = True) -> dict[str, str]:
    """{"folder": its last name, "name": on the Hub, where it is known} of the base of a run that
    starts from a folder. model: replaces the base that an adapter names. inherit: a run that is
    gone on with has the same base; else, as for an adapter on a whole model, it is that model.
    Raises InputError."""
    path = os.path.join(start, SETTINGS)
    known = read_json(path).get("base") if os.path.exists(path) else None
    if inherit and isinstance(known, dict):
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
    path = config_path(folder)
    adapter = read_json(path) if os.path.exists(path) else None
    parts = [front_matter(settings, adapter), f"# {name}", *description(settings, adapter)]
    for entry in sorted(os.listdir(folder)):
        scores = os.path.join(folder, entry, "scores.json")
        whole = entry.startswith("eval-") and ".train-py-" not in entry  # the marks of folders.py
        if whole and os.path.exists(scores):
            with suppress(
                InputError, LookupError, TypeError, ValueError, AttributeError
            ):  # foreign
                parts.append(table(entry.removeprefix("eval-"), read_json(scores)))
    return "\n\n".join(parts) + "\n"


def stated(settings: dict, name: str, kind: type) -> object:
    """What settings.json says, if it is of this type, else the type's empty value: the file may be
    of another version, or edited, and the card is written when all work is done."""
    value = settings.get(name)
    return value if isinstance(value, kind) else kind()


def supervised_of(settings: dict) -> list[str]:
    """The directions that a model was tuned on."""
    return [name for name in stated(settings, "supervised", list) if isinstance(name, str)]


def front_matter(settings: dict, adapter: dict | None) -> str:
    """What the Hub reads, as YAML. Every text is quoted, as in JSON: a bare no is false, and not
    Norwegian."""
    fields = {
        "language": sorted({code for x in supervised_of(settings) for code in x.split("-")}),
        "library_name": "transformers" if adapter is None else "peft",
        "pipeline_tag": "translation",
        "base_model": stated(stated(settings, "base", dict), "name", str),
        "tags": ["translation", "arxiv:2403.14399"] + ["lora"] * (adapter is not None),
        "metrics": ["sacrebleu", "chrf"],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]
    return "\n".join(["---", ABOUT, *lines, "---"])


def description(settings: dict, adapter: dict | None) -> list[str]:
    """How the model was made and how it is asked, in paragraphs. adapter: adapter_config.json."""
    base = stated(settings, "base", dict)
    kind = "A whole model" if adapter is None else f"A LoRA adapter of rank {adapter.get('r')}"
    origin = stated(base, "name", str) or stated(base, "folder", str) or "its base"
    parts = [f"{kind} tuned from `{origin}` with an implementation of {PAPER}."]
    if directions := supervised_of(settings):
        parts.append(f"Directions of the tuning data: {', '.join(directions)}.")
    if "stage" in settings:
        loss = "L_MLE"
        if alpha := settings.get("alpha"):
            loss += f" + {alpha} L_UL (--conflict {settings.get('conflict')})"
        how = f"learning rate {settings.get('lr')}, seed {settings.get('seed')}"
        parts.append(f"Stage {settings['stage']}: {loss}, {how}.")
    prompt = stated(settings, "prompt", list)
    if prompt and all(isinstance(line, str) for line in prompt):
        prompt = "\n".join(prompt)
        how = "It is asked"
        if settings.get("template") == "chat":
            how = "It is asked through the model's chat template, by this message of the user"
        parts.append(f"{how}, with the languages' names in English:\n\n```\n{prompt}\n```")
    return parts


def table(title: str, report: dict) -> str:
    """BLEU, chrF++ and OTR of an evaluation, by direction and on average."""
    averages = {f"{kind}, average": scores for kind, scores in report["average"].items()}
    lines = [f"## {title}", "", "| | BLEU | chrF++ | OTR, % |", "|---|---:|---:|---:|"]
    for label, scores in (report["directions"] | averages).items():
        halves = scores["intervals"]
        figures = [
            f"{scores[key]:.1f} ± {halves[key]:.1f}" if key in halves else "–"
            for key in ("bleu", "chrf", "otr")
        ]
        lines.append(f"| {label} | {' | '.join(figures)} |")
    about = f"Decoding: {report['decoding']}. ±: 95 % of bootstraps over sentences."
    return "\n".join([*lines, "", about])
