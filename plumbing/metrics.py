"""SacreBLEU and langid, set up for a language and checked before any work is done."""

import math
from collections.abc import Callable, Iterable

import langid.langid
import sacrebleu

from plumbing.corpora import Direction
from plumbing.errors import InputError, require

BLEU_TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # all others: 13a, as in WMT

Identify = Callable[[str], str]  # text -> language code, or "empty"


def identifier(candidates: Iterable[str]) -> Identify:
    """langid choosing among `candidates`. Raises InputError for one that it lacks."""
    candidates = set(candidates)
    model = langid.langid.LanguageIdentifier.from_modelstring(langid.langid.model, norm_probs=True)
    unknown = " ".join(sorted(candidates - set(model.nb_classes)))
    require(not unknown, f"langid has no {unknown}, but {' '.join(model.nb_classes)}")
    model.set_languages(sorted(candidates))
    return lambda text: model.classify(text)[0] if text.strip() else "empty"


def bleu_metric(target: str) -> sacrebleu.BLEU:
    """SacreBLEU with the tokenizer of the target language. InputError where it needs a package."""
    try:
        return sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(target, "13a"))
    except (ImportError, RuntimeError) as error:
        needed = " ".join(str(error).split())
        raise InputError(f"SacreBLEU needs a package for target {target!r}: {needed}") from None


def checked_identifier(candidates: str, directions: Iterable[Direction]) -> tuple[str, Identify]:
    """("it,nl,..." with the languages of these directions, the identifier that chooses among them).
    Raises InputError for a language that langid lacks, and where there is nothing to choose."""
    languages = {code for direction in directions for code in direction}
    expected = f"expected {' '.join(sorted(languages))} and at least one more"
    more = set(filter(None, candidates.split(","))) - languages
    require(more, f"--candidates {candidates}: {expected}")
    languages |= more
    return ",".join(sorted(languages)), identifier(languages)


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
