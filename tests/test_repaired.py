"""What changed between two systems."""

from plumbing.corpus.corpus import Sample
from plumbing.score.repaired import Outputs, describe_changes
from plumbing.score.tables import quoted

PAIR = ("it", "nl")
CORPUS = {
    PAIR: [
        Sample(PAIR, "uno", "een twee drie"),
        Sample(PAIR, "", "leeg"),  # blank: no verdict
        Sample(PAIR, "due", "vier vijf zes"),
        Sample(PAIR, "tre", "zeven acht negen"),
        Sample(PAIR, "quattro", "tien `elf` twaalf"),
    ]
}


def test_repaired_and_broken_ones_are_listed_the_worst_first():
    texts = ["one two three", "", "four five six", "zeven acht", "tien elf"]
    later = ["een twee drie", "", "vier # zes", "seven eight", "`tien` elf"]
    first = Outputs("stage1", {"it-nl": texts}, {"it-nl": ["english", "english", "", ""]})
    last = Outputs("stage2", {"it-nl": later}, {"it-nl": ["", "", "english", ""]})
    text = describe_changes(CORPUS, first, last)
    assert "| on target before | 1 | 1 |" in text and "| off target before | 2 | 0 |" in text
    assert "## Repaired: 2" in text and "## Broken: 1" in text and "leeg" not in text
    assert text.index("vier # zes") < text.index("`een twee drie`\n- before")
    assert "- before, english: `one two three`\n- after, right: `een twee drie`" in text
    assert "- after, english: `seven eight`" in text and "tien" not in text


def test_what_reads_like_markup_stays_text():
    assert quoted("a`b") == "``a`b``" and quoted("`a`") == "`` `a` ``"
    assert quoted("") == "(empty)" and quoted("a\nb  c") == "`a b c`"
