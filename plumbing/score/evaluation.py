"""An evaluation of several systems: checked, shared out over processes, scored, written.

script is the module evaluate.py, which is handed in: plumbing imports none of the five.
"""

import time
from collections import ChainMap, Counter
from dataclasses import asdict
from types import ModuleType
from typing import NamedTuple

from plumbing.corpus.corpus import Corpus, Direction, Sample
from plumbing.base.processes import RANK, WORLD, gather_from_processes, progress_bar
from plumbing.base.errors import InputError, require
from plumbing.score.exports import export, refuse_export
from plumbing.corpus.general import GENERAL
from plumbing.score.metrics import score_answers
from plumbing.score.pictures import refuse_picture
from plumbing.run.record import checksum
from plumbing.score.report import make_reports
from plumbing.score.files import Results
from plumbing.corpus.sampling import share_rows, whole_rows
from plumbing.score.systems import System, SystemSettings, read_systems
from plumbing.score.testset import TestSet, read_test_set


def evaluate(script: ModuleType, s: SystemSettings) -> None:
    """Every system on the same test set: a report beside each checkpoint, one table of all. s: the
    Settings of evaluate.py. Raises InputError."""
    systems, outputs = read_systems(s), {}
    if s.export:
        refuse_export(s.export)
    if s.picture:
        refuse_picture(s.picture)
    test = read_test_set(s, systems)
    prompters = [check(script, system, test) for system in systems]
    places = [Results(x.ckpt, test.name, checksum(test.corpus), x.suffix) for x in systems]
    comparison, troubles = make_reports(test, asdict(s)), []
    for system, prompter, place in zip(systems, prompters, places, strict=True):
        results, texts, cost = evaluate_system(script, system, prompter, test)
        outputs[system.name] = texts
        report = comparison.add(system, results, cost)
        more = comparison.more_files(system, test.corpus, texts)
        try:
            written = place.write(test.corpus, texts, report, more) if RANK == 0 else ""
            print(f"{', '.join([comparison.files, *more])} and scores.json: {written}")
        except (InputError, OSError) as error:  # the table comes first
            troubles.append(str(error))
    print(comparison)
    for task in (lambda: comparison.draw(s.picture), lambda: tell(s.export, test.corpus, outputs)):
        try:
            task() if RANK == 0 else None
        except (InputError, OSError) as error:
            troubles.append(str(error))
    require(not troubles, "; ".join(troubles))


def tell(folder: str, corpus: Corpus, outputs: dict[str, dict]) -> None:
    """Write --export, if it is asked for, and print the commands for it."""
    if folder:
        print("", *export(folder, corpus, outputs), sep="\n")


def check(script: ModuleType, system: System, test: TestSet) -> object:
    """The Prompter of a system. Raises InputError for what would fail after hours, or after another
    system's: no whole weights, no tokenizer, no room for a prompt."""
    prompter, positions = script.make_prompter(system)
    for direction, samples in test.corpus.items():
        tried = samples if direction == GENERAL else [Sample(direction, "", "")]
        s = system.settings
        sources = ["any"]  # of --contrast-source
        *_, lost = script.encode_direction(prompter, tried, sources, test.shots, positions, s)
        sentence = f"{system.name}: --shots {s.shots} leaves no room for the prompt"
        require(not lost["shots"], sentence)
    return prompter


class Share(NamedTuple):
    """What one process decoded."""

    texts: dict[tuple[Direction, int], str]  # by direction and row
    lost: dict[Direction, Counter]  # how many prompts lost "shots", or the end of their "source"
    tokens: int  # that passed the network
    nats: tuple[float, int]  # reference_loss of other instructions


def decode(script: ModuleType, system: System, prompter: object, test: TestSet) -> Share:
    """This process's share of each direction's rows."""
    s, corpus = system.settings, test.corpus
    decoder = script.load_decoder(system)
    positions = decoder.model.config.max_position_embeddings
    how = s.max_new_tokens, s.batch_size, s.length_penalty
    shares, texts, lost, nats = share_rows(corpus, RANK, WORLD), {}, {}, (0.0, 0)
    total = sum(map(len, shares.values()))
    with progress_bar(total=total, desc=system.name, unit="sentence") as bar:
        for direction, rows in shares.items():
            samples = [corpus[direction][n] for n in rows]
            sources = [sample.source for sample in corpus[direction]]
            prompts, variants, lost[direction] = script.encode_direction(
                prompter, samples, sources, test.shots, positions, s
            )
            outputs = script.translate(decoder, prompter, prompts, bar, *how, variants)
            texts |= {(direction, n): text for n, text in zip(rows, outputs, strict=True)}
            if direction == GENERAL:
                nats = script.reference_loss(decoder.model, prompter, prompts, samples)
    return Share(texts, lost, decoder.computed, nats)


def evaluate_system(script: ModuleType, system: System, prompter: object, test: TestSet) -> tuple:
    """({direction: its scores}, {direction: a hypothesis for each row, empty where a side of the
    row is blank}, {"tokens", "seconds"}). The processes share the sentences of each direction, then
    the scoring."""
    started, corpus = time.time(), test.corpus
    shares = gather_from_processes(decode(script, system, prompter, test))
    tokens = sum(share.tokens for share in shares)
    cost = {"tokens": tokens, "seconds": round(time.time() - started, 1)}
    texts, results = ChainMap(*(share.texts for share in shares)), {}
    for direction in sorted(corpus, key=lambda d: -len(corpus[d]))[RANK::WORLD]:
        rows = whole_rows(corpus[direction])
        outputs, samples = [texts[direction, n] for n, _ in rows], [sample for _, sample in rows]
        if direction == GENERAL:
            scores = score_answers(outputs, [share.nats for share in shares])
        else:
            scores = script.score(outputs, samples, test)
        lost = sum((share.lost.get(direction, Counter()) for share in shares), Counter())
        scores |= {"sources_cut": lost["source"], "shots_left_out": lost["shots"]}
        results["-".join(direction)] = scores
    results = ChainMap(*gather_from_processes(results))
    outputs = {
        "-".join(direction): [texts.get((direction, n), "") for n in range(len(samples))]
        for direction, samples in corpus.items()
    }
    return {name: results[name] for name in outputs}, outputs, cost
