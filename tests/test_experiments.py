"""The grid of experiments/: what is run, in which order, and what is made of it."""

import csv
import json
import os
import re
import shutil

import pytest
from conftest import BASE, script

from data import Prompter
from demo import make_base
from experiments import abilities, grid, results, run
from plumbing.corpora import Sample, read_corpus
from plumbing.errors import InputError
from plumbing.files import read_json, write_json
from plumbing.folders import ModelFolder
from plumbing.tokenizer import Tokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(run.__file__)))
SCORES = {"length_ratio": 0.95, "mixed": 1.0}


def evaluation(folder, name, seed, shift=0.0, split="dev"):
    """Of two supervised directions and of two others; of each pair the mean is 15 or 10 BLEU."""
    directions = {
        "en-it": SCORES | {"bleu": 14.0 + shift, "otr": 5.0},
        "it-en": SCORES | {"bleu": 16.0 + shift, "otr": 5.0},
        "it-nl": SCORES | {"bleu": 9.0 + shift, "otr": 6.0 - shift},
        "de-en": SCORES | {"bleu": 11.0 + shift, "otr": 4.0 - shift},
    }
    path = folder / f"{name}-seed-{seed}" / f"eval-{split}"
    path.mkdir(parents=True)
    write_json(path / "scores.json", {"directions": directions})
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


def test_every_column_of_the_grid_is_there_and_every_direction_is_of_one_kind():
    for group in grid.GROUPS.values():
        assert set(group.columns) <= {*results.COLUMNS, *abilities.KINDS}
    for source in "en it nl ro de es".split():
        for target in {"en", "it", "nl", "ro", "de", "es"} - {source}:
            kinds = [f for f in (results.supervised, results.old, results.new) if f(source, target)]
            english_and_new = "en" in (source, target) and not {source, target} <= results.TUNED
            assert len(kinds) == (0 if english_and_new else 1)


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

    def call(self, command, log):
        calls.append(command)
        if command[0] == "train.py":
            out = command[command.index("--out") + 1]
            os.makedirs(out)
            write_json(os.path.join(out, "settings.json"), {})
            return 0
        if "--ckpt" in command:
            data = command[command.index("--ckpt") + 3]
            paths = [results.scores_path(command[command.index("--ckpt") + 1], data)]
        else:
            texts = (x.partition("=") for x in command if "=" in x)
            paths = [results.scores_path(x.split(",")[0], grid.TEST, name) for name, _, x in texts]
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_json(path, {})
        return 0

    monkeypatch.setattr(run.Runner, "call", call)
    return calls


def test_what_is_finished_is_not_done_again_and_other_flags_are_noticed(runner, monkeypatch):
    for _ in range(2):
        one = run.Runner(2)
        for job in run.wanted(["main"], 1):
            one.submit(*job)
        for future in one.futures.values():
            future.result()
        evaluations = sum(len(grid.RUNS[name].tests) for name in grid.GROUPS["main"].runs)
        assert len(runner) == len(grid.GROUPS["main"].runs) + evaluations
    begun = read_json(run.BEGUN)
    trained = {c[c.index("--out") + 1]: c for c in runner if c[0] == "train.py"}
    target = trained[run.folder_of("target", 1)]
    assert target[target.index("--init") + 1] == run.folder_of("stage1", 1)
    assert "--resume" in target and "--init" not in trained[run.folder_of("stage1", 1)]
    monkeypatch.setitem(grid.RUNS, "control", grid.Run("--stage 2 --alpha 0 --steps 5"))
    with pytest.raises(InputError, match="control-seed-1 comes from train.py .*--steps 100"):
        run.Runner(1).make("control", 1, (grid.DEV,))
    shutil.rmtree(run.folder_of("control", 1))  # as it advises
    run.Runner(1).make("control", 1, (grid.DEV,))
    monkeypatch.setitem(grid.RUNS, "stage1", grid.Run("--stage 1 --epochs 2", ""))
    shutil.rmtree(run.folder_of("stage1", 1))
    run.Runner(1).make("stage1", 1, (grid.DEV,))
    with pytest.raises(InputError, match="target-seed-1 comes from train.py --stage 1 --seed"):
        run.Runner(1).make("target", 1, (grid.DEV,))
    write_json(run.BEGUN, {k: v for k, v in begun.items() if "any" not in k})
    with pytest.raises(InputError, match="begun.json does not say how it was begun"):
        run.Runner(1).make("any", 1, (grid.DEV,))


def test_five_demonstrations_fit_into_the_bases_positions(runner):
    one = run.Runner(1)
    for name in {x.run: 0 for x in grid.SYSTEMS.values() if x.run}:
        one.submit(name, 1)
    one.submit_systems(1).result()
    command = runner[-1]
    tokens = int(command[command.index("--max-new-tokens") + 1])
    folder = ModelFolder(BASE)
    prompter = Prompter(Tokenizer([BASE], folder.config), "alpaca")
    shots, _ = read_corpus([os.path.join(ROOT, command[command.index("--shots-from") + 1])], "all")
    for direction, samples in shots.items():
        room = folder.config.max_position_embeddings - tokens
        ids, lost = prompter.encode(Sample(direction, "", ""), room, samples[:5])
        assert ids and lost == ""


