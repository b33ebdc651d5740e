"""The experiments: what they plug into the five, what is run and what is made of it."""

import csv
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import BASE, ids_of, script, tiny

import model
from data import CONFLICTS, Prompter, Sample, collate, draw_conflict, write_prompt
from demo import make_base
from evaluate import greedy
from experiments import abilities, baselines, grid, penalties, positions, results, run
from plumbing.base.errors import InputError
from plumbing.base.files import read_json, write_json
from plumbing.base.flags import parse
from plumbing.checkpoint.folder import ModelFolder
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import read_corpus
from plumbing.corpus.general import read_general

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(run.__file__)))
SCORES = {"length_ratio": 0.95, "mixed": 1.0}


# Penalties in place of Eq. 2


def pairs_of_two():
    """Logits under I and I~ of two pairs, of 3 and 2 tokens, with their weights."""
    torch.manual_seed(0)
    right, wrong = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in "ab")
    w = torch.tensor([1.0, 2.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    return right, wrong, torch.tensor([0, 6, 3, 3, 1]), w, torch.tensor([0, 0, 0, 1, 1])


def gap_by_hand(right, wrong, y, w, tokens):
    terms = [
        w[t] * (right[t].softmax(-1)[y[t]].log() - wrong[t].softmax(-1)[y[t]].log()) for t in tokens
    ]
    return sum(terms) / sum(w[t] for t in tokens)


def test_penalties_of_a_gap_are_their_formulas_pair_by_pair():
    right, wrong, y, w, pair = pairs_of_two()
    gaps = [gap_by_hand(right, wrong, y, w, tokens) for tokens in ((0, 1, 2), (3, 4))]
    value, weight = penalties.preference(right, wrong, y, w, pair)
    expected = sum(n * torch.log(1 + torch.exp(-g)) for n, g in zip((4, 1), gaps, strict=True))
    torch.testing.assert_close(value, expected)
    assert weight == w.sum()
    value, _ = penalties.hinge(right, wrong, y, w, pair, margin=0.5)
    expected = sum(n * max(0, 0.5 - g.item()) for n, g in zip((4, 1), gaps, strict=True))
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("penalty", [penalties.preference, penalties.hinge])
def test_penalties_have_right_gradients_and_weights_of_zero_give_zero(penalty):
    right, wrong, y, w, pair = pairs_of_two()
    assert torch.autograd.gradcheck(lambda a, b: penalty(a, b, y, w, pair)[0], (right, wrong))
    assert penalty(right, wrong, y, 0 * w, pair)[0] == 0
    assert penalty(right[:0], wrong[:0], y[:0], w[:0], pair[:0])[0] == 0


def test_each_token_of_a_twin_knows_the_same_token_of_its_positive(tuning_set):
    samples = tuning_set.samples[:4]
    pairs = tuning_set.with_twins(samples, "any", random.Random(0))
    pairs[1] = pairs[1]._replace(twin=None)
    batch = collate(pairs)
    same, pair = penalties.twins_of(batch)
    assert torch.equal(batch.y[same], batch.y[batch.positives :])
    lengths = [len(x.twin.response) for x in pairs if x.twin]
    assert pair.tolist() == [i for i, k in enumerate(lengths) for _ in range(k)]


def test_a_twin_that_keeps_the_source_asks_for_another_of_the_target_languages():
    instructions = {("en", "it"): 5, ("en", "nl"): 1, ("it", "en"): 5, ("nl", "en"): 1}
    assert CONFLICTS["keep-source"](("it", "en"), instructions) == {("it", "nl"): 1}
    assert CONFLICTS["keep-source"](("en", "it"), instructions) == {("en", "nl"): 1}
    with pytest.raises(InputError, match="--conflict keep-source"):
        few = {("en", "it"): 5, ("it", "en"): 5}
        draw_conflict(("en", "it"), few, "keep-source", random.Random(0))


# The paper's rows


def contrasted(model, prompt, others, weight):
    """The formula, written out, of one step without a cache: log-scores of the next token."""
    p, *variants = (
        model(torch.tensor(ids), [len(ids)])[-1].double().softmax(-1) for ids in (prompt, *others)
    )
    rest = p - sum(weight * q for q in variants)
    return p.log() if (rest <= 0).all() else torch.where(rest > 0, rest, 0.0).log()


@pytest.mark.parametrize("weight, count", [(0.5, 2), (0.7, 1), (2.0, 1)])
@torch.no_grad()
def test_contrastive_decoding_is_its_formula(weight, count):
    network, lengths = tiny(seed=3), [4, 17, 9, 1, 12, 5]
    prompts = [part.tolist() for part in ids_of(lengths, 1).split(lengths)]
    others = [[p.tolist() for p in ids_of(lengths, 7 + i).split(lengths)] for i in range(count)]
    rows = [list(row) for row in zip(*others, strict=True)]
    variants = {tuple(x): row for x, row in zip(prompts, rows, strict=True)}

    def uncached(prompt, of_it, ends):
        ids = []
        for _ in range(9):
            scores = contrasted(network, prompt + ids, [o + ids for o in of_it], weight)
            if int(scores.argmax()) in ends:
                break
            ids.append(int(scores.argmax()))
        return ids

    ends = {uncached(prompts[1], rows[1], set())[4]}
    expected = [uncached(x, row, ends) for x, row in zip(prompts, rows, strict=True)]
    assert len({len(ids) for ids in expected}) > 1
    decoder = baselines.Contrasting(network, weight, variants)
    assert greedy(decoder, prompts, ends, 9) == expected
    assert greedy(Decoder(network), prompts, ends, 9) != expected


def test_demonstrations_are_whole_prompts_with_their_responses_in_lines_before(tokenizer):
    it_nl = ("it", "nl")
    shots = [Sample(it_nl, "Ciao", "Hoi"), Sample(it_nl, "Apri", "Openen")]
    sample, prompter = Sample(it_nl, "Chiudi il file", ""), Prompter(tokenizer, "alpaca")
    ids, lost = baselines.encode_with_shots(prompter, sample, 999, shots)
    parts = [f"{write_prompt('alpaca', x)} {x.target}" for x in shots]
    prompt = write_prompt("alpaca", sample)
    assert tokenizer.decode(ids) == "\n".join([*parts, prompt]) and not lost
    assert ids[0] == tokenizer.bos[0] and tokenizer.eos not in ids and ids.count(ids[0]) == 1
    fewer, lost = baselines.encode_with_shots(prompter, sample, len(ids) - 1, shots)
    assert lost == 1 and tokenizer.decode(fewer) == "\n".join([parts[1], prompt])


@pytest.mark.parametrize(
    "text, said",
    [
        ("model", "expected NAME=FOLDER"),
        ("a=model,heads=3", "known: template shots"),
        ("a=model,beam=0", "--beam 0"),
        ("a=model,beam=two", "expected a number"),
    ],
)
def test_a_system_that_is_written_wrongly_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        baselines.read_system(text, baselines.Settings())


def test_a_system_has_its_own_options():
    system = baselines.read_system("a=x,shots=2,beam=4", baselines.Settings(template="alma"))
    assert (system.name, system.ckpt, system.suffix) == ("a", "x", "a")
    assert system.settings.describe() == "beam 4, template alma, 2 shots"


# The grid


def test_every_flag_of_the_grid_is_known():
    for one in filter(lambda one: one.flags, grid.RUNS.values()):
        s = parse(penalties.Settings, "", [*one.flags.split(), "--device", "cpu"])
        assert (s.stage == 1 or "init" in s.given) == (one.start == "")


def test_abilities_are_instructions_with_their_answers_and_no_direction(tmp_path):
    abilities.make(str(tmp_path))
    for split, size in abilities.SPLITS.items():
        path = str(tmp_path / f"abilities-{split}.json")
        assert len(read_general([path])) == 4 * size
    records = abilities.json.load(open(path, encoding="utf-8"))
    answers = [x["output"] if x["dataset"] != "count" else "0" for x in records]
    write_json(tmp_path / "scores.json", {"references": records, "answers": answers})
    found = [abilities.score(str(tmp_path / "scores.json"), kind) for kind in abilities.KINDS]
    assert found == pytest.approx([100, 100, 0, 100])


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
    assert {r.start for r in grid.RUNS.values() if r.flags} - {""} <= set(grid.RUNS)
    plan = run.plan_of(run.Settings(device="cpu", dtype="fp32", only=" ".join(run.KNOWN)))
    names = list(plan.steps)
    for n, name in enumerate(names):
        assert set(plan.steps[name].needs) <= {*names[:n]}
    seeds = [name.rpartition("-")[2] for name in names if "seed-" in os.path.basename(name)]
    assert seeds == sorted(seeds)  # whole rows first


def test_every_column_of_the_grid_is_there_and_every_direction_is_of_one_kind():
    for group in grid.GROUPS.values():
        assert set(group.columns) <= {*results.COLUMNS, *abilities.KINDS, grid.PROSE}
    for source in "en it nl ro de es".split():
        for target in {"en", "it", "nl", "ro", "de", "es"} - {source}:
            kinds = [f for f in (results.supervised, results.old, results.new) if f(source, target)]
            english_and_new = "en" in (source, target) and not {source, target} <= results.TUNED
            assert len(kinds) == (0 if english_and_new else 1)


class Ended:
    """A process that has done what a script would have."""

    def __init__(self, returncode=0):
        self.returncode = returncode

    def poll(self):
        return self.returncode

    def terminate(self): ...

    def wait(self): ...


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The commands that were begun, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    os.makedirs(run.FOLDER)
    commands = []

    def start(command, env, log):
        commands.append(command)
        if command[0] == "demo/make_base.py":
            make_base.arguments(command[1:])
        if "--out" in command:
            out = command[command.index("--out") + 1]
            file = "config.json" if command[0] == "demo/make_base.py" else "settings.json"
            paths = [os.path.join(out, file)]
        elif "--ckpt" in command:
            data = command[command.index("--ckpt") + 3]
            paths = [results.scores_path(command[command.index("--ckpt") + 1], data)]
        else:
            texts = (x.partition("=") for x in command if "=" in x)
            paths = [results.scores_path(x.split(",")[0], grid.TEST, name) for name, _, x in texts]
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_json(path, {})
        return Ended()

    monkeypatch.setattr(run, "start", start)
    return commands


def make(only, seeds=100, jobs=2):
    s = run.Settings(device="cpu", dtype="fp32", only=only, seeds=seeds, jobs=jobs)
    run.Runner(run.plan_of(s), s.jobs, s.device).run()


def test_what_is_finished_is_not_done_again_and_other_flags_are_noticed(begun, monkeypatch):
    for _ in range(2):
        make("main", seeds=1)
        evaluations = sum(len(grid.RUNS[name].tests) for name in grid.GROUPS["main"].runs)
        assert len(begun) == len(grid.GROUPS["main"].runs) + evaluations
    shutil.rmtree(run.folder_of("any", 1))
    make("main", seeds=1)
    assert [c[0] for c in begun[-2:]] == ["train.py", "evaluate.py"]  # of what was deleted
    trained = {c[c.index("--out") + 1]: c for c in begun if "--out" in c}
    target = trained[run.folder_of("target", 1)]
    assert target[target.index("--init") + 1] == run.folder_of("stage1", 1)
    assert "--resume" in target and "--init" not in trained[run.folder_of("stage1", 1)]
    monkeypatch.setitem(grid.RUNS, "control", grid.Run("--stage 2 --alpha 0 --steps 5"))
    del begun[:]
    with pytest.raises(InputError, match="control-seed-1 comes from train.py .*--steps 100") as no:
        make("main", seeds=2)
    assert not begun  # nothing, not even what is not refused
    shutil.rmtree(re.search("delete (.*), to make it anew", str(no.value))[1])
    make("main", seeds=1)
    assert [c[0] for c in begun] == ["train.py", *["evaluate.py"] * (len(begun) - 1)]
    monkeypatch.setitem(grid.RUNS, "stage1", grid.Run("--stage 1 --epochs 2", ""))
    shutil.rmtree(run.folder_of("stage1", 1))
    with pytest.raises(InputError, match="control-seed-1 comes from train.py --stage 1 --seed"):
        make("main", seeds=1)


def test_what_nobody_knows_how_it_was_made_is_refused(begun):
    make("main", seeds=1)
    write_json(run.BEGUN, {k: v for k, v in read_json(run.BEGUN).items() if "any" not in k})
    with pytest.raises(InputError, match="any.*begun.json does not say how it was begun"):
        make("rate main", seeds=1)


def test_another_evaluation_is_made_anew_and_the_run_is_not(begun, monkeypatch):
    make("rows", seeds=1)
    del begun[:]
    path = results.scores_path("demo/base", grid.TEST, "base.1")
    shutil.rmtree(os.path.dirname(path))
    make("rows", seeds=1)
    write_json(path, {"by": "hand"})
    make("rows", seeds=1)
    monkeypatch.setattr(run, "SHOTS", "other.tsv")
    make("rows", seeds=1)
    make("rows", seeds=1)
    assert [c[1] for c in begun] == ["experiments.baselines"] * 3 and "other.tsv" in begun[2]
    monkeypatch.setattr(run, "SHOTS", "third.tsv")
    monkeypatch.setattr(run, "start", lambda *_: Ended(1))
    for _ in range(2):  # what another command made is there, and does not count
        with pytest.raises(InputError, match="third.tsv.* ended with 1"):
            make("rows", seeds=1)
    assert not os.path.exists(path)  # beside old figures evaluate.py would choose another folder


@pytest.mark.parametrize("value", [5, True, {"a": 1}, [[1, 2]], {"commands": ["a"]}, None])
def test_a_record_in_another_shape_is_one_sentence(begun, value):
    write_json(run.BEGUN, {"x": value})
    with pytest.raises(InputError, match="begun.json: x is .*; expected .* delete it"):
        make("main", seeds=1)


def test_the_papers_rows_are_one_evaluation_a_seed_behind_their_runs(begun):
    make("rows", seeds=2)
    first, second = [c for c in begun if "--systems" in c]
    assert begun[-1] == second and {c[0] for c in begun} == {"train.py", "-m"}
    systems = first[first.index("--systems") : first.index("--device")]
    assert len([x for x in systems if "=" in x]) == len(grid.SYSTEMS)
    assert f"5-shot.1={run.folder_of('stage1', 1)},shots=5" in first
    assert "base.1=demo/base" in first and not any("demo/base" in x for x in second)


def test_a_step_begins_behind_what_it_needs_and_in_the_order_of_the_grid(begun):
    make("size more apart", seeds=1, jobs=1)
    outs = [c[c.index("--out") + 1] for c in begun if "--out" in c]
    assert outs[:2] == [f"{grid.FOLDER}/base-tiny", run.folder_of("tiny-stage1", 1)]
    assert sum("make_base" in c[0] for c in begun) == len(grid.BASES)


def test_a_model_whose_package_is_missing_is_not_made(tmp_path):
    pytest.importorskip("transformers")
    done = script("demo/make_smollm2.py", "--out", tmp_path / "out")
    assert done.returncode == 2 and "make smollm2" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_rows_that_a_base_never_reads_share_no_text_with_those_that_it_reads():
    texts = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "b"), ("h", "i"), ("e", "j")]
    rows = [dict(zip(("en", "it"), pair, strict=True)) for pair in texts]
    read, unread = make_base.apart(rows)
    assert read == rows[::2] and unread == [rows[1]]
    read, unread = make_base.apart(make_base.read("train"))
    assert len(read) == 4529 and len(unread) > 4000
    for code in ("en", "it", "nl", "ro"):
        assert {row[code] for row in read}.isdisjoint(row[code] for row in unread)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, which has Muon")
