"""Seeded truncations and byte flips: one sentence, or a load that is exactly what the bytes say."""

import json
import random
import re
import shutil
import signal
import warnings
from itertools import permutations
from pathlib import Path

import pytest
import torch
from conftest import BASE, prompt_of, tiny
from safetensors.torch import load_file

from data import write_prompt
from model import add_lora, load_model, save_model
from plumbing.checkpoint import patterns
from plumbing.checkpoint.peft import LoraSettings
from plumbing.corpus.corpus import read_corpus
from plumbing.base.errors import InputError
from plumbing.checkpoint.folder import Config
from plumbing.corpus.languages import LANGUAGES
from plumbing.checkpoint.tokenizer import Tokenizer


def damaged(blob, rng):
    """A copy cut short, or with one to three bytes changed: a bit flipped, or another byte put
    there."""
    if rng.random() < 0.2:
        return blob[: rng.randrange(len(blob))]
    blob = bytearray(blob)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        i = rng.randrange(len(blob))
        blob[i] = (
            blob[i] ^ 1 << rng.randrange(8)
            if rng.random() < 0.5
            else rng.choice(b'0123456789,:."{}[] \n\t\0\xff')
        )
    return bytes(blob)


def cases(path, n, act, seed=0, upto=None):
    """Call act() on n damaged versions of the file (in its first `upto` bytes); returns what the
    loads gave. Anything but InputError fails the test; so does a case of more than a minute."""
    path, rng, loaded, refused = Path(path), random.Random(f"{path.name} {seed}"), [], 0
    whole = path.read_bytes()

    def hung(*_):
        raise TimeoutError("a damaged file made the reader hang")

    signal.signal(signal.SIGALRM, hung)
    try:
        for _ in range(n):
            head = whole[:upto]
            new = damaged(head, rng)
            path.write_bytes(new + whole[len(head) :] if len(new) == len(head) else new)
            signal.alarm(60)
            try:
                loaded.append(act())
            except InputError as error:
                refused += 1
                # it names the place
                assert str(path.parent) in str(error) or path.parent.name in str(error), error
                assert len(str(error)) < 2000
            finally:
                signal.alarm(0)
    finally:
        path.write_bytes(whole)
    assert refused > n / 10
    return loaded


@pytest.fixture
def folders(tmp_path):
    small = dict(vocab_size=97, hidden_size=16, intermediate_size=24, max_position_embeddings=64)
    save_model(tiny(**small), tmp_path / "model")
    save_model(tiny(**small), tmp_path / "sharded", limit=4000)
    model = load_model(tmp_path / "model")
    patterns = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.1.*q_proj": 2}}
    add_lora(model, LoraSettings(2, 4.0, ["q_proj", "up_proj"], **patterns))
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p) if "lora_B" in name else None
    save_model(model, tmp_path / "adapter")
    return tmp_path


@pytest.mark.parametrize(
    "file, n, upto",
    [
        ("model/model.safetensors", 250, None),
        ("model/model.safetensors", 200, 2500),
        ("sharded/model-00002-of-*.safetensors", 120, None),
        ("sharded/model.safetensors.index.json", 120, None),
        ("adapter/adapter_model.safetensors", 160, None),
        ("adapter/adapter_model.safetensors", 120, 1500),
    ],
)
def test_damaged_weights_of_ours_are_refused_or_load_as_they_were(folders, file, n, upto):
    (path,) = folders.glob(file)
    expected = load_model(path.parent).state_dict()
    for found in cases(path, n, lambda: load_model(path.parent).state_dict(), upto=upto):
        assert found.keys() == expected.keys() and all(
            torch.equal(found[k], expected[k]) for k in expected
        )


