"""Other instructions than translations: read, mixed in, answered."""

import json
import random
from collections import Counter

import pytest
import torch
from conftest import BASE, TSV, log, script, tiny, tuning_set

from data import Prompter, TuningSet, micro_batches
from evaluate import reference_loss
from model import save_model
from plumbing.corpus.corpus import read_corpus
from plumbing.base.errors import InputError
from plumbing.corpus.general import GENERAL, GeneralSample, read_general
from plumbing.corpus.languages import GENERAL_PROMPTS
from plumbing.checkpoint.tokenizer import Tokenizer
from train import Settings, pairs_of_step

RECORDS = [
    {"instruction": "Name three colours.", "input": "", "output": "Red,\ngreen, blue."},
    {"instruction": "Count the words.", "input": "one two", "output": "2"},
    {"instruction": "Say hello.", "output": "Hello!"},
]


def put(folder, records, name="general.json"):
    (folder / name).write_text(json.dumps(records))
    return str(folder / name)


def test_prompts_are_alpacas_two_and_the_response_is_learned(tokenizer):
    prompter = Prompter(tokenizer, "post-instruction")
    for sample in (GeneralSample("Count.", "a b", "2"), GeneralSample("", "Say hello.", "Hello")):
        text = tokenizer.decode(prompter.encode(sample, 999)[0])
        lines = GENERAL_PROMPTS["with input" if sample.instruction else "without input"]
        parts = {"instruction": sample.instruction or sample.source, "input": sample.source}
        assert text == "\n".join(lines).format(**parts)
    assert ", paired with an input" not in text and text.count("Say hello.") == 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.01])
