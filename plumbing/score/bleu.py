"""SacreBLEU's scores of texts, by sentence too, so that they can be resampled."""

import unicodedata
from collections import Counter

import numpy as np
import sacrebleu

from plumbing.base.errors import InputError
from plumbing.score.bootstrap import resamples

TOKENIZERS = sorted(sacrebleu.BLEU.TOKENIZERS)
# By the code of the target language, else by the script of its references, else 13a, as in WMT.
BY_CODE = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
BY_SCRIPT = dict.fromkeys(["THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"], "char") | {"CJK": "zh"}
UNSPACED = {*BY_SCRIPT, "HIRAGANA", "KATAKANA"}  # scripts without spaces between words
ENOUGH = 200  # texts, to know their script


def script_of(texts: list[str]) -> str:
    """The script of most letters of some texts, as Unicode names them: LATIN, THAI, CJK."""
    letters = (c for text in texts[:ENOUGH] for c in text if c.isalpha())
    scripts = Counter(unicodedata.name(c, "").split(" ")[0].split("-")[0] for c in letters)
    return max(scripts, key=scripts.get, default="")


def choose_tokenizer(target: str, references: list[str] = ()) -> str:
    """The name of SacreBLEU's tokenizer for a target language."""
    return BY_CODE.get(target) or BY_SCRIPT.get(script_of(references), "13a")


def bleu_metric(target: str, references: list[str] = (), tokenizer: str = "") -> sacrebleu.BLEU:
    """SacreBLEU with a tokenizer of that name; "": that of the target language. Raises InputError
    where the tokenizer needs what is not there."""
    name = tokenizer or choose_tokenizer(target, references)
    try:
        return sacrebleu.BLEU(tokenize=name)
    except Exception as error:  # a missing package, a model that cannot be downloaded
        needed = " ".join(str(error).split())
        sentence = f"BLEU of target {target!r} with the tokenizer {name}: {needed}"
        advice = "pip install -r requirements-optional.txt, or choose another with --tokenize"
        raise InputError(f"{sentence}; {advice}, char perhaps") from None


def compare_texts(
    hypotheses: list[str], references: list[str], target: str, tokenizer: str = ""
) -> tuple[dict, dict]:
    """({"bleu", "chrf": chrF++, "length_ratio": of their tokens, "signature", "chrf_signature"},
    {"bleu", "chrf": [RESAMPLES] of bootstraps over sentences}) of a direction, as SacreBLEU has
    them."""
    scores, resampled = {}, {}
    bleu = bleu_metric(target, references, tokenizer)
    for name, metric in (("bleu", bleu), ("chrf", sacrebleu.CHRF(word_order=2))):
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
