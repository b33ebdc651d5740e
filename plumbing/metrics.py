"""SacreBLEU and langid, set up for a language and checked before any work is done."""

from collections.abc import Callable, Iterable

import langid.langid
import sacrebleu

from plumbing.corpora import Direction
from plumbing.errors import InputError, require

BLEU_TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # all others: 13a, as in WMT

Identify = Callable[[str], str]  # text -> language code, or "empty"


def identifier(candidates: Iterable[str]) -> Identify:
    """langid choosing among `candidates`. Raises InputError for one that it lacks."""
    model = langid.langid.LanguageIdentifier.from_modelstring(langid.langid.model, norm_probs=True)
    unknown = " ".join(sorted(set(candidates) - set(model.nb_classes)))
    require(not unknown, f"--candidates: langid has no {unknown}, but {' '.join(model.nb_classes)}")
    model.set_languages(sorted(candidates))
    return lambda text: model.classify(text)[0] if text.strip() else "empty"


def bleu_metric(target: str) -> sacrebleu.BLEU:
    """SacreBLEU with the tokenizer of the target language. InputError where it needs a package."""
    try:
        return sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(target, "13a"))
    except (ImportError, RuntimeError) as error:
        needed = " ".join(str(error).split())
        raise InputError(f"SacreBLEU needs a package for target {target!r}: {needed}") from None


def checked_identifier(candidates: str, directions: Iterable[Direction]) -> Identify:
    """The identifier of "it,nl,..." for these directions. Raises InputError for what would fail
    after hours of decoding: candidates, BLEU's packages."""
    languages = {code for direction in directions for code in direction}
    expected = f"expected {' '.join(languages)} and at least one more"
    require(languages < {*candidates.split(",")}, f"--candidates {candidates}: {expected}")
    identify = identifier(candidates.split(","))
    for _, target in directions:
        bleu_metric(target)
    return identify