def test_a_base_is_made_in_two_phases_and_goes_on_with_the_second(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "attend", model.attend)  # which main() replaces
    monkeypatch.setattr(make_base, "POOL_STEPS", 1)
    phases = [(1, 0, {"one language": 1.0}), (2, 1, {"with English, no labels": 1.0})]
    monkeypatch.setattr(make_base, "PHASES", phases)
    out, real = str(tmp_path / "new" / "base"), make_base.train_phase
    s = make_base.arguments(["--size", "tiny", "--out", out])

    def stopped(*args):
        if args[4] == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(make_base, "train_phase", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_base.main(s)
    assert not os.path.exists(out)
    numbers = []
    monkeypatch.setattr(make_base, "train_phase", lambda *a: numbers.append(a[4]) or real(*a))
    make_base.main(s)
    assert numbers == [2] and sorted(os.listdir(tmp_path / "new")) == ["base", "base_log.jsonl"]
    folder = ModelFolder(out)
    assert folder.config.hidden_size == 128
    assert Tokenizer([out], folder.config).eos == 2


@pytest.mark.parametrize(
    "args, said",
    [
        ("", "--out"),
        (f"--out {BASE}", "is there"),
        ("--size tiny --more --out X", "no --size and no --apart"),
        ("--apart --more --out X", "no --size and no --apart"),
        ("--size huge --out X", "invalid choice"),
        ("--size tiny --out a", "is of another size"),
        ("--more --out a", "is not of the first phase"),
        ("--apart --out a", "has read other rows"),
        ("--out b", "b.partial is no folder"),
        ("--out c", "c.phase-1 is not of the first phase"),
        ("--out d", "is there"),
    ],
)
def test_a_base_never_takes_the_place_of_another(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "a.phase-1")
    os.mkdir("c.phase-1")
    os.symlink("nowhere", "d")
    (tmp_path / "b.partial").touch()
    with pytest.raises(SystemExit) as stop:
        make_base.arguments(args.split())
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, said",
    [
        (["--only", "main foo"], "--only foo: expected some of"),
        (["--seeds", 0], "--seeds 0: expected at least 1"),
        (["--jobs", 0], "--jobs 0: expected 1 to 100"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(args, said):
    done = script("experiments.run", *args, module=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def cells_of(table):
    """{first cell: the others} of the lines of a table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return {name: cells for name, *cells in rows}


def test_tables_have_means_intervals_and_ranges(tmp_path, monkeypatch):
    for seed in (1, 2, 3):
        evaluation(tmp_path, "target", seed, shift=seed / 10)
    evaluation(tmp_path, "target-seed-1", 1)  # another run's name, not a seed of this one
    group = grid.GROUPS["main"]._replace(runs=["target", "any"])
    *table, _, missing = results.group_table(str(tmp_path), group)
    assert "any" in missing  # what is not made is named
    rows = cells_of(table)
    assert rows["target"][:3] == ["3", "15.2 (15.1 to 15.3)", "10.2 (10.1 to 10.3)"]
    evaluation(tmp_path, "any", 2)
    evaluation(tmp_path, "any", 4)
    rows = cells_of(results.group_table(str(tmp_path), group))  # the seed that both have
    assert rows["target"][:4] == ["1", "15.2", "10.2", "4.8"] and rows["any"][0] == "1"
    columns = ("old: BLEU", "into English, new: BLEU")
    table = results.group_table(str(tmp_path), group._replace(runs=["any"], columns=columns))
    assert cells_of(table)["any"] == ["2", "9.0", "11.0"]
    monkeypatch.setattr(results, "RESULTS", str(tmp_path / "RESULTS.md"))
    monkeypatch.setattr(results, "HERE", str(tmp_path))
    groups = {name: grid.GROUPS[name] for name in ("rate", "alpha", "steps")} | {"main": group}
    monkeypatch.setattr(results, "GROUPS", groups)
    old = "old\n\n## How much: alpha\n\nkept\n\n## Claims\n\nkept\n\n## Notes\n\nmine\n"
    (tmp_path / "RESULTS.md").write_text(old)
    results.write_results(str(tmp_path), ["main", "rate", "alpha"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.endswith("\n## Claims\n\nkept\n\n## Notes\n\nmine\n") and "old\n" not in text
    assert "| any " in text and "## How much: alpha\n\nkept\n" in text
    assert f"{grid.GROUPS['steps'].question}\n\n| run " in text
    assert "Not made yet: stage1, rate-0.0005" in text
    (tmp_path / "empty").mkdir()  # as a fresh clone
    results.write_results(str(tmp_path / "empty"), [])
    assert (tmp_path / "RESULTS.md").read_text() == text


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"directions": {"en-it": {"bleu": 1}}}', '{"directions": {"en-it": 1}}'],
)
def test_a_report_that_is_not_whole_is_named(tmp_path, text):
    path = evaluation(tmp_path, "target", 1) / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match="scores.json"):
        results.group_table(str(tmp_path), grid.GROUPS["main"]._replace(runs=["target"]))


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
    assert results.p_of_seeds([2.0, 2.1]) == 1.0 and results.p_of_seeds([2.0, 2.0, 2.0]) == 0.0


def test_a_claim_is_tested_on_the_sentences_of_the_test_split(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    corpus, _ = read_corpus(["demo/data/test.tsv"], "all")
    corpus = {d: corpus[d][:60] for d in (("it", "nl"), ("en", "it"))}
    monkeypatch.setattr(results, "read_corpus", lambda *args: (corpus, None))
    for name in ("good", "bad", "luck"):
        for seed in (1, 2, 3):
            path = evaluation(tmp_path, name, seed, split="test")
            good = name == "good" or (name, seed) == ("luck", 2)
            for direction, rows in corpus.items():
                texts = [target if good else source for source, target in rows]
                (path / f"{'-'.join(direction)}.txt").write_text("".join(f"{t}\n" for t in texts))
    claims = [("good", "bad", "otr"), ("bad", "good", "bleu"), ("luck", "bad", "bleu")]
    claims = [grid.Claim(*claim) for claim in claims]
    monkeypatch.setattr(results, "RESULTS", str(tmp_path / "RESULTS.md"))
    (tmp_path / "RESULTS.md").write_text("tables\n")
    for _ in range(2):  # the second time in the place of the first
        results.write_claims(str(tmp_path), "Claims", claims, "About.")
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("tables\n") and text.count("## Claims") == 1
    rows = cells_of(line for line in text.split("\n") if line.startswith("|"))
    assert rows["good over bad, otr"][3] == "3 of 3" and rows["good over bad, otr"][-1] == "yes"
    assert rows["bad over good, bleu"][3] == "0 of 3" and rows["bad over good, bleu"][-1] == "no"
    *_, both, signs, of_t, _, holds = rows["luck over bad, bleu"]  # one seed of three is luck
    assert min(map(float, (both, signs, of_t))) > 0.2 and holds == "no"
    short = tmp_path / "good-seed-1" / "eval-test" / "it-nl.txt"
    whole = short.read_text()
    short.write_text("one\n")
    with pytest.raises(InputError, match="it-nl.txt has 1 lines; expected 60"):
        results.write_claims(str(tmp_path), "Claims", claims, "About.")
    short.write_text(whole)
    (tmp_path / "good-seed-2").rename(tmp_path / "worse-seed-2")  # the seeds that all have
    results.write_claims(str(tmp_path), "Claims", claims, "About.")
    assert (tmp_path / "RESULTS.md").read_text().count("2 of 2") == 1


def test_the_joint_test_of_seeds_and_sentences_knows_both():
    rng = np.random.default_rng(1)

    def share(seeds, spread, noise, mean):
        """Of draws from this world that the test calls sure."""
        found = []
        for _ in range(120):
            of_seeds = mean + spread * rng.normal(size=(seeds, 1))
            shared = noise * rng.normal(size=(1, 300))  # the same sentences for every seed
            found.append(results.p_of_both(of_seeds + shared + noise * rng.normal()) < 0.05)
        return np.mean(found)

    assert share(40, 0.0, 1.0, 0.0) == pytest.approx(0.05, abs=0.06)  # sentences alone
    assert share(40, 1.0, 0.0, 0.0) == pytest.approx(0.05, abs=0.06)  # seeds alone
    assert share(40, 1.0, 0.2, 0.0) == pytest.approx(0.05, abs=0.06)
    assert share(40, 1.0, 0.2, 2.0) > 0.95
    for seeds in (3, 5):  # those that are used; a bootstrap over them errs in 22 and 14 %
        for spread, noise in ((1.0, 0.0), (1.0, 0.2), (1.0, 1.0), (0.0, 1.0)):
            assert share(seeds, spread, noise, 0.0) < 0.12, (seeds, spread, noise)
        assert share(seeds, 1.0, 1.0, 20.0) > 0.9
    assert results.p_of_both(np.ones((2, 1000))) == 1.0 and results.p_of_both(np.ones((3, 9))) == 0
    assert results.p_of_t(2.0, 2) == pytest.approx(0.1835034, abs=1e-4)
    assert results.p_of_t(1.9599640, 1e4) == pytest.approx(0.05, abs=2e-4)


def test_the_sign_test_is_exact():
    assert results.p_of_signs([1.0, 2.0, 0.1, 3.0, 2.0]) == pytest.approx(2 / 32)
    assert results.p_of_signs([-1.0, -2.0, -0.1]) == pytest.approx(2 / 8)
    assert results.p_of_signs([1.0, 2.0, 0.1, 3.0, -2.0]) == pytest.approx(2 * 6 / 32)
    assert results.p_of_signs([1.0, -1.0, 0.0]) == 1.0 and results.p_of_signs([]) == 1.0


def test_the_figure_compares_the_right_instructions_and_answers():
    texts, _ = read_corpus([os.path.join(ROOT, grid.DEV)], "all")
    corpus = {d: [Sample(d, *pair) for pair in pairs] for d, pairs in texts.items()}
    rows = {(direction, x.source): x.target for direction in corpus for x in corpus[direction]}
    for panel, (first, second), answers in positions.cases(corpus, 3):
        assert first.source == second.source and answers[0] == first.target
        source, target = first.direction
        if panel == "supervised":
            assert "en" in first.direction and answers[1] == first.target
            assert second.direction[1] != target and "en" in second.direction
        else:
            assert "en" not in first.direction and second.direction == first.direction
            assert answers[1] == rows[(source, "en"), first.source] != first.target
