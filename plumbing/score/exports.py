"""An evaluation's texts for other tools, in mt-metrics-eval's layout, and the commands for them."""

import os
import re
import shlex
import string

from plumbing.corpus.corpus import Corpus, Direction
from plumbing.base.errors import require
from plumbing.base.files import NEW, write_lines
from plumbing.corpus.sampling import whole_rows


def refuse_export(folder: str) -> None:
    """Raise InputError where a folder is there already: what is in it may be somebody's."""
    there = os.path.lexists(folder)
    require(not there, f"--export {folder}: it exists; choose a folder that does not")
    os.makedirs(os.path.normpath(folder) + NEW)  # an OSError is better now than after hours
    os.rmdir(os.path.normpath(folder) + NEW)


def export(folder: str, corpus: Corpus, outputs: dict[str, dict[str, list[str]]]) -> list[str]:
    """Write sources/SRC-TGT.txt, references/SRC-TGT.refA.txt and system-outputs/SRC-TGT/NAME.txt, a
    line for each row that was scored, all of them or none; returns the commands that score them.
    outputs: {system: {direction: a text for each row}}. Raises InputError."""
    refuse_export(folder)
    files, commands = {}, []
    for direction, samples in corpus.items():
        more, of_direction = export_direction(folder, direction, samples, outputs)
        files |= more
        commands += of_direction
    aside = os.path.normpath(folder) + NEW
    try:
        for path, lines in files.items():
            os.makedirs(os.path.dirname(os.path.join(aside, path)), exist_ok=True)
            write_lines(os.path.join(aside, path), [" ".join(line.split()) for line in lines])
        os.rename(aside, folder)
    except OSError:
        for path in filter(os.path.exists, (os.path.join(aside, path) for path in files)):
            os.unlink(path)
        for inner, _, _ in os.walk(aside, topdown=False):
            os.rmdir(inner)
        raise
    return commands


def export_direction(
    folder: str, direction: Direction, samples: list, outputs: dict
) -> tuple[dict[str, list[str]], list[str]]:
    """({path: lines} of a direction, the commands for them in the folder)."""
    name, rows = "-".join(direction), whole_rows(samples)
    files = {f"sources/{name}.txt": [sample.source for _, sample in rows]}
    most = max(len(sample.others) for _, sample in rows)
    references = []
    for n, letter in zip(range(most + 1), string.ascii_uppercase, strict=False):
        references.append(f"references/{name}.ref{letter}.txt")
        texts = [(sample.target, *sample.others)[n:] for _, sample in rows]
        files[references[-1]] = [some[0] if some else "" for some in texts]
    systems = []
    for system, texts in outputs.items():
        free = re.sub(r"[^\w.+-]", "_", system)
        while f"system-outputs/{name}/{free}.txt" in files:  # of two names that differ in signs
            free += "_"
        systems.append(f"system-outputs/{name}/{free}.txt")
        files[systems[-1]] = [texts[name][n] for n, _ in rows]
    source, *others = (
        shlex.quote(os.path.join(folder, path))
        for path in (f"sources/{name}.txt", *references, *systems)
    )
    refs, hyps = others[: len(references)], others[len(references) :]
    paired = " --paired-bs" if len(hyps) > 1 else ""
    commands = [
        f"sacrebleu {' '.join(refs)} -i {' '.join(hyps)} -l {name} -m bleu chrf "
        f"--chrf-word-order 2{paired} -f text",
        f"comet-score -s {source} -t {' '.join(hyps)} -r {refs[0]}",
    ]
    return files, commands
