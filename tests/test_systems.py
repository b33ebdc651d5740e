"""What an evaluation compares: columns by name, demonstrations, what to contrast with."""

import pytest

from evaluate import Settings
from plumbing.corpus.corpus import Sample
from plumbing.base.errors import InputError
from plumbing.score.systems import contrasting, read_systems


def test_a_system_has_its_own_options_and_the_others_of_the_evaluation():
    s = Settings(
        ckpt=["runs/a/"], systems=["ptl=b,template=ptl,shots=2", "c+d=e,contrast-source=.7"]
    )
    s.beam = 4
    a, b, c = read_systems(s)
    assert [(x.name, x.ckpt, x.suffix) for x in (a, b, c)] == [
        ("a", "runs/a/", ""),
        ("ptl", "b", "ptl"),
        ("c+d", "e", "c+d"),
    ]
    assert (b.settings.template, b.settings.shots, b.settings.beam) == ("ptl", 2, 4)
    assert a.settings.shots == 0 and c.settings.contrast_source == 0.7
    assert b.describe() == "beam 4, template ptl, 2 shots"
    assert c.describe() == "beam 4, contrast-source 0.7"


@pytest.mark.parametrize(
    "text, said",
    [
        ("runs/stage1", "expected NAME=FOLDER"),
        ("a/b=runs", "letters, digits"),
        ("a=", "expected NAME=FOLDER"),
        ("a=b,shot=3", "found 'shot=3'; known: template shots"),
        ("a=b,shots=two", "found 'shots=two'; expected a whole number"),
        ("a=b,shots=-1", "--shots -1: expected at least 0"),
        ("a=b,beam=0", "--beam 0"),
        ("a=b,contrast-language=nan", "--contrast-language nan"),
        ("a=b,template=latin", "expected one of"),
        ("a=b,ckpt=c", "found 'ckpt=c'"),
    ],
)
def test_a_wrong_system_is_refused_with_what_was_found(text, said):
    with pytest.raises(InputError) as error:
        read_systems(Settings(systems=[text]))
    assert said in str(error.value)


def test_names_are_unique_and_there_is_something_to_evaluate():
    with pytest.raises(InputError, match="a: two systems have this name"):
        read_systems(Settings(ckpt=["x/a"], systems=["a=b"]))
    with pytest.raises(InputError, match="nothing to evaluate"):
        read_systems(Settings())


def corpus_of(*rows):
    return {("it", "nl"): [Sample(("it", "nl"), *row) for row in rows]}


def test_what_a_sentence_is_contrasted_with():
    s = Settings(contrast_language=0.5, contrast_source=0.7)
    samples = corpus_of(("uno", "een"), ("due", "twee"))["it", "nl"]
    sources = ["uno", "due", "", "uno"]
    (english, own), (weight, others) = (
        contrasting(samples, sources, s)[:2],
        None or contrasting(samples, sources, s)[2],
    )
    assert [x.direction for x in english[1]] == [("it", "en")] * 2 and english[0] == 0.5
    assert [(x.direction, x.source) for x in own[1]] == [
        (("it", "it"), "uno"),
        (("it", "it"), "due"),
    ]
    assert weight == 0.7 and [x.source for x in others] == ["due", "uno"]
    assert {x.direction for x in others} == {("it", "nl")}
    # a variant that is the direction itself is left out, and English twice is once
    to_english = [Sample(("it", "en"), "uno", "one")]
    assert [
        x[0].direction for _, x in contrasting(to_english, [], Settings(contrast_language=1))
    ] == [("it", "it")]
    from_english = [Sample(("en", "it"), "one", "uno")]
    found = contrasting(from_english, [], Settings(contrast_language=1))
    assert [x[0].direction for _, x in found] == [("en", "en")]
    assert contrasting(samples, sources, Settings()) == []