@pytest.mark.parametrize("upto", [None, 1200])
def test_damaged_weights_of_others_are_refused_or_load_as_their_bytes_say(tmp_path, upto):
    transformers = pytest.importorskip("transformers")
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ).save_pretrained(tmp_path)

    def act():
        found, stated = load_model(tmp_path).state_dict(), load_file(tmp_path / "model.safetensors")
        assert found.keys() == stated.keys() and all(
            torch.equal(found[k], stated[k]) for k in stated
        )
        assert all(t.isfinite().all() for t in found.values())

    cases(tmp_path / "model.safetensors", 160, act, upto=upto)


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids, [len(ids)])


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_damaged_configs_are_refused_or_mean_what_they_mean_to_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    small = dict(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(rope_parameters=rope, **small))
        if kind == "llama"
        else (
            transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=5, **small))
        )
    )
    model.save_pretrained(tmp_path)
    ids, compared = torch.arange(30), 0
    for ours in cases(
        tmp_path / "config.json",
        180,
        lambda: (load_model(tmp_path), (tmp_path / "config.json").read_bytes()),
    ):
        (tmp_path / "config.json").write_bytes(ours[1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = transformers.AutoModelForCausalLM.from_pretrained(
                    tmp_path, dtype=torch.float32
                ).eval()
        except Exception:  # they are stricter somewhere
            continue
        compared += 1
        with torch.no_grad():
            torch.testing.assert_close(
                logits(ours[0], ids), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4
            )
    assert compared > 20


def test_damaged_adapter_configs_are_refused_or_mean_what_they_mean_to_peft(folders):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    path, ids, compared = folders / "adapter" / "adapter_config.json", torch.arange(30), 0
    for ours, blob in cases(
        path, 500, lambda: (load_model(folders / "adapter"), path.read_bytes())
    ):
        path.write_bytes(blob)
        base = transformers.AutoModelForCausalLM.from_pretrained(folders / "model").eval()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = peft.PeftModel.from_pretrained(base, folders / "adapter").eval()
        except Exception:
            continue
        compared += 1
        with torch.no_grad():
            torch.testing.assert_close(
                logits(ours, ids), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4
            )
    assert compared > 20


def test_damaged_tokenizer_configs_are_refused_or_leave_a_tokenizer_that_works(tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(f"{BASE}/{name}", tmp_path)
    config = Config.load(BASE)
    for tokenizer in cases(
        tmp_path / "tokenizer_config.json", 160, lambda: Tokenizer([str(tmp_path)], config)
    ):
        ids, _ = prompt_of(tokenizer, ("en", "it"), "open the file", 512)
        assert tokenizer.decode(ids).endswith(write_prompt("alpaca", ("en", "it"), "open the file"))
        assert len(tokenizer.bos) < 2 and 0 <= tokenizer.eos < 4000


@pytest.mark.parametrize("name, n", [("tokenizer.model", 90), ("tokenizer.json", 90)])
def test_damaged_tokenizers_are_refused_or_work(tmp_path, name, n):
    if name == "tokenizer.json":
        pytest.importorskip("transformers").LlamaTokenizer.from_pretrained(BASE).save_pretrained(
            tmp_path
        )
    else:
        shutil.copy(f"{BASE}/{name}", tmp_path)

    def act():
        tokenizer = Tokenizer([str(tmp_path)], Config.load(BASE))
        ids, _ = prompt_of(tokenizer, ("en", "it"), "open the file \u00e9 \u6f22 " * 20, 80)
        assert len(ids) <= 80 and isinstance(tokenizer.decode(ids), str)

    cases(tmp_path / name, n, act)


ROWS = [
    ("open \u201cfile\u201d", "apri il \u00abfile\u00bb"),
    ("a\u2028b", "perch\u00e9 \\ no"),
    ("", "vuoto"),
    ("x", "y"),
] * 3


@pytest.mark.parametrize("form", ["tsv", "json", "jsonl", "alpaca", "paired"])
def test_damaged_data_is_refused_or_read_as_its_bytes_say(tmp_path, form, capsys):
    records = (
        [{"translation": {"en": e, "it": i}} for e, i in ROWS]
        if form != "alpaca"
        else [
            {"instruction": "Translate from English to Italian.", "input": e, "output": i}
            for e, i in ROWS
        ]
    )
    path = tmp_path / {"tsv": "a.tsv", "jsonl": "a.jsonl", "paired": "train.en-it.en"}.get(
        form, "a.json"
    )
    path.write_text(
        {
            "tsv": "en\tit\n" + "".join(f"{e}\t{i}\n" for e, i in ROWS),
            "paired": "\n".join(e for e, _ in ROWS),
            "jsonl": "\n".join(map(json.dumps, records)),
        }.get(form, json.dumps(records, ensure_ascii=False, indent=1))
    )
    (tmp_path / "train.en-it.it").write_text(
        "\n".join(i for _, i in ROWS) + "\n"
    ) if form == "paired" else None

    def independent():
        """{language: text} of every row, by another route: whole-file JSON, or lines cut by
        hand."""
        text = path.read_bytes().decode("utf-8-sig")
        if form in ("json", "alpaca", "jsonl"):
            if form == "jsonl":  # one object after another
                text = "[" + re.sub(r"}\s*{", "},{", text) + "]"
            for r in json.loads(text):
                yield (
                    r["translation"]
                    if "translation" in r
                    else dict(zip(named(r["instruction"]), (r["input"], r["output"]), strict=False))
                )
        elif form == "tsv":
            header, *lines = text.removesuffix("\n").split("\n")
            yield from (
                dict(
                    zip(
                        header.removesuffix("\r").split("\t"),
                        line.removesuffix("\r").split("\t"),
                        strict=False,
                    )
                )
                for line in lines
            )
        else:
            yield from (
                {"en": e, "it": i}
                for e, (_, i) in zip(text.removesuffix("\n").split("\n"), ROWS, strict=False)
            )

    def named(instruction):  # in the order of the sentence
        found = {
            name: code for code, name in LANGUAGES.items() if re.search(rf"\b{name}\b", instruction)
        }
        return [found[name] for name in sorted(found, key=instruction.index)][:2]

    def act():
        corpus, _ = read_corpus([path])
        capsys.readouterr()
        expected, stripped = (
            {},
            [{code: text.strip() for code, text in row.items()} for row in independent()],
        )
        for row in stripped:
            for s, t in permutations(row, 2) if form != "alpaca" else [tuple(row)]:
                expected.setdefault((s, t), []).extend(
                    [(row[s], row[t])] if row[s] and row[t] else []
                )
        assert {d: [(x.source, x.target) for x in found] for d, found in corpus.items()} == expected

    cases(path, 160, act, seed=form)


HOSTILE = [None, True, 0, -1, 1.5, 2**31, 10**400, 1e308, "", "x" * 10_000, "\ud800", "a\nerror: b"]
HOSTILE += [[], [None], {}, {"a": {}}, {"content": 7}, [[[]]], "(.*)*(.*)*x", "../../etc/passwd"]
TEXTS = ["1" * 5000, "NaN", "-Infinity", "[" * 5000 + "]" * 5000]  # which json does not write


def hostile(path):
    """The JSON of a file with each of its fields, and one of those within, made hostile."""
    whole = json.loads(path.read_text())
    for name, value in whole.items():
        inside = [(name, inner) for inner in list(value)[:2]] if isinstance(value, dict) else []
        for place in [(name,), *inside]:
            for i, bad in enumerate([*HOSTILE, *TEXTS]):
                changed = json.loads(json.dumps(whole))
                holder = changed if len(place) == 1 else changed[place[0]]
                holder[place[-1]] = "@" if i >= len(HOSTILE) else bad
                text = json.dumps(changed)
                yield text.replace('"@"', bad, 1) if i >= len(HOSTILE) else text


@pytest.mark.parametrize(
    "name",
    [
        "model/config.json",
        "adapter/adapter_config.json",
        "sharded/model.safetensors.index.json",
        "base/tokenizer_config.json",
    ],
)
def test_hostile_fields_end_in_one_sentence_or_in_a_model_that_computes(folders, monkeypatch, name):
    monkeypatch.setattr(patterns, "SECONDS", 1)
    path, refused, tried = folders / name, 0, 0
    if path.parent.name == "base":
        path.parent.mkdir()
        for file in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(f"{BASE}/{file}", path.parent)
    config = Config.load(BASE)
    for text in hostile(path):
        path.write_text(text)
        tried += 1
        signal.alarm(60)
        try:
            if path.parent.name == "base":
                Tokenizer([str(path.parent)], config).encode("open <|im_end|> </s>")
            else:
                logits(load_model(path.parent), torch.arange(9))
        except InputError as error:
            refused += 1
            assert len(str(error)) < 1100 and str(error).isprintable()
        finally:
            signal.alarm(0)
    assert tried > 100 and refused > tried / 20
