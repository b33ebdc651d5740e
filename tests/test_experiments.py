"""The grid of experiments/: what is run, in which order, and what is made of it."""

import os

import pytest

from experiments import grid, results, run
from plumbing.files import write_json

ROW = {"bleu": 10.0, "otr": 5.0, "length_ratio": 0.95, "mixed": 1.0}


def evaluation(folder, name, seed, shift=0.0, split="dev"):
    average = {
        "supervised": ROW | {"bleu": 15.0 + shift},
        "zero-shot": ROW | {"bleu": 10.0 + shift, "otr": 5.0 - shift},
    }
    path = folder / f"{name}-seed-{seed}" / f"eval-{split}"
    path.mkdir(parents=True)
    write_json(path / "scores.json", {"average": average})
    return path


def test_every_run_of_the_grid_is_there_and_comes_after_the_one_that_it_starts_from():
    named = {name for group in grid.GROUPS.values() for name in group.runs}
    named |= {name for claim in grid.CLAIMS for name in (claim.better, claim.than)}
    assert named <= set(grid.RUNS)
    assert {r.start for r in grid.RUNS.values()} - {""} <= set(grid.RUNS)
    jobs = run.wanted(list(grid.GROUPS), 100)
    assert len(set(jobs)) == len(jobs)
    for n, (name, seed) in enumerate(jobs):
        assert not grid.RUNS[name].start or (grid.RUNS[name].start, seed) in jobs[:n]
    assert run.wanted(["main"], 1) == [job for job in run.wanted(["main"], 2) if job[1] == 1]


def test_every_flag_of_the_grid_is_train_pys():
    from plumbing.cli import parse
    from train import Settings

    for one in grid.RUNS.values():
        s = parse(Settings, [*one.flags.split(), "--device", "cpu"])
        assert (s.stage == 1) == (one.start == "")


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(run.FOLDER)
    calls = []

    def call(self, command, out):
        calls.append(command)
        if command[0] == "train.py":
            os.makedirs(out)
            write_json(os.path.join(out, "settings.json"), {})
        else:
            os.makedirs(os.path.join(out, "eval-dev"))
            write_json(os.path.join(out, "eval-dev", "scores.json"), {})

    monkeypatch.setattr(run.Runner, "call", call)
    return calls


def test_what_is_finished_is_not_done_again_and_other_flags_are_noticed(runner, monkeypatch):
    for _ in range(2):
        one = run.Runner(2)
        for job in run.wanted(["main"], 1):
            one.submit(*job, "demo/data/dev.tsv")
        for future in one.futures.values():
            future.result()
        assert len(runner) == 2 * len(grid.GROUPS["main"].runs)
    trained = {c[c.index("--out") + 1]: c for c in runner if c[0] == "train.py"}
    paper = trained[run.folder_of("paper", 1)]
    assert paper[paper.index("--init") + 1] == run.folder_of("stage1", 1)
    assert "--resume" in paper and "--init" not in trained[run.folder_of("stage1", 1)]
    monkeypatch.setitem(grid.RUNS, "control", grid.Run("--stage 2 --alpha 0 --steps 5"))
    with pytest.raises(SystemExit, match="was made by train.py .*--steps 100"):
        run.Runner(1).make("control", 1, "demo/data/dev.tsv", None)


def test_tables_have_means_intervals_and_the_gain_over_the_paper(tmp_path, monkeypatch):
    for seed in (1, 2, 3):
        evaluation(tmp_path, "paper", seed, shift=seed / 10)
        evaluation(tmp_path, "hinge-0.2", seed, shift=seed / 10 + 0.5)
    evaluation(tmp_path, "any", 2)
    evaluation(tmp_path, "paper-seed-1", 1)  # another run's name, not a seed of this one
    table = results.group_table(str(tmp_path), ["stage1", "paper", "any", "hinge-0.2"])
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table
    }
    assert "stage1" not in rows  # nothing was measured
    # 4.30 standard deviations of 0.1 over the square root of 3
    assert rows["paper"][:3] == ["3", "15.2 ± 0.2", "10.2 ± 0.2"] and rows["paper"][-1] == ""
    assert rows["hinge-0.2"][-1] == "0.5 ± 0.0" and rows["any"][-1] == "-0.2"
    monkeypatch.setattr(results, "RESULTS", str(tmp_path / "RESULTS.md"))
    monkeypatch.setattr(results, "HERE", str(tmp_path))
    (tmp_path / "RESULTS.md").write_text("old\n\n## Claims\n\nkept\n")
    results.write_results(str(tmp_path))
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.endswith("\n## Claims\n\nkept\n") and "old" not in text and "(nothing yet)" in text


def test_holm_corrects_for_the_number_of_claims():
    assert results.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert results.holm([0.9, 0.6]) == [1.0, 1.0] and results.holm([]) == []


def test_a_claim_is_tested_on_the_sentences_of_the_test_split(tmp_path, monkeypatch):
    from plumbing.corpora import read_corpus

    monkeypatch.chdir(os.path.dirname(os.path.dirname(run.__file__)))
    corpus, _ = read_corpus(["demo/data/test.tsv"], "all")
    corpus = {d: corpus[d] for d in (("it", "nl"), ("en", "it"))}
    monkeypatch.setattr(results, "read_corpus", lambda *args: (corpus, None))
    for name in ("good", "bad"):
        for seed in (1, 2):
            path = evaluation(tmp_path, name, seed, split="test")
            for direction, rows in corpus.items():
                texts = [row.target if name == "good" else row.source for row in rows]
                (path / f"{'-'.join(direction)}.txt").write_text("".join(f"{t}\n" for t in texts))
    claims = [grid.Claim("good", "bad", "otr"), grid.Claim("bad", "good", "bleu")]
    monkeypatch.setattr(results, "CLAIMS", claims)
    monkeypatch.setattr(results, "RESULTS", str(tmp_path / "RESULTS.md"))
    (tmp_path / "RESULTS.md").write_text("tables\n")
    for _ in range(2):  # the second time in the place of the first
        results.write_claims(str(tmp_path))
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("tables\n") and text.count("## Claims") == 1
    otr, bleu = (line for line in text.split("\n") if line.startswith(("| good", "| bad")))
    assert otr.endswith("yes |") and "2 of 2" in otr and "0.0 |" in otr
    assert bleu.rstrip(" |").endswith("no") and "0 of 2" in bleu and "100.0" in bleu
