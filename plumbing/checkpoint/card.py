"""README.md of a model that was made: its model card in the Hugging Face Hub's format.

It says what the folder's settings.json and evaluations say, without a path of this machine.
"""

import json
import os
from contextlib import suppress

from plumbing.checkpoint.peft import config_path
from plumbing.base.errors import InputError
from plumbing.base.files import read_json, write_whole
from plumbing.corpus.languages import TEMPLATES
from plumbing.run.record import CARD, SETTINGS
from plumbing.score.tables import align, quoted

MARK = "# made by train.py; evaluate.py keeps its figures up to date until you delete this line"
PAPER = (
    "[Building Accurate Translation-Tailored LLMs with Language Aware Instruction Tuning]"
    "(https://arxiv.org/abs/2403.14399)"
)
TAGS = ["translation", "arxiv:2403.14399"]
METRICS = {  # {key of scores.json: (the Hub's type, its name)}
    "bleu": ("sacrebleu", "SacreBLEU"),
    "chrf": ("chrf", "chrF++"),
    "otr": ("off_target_ratio", "off-target ratio, %"),
}
MEANS = {"token": "mean over tokens", "sentence": "mean of sentence means"}
CONFLICTS = {
    "any": "any other instruction",
    "target": "instructions with another target language",
    "keep-source": "instructions with the same source and another target language",
}


def is_card(path: str) -> bool:
    """Whether a file is a card that this program made, and that nobody has taken over."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return MARK in file.read(1000)
    except OSError:
        return False


def write_card(folder: str, name: str) -> None:
    """Write the card of a folder that this program made, under the name that it has or will have,
    while no evaluation writes there; a README.md of somebody else's stays."""
    if os.path.lexists(os.path.join(folder, CARD)) and not is_card(os.path.join(folder, CARD)):
        return print(f"{os.path.join(folder, CARD)} is not this program's: it stays as it is")
    write_whole(os.path.join(folder, CARD), make_card(folder, name))


def refresh_card(folder: str) -> None:
    """Write a folder's card anew, if it has one that is ours; where somebody changed settings.json
    so that it says nothing, the card stays."""
    if is_card(os.path.join(folder, CARD)):
        with suppress(LookupError, TypeError, ValueError, AttributeError, InputError):
            write_card(folder, os.path.basename(os.path.realpath(folder)))


def make_card(folder: str, name: str) -> str:
    """The text of a card: YAML, whose texts are all quoted ("no" is Norwegian), and Markdown."""
    settings = read_json(os.path.join(folder, SETTINGS))
    adapter = os.path.exists(config_path(folder))
    evaluations = read_evaluations(folder)
    base, tuned = settings.get("base", {}), settings.get("tuned", settings)
    languages = {code for pair in settings["supervised"] for code in pair.split("-")}
    front = {
        "language": sorted(languages),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "translation",
        "base_model": base.get("name"),
        "base_model_relation": base.get("name") and ("adapter" if adapter else "finetune"),
        "tags": [*TAGS, *["unlikelihood-training"] * punishes(tuned), *["lora"] * adapter],
        "metrics": ["sacrebleu", "chrf"] if evaluations else [],
        **base.get("license", {}),
        "model-index": [{"name": name, "results": found}]
        if (found := results(evaluations))
        else [],
    }
    front = {key: value for key, value in front.items() if value}
    parts = [
        f"---\n{MARK}\n{yaml(front)}---",
        f"# {quoted(name)}",
        describe_model(adapter, base, tuned),
        describe_use(adapter, settings.get("template", "")),
        *map(describe_evaluation, evaluations),
    ]
    return "\n\n".join(parts) + "\n"


def describe_model(adapter: bool, base: dict, tuned: dict) -> str:
    """What was done to which model, with which data, as far as the settings say."""
    what = f"A LoRA adapter of rank {tuned.get('lora_rank')}" if adapter else "A whole model"
    origin = quoted(base.get("name") or base.get("folder", "its base"))
    pairs = ", ".join(name.replace("-", "→") for name in tuned.get("supervised", []))
    files = [*tuned.get("data", []), *tuned.get("general", [])]
    rows = [f"directions: {pairs}"] * bool(pairs)
    if {"stage", "lr", "batch_size"} <= tuned.keys():
        rows += [describe_loss(tuned), describe_steps(tuned)]
    if files:
        rows.append(f"data: {', '.join(quoted(os.path.basename(path)) for path in files)}")
    about = f"{what} for {origin}" if adapter else f"{what}, tuned from {origin}"
    lines = "\n".join(f"- {row}" for row in rows)
    by = f"with an implementation of {PAPER}"
    return f"{about} {by}.\n\n{lines}" if rows else f"{about}, put together {by}."


