"""The systems that an evaluation compares: checkpoints, each with its own way of decoding."""

import os
import random
import re
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from plumbing.base.flags import DeviceSettings, flag, option, require_bounds
from plumbing.corpus.corpus import Sample
from plumbing.base.errors import InputError, require
from plumbing.score.identify import PACKAGES
from plumbing.corpus.languages import TEMPLATES

# Settings that a system may have of its own.
OWN = ("template", "shots", "beam", "length_penalty", "contrast_language", "contrast_source")
OWN += ("max_new_tokens", "model")
MAX_NEW_TOKENS, BATCH_SIZE = 128, 64
CANDIDATES = "cs,de,en,es,fr,hu,it,ja,nl,pl,pt,ro,ru,uk,zh"


@dataclass
class SystemSettings(DeviceSettings):
    """Which systems are compared, on which rows of which files, how they decode, what is told."""

    ckpt: list = option((), "run or model folders, compared side by side; this or --systems")
    systems: list = option((), "NAME=FOLDER or NAME=FOLDER,template=ptl,shots=5,beam=4,...")

    model: str = option("", "base model of the adapters; left out: the one that each adapter names")
    data: list = option(("demo/data/test.tsv",), "files: TSV, JSON, paired files (docs/data.md)")
    directions: str = option(
        "all", "all; supervised, that the first run was tuned on; zero-shot; or en-it,it-en"
    )
    rows: int = option(0, "use the first so many pairs of each direction; 0: all", least=0)
    skip_unknown: bool = option(False, "leave out rows whose direction is not certain")
    general: list = option((), "instead of --data: instructions to answer (AlpacaEval's JSON)")
    translate: str = option(None, "instead of --data: lines of standard input", metavar="IT-NL")
    explain: list = option(
        (),
        "no test set: p of a translation's tokens, by instruction",
        metavar=("IT-NL", "SENTENCE"),
    )
    template: str = option("", "prompt; left out: that of the run, or alpaca", choices=TEMPLATES)
    shots: int = option(0, "demonstrations before the prompt, of its direction", least=0)
    shots_from: list = option((), "files of --shots, like --data: each direction's first pairs")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest output", least=1)
    beam: int = option(1, "beams of beam search; 1: greedy", least=1, most=100)
    length_penalty: float = option(
        1.0, "a beam's score: its sum / length to the power of this", least=-10, most=10
    )
    contrast_language: float = option(
        0.0, "weight of the prompts for English and for the source language", least=0
    )
    contrast_source: float = option(0.0, "weight of the prompt with another source", least=0)
    batch_size: int = option(BATCH_SIZE, "sentences decoded together", least=1)

    lid: list = option(("langid",), "identifiers, the first for the table", choices=[*PACKAGES])
    candidates: str = option(CANDIDATES, "what --lid may answer, besides the data's languages")
    export: str = option("", "folder to make: texts for sacrebleu, comet-score, mt-metrics-eval")
    picture: str = option("", "file to write: heat maps of the off-target ratios (png, svg, pdf)")


class System(NamedTuple):
    """A column of the table."""

    name: str
    ckpt: str
    settings: object  # evaluate.py's, with its own ones in them
    suffix: str = ""  # of the folder of its files

    def own(self) -> dict:
        """The settings that it may have of its own."""
        return {name: getattr(self.settings, name) for name in OWN}

    def describe(self) -> str:
        """How it decodes."""
        s = self.settings
        parts = ["greedy" if s.beam == 1 else f"beam {s.beam}"]
        if s.beam > 1 and s.length_penalty != 1:
            parts.append(f"length penalty {s.length_penalty:g}")
        parts += [f"template {s.template}"] if s.template else []
        parts += [f"{s.shots} shot{'s' * (s.shots > 1)}"] if s.shots else []
        for what in ("language", "source"):
            weight = getattr(s, f"contrast_{what}")
            parts += [f"contrast-{what} {weight:g}"] if weight else []
        return ", ".join(parts)


def what_is_asked(s: SystemSettings) -> str:
    """ "--translate", "--explain" or "--general"; "" for an evaluation. Raises InputError where
    flags ask for different things."""
    modes = {"--translate": s.translate is not None, "--explain": s.explain, "--general": s.general}
    asked = [name for name, given in modes.items() if given]
    require(len(asked) < 2, f"{' and '.join(asked)}: choose one of them")
    for name, given in (("--export", s.export), ("--picture", s.picture)):
        needs = f"{name} needs translations of a test set"
        require(not (given and asked), f"{needs}; leave out {' '.join(asked)}")
    return "".join(asked)


def read_systems(s: SystemSettings) -> list[System]:
    """Those of --ckpt and --systems, in this order. Raises InputError."""
    names = [os.path.basename(os.path.normpath(ckpt)) for ckpt in s.ckpt]
    systems = [
        System(ckpt if names.count(name) > 1 else name, ckpt, replace(s))
        for name, ckpt in zip(names, s.ckpt, strict=True)
    ]
    systems += [read_system(text, s) for text in s.systems]
    require(systems, "nothing to evaluate: expected --ckpt FOLDER or --systems NAME=FOLDER")
    for i, system in enumerate(systems):
        again = system.name in [other.name for other in systems[:i]]
        require(not again, f"{system.name}: two systems have this name")
    return systems


def read_system(text: str, s: SystemSettings) -> System:
    """NAME=FOLDER, perhaps followed by ,option=value. Raises InputError."""
    first, *assignments = text.split(",")
    name, _, ckpt = first.partition("=")
    expected = "expected NAME=FOLDER or NAME=FOLDER,option=value with letters, digits, . + - _"
    require(re.fullmatch(r"[\w.+-]+", name) and ckpt, f"--systems {text}: {expected}")
    own = {}
    for item in assignments:
        key, _, value = item.partition("=")
        field = next((f for f in fields(s) if f.name == key.replace("-", "_")), None)
        known = " ".join(flag(x)[2:] for x in OWN)
        require(field and field.name in OWN, f"--systems {text}: found {item!r}; known: {known}")
        try:
            own[field.name] = field.type(value)
        except ValueError:
            kind = {int: "a whole number", float: "a number"}[field.type]
            raise InputError(f"--systems {text}: found {item!r}; expected {kind}") from None
        choices = field.metadata.get("choices")
        expected = f"found {item!r}; expected one of {' '.join(choices or ())}"
        require(not choices or value in choices, f"--systems {text}: {expected}")
        if field.type in (int, float):
            require_bounds(flag(field.name), own[field.name], **field.metadata)
    return System(name, ckpt, replace(s, **own), name)


def contrasting(samples: list[Sample], sources: list[str], s: SystemSettings) -> list[tuple]:
    """[(lambda, samples that ask for something else)], for samples of one direction: the same
    sources in English and in their own language, where that is not the direction; and another of
    the test set's sources for each."""
    variants = []
    if s.contrast_language:
        source, target = samples[0].direction
        for language in sorted({"en", source} - {target}):
            others = [sample._replace(direction=(source, language)) for sample in samples]
            variants.append((s.contrast_language, others))
    if s.contrast_source:
        others = []
        for sample in samples:
            rng, other = random.Random(f"contrast {sample}"), sample.source
            while other in (sample.source, ""):
                other = rng.choice(sources)
            others.append(sample._replace(source=other))
        variants.append((s.contrast_source, others))
    return variants
