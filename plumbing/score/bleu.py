"""SacreBLEU's scores of texts, by sentence too, so that they can be resampled."""

import numpy as np
import sacrebleu

from plumbing.base.errors import InputError
from plumbing.score.bootstrap import resamples

BLEU_TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # all others: 13a, as in WMT


def bleu_metric(target: str) -> sacrebleu.BLEU:
    """SacreBLEU with the tokenizer of the target language. InputError where it needs a package."""
    try:
        return sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(target, "13a"))
    except (ImportError, RuntimeError) as error:
        needed = " ".join(str(error).split())
        raise InputError(f"SacreBLEU needs a package for target {target!r}: {needed}") from None


def compare_texts(hypotheses: list[str], references: list[str], target: str) -> tuple[dict, dict]:
    """({"bleu", "chrf": chrF++, "length_ratio": of their tokens, "signature", "chrf_signature"},
    {"bleu", "chrf": [RESAMPLES] of bootstraps over sentences}) of a direction, as SacreBLEU has
    them."""
    scores, resampled = {}, {}
    for name, metric in (("bleu", bleu_metric(target)), ("chrf", sacrebleu.CHRF(word_order=2))):
        # By sentence, as SacreBLEU's own PairedTest has them: the public functions give the sum.
        statistics = metric._extract_corpus_statistics(hypotheses, [references])
        total = metric._aggregate_and_compute(statistics)
        scores |= {name: total.score, f"{name}_signature": str(metric.get_signature())}
        if name == "bleu":
            scores["length_ratio"] = total.sys_len / max(1, total.ref_len)
        counts = np.array(statistics, "float32")
        sums = (counts[chosen].sum(0) for chosen in resamples(len(counts)))
        resampled[name] = np.array([metric._compute_score_from_stats(x).score for x in sums])
    scores["signature"] = scores.pop("bleu_signature")
    return scores, resampled
