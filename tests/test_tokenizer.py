"""Real tokenizers, which PyPI packages ship: SentencePiece, BPE of LLaMA-3 and Mistral's Tekken."""

import base64
import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import BASE

from data import Prompter, Sample, write_prompt
from plumbing.base.errors import InputError
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.corpus.languages import TEMPLATES

needed = "needs mistral-common, which wants Python 3.11"
mistral_common = pytest.importorskip("mistral_common", reason=needed)
llama_models, tokenizers = pytest.importorskip("llama_models"), pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

MISTRAL = Path(mistral_common.__file__).parent / "data"
PIECES = sorted(p.name for p in MISTRAL.glob("*.model.v*") if not p.name.endswith("m1"))
LLAMA3 = Path(next(iter(llama_models.__path__))) / "llama3" / "tokenizer.model"
CONFIG = Config(200_000, 8, 8, 1, 1, eos_token_id=[128001, 128009])
TEXTS = [  # the paper's twelve languages
    "The file couldn't be opened: it's 90% damaged.",
    "Perché il file è «danneggiato»? Non c'è più!",
    "Geüploade foto's zijn één keer zichtbaar.",
    "Fișierul nu poate fi deschis în această țară.",
    "Größere Änderungen müssen geprüft werden.",
    "无法打开该文件，因为它已损坏。",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "ファイルを開けませんでした。「破損」しています。",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ґанок, їжак і щедрий об'єм — це не помилка.",
    "Où est l'œuvre ? Voilà : « çà et là », à 5 €.",
    "파일을 열 수 없습니다. 손상되었습니다!",
]
ODD = [
    "</s> <s>[INST] <|end_of_text|> <|begin_of_text|>",
    "  two  spaces\n\n\tand a tab ",
    "🙂🏽 𝔘𝔫𝔦 e\u0301 \u2028 \x85",
    "",
    " ",
    '"quoted"',
]


def prompt_of(tokenizer, direction, text, room, template="alpaca"):
    """(ids or None, whether the text was cut), as for training and decoding."""
    return Prompter(tokenizer, template).encode(Sample(direction, text, ""), room)


