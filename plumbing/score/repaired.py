"""What changed between two systems: the sentences that were repaired, those that were broken."""

from typing import NamedTuple

import sacrebleu

from plumbing.corpus.corpus import Corpus, Sample
from plumbing.corpus.sampling import whole_rows
from plumbing.score.tables import quoted


class Outputs(NamedTuple):
    """What a system made of a test set."""

    name: str
    texts: dict[str, list[str]]  # by direction, of each row
    kinds: dict[str, list[str]]  # by direction, of each row without a blank side; "": on target


class Change(NamedTuple):
    """A sentence with the outputs of both systems."""

    direction: str
    sample: Sample
    outputs: tuple[str, str]
    kinds: tuple[str, str]

    @property
    def quality(self) -> float:
        """chrF++ of the second output."""
        references = [self.sample.target, *self.sample.others]
        return sacrebleu.sentence_chrf(self.outputs[1], references, word_order=2).score

    def __str__(self):
        """Its entry in the file; Markdown's own signs are quoted."""
        texts = [self.sample.source, self.sample.target, *self.outputs]
        first, other = (kind or "right" for kind in self.kinds)
        labels = ["source", "reference", f"before, {first}", f"after, {other}"]
        lines = [f"**{self.direction}**, chrF++ {self.quality:.1f}", ""]
        lines += [f"- {label}: {quoted(text)}" for label, text in zip(labels, texts, strict=True)]
        return "\n".join(lines)


def describe_changes(corpus: Corpus, first: Outputs, last: Outputs) -> str:
    """Markdown: how many outputs were off target before and after; the repaired ones, then the
    broken ones, those first that are least like their reference."""
    changes = []
    for direction, samples in corpus.items():
        name = "-".join(direction)
        kinds = zip(first.kinds[name], last.kinds[name], strict=True)
        for (n, sample), both in zip(whole_rows(samples), kinds, strict=True):
            outputs = first.texts[name][n], last.texts[name][n]
            changes.append(Change(name, sample, outputs, both))
    cells = {
        (before, after): [x for x in changes if (not x.kinds[0], not x.kinds[1]) == (before, after)]
        for before in (True, False)
        for after in (True, False)
    }
    rows = [
        f"| {title} | {len(cells[before, True]):,} | {len(cells[before, False]):,} |"
        for title, before in (("on target before", True), ("off target before", False))
    ]
    parts = [
        f"# From {first.name} to {last.name}",
        "\n".join(
            [
                f"| {len(changes):,} outputs | on target after | off target after |",
                "|---|---:|---:|",
                *rows,
            ]
        ),
    ]
    for title, cell in (("Repaired", cells[False, True]), ("Broken", cells[True, False])):
        parts += [f"## {title}: {len(cell):,}", *map(str, sorted(cell, key=lambda x: x.quality))]
    return "\n\n".join(parts) + "\n"