def test_mixing_leaves_translations_twins_and_order_as_they_were(tmp_path, tokenizer, share):
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    corpus, _ = read_corpus([str(tmp_path / "train.tsv")], "supervised")
    general = read_general([put(tmp_path, RECORDS)], tuning=True)
    plain = tuning_set(corpus, tokenizer, 512, 20, 1)
    mixed = TuningSet(corpus, Prompter(tokenizer, "alpaca"), 512, 20, 1, general)
    s = Settings(stage=2, batch_size=7, seed=3, general_share=share)
    total, visits, found = 3 * len(plain.samples) + 5, [], 0
    for step in range(-(-total // 7)):
        alone = pairs_of_step(plain, step, total, s)
        pairs = pairs_of_step(mixed, step, total, s)
        assert [p for p in pairs if p.positive.sample.direction != GENERAL] == alone
        more = [p for p in pairs if p.positive.sample.direction == GENERAL]
        assert all(p.twin is None for p in more)
        visits += [p.positive.sample for p in more]
        found += len(alone)
    assert abs(len(visits) / (len(visits) + found) - share) < 0.01
    often = Counter(visits).values()  # epochs
    assert len(visits) < 3 or (len(often) == 3 and max(often) - min(often) <= 1)


def test_they_have_a_part_in_the_mle_and_none_in_the_unlikelihood(tmp_path, tokenizer, encoded):
    general = read_general([put(tmp_path, RECORDS)], tuning=True)
    corpus = {("en", "it"): [x.sample for x in encoded.samples if x.sample.direction[0] == "en"]}
    corpus[("it", "en")] = [x.sample for x in encoded.samples if x.sample.direction[1] == "en"]
    mixed = TuningSet(corpus, Prompter(tokenizer, "alpaca"), 512, 0, 1, general)
    pairs = mixed.with_twins(mixed.samples[:4] + mixed.general, "any", random.Random(1))
    (batch,) = micro_batches(pairs, 10**6)[0]
    responses = (
        [len(x.response) for x in mixed.samples[:4]],
        [len(x.response) for x in mixed.general],
    )
    assert batch.positives == sum(map(sum, responses)) and len(batch.lengths) == 7 + 4
    assert len(batch.y) - batch.positives == sum(responses[0])


@pytest.fixture
def place(folder):
    put(folder, RECORDS)
    return folder


RUN = ["--model", "model", "--data", "train.tsv", "--pairs", 6, "--batch-size", 8, "--steps", 4]
RUN += ["--device", "cpu", "--lora-rank", 4, "--save-every", 2, "--keep", 9]


def test_a_run_counts_them_apart_and_goes_on_to_the_same_weights(place):
    runs = {}
    for name, more in [("plain", []), ("mixed", ["--general", "general.json"])]:
        done = script("train.py", *RUN, *more, "--out", name, cwd=place)
        assert done.returncode == 0, done.stderr
        runs[name] = log(place / name)
    assert "20 % of a step out of 3 other instructions" in done.stdout
    for plain, mixed in zip(runs["plain"], runs["mixed"], strict=True):
        assert mixed["general"] == 2 and mixed["general_tokens"] > 2
        assert mixed["response_tokens"] - mixed["general_tokens"] == plain["response_tokens"]
    put(place, RECORDS[:2])
    args = [*RUN, "--general", "general.json", "--out", "mixed", "--resume"]
    done = script("train.py", *args, cwd=place)
    assert done.returncode == 2 and "general_crc32" in done.stderr
    plan = script("train.py", *RUN, "--general", "general.json", "--plan", cwd=place)
    assert plan.returncode == 0, plan.stderr


def test_a_file_is_answered_with_the_perplexity_of_its_references(place):
    more = [{"instruction": " Is there one? ", "dataset": "mine"}, {"instruction": " "}]
    put(place, RECORDS + more)
    save_model(tiny(seed=3), place / "other", BASE)
    args = ["--ckpt", "model", "other", "--general", "general.json", "--device", "cpu"]
    done = script("evaluate.py", *args, "--max-new-tokens", 5, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "| other " in done.stdout
    answers = json.loads((place / "other" / "eval-general" / "model_outputs.json").read_text())
    assert [x["instruction"] for x in answers] == [x["instruction"] for x in RECORDS + more]
    assert answers[1]["input"] == "one two" and answers[3]["dataset"] == "mine"
    assert {x["generator"] for x in answers} == {"other"} and answers[4]["output"] == ""
    scores = json.loads((place / "model" / "eval-general" / "scores.json").read_text())
    model, tokenizer = tiny().eval(), Tokenizer([BASE], tiny().config)
    nats = tokens = 0
    for sample in read_general([str(place / "general.json")], tuning=True):
        prompt, _ = Prompter(tokenizer, "alpaca").encode(sample, 512)
        response = tokenizer.encode(sample.target) + [tokenizer.eos]
        ids = torch.tensor(prompt + response)
        log_p = model(ids, [len(ids)])[len(prompt) - 1 : -1].log_softmax(-1)
        nats -= log_p.gather(1, ids[len(prompt) :, None]).sum().item()
        tokens += len(response)
    assert scores["general"]["response_tokens"] == tokens and scores["general"]["sentences"] == 4
    assert scores["general"]["perplexity"] == pytest.approx(
        torch.tensor(nats / tokens).exp().item(), rel=1e-4
    )
    two = script("evaluate.py", *args, "--max-new-tokens", 5, cwd=place, processes=2)
    assert two.returncode == 0, two.stderr
    again = json.loads((place / "model" / "eval-general" / "scores.json").read_text())["general"]
    assert again == scores["general"] | {"perplexity": pytest.approx(again["perplexity"])}
    assert scores["general"]["perplexity"] == pytest.approx(again["perplexity"], rel=1e-5)
    outputs = (place / "other" / "eval-general" / "model_outputs.json").read_text()
    assert json.loads(outputs) == answers


def test_an_instruction_that_does_not_fit_is_cut_and_counted(place):
    put(place, [*RECORDS, {"instruction": "word " * 900, "input": "x", "output": "y"}])
    args = ["--ckpt", "model", "--general", "general.json", "--device", "cpu"]
    done = script("evaluate.py", *args, "--max-new-tokens", 3, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "model, general: 1 over-long sources cut" in done.stdout


def test_references_that_do_not_fit_count_with_their_beginning_and_none_is_no_perplexity():
    model = tiny().eval()
    prompter = Prompter(Tokenizer([BASE], model.config), "alpaca")
    room = model.config.max_position_embeddings
    long = GeneralSample("", "Go on.", "open the file " * room)
    prompt, _ = prompter.encode(long, room)
    _, tokens = reference_loss(model, prompter, [prompt], [long])
    assert tokens == room - len(prompt)
    assert reference_loss(model, prompter, [prompt], [long._replace(target="")]) == (0.0, 0)


@pytest.mark.parametrize(
    "args, said",
    [
        (["--shots", 1], "leave out shots and contrast"),
        (["--contrast-language", 0.5], "leave out shots and contrast"),
        (["--contrast-source", 0.5], "leave out shots and contrast"),
        (["--max-new-tokens", 510], "leaves no room for the prompt"),
    ],
)
def test_what_an_instruction_has_not_is_refused_before_decoding(place, args, said):
    args = ["--ckpt", "model", "--general", "general.json", "--device", "cpu", *args]
    done = script("evaluate.py", *args, cwd=place)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (place / "model" / "eval-general").exists()
