"""Real tokenizers, which PyPI packages ship: SentencePiece, BPE of LLaMA-3 and Tekken."""

import base64
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import BASE

from plumbing.base.errors import InputError
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.corpus.languages import TEMPLATES, template_of

llama_models, tokenizers = pytest.importorskip("llama_models"), pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
mistral_common = pytest.importorskip("mistral_common", reason="wants Python 3.11")

MISTRAL = Path(mistral_common.__file__).parent / "data"
PIECES = sorted(p.name for p in MISTRAL.glob("*.model.v*") if not p.name.endswith("m1"))
TIKTOKEN = Path(next(iter(llama_models.__path__))) / "llama3" / "tokenizer.model"
CONFIG = Config(200_000, 8, 8, 1, 1, eos_token_id=[128001, 128009])

TEXTS = {  # the paper's twelve languages
    "en": "The file couldn't be opened: it's 90% damaged.",
    "it": "Perché il file è «danneggiato»? Non c'è più!",
    "nl": "Geüploade foto's zijn één keer zichtbaar.",
    "ro": "Fișierul nu poate fi deschis în această țară.",
    "de": "Größere Änderungen müssen geprüft werden.",
    "zh": "无法打开该文件，因为它已损坏。",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "ja": "ファイルを開けませんでした。「破損」しています。",
    "ru": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "uk": "Ґанок, їжак і щедрий об'єм — це не помилка.",
    "fr": "Où est l'œuvre ? Voilà : « çà et là », à 5 €.",
    "ko": "파일을 열 수 없습니다. 손상되었습니다!",
}
ODD = [
    "</s> <s>[INST] <|end_of_text|> <|begin_of_text|>",
    "  two  spaces\n\n\tand a tab ",
    "🙂🏽 𝔘𝔫𝔦 e\u0301 \u2028 \x85",
    "",
    " ",
    '"quoted"',
]


def prompt(template, target, text):
    names, lines = template_of(template, ("en", target))
    return "\n".join(lines).format(source=names["en"], target=names[target], input=text)


PROMPTS = [prompt(name, code, TEXTS[code]) for name in TEMPLATES for code in TEXTS if code != "en"]


