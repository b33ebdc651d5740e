"""Scores of texts: SacreBLEU's, and what other instructions have instead."""

import itertools
import math
from collections import Counter

import numpy as np
import sacrebleu

from plumbing.corpus.corpus import Sample
from plumbing.score.bootstrap import resampled_share, resamples
from plumbing.base.errors import InputError
from plumbing.score.identify import Identifier

BLEU_TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # all others: 13a, as in WMT


def bleu_metric(target: str) -> sacrebleu.BLEU:
    """SacreBLEU with the tokenizer of the target language. InputError where it needs a package."""
    try:
        return sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(target, "13a"))
    except (ImportError, RuntimeError) as error:
        needed = " ".join(str(error).split())
        raise InputError(f"SacreBLEU needs a package for target {target!r}: {needed}") from None


def compare_texts(hypotheses: list[str], references: list[tuple], target: str) -> tuple:
    """({"bleu", "chrf": chrF++, "length_ratio": of their tokens, "signature", "chrf_signature"},
    {"bleu", "chrf": [RESAMPLES] of bootstraps over sentences}) of a direction, as SacreBLEU has
    them. references: of each sentence, one or more."""
    streams, scores, resampled = list(itertools.zip_longest(*references)), {}, {}
    for name, metric in (("bleu", bleu_metric(target)), ("chrf", sacrebleu.CHRF(word_order=2))):
        # By sentence, as SacreBLEU's own PairedTest has them: the public functions give the sum.
        statistics = metric._extract_corpus_statistics(hypotheses, streams)
        total = metric._aggregate_and_compute(statistics)
        scores |= {name: total.score, f"{name}_signature": str(metric.get_signature())}
        if name == "bleu":
            scores["length_ratio"] = total.sys_len / max(1, total.ref_len)
        counts = np.array(statistics, "float32")
        resampled[name] = np.array(
            [
                metric._compute_score_from_stats(counts[i].sum(0)).score
                for i in resamples(len(counts))
            ]
        )
    scores["signature"] = scores.pop("bleu_signature")
    return scores, resampled


def score_translations(
    hypotheses: list[str],
    samples: list[Sample],
    verdicts: dict[str, list[list[str]]],
    identifiers: list[Identifier],
    languages: set[str],
) -> dict:
    """The scores of a direction, for scores.json. verdicts: {identifier: [what each hypothesis is
    instead of the target language, "" where it is right; the same of each reference]}; the first
    one's are "otr", the references' "floor". answered: how many outputs are in which language, by
    the first identifier. mixed: % of all outputs, those that are right as a whole, but have a
    part in another of the languages. "resampled" and "kinds" are for Reports alone."""
    target, n = samples[0].direction[1], len(samples)
    references = [(sample.target, *sample.others) for sample in samples]
    scores, resampled = compare_texts(hypotheses, references, target)
    ratios = {
        name: {"otr": 100 * sum(map(bool, of_texts)) / n, "floor": 100 * sum(map(bool, refs)) / n}
        for name, (of_texts, refs) in verdicts.items()
    }
    kinds, _ = next(iter(verdicts.values()))
    resampled["otr"] = resampled_share([bool(kind) for kind in kinds])
    codes = [[identify(text) for text in hypotheses] for identify in identifiers]
    first = identifiers[0]
    mixed, floor = (
        100 * sum(first.is_mixed(text, target, languages) for text in texts) / n
        for texts in (hypotheses, [sample.target for sample in samples])
    )
    scores |= next(iter(ratios.values())) | {"off_target": dict(Counter(filter(None, kinds)))}
    scores |= {
        "mixed": mixed,
        "mixed_floor": floor,
        "sentences": n,
        "resampled": resampled,
        "kinds": kinds,
        "answered": dict(Counter(codes[0])),
    }
    if len(identifiers) > 1:
        alike = sum(len({*answers}) == 1 for answers in zip(*codes, strict=True))
        scores |= {"identifiers": ratios, "agreement": 100 * alike / n}
    return scores


def score_answers(answers: list[str], losses: list[tuple[float, int]]) -> dict:
    """Of answers to other instructions: how many, how many are empty, words of one; of the
    references, whose (nats, tokens) the processes have found, the perplexity, null without any."""
    nats, tokens = (sum(column) for column in zip(*losses, strict=True))
    return {
        "perplexity": math.exp(min(nats / tokens, 700)) if tokens else None,
        "response_tokens": tokens,
        "sentences": len(answers),
        "empty": sum(not answer for answer in answers),
        "words": sum(len(answer.split()) for answer in answers) / len(answers),
    }