def test_a_base_is_made_once_where_a_run_wants_it_and_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(run.FOLDER)
    told, code = [], 1

    def call(command):
        folder = command[command.index("--out") + 1]
        os.makedirs(folder, exist_ok=True)
        for path in (os.path.join(folder, "config.json"), f"{folder}_log.jsonl"):
            write_json(path, {})
        told.append(make_base.arguments(command[2:]))
        return code

    monkeypatch.setattr(run.subprocess, "call", call)
    run.make_inputs([("stage1", 1)])
    assert not told
    with pytest.raises(InputError, match="make_base.py --size tiny .* ended with 1"):
        run.make_inputs([("tiny-stage1", 1)])
    assert not os.path.exists(f"{run.FOLDER}/base-tiny")
    code = 0
    for _ in range(2):
        run.make_inputs([("tiny-stage1", 1), ("tiny-stage1", 2), ("more-stage1", 1)])
    assert [(s.size, s.more) for s in told[1:]] == [("tiny", False), ("base", True)]
    assert os.path.exists(f"{run.FOLDER}/base-tiny/config.json")


@pytest.mark.parametrize(
    "args, said",
    [
        ("--more", "need --out"),
        ("--first 2", "need --out"),
        ("--size tiny", "needs --out"),
        ("--size tiny --more --out X", "no --more"),
        ("--first 2 --out X", "no weights of phase 1"),
        ("--size huge --out X", "invalid choice"),
    ],
)
def test_the_shipped_base_is_never_replaced_by_another(args, said, capsys):
    with pytest.raises(SystemExit) as stop:
        make_base.arguments(args.split())
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_one_run_is_never_begun_twice_at_once_and_what_was_stopped_begins_nothing(runner):
    one = run.Runner(4)
    first = one.submit("stage1", 1)
    again = one.submit("stage1", 1, (grid.TEST,))
    first.result(), again.result()
    assert [c[0] for c in runner] == ["train.py", "evaluate.py", "evaluate.py", "evaluate.py"]
    one.stop()
    with pytest.raises(RuntimeError):
        one.submit("control", 1)