def describe_loss(tuned: dict) -> str:
    """The loss of a run, and what it started from."""
    loss = "L_MLE"
    if tuned.get("alpha"):
        name = "L_UL" if punishes(tuned) else tuned["penalty"]
        wrong = CONFLICTS.get(tuned.get("conflict"), "other instructions")
        ends = "" if tuned.get("punish_eos", True) else ", EOS not punished"
        loss += f" + {tuned['alpha']:g} {name}, under {wrong}{ends}"
    loss += f"; {MEANS.get(tuned.get('loss_reduction'), 'mean')}"
    before = os.path.basename(os.path.normpath(tuned.get("init") or "/"))
    return f"stage {tuned['stage']}: {loss}" + f"; from {quoted(before)}" * bool(before)


def describe_steps(tuned: dict) -> str:
    """How long a run was tuned, and how fast."""
    steps, epochs = tuned.get("steps"), tuned.get("epochs") or 0
    long = f"{steps:,} step{'s' * (steps != 1)}" if steps else f"{epochs:g} epoch(s)"
    return (
        f"{long} of {tuned['batch_size']} pairs, learning rate {tuned['lr']:g}, "
        f"{'all' if tuned.get('full') else 'LoRA'} weights, seed {tuned.get('seed')}"
    )


def punishes(tuned: dict) -> bool:
    """Whether a run's loss had the unlikelihood in it."""
    return bool(tuned.get("alpha")) and tuned.get("penalty", "unlikelihood") == "unlikelihood"


def describe_use(adapter: bool, template: str) -> str:
    """How it is asked."""
    loads = "PEFT" if adapter else "transformers and vLLM"
    text = f"## Use\n\n{loads} can load this folder. "
    lines = TEMPLATES.get(template)
    if template == "chat":
        return text + "It is asked in the chat template of its tokenizer."
    if not isinstance(lines, list):
        return text + f"Its prompts are {quoted(template)} of the project's prompts.json."
    return text + "It is asked, with the languages' names in English, so:\n\n" + fenced(lines)


def fenced(lines: list[str]) -> str:
    """A block of code."""
    ticks = "```"
    while ticks in "\n".join(lines):
        ticks += "`"
    return "\n".join([ticks, *lines, ticks])


def read_evaluations(folder: str) -> list[tuple[str, dict]]:
    """[(name, report)] of a folder's evaluations of translations; what is not whole is left out."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "scores.json")
        if name.startswith("eval-") and os.path.isfile(path):
            with suppress(LookupError, TypeError, ValueError, AttributeError, InputError):
                evaluation = name.removeprefix("eval-"), read_json(path)
                describe_evaluation(evaluation)  # fails where something is missing
                results([evaluation])
                found.append(evaluation)
    return found


def results(evaluations: list[tuple[str, dict]]) -> list[dict]:
    """The results of a model-index: of every direction, of evaluations of all rows."""
    return [
        {
            "task": {"type": "translation", "name": f"Translation {direction}"},
            "dataset": {"name": name, "type": name, "config": direction},
            "metrics": [
                {"type": kind, "name": title, "value": round(scores[key], 2)}
                for key, (kind, title) in METRICS.items()
            ],
        }
        for name, report in evaluations
        if not report["settings"]["rows"]
        for direction, scores in report["directions"].items()
    ]


def describe_evaluation(evaluation: tuple[str, dict]) -> str:
    """The table of an evaluation."""
    name, report = evaluation
    rows = [["", "sentences", "BLEU", "chrF++", "OTR", "len"], ["---"] + ["---:"] * 5]
    parts = {name.replace("-", "→"): scores for name, scores in report["directions"].items()}
    parts |= {f"**{part}, average**": scores for part, scores in report["average"].items()}
    for label, s in parts.items():
        figures = [f"{s[key]:.1f} ± {s['intervals'][key]:.1f}" for key in METRICS]
        rows.append([label, f"{s['sentences']:,}", *figures, f"{s['length_ratio']:.2f}"])
    signature = next((s.get("signature") for s in report["directions"].values()), "")
    files = ", ".join(quoted(os.path.basename(path)) for path in report["settings"]["data"])
    rows_of = report["settings"]["rows"]
    about = f"Data: {f'the first {rows_of:,} rows of ' if rows_of else ''}{files}. "
    about += f"Decoding: {report['decoding']}. SacreBLEU {signature}. OTR: outputs in a language "
    about += f"other than the one asked for, in %, by {'; '.join(report['identifiers'])}. "
    about += "±: 95 % of bootstraps over sentences; len: tokens over the references'."
    return f"## Results on {quoted(name)}\n\n" + "\n".join(align(rows)) + f"\n\n{about}"


def yaml(value: dict | list, indent: str = "") -> str:
    """Dicts and lists as block YAML."""
    lines = ""
    items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    for key, item in items:
        head = indent + ("-" if key is None else f"{key}:")
        if isinstance(item, dict | list):
            lines += f"{head}\n{yaml(item, indent + '  ')}"
        else:
            lines += f"{head} {scalar(item)}\n"
    return lines


def scalar(value: object) -> str:
    """A number; or a text in quotes, of which what is not printed is escaped."""
    if not isinstance(value, str):
        return json.dumps(value)
    signs = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(signs)}"'
