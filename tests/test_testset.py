"""What an evaluation reads, and what it refuses before hours of decoding."""

import pytest
from conftest import TSV

from evaluate import Settings
from plumbing.corpus.corpus import Sample
from plumbing.base.errors import InputError
from plumbing.score.systems import read_systems
from plumbing.score.testset import check_contrast, read_shots, read_test_set


def corpus_of(*rows):
    return {("it", "nl"): [Sample(("it", "nl"), *row) for row in rows]}


def test_demonstrations_are_the_first_of_the_file_and_not_of_the_test(tmp_path):
    path = tmp_path / "shots.tsv"
    path.write_text("it\tnl\nuno\teen\ndue\ttwee\ntre\tdrie\n")
    shots = read_shots([str(path)], corpus_of(("quattro", "vier")), 2)
    assert [x.source for x in shots["it", "nl"]] == ["uno", "due"]
    assert read_shots([], corpus_of(("quattro", "vier")), 0) == {}
    for args, said in [
        (([str(path)], corpus_of(("tre", "drie")), 1), "'tre' is in the test set too"),
        (([str(path)], corpus_of(("quattro", "vier")), 4), "3 pairs of it-nl; expected 4"),
        (([], corpus_of(("quattro", "vier")), 1), "--shots needs --shots-from"),
        (([str(path)], {("it", "ro"): [Sample(("it", "ro"), "a", "b")]}, 1), "it-ro"),
    ]:
        with pytest.raises(InputError) as error:
            read_shots(*args)
        assert said in str(error.value)


def test_another_source_must_exist():
    systems = read_systems(Settings(systems=["a=b,contrast-source=0.7"]))
    check_contrast(systems, corpus_of(("uno", "een"), ("due", "twee")))
    with pytest.raises(InputError, match="needs a second source in it-nl"):
        check_contrast(systems, corpus_of(("uno", "een"), ("uno", "een"), ("due", "")))


def test_a_test_set_has_the_name_of_its_first_file_and_the_languages_to_choose_from(tmp_path):
    (tmp_path / "test.v2.tsv").write_text(TSV, encoding="utf-8")
    s = Settings(ckpt=[str(tmp_path)], data=[str(tmp_path / "test.v2.tsv")], rows=3)
    test = read_test_set(s, read_systems(s))
    assert test.name == "test.v2" and {len(rows) for rows in test.corpus.values()} == {3}
    (identify,) = test.identifiers
    assert test.languages < {*identify.candidates} and test.shots == {}
    assert all("en" in direction for direction in test.supervised)
    s.candidates = "tlh"
    with pytest.raises(InputError, match="langid has no tlh"):
        read_test_set(s, read_systems(s))