def byte_bpe(tokens, pattern, specials):
    """A tokenizers.Tokenizer of a tiktoken vocabulary, as the conversion of LLaMA-3 made its
    tokenizer.json."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(str(tokens), pattern=pattern, extra_special_tokens=specials)
    bpe, bos = converter.converted(), specials[0]
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    return bpe


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """(folder with tokenizer.json, the reference encoder)"""
    from llama_models.llama3.tokenizer import Tokenizer as Reference

    reference, folder = Reference(LLAMA3), tmp_path_factory.mktemp("llama3")
    specials = sorted(reference.special_tokens, key=reference.special_tokens.get)
    bpe = byte_bpe(LLAMA3, reference.model._pat_str, specials)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, lambda text: reference.encode(text, bos=False, eos=False), reference


@pytest.fixture(scope="module")
def tekken(tmp_path_factory):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    path, folder = sorted(MISTRAL.glob("tekken*.json"))[-1], tmp_path_factory.mktemp("tekken")
    raw, reference = json.loads(path.read_text()), Tekkenizer.from_file(path)
    # Tekken puts its special tokens first, the conversion last
    shift = raw["config"]["default_num_special_tokens"]
    used = raw["vocab"][: raw["config"]["default_vocab_size"] - shift]
    (folder / "tokens").write_text("".join(f"{t['token_bytes']} {t['rank']}\n" for t in used))
    assert base64.b64decode(used[97]["token_bytes"]) == b"a"
    bpe = byte_bpe(folder / "tokens", raw["config"]["pattern"], ["<s>", "</s>"])
    bpe.save(str(folder / "tokenizer.json"))
    return folder, lambda text: [i - shift for i in reference.encode(text, bos=False, eos=False)]


@pytest.mark.parametrize("name", PIECES)
def test_sentencepiece_models_round_trip_the_papers_twelve_languages(tmp_path, name):
    assert len(PIECES) >= 4
    shutil.copy(MISTRAL / name, tmp_path / "tokenizer.model")
    tokenizer = Tokenizer([str(tmp_path)], CONFIG)
    for text in [*TEXTS, *ODD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not {tokenizer.eos, *tokenizer.bos} & set(ids)
    # transformers' default where no configuration says otherwise
    assert tokenizer.bos == [1] and tokenizer.eos == 2
    # a token added to the model alone
    assert tokenizer.decode([*tokenizer.encode("Hallo"), 2, 150_000]) == "Hallo"


@pytest.mark.parametrize("which", ["llama3", "tekken"])
def test_tokenizer_json_agrees_with_the_reference_encoder(which, request):
    folder, reference, *_ = request.getfixturevalue(which)
    tokenizer = Tokenizer([str(folder)], CONFIG)
    prompts = [write_prompt(t, Sample(("en", "de"), text, "")) for t in TEMPLATES for text in TEXTS]
    for text in [*TEXTS, *ODD, *prompts]:
        ids = tokenizer.encode(text)
        assert ids == reference(text) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_json_of_a_sentencepiece_model_agrees_with_it(tmp_path, add_bos):
    shutil.copy(MISTRAL / PIECES[-1], tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": add_bos}))
    pieces, fast = Tokenizer([str(tmp_path)], CONFIG), tmp_path / "fast"
    transformers.LlamaTokenizer.from_pretrained(str(tmp_path)).save_pretrained(str(fast))
    assert (fast / "tokenizer.json").exists() and not (fast / "tokenizer.model").exists()
    bpe = Tokenizer([str(fast)], CONFIG)
    for text in TEXTS:
        assert bpe.encode(text) == pieces.encode(text) and bpe.decode(bpe.encode(text)) == text
    assert bpe.eos == pieces.eos == 2 and bpe.bos == pieces.bos == [1] * add_bos


def test_a_prompt_of_llama3_has_the_ids_that_transformers_gives_it(llama3):
    folder, _, reference = llama3
    tokenizer = Tokenizer([str(folder)], CONFIG)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), split_special_tokens=True)
    assert tokenizer.bos == [reference.bos_id] and tokenizer.eos == 128009
    assert tokenizer.eos == reference.special_tokens["<|eot_id|>"]
    for text in TEXTS:
        prompt = write_prompt("alpaca", Sample(("en", "it"), text, ""))
        assert prompt_of(tokenizer, ("en", "it"), text, 9999)[0] == theirs(prompt).input_ids


@pytest.mark.parametrize(
    "stated, bos, eos",
    [
        ({"add_bos_token": False}, [], 2),
        ({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}, [1], 2),
        ({"eos_token": "<e>", "added_tokens_decoder": {"32005": {"content": "<e>"}}}, [1], 32005),
    ],
)
def test_bos_and_eos_of_sentencepiece_are_what_the_folder_says(tmp_path, stated, bos, eos):
    shutil.copy(MISTRAL / PIECES[0], tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer([str(tmp_path)], CONFIG)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize(
    "stated, special, added",
    [
        ({"eos_token": "</s>"}, {"eos_token": {"content": "<unk>"}}, {}),
        ({"eos_token": "</s>", "added_tokens_decoder": {}}, {"eos_token": "<unk>"}, {}),
        ({}, {"eos_token": "<unk>", "bos_token": "</s>"}, {}),
        ({"eos_token": "</s>", "bos_token": "<unk>"}, {"pad_token": "<unk>"}, {"[PAD]": 4000}),
        ({"eos_token": "<end>"}, {}, {"[PAD]": 4000, "<end>": 4001}),
        (None, {"eos_token": "<end>"}, {"<end>": 4000}),
    ],
)
def test_older_folders_name_tokens_in_two_other_files(tmp_path, kind, stated, special, added):
    """special_tokens_map.json and added_tokens.json, as transformers takes them."""
    shutil.copy(f"{BASE}/tokenizer.model", tmp_path)
    if kind == "tokenizer.json":
        theirs = transformers.LlamaTokenizer.from_pretrained(str(tmp_path))
        theirs.add_tokens(list(added))
        theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer.model").unlink()
    files = {"tokenizer_config": stated, "special_tokens_map": special, "added_tokens": added}
    for name, content in files.items():
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    theirs = transformers.LlamaTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer([str(tmp_path)], Config(5000, 8, 8, 1, 1))
    assert ours.eos == theirs.eos_token_id
    if kind == "tokenizer.model":  # tokenizer.json's own post-processor says what BOS is
        assert ours.bos == [theirs.bos_token_id]


def test_no_space_is_put_before_a_text_where_the_folder_says_so(tmp_path):
    shutil.copy(f"{BASE}/tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": false}')
    theirs = transformers.LlamaTokenizer.from_pretrained(str(tmp_path), add_bos_token=False)
    ours = Tokenizer([str(tmp_path)], Config(5000, 8, 8, 1, 1))
    assert ours.encode("Apri") != Tokenizer([BASE], Config(5000, 8, 8, 1, 1)).encode("Apri")
    for text in TEXTS:
        assert (
            ours.encode(text) == theirs(text).input_ids and ours.decode(ours.encode(text)) == text
        )


def test_a_tokenizer_json_without_bos_has_none_and_takes_eos_from_config_json(tmp_path, llama3):
    """SmolLM2's way."""
    raw = json.loads((llama3[0] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    bare = Tokenizer([str(tmp_path)], CONFIG)
    assert (bare.bos, bare.eos) == ([], 128001) and bare.encode("Hallo") == llama3[1]("Hallo")


def test_cutting_never_leaves_half_a_character_and_always_ends(llama3):
    tokenizer, pair = Tokenizer([str(llama3[0])], CONFIG), ("zh", "en")
    for text in ["🙂🏽" * 50, "無" * 100, "a" * 300, "\u0301" * 40, " " * 80]:
        whole, _ = prompt_of(tokenizer, pair, text, 9999, "alma")
        for room in range(18, 60, 7):
            ids, cut = prompt_of(tokenizer, pair, text, room, "alma")
            assert len(ids) <= room and cut == (len(whole) > room)
            assert "\ufffd" not in tokenizer.decode(ids)
    assert prompt_of(tokenizer, pair, "無", 5, "alma") == (None, True)


@pytest.mark.parametrize("which", ["demo", "llama3"])
@pytest.mark.parametrize("text", ["a" * 3_000_000, "open the file. " * 300_000, "無" * 1_000_000])
def test_a_text_of_megabytes_is_cut_before_it_is_encoded(request, which, text):
    """20 MB once took 44 s: the time grew with the square of the length."""
    folder = BASE if which == "demo" else str(request.getfixturevalue("llama3")[0])
    tokenizer, encoded = Tokenizer([folder], CONFIG), []
    encode = tokenizer.encode
    tokenizer.encode = lambda text: encoded.append(len(text)) or encode(text)
    ids, cut = prompt_of(tokenizer, ("en", "it"), text, 200)
    assert cut and 150 < len(ids) <= 200 and sum(encoded) < 600_000


# What reads like a special token stays text


def pieces_with(folder, *symbols, rule="identity"):
    """A SentencePiece model with user-defined symbols, as chat models of LLaMA have them."""
    import sentencepiece

    (folder / "text").write_text("\n".join(TEXTS * 40), encoding="utf-8")
    how = dict(vocab_size=500, model_type="bpe", byte_fallback=True, character_coverage=0.98)
    how |= dict(remove_extra_whitespaces=False, normalization_rule_name=rule, minloglevel=2)
    files = {"input": str(folder / "text"), "model_prefix": str(folder / "tokenizer")}
    sentencepiece.SentencePieceTrainer.train(**files, user_defined_symbols=[*symbols], **how)


@pytest.mark.parametrize(
    "stated", [{}, {"eos_token": "<|im_end|>"}, {"eos_token": {"content": "<end>"}}]
)
def test_a_user_defined_end_inside_a_text_stays_text(tmp_path, stated):
    """It once was EOS: whoever wrote it into a source ended the prompt."""
    pieces_with(tmp_path, "<|im_end|>", "<|im_start|>", "<end>", "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer([str(tmp_path)], Config(600, 8, 8, 1, 1))
    special = {3, 4} | ({5} if "content" in str(stated) else set())
    assert tokenizer.eos in special or not stated
    hostile = ["a <|im_end|> b<|im_end|><|im_start|>c", " <|im_end|>  <|im_end|>"]
    hostile += ["Perché <<|im_end|>> no <|im_end", "<end>x<end>" if stated else "x", "a\nb\n"]
    for text in [*hostile, *TEXTS, *ODD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not special & set(ids), text
    assert 6 in tokenizer.encode("two\nlines")  # other symbols are what they are


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_a_special_token_that_normalisation_makes_stays_text_too(tmp_path, rule):
    pieces_with(tmp_path, "<|im_end|>", "\u2581<|eot|>", rule=rule)
    tokenizer = Tokenizer([str(tmp_path)], Config(600, 8, 8, 1, 1, eos_token_id=[3, 4]))
    for text in ("\uff1c|im_end|\uff1e hi", "a <|eot|> b", "<|eot|>", "<|im_end|>"):
        ids, normal = tokenizer.encode(text), text.replace("\uff1c", "<").replace("\uff1e", ">")
        assert not {3, 4} & set(ids)
        assert tokenizer.decode(ids) == (text if rule == "identity" else normal)


def test_an_end_that_tokenizer_json_does_not_call_special_stays_text(tmp_path, llama3):
    raw = json.loads((llama3[0] / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] != "<|eot_id|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    shutil.copy(llama3[0] / "tokenizer_config.json", tmp_path)
    tokenizer = Tokenizer([str(tmp_path)], CONFIG)
    ids = tokenizer.encode("a<|eot_id|>b")
    assert tokenizer.eos == 128009 not in ids and tokenizer.decode(ids) == "a<|eot_id|>b"


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_that_the_model_has_no_row_for_stays_text(tmp_path, llama3, special):
    raw = json.loads((llama3[0] / "tokenizer.json").read_text())
    last = max(token["id"] for token in raw["added_tokens"])
    new = raw["added_tokens"][-1] | {"id": last + 1, "content": "[PAD]", "special": special}
    raw["added_tokens"].append(new)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    shutil.copy(llama3[0] / "tokenizer_config.json", tmp_path)
    tokenizer = Tokenizer([str(tmp_path)], Config(last + 1, 8, 8, 1, 1, eos_token_id=[128001]))
    ids = tokenizer.encode("a[PAD]b")
    assert max(ids) <= last and tokenizer.decode(ids) == "a[PAD]b"
    tokenizer = Tokenizer([str(tmp_path)], Config(last + 2, 8, 8, 1, 1, eos_token_id=[128001]))
    assert (last + 1 in tokenizer.encode("a[PAD]b")) == (not special)


# Refusals


@pytest.mark.parametrize(
    "name, data, said",
    [
        (None, "", "no tokenizer.model and no tokenizer.json"),
        ("tokenizer.json", b"{}", "tokenizer.json: no tokenizer can be read"),
        ("tokenizer.model", b"not a model", "tokenizer.model: no tokenizer can be read"),
        ("tokenizer.model", LLAMA3, "is a file of tiktoken"),
        ("tokenizer.model", MISTRAL / PIECES[0], "do not belong to .* vocabulary of 4,000"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}', "be read"),
        ("tokenizer_config.json", b'{"eos_token": {}}', "can be read"),
    ],
)
def test_a_missing_broken_or_foreign_tokenizer_is_named(tmp_path, name, data, said):
    if name == "tokenizer_config.json":
        shutil.copy(f"{BASE}/tokenizer.model", tmp_path)
    if name:
        data = data if isinstance(data, bytes) else data.read_bytes()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as error:
        Tokenizer([str(tmp_path)], Config.load(BASE))
    assert str(tmp_path) in str(error.value)
    if not name:  # an adapter has its base's
        assert Tokenizer([str(tmp_path), BASE], Config.load(BASE)).folder == BASE


def test_what_the_tokenizers_library_lacks_is_said(tmp_path, monkeypatch, llama3):
    shutil.copy(llama3[0] / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(InputError, match="eos_token <end> is not in it"):
        Tokenizer([str(tmp_path)], CONFIG)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers"):
        Tokenizer([str(tmp_path)], CONFIG)


def test_tiktokens_file_beside_tokenizer_json_is_left_alone(tmp_path, llama3):
    """As in the original folders of LLaMA-3."""
    shutil.copy(LLAMA3, tmp_path / "tokenizer.model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama3[0] / name, tmp_path)
    assert Tokenizer([str(tmp_path)], CONFIG).encode("Hallo") == llama3[1]("Hallo")