def byte_bpe(tokens, pattern, specials):
    """A tokenizers.Tokenizer of a tiktoken vocabulary, as the conversion of LLaMA-3 made its
    tokenizer.json."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(str(tokens), pattern, extra_special_tokens=specials)
    bpe, bos = converter.converted(), specials[0]
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    return bpe


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """(a folder with tokenizer.json, the reference encoder)"""
    from llama_models.llama3.tokenizer import Tokenizer as Reference

    reference, folder = Reference(TIKTOKEN), tmp_path_factory.mktemp("llama3")
    specials = sorted(reference.special_tokens, key=reference.special_tokens.get)
    bpe = byte_bpe(TIKTOKEN, reference.model._pat_str, specials)
    bpe.save(str(folder / "tokenizer.json"))
    stated = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    stated["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return folder, lambda text: reference.encode(text, bos=False, eos=False)


@pytest.fixture(scope="module")
def tekken(tmp_path_factory):
    """(a folder with tokenizer.json, Mistral's reference encoder)"""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    path, folder = sorted(MISTRAL.glob("tekken*.json"))[-1], tmp_path_factory.mktemp("tekken")
    raw, reference = json.loads(path.read_text()), Tekkenizer.from_file(path)
    # Tekken puts its special tokens first, the conversion last.
    shift = raw["config"]["default_num_special_tokens"]
    used = raw["vocab"][: raw["config"]["default_vocab_size"] - shift]
    (folder / "tokens").write_text("".join(f"{t['token_bytes']} {t['rank']}\n" for t in used))
    assert base64.b64decode(used[97]["token_bytes"]) == b"a"
    bpe = byte_bpe(folder / "tokens", raw["config"]["pattern"], ["<s>", "</s>"])
    bpe.save(str(folder / "tokenizer.json"))
    return folder, lambda text: [i - shift for i in reference.encode(text, bos=False, eos=False)]


def write_stated(folder, **stated):
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def load(folder, config=CONFIG):
    return Tokenizer([str(folder)], config)


@pytest.mark.parametrize("name", PIECES)
def test_sentencepiece_models_give_every_text_back(tmp_path, name):
    shutil.copy(MISTRAL / name, tmp_path / "tokenizer.model")
    tokenizer = load(tmp_path)
    assert tokenizer.bos == [1] and tokenizer.eos == 2  # as transformers, without a configuration
    for text in [*TEXTS.values(), *ODD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {1, 2} & set(ids)
    added_to_the_network_alone = 150_000
    ids = [*tokenizer.encode("Hallo"), 2, added_to_the_network_alone]
    assert tokenizer.decode(ids) == "Hallo"


@pytest.mark.parametrize("which", ["llama3", "tekken"])
def test_tokenizer_json_agrees_with_the_reference_encoder(which, request):
    folder, reference = request.getfixturevalue(which)
    tokenizer = load(folder)
    for text in [*TEXTS.values(), *ODD, *PROMPTS]:
        ids = tokenizer.encode(text)
        assert ids == reference(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_json_of_a_sentencepiece_model_agrees_with_it(tmp_path, add_bos):
    shutil.copy(MISTRAL / PIECES[-1], tmp_path / "tokenizer.model")
    write_stated(tmp_path, add_bos_token=add_bos)
    fast = tmp_path / "fast"
    transformers.LlamaTokenizer.from_pretrained(str(tmp_path)).save_pretrained(str(fast))
    assert not (fast / "tokenizer.model").exists()
    pieces, bpe = load(tmp_path), load(fast)
    for text in PROMPTS:
        assert bpe.encode(text) == pieces.encode(text)
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.eos == pieces.eos == 2
    assert bpe.bos == pieces.bos == [1] * add_bos


def test_a_prompt_with_bos_has_the_ids_of_transformers(llama3):
    tokenizer = load(llama3[0])
    theirs = transformers.AutoTokenizer.from_pretrained(str(llama3[0]), split_special_tokens=True)
    assert tokenizer.bos == [128000] and tokenizer.eos == 128009
    for text in PROMPTS:
        assert tokenizer.encode_turns([text]) == theirs(text).input_ids


def test_without_a_post_processor_there_is_no_bos_and_eos_is_that_of_config_json(tmp_path, llama3):
    """As in SmolLM2's folder."""
    raw = json.loads((llama3[0] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    tokenizer = load(tmp_path)
    assert tokenizer.bos == [] and tokenizer.eos == 128001
    assert tokenizer.encode("Hallo") == llama3[1]("Hallo")


IM_END = {"32005": {"content": "<|im_end|>"}}


@pytest.mark.parametrize(
    "stated, bos, eos",
    [
        ({"add_bos_token": False}, [], 2),
        ({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}, [1], 2),
        ({"bos_token": "", "eos_token": ""}, [1], 2),
        ({"bos_token": None}, [1], 2),
        ({"eos_token": "<|im_end|>", "added_tokens_decoder": IM_END}, [1], 32005),
    ],
)
def test_bos_and_eos_of_pieces_are_what_tokenizer_config_says(tmp_path, stated, bos, eos):
    shutil.copy(MISTRAL / PIECES[0], tmp_path / "tokenizer.model")
    write_stated(tmp_path, **stated)
    tokenizer = load(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


@pytest.mark.parametrize("which", ["demo", "llama3"])
def test_a_text_that_is_shortened_comes_to_an_end_in_whole_characters(request, which):
    folder = BASE if which == "demo" else request.getfixturevalue("llama3")[0]
    tokenizer = load(folder)
    for text in ["🙂🏽" * 50, "無" * 100, "a" * 300, "\u0301" * 40, " " * 80]:
        while text:
            shorter = tokenizer.shorten(text, 5)
            assert len(shorter) < len(text) and "\ufffd" not in shorter
            text = shorter


@pytest.mark.parametrize("which", ["demo", "llama3"])
def test_of_megabytes_a_head_is_encoded_that_fills_the_room(request, which):
    """20 MB once took 44 s: the time grew with the square of the length."""
    folder = BASE if which == "demo" else request.getfixturevalue("llama3")[0]
    tokenizer = load(folder)
    for text in ["a" * 3_000_000, "open the file. " * 300_000, "無" * 1_000_000]:
        head = tokenizer.head(text, 200)
        assert len(head) < 600_000 and text.startswith(head)
        assert len(tokenizer.encode(head)) > 200
    assert tokenizer.head("short", 200) == "short"


def test_each_token_of_a_response_is_shown_with_what_it_adds(tokenizer):
    response = [*tokenizer.encode("Apri il file"), tokenizer.eos]
    *texts, end = tokenizer.texts_of(response, tokenizer.eos)
    assert "".join(texts) == "Apri▁il▁file" and end == "<end>"


def test_a_turn_that_follows_begins_a_line(tokenizer):
    ids = tokenizer.encode_turns(["one", "uno", "two"])
    assert tokenizer.decode(ids).replace(" ", "") == "oneuno\ntwo"
    assert ids[0] == tokenizer.bos[0] and tokenizer.eos not in ids


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "no tokenizer.model and no tokenizer.json"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json: no tokenizer can be read .*copy it"),
        ({"tokenizer.model": b"not one"}, "tokenizer.model: no tokenizer can be read"),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": 3}'}, "tokenizer.model: no token"),
        (
            {"tokenizer_config.json": b'{"added_tokens_decoder": {"x": {"content": "y"}}}'},
            "tokenizer.model: no tokenizer",
        ),
        ({"tokenizer_config.json": b'{"eos_token": {}}'}, "tokenizer.model: no tokenizer"),
        ({"tokenizer_config.json": b"["}, "tokenizer_config.json: expecting"),
    ],
)
def test_a_missing_or_broken_tokenizer_is_named(tmp_path, files, said):
    if "tokenizer_config.json" in files:
        shutil.copy(MISTRAL / PIECES[0], tmp_path / "tokenizer.model")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        load(tmp_path)


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    shutil.copy(MISTRAL / PIECES[0], tmp_path / "tokenizer.model")
    with pytest.raises(InputError, match="pieces, BOS .* a vocabulary of 4,000"):
        load(tmp_path, Config(4000, 8, 8, 1, 1))


def test_without_the_tokenizers_library_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers"):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_has_that_of_its_base(tmp_path):
    assert Tokenizer([str(tmp_path), BASE], Config.load(BASE)).folder == BASE


def test_tiktokens_file_beside_tokenizer_json_is_left_alone(tmp_path, llama3):
    """As in the original folders of LLaMA-3."""
    shutil.copy(TIKTOKEN, tmp_path / "tokenizer.model")
    with pytest.raises(InputError, match="is a file of tiktoken; expected tokenizer.json"):
        load(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama3[0] / name, tmp_path)
    assert load(tmp_path).encode("Hallo") == llama3[1]("Hallo")


# What reads like a special token inside a text stays text


def train_pieces(folder, *symbols, rule="identity"):
    """A SentencePiece model with user-defined symbols, as chat models of LLaMA have them."""
    import sentencepiece

    text = folder / "text"
    text.write_text("\n".join([*TEXTS.values()] * 40), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name=rule,
        remove_extra_whitespaces=False,
        user_defined_symbols=[*symbols],
        minloglevel=2,
    )


@pytest.mark.parametrize(
    "stated", [{}, {"eos_token": "<|im_end|>"}, {"eos_token": {"content": "<end>"}}]
)
def test_a_user_defined_symbol_is_text_where_it_is_special(tmp_path, stated):
    """It once was EOS: whoever wrote it into a source ended the prompt."""
    train_pieces(tmp_path, "<|im_end|>", "<|im_start|>", "<end>", "\n")
    write_stated(tmp_path, **stated)
    tokenizer = load(tmp_path, Config(600, 8, 8, 1, 1))
    special = {3, 4, 5} if "content" in str(stated) else {3, 4}
    texts = ["<|im_end|>", "a <|im_end|> b<|im_end|><|im_start|>c", " <|im_end|>  <|im_end|>"]
    texts += ["Perché <<|im_end|>> no <|im_end", "two\nlines\n", "<end>x<end>" if stated else "x"]
    for text in [*texts, *TEXTS.values(), *ODD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not special & set(ids), text
    assert 6 in tokenizer.encode("two\nlines")  # other symbols are what they are


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_a_special_token_that_normalisation_makes_is_text(tmp_path, rule):
    train_pieces(tmp_path, "<|im_end|>", "\u2581<|eot|>", rule=rule)
    tokenizer = load(tmp_path, Config(600, 8, 8, 1, 1, eos_token_id=[3, 4]))
    for text in ("\uff1c|im_end|\uff1e hi", "a <|eot|> b", "<|eot|>", "<|im_end|>"):
        ids = tokenizer.encode(text)
        normal = text.replace("\uff1c", "<").replace("\uff1e", ">") if rule != "identity" else text
        assert tokenizer.decode(ids) == normal and not {3, 4} & set(ids), text


def test_an_end_that_tokenizer_json_does_not_call_special_is_text(tmp_path, llama3):
    raw = json.loads((llama3[0] / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] != "<|eot_id|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    shutil.copy(llama3[0] / "tokenizer_config.json", tmp_path)
    tokenizer = load(tmp_path)
    ids = tokenizer.encode("a<|eot_id|>b")
    assert tokenizer.eos == 128009 not in ids and tokenizer.decode(ids) == "a<|eot_id|>b"


def test_an_end_that_the_vocabulary_lacks_is_said(tmp_path, llama3):
    shutil.copy(llama3[0] / "tokenizer.json", tmp_path)
    write_stated(tmp_path, eos_token="<end>")
    with pytest.raises(InputError, match="eos_token <end> is not in it"):
        load(tmp_path)
    os.unlink(tmp_path / "tokenizer_config.json")
    assert load(tmp_path).eos == CONFIG.eos_token_id[0]
