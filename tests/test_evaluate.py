"""Decoded outputs: scored, and named where they are off target."""

import pytest
import sacrebleu
from conftest import TEXT, script

from evaluate import off_target, score
from plumbing.corpora import Sample
from plumbing.metrics import identifier

IDENTIFY = identifier(["de", "en", "fr", "it", "nl", "ro", "zh"])


def test_every_wrong_output_is_off_target_and_named():
    texts = [TEXT["nl"], TEXT["en"], TEXT["it"], TEXT["fr"], "", "  ", TEXT["en"], TEXT["nl"]]
    otr, kinds = off_target(texts, [("it", "nl")] * 8, IDENTIFY)
    assert otr == 75.0 and kinds == {"english": 2, "source": 1, "other": 1, "empty": 2}
    otr, kinds = off_target([TEXT["en"], TEXT["ro"]], [("en", "ro")] * 2, IDENTIFY)
    # an untranslated English source counts as English
    assert otr == 50.0 and kinds == {"english": 1}


def test_scores_are_sacrebleus_with_the_floor_of_the_references():
    samples = [
        Sample(("it", "nl"), TEXT["it"], TEXT["nl"]),
        Sample(("it", "nl"), TEXT["it"], TEXT["en"]),
    ]
    hypotheses = [TEXT["nl"].replace("beschadigd", "kapot"), TEXT["en"]]
    r = score(hypotheses, samples, IDENTIFY)
    assert r["bleu"] == sacrebleu.corpus_bleu(hypotheses, [[s.target for s in samples]]).score > 50
    assert r["otr"] == r["floor"] == 50.0 and "tok:13a" in r["signature"]
    chinese = [Sample(("en", "zh"), "hi", "无法打开文件")]
    r = score(["无法打开该文件"], chinese, IDENTIFY)
    assert "tok:zh" in r["signature"] and r["bleu"] > 20


@pytest.mark.parametrize(
    "args, said",
    [
        (["--ckpt", "nowhere"], "nowhere: no such folder"),
        (["--candidates", "en,it,nl,ro"], "and at least one more"),
        (["--candidates", "en,it,nl,ro,qq"], "langid has no qq"),
        (["--max-new-tokens", "600"], "leaves no room for the prompt"),
    ],
)
def test_bad_input_to_evaluate(folder, args, said):
    args = args if "--ckpt" in args else ["--ckpt", folder / "model", *args]
    result = script("evaluate.py", "--data", folder / "train.tsv", *args, cwd=folder)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