def test_what_runs_is_ended_with_the_runner(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", str(tmp_path))
    (tmp_path / "wait.py").write_text("import time; print(1, flush=True); time.sleep(100)")
    one = run.Runner(1)
    with open(tmp_path / "log", "w") as log:
        future = one.pool.submit(one.call, ["wait.py"], log)
        while not (tmp_path / "log").read_text():
            assert not future.done()
        one.stop()
        assert future.result(timeout=30) < 0 and not one.children
        assert one.call(["wait.py"], log) == 1


@pytest.mark.parametrize(
    "args, said",
    [
        (["--only", "main foo"], "--only foo: expected some of main"),
        (["--seeds", 0], "--seeds 0: expected at least 1"),
        (["--jobs", 0], "--jobs 0: expected 1 to 100"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(args, said):
    done = script("experiments/run.py", *args)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_papers_rows_are_one_evaluation_a_seed_behind_their_runs(runner):
    for _ in range(3):
        one = run.Runner(2)
        for name in {x.run: 0 for x in grid.SYSTEMS.values() if x.run}:
            one.submit(name, 3)
        one.submit_systems(3).result()
        if len([c for c in runner if "--systems" in c]) == 1:
            shutil.rmtree(results.scores_path(run.folder_of("stage1", 3), grid.TEST, "mt.3")[:-12])
    first, command = [c for c in runner if "--systems" in c]  # again, for what was deleted
    assert first == command == runner[-1]
    assert len([x for x in command[command.index("--systems") :] if "=" in x]) == 8
    assert f"5-shot.3={run.folder_of('stage1', 3)},shots=5" in command
    assert "base.3=demo/base" in command


def test_tables_have_means_intervals_and_ranges(tmp_path, monkeypatch):
    for seed in (1, 2, 3):
        evaluation(tmp_path, "target", seed, shift=seed / 10)
    evaluation(tmp_path, "any", 2)
    evaluation(tmp_path, "target-seed-1", 1)  # another run's name, not a seed of this one
    group = grid.GROUPS["main"]._replace(runs=["stage1", "target", "any"])
    table = results.group_table(str(tmp_path), group)
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table
    }
    assert "stage1" not in rows  # nothing was measured
    # 4.30 standard deviations of 0.1 over the square root of 3
    assert rows["target"][:3] == ["3", "15.2 ± 0.2", "10.2 ± 0.2"]
    assert rows["target"][-1] == "4.7 to 4.9" and rows["any"][-1] == ""
    columns = ("old: BLEU", "into English, new: BLEU")
    table = results.group_table(str(tmp_path), group._replace(runs=["any"], columns=columns))
    assert [x.strip() for x in table[-1].split("|")[1:-1]] == ["any", "1", "9.0", "11.0"]
    monkeypatch.setattr(results, "RESULTS", str(tmp_path / "RESULTS.md"))
    monkeypatch.setattr(results, "HERE", str(tmp_path))
    old = "old\n\n## How much: alpha\n\nkept too\n\n## Claims\n\nkept\n"
    (tmp_path / "RESULTS.md").write_text(old)
    results.write_results(str(tmp_path), ["main", "rate"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.endswith("\n## Claims\n\nkept\n") and "old\n" not in text
    assert "(nothing yet)" in text and "## How much: alpha\n\nkept too\n" in text
    (tmp_path / "empty").mkdir()  # as a fresh clone
    results.write_results(str(tmp_path / "empty"), [])
    assert (tmp_path / "RESULTS.md").read_text() == text


def test_a_group_compares_the_same_seeds(tmp_path):
    for seed in (1, 2, 3):
        evaluation(tmp_path, "target", seed, shift=seed)
    group = grid.GROUPS["main"]._replace(runs=["target"], seeds=1)
    assert " 11.0 |" in results.group_table(str(tmp_path), group)[-1]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"directions": {"en-it": {"bleu": 1}}}'])
def test_a_report_that_is_not_whole_is_named(tmp_path, text):
    path = evaluation(tmp_path, "target", 1) / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match="scores.json"):
        results.group_table(str(tmp_path), grid.GROUPS["main"])


def test_abilities_are_instructions_with_their_answers_and_no_direction(tmp_path):
    from plumbing.general import read_general

    abilities.make(str(tmp_path))
    for split, size in abilities.SPLITS.items():
        path = str(tmp_path / f"abilities-{split}.json")
        assert len(read_general([path], tuning=True)) == 4 * size
    with open(path, encoding="utf-8") as file:
        references = json.load(file)
    wrong = [{"output": x["output"] if x["dataset"] != "count" else "0"} for x in references]
    write_json(tmp_path / "answers.json", wrong)
    found = [abilities.score(str(tmp_path / "answers.json"), path, x) for x in abilities.KINDS]
    assert found == pytest.approx([100, 100, 0, 100])


def read_rows(*parts):
    with open(os.path.join(ROOT, "demo", "data", *parts), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_other_data_of_the_demo_is_in_no_tuning_set_and_beside_its_notice():
    trained = {row["en"] for row in read_rows("train.tsv")}
    web = read_rows("web.tsv")
    assert len(web) == 200 and not trained & {row["en"] for row in web}
    assert os.path.getsize(os.path.join(ROOT, "demo", "data", "web.NOTICE")) > 1000
    more = {row["en"] for row in read_rows("more", "train.tsv")}
    assert more <= trained
    for split in ("dev", "test"):
        of_split = {tuple(row.values()) for row in read_rows(f"{split}.tsv")}
        rows = read_rows("more", f"{split}.tsv")
        assert {tuple(row.values())[:4] for row in rows} <= of_split
        assert not {row["en"] for row in rows} & (trained | more)


def test_holm_corrects_for_the_number_of_claims():
    assert results.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert results.holm([0.9, 0.6]) == [1.0, 1.0] and results.holm([]) == []


def test_students_t_over_seeds():
    # The figures are of the density itself, integrated.
    assert results.p_of_seeds([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-4)
    assert results.p_of_seeds([-1.0, 2.0, 3.0, 4.0, 2.5]) == pytest.approx(0.0673228, abs=1e-4)
    assert results.p_of_seeds([5.0]) == 1.0 and results.p_of_seeds([2.0, 2.0]) == 0.0


def test_a_claim_is_tested_on_the_sentences_of_the_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
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
    (tmp_path / "good-seed-2").rename(tmp_path / "worse-seed-2")  # the seeds of both count
    results.write_claims(str(tmp_path))
    assert (tmp_path / "RESULTS.md").read_text().count("1 of 1") == 1
    otr, bleu = (line for line in text.split("\n") if line.startswith(("| good", "| bad")))
    assert otr.endswith("yes |") and "2 of 2" in otr and "0.0 |" in otr
    assert bleu.rstrip(" |").endswith("no") and "0 of 2" in bleu and "100.0" in bleu


def test_p_by_position_of_runs_of_one_name(folder):
    args = ["--data", "train.tsv", "--model", "model", "--out", "a/run", "--device", "cpu"]
    args += ["--steps", 2, "--batch-size", 4, "--lora-rank", 2]
    os.mkdir(folder / "a")
    assert script("train.py", *args, cwd=folder).returncode == 0
    shutil.copytree(folder / "a", folder / "b")
    args = ["--ckpt", "a/run", "b/run", "--rows", 1, "--out", "p.svg"]
    done = script("experiments/positions.py", *args, cwd=folder)
    assert done.returncode == 0 and (folder / "p.svg").exists(), done.stderr
    a, b = (re.findall(rf"^{x}/run (.*)$", done.stdout, re.M) for x in "ab")
    assert a == b and len(a) == 4
    done = script("experiments/positions.py", "--ckpt", "nowhere", cwd=folder)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
