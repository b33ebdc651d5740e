"""What instruction a model listens to: each token of a response under the right and wrong ones.

script is the module evaluate.py, which is handed in: plumbing imports none of the five.
"""

from types import ModuleType

import torch
from torch import Tensor

from plumbing.corpus.corpus import Direction, Sample, read_corpus
from plumbing.base.errors import require
from plumbing.score.lines import read_direction
from plumbing.run.record import supervised_directions, tuning_setting
from plumbing.score.systems import SystemSettings, read_systems
from plumbing.score.tables import align
from plumbing.score.testset import read_shots


def explain(script: ModuleType, s: SystemSettings) -> None:
    """Print for each system of evaluate.py's Settings, --explain it-nl SENTENCE [RESPONSE], p of
    each token of the response under every instruction. The response is the one that is given, else
    the reference, where the sentence is a source of --data, else the first system's answer. Raises
    InputError."""
    expected = "expected it-nl 'SENTENCE', and perhaps 'RESPONSE'"
    require(len(s.explain) in (2, 3), f"--explain {' '.join(s.explain)}: {expected}")
    name, sentence, *given = s.explain
    direction, sentence = read_direction(name, "--explain"), " ".join(sentence.split())
    require(sentence, "--explain: the sentence is blank; expected some words")
    systems = read_systems(s)
    for _, _, own, _ in systems:
        contrast = own.contrast_language or own.contrast_source
        require(not contrast, "--explain is of p under one prompt; leave out contrast")
    corpus, _ = read_corpus(s.data, skip_unknown=s.skip_unknown)
    most = max(system.settings.shots for system in systems)
    shots = read_shots(s.shots_from, {direction: []}, most, s.skip_unknown).get(direction, [])
    rows = corpus.get(direction, [])
    target = next((x.target for x in rows if " ".join(x.source.split()) == sentence), None)
    target, what = (given[0], "given") if given else (target, "the reference")
    for system in systems:
        prompter, positions = script.make_prompter(system)
        decoder, own = script.load_decoder(system), system.settings
        how = positions, own.max_new_tokens, shots[: own.shots]
        if target is None:
            prompts, _ = script.encode_prompts(prompter, [Sample(direction, sentence, "")], *how)
            limits = own.max_new_tokens, own.batch_size, own.length_penalty
            (target,) = script.translate(decoder, prompter, prompts, None, *limits)
            what = f"the answer of {system.name}"
        instructions = dict.fromkeys(supervised_directions(system.ckpt) or corpus, 1)
        mode = tuning_setting(system.ckpt, "conflict", "any")
        wrong = sorted(script.conflicts(direction, instructions, mode))
        samples = [Sample(d, sentence, target) for d in (direction, *wrong)]
        prompts, lost = script.encode_prompts(prompter, samples, *how)
        whole = prompter.encode_response(target)
        response = whole[: own.max_new_tokens]
        cut = [*lost] + ["response"] * (response != whole)
        terms = script.response_terms(decoder.model, prompts, response)
        tokens = prompter.tokenizer.texts_of(response, prompter.way.end)
        print(f"\n{system.name}: {sentence} → {target or '(empty)'} ({what})")
        print(f"(to fit, the {' and the '.join(cut)} lost some tokens)\n" if cut else "")
        print(terms_table(tokens, [direction, *wrong], *terms))


def terms_table(tokens: list[str], directions: list[Direction], mle: Tensor, ul: Tensor) -> str:
    """p of each of R tokens under C instructions, the right one first, and in brackets their loss:
    under the right one -log p, mle [C, R], its term in Eq. 1; under the others -log(1 - p), ul
    [C, R], its term in Eq. 2, whatever --penalty a run was tuned with. Last the means."""
    names = ["→".join(direction) for direction in directions]
    header = ["token", f"{names[0]} (MLE)", *(f"{name} (UL)" for name in names[1:])]
    p, terms = (-mle).exp(), torch.cat([mle[:1], ul[1:]])
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for n, token in enumerate(tokens):
        cells = zip(p[:, n].tolist(), terms[:, n].tolist(), strict=True)
        rows.append([token, *(f"{one:.3f} ({term:.2f})" for one, term in cells)])
    means = zip(p.mean(1).tolist(), terms.mean(1).tolist(), strict=True)
    rows.append(["**mean**", *(f"{one:.3f} ({term:.2f})" for one, term in means)])
    return "\n".join(align(rows))
