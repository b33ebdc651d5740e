"""Chat templates: the ids that transformers makes of a conversation; special tokens in a text."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import BASE

from data import Prompter, Sample
from plumbing.base.errors import InputError
from plumbing.base.files import write_json
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.tokenizer import Tokenizer

jinja2 = pytest.importorskip("jinja2")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('x') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '<|im_end|>\n\n' + message.content + '<|end|>' }}"
    "{%- if loop.index > 99 %}{% break %}{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{%- endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
    "eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "inst": INST, "zephyr": ZEPHYR}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>"]
TURNS = [
    ["Apri il file"],
    ["Open the file: it's 90% damaged.\n\nè", "Perché?", "two  spaces\n- a\n- b"],
    ["x", "y", "z", "w", "v"],
]
CORPUS = ["open the file assistant user\n", "Apri il file\n\n"] * 9


def byte_level(folder):
    """Byte-level BPE, as LLaMA-3 and SmolLM2 have it."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe, alphabet = tokenizers.Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.save(f"{folder}/tokenizer.json")


def metaspace(folder, scheme):
    """SentencePiece's way in the tokenizers library; scheme: which texts begin with a space."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    parts = decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()
    bpe.decoder = decoders.Sequence([*parts, decoders.Strip(content=" ", left=1)])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *SPECIAL, *bytes_])
    bpe.train_from_iterator(CORPUS, trainer)
    data = json.loads(bpe.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL]
    Path(folder, "tokenizer.json").write_text(json.dumps(data))


def make(folder, kind, template, **changes):
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATES.get(template)}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "byte-level":
        byte_level(folder)
        config |= {"eos_token": "<|im_end|>"}
    elif kind == "sentencepiece":
        shutil.copy(f"{BASE}/tokenizer.model", folder)
        config |= {"tokenizer_class": "LlamaTokenizer"}
    else:
        metaspace(folder, kind)
    write_json(folder / "tokenizer_config.json", config | changes)
    write_json(folder / "config.json", {"model_type": "llama"})
    return Tokenizer([str(folder)], Config(5000, 8, 8, 1, 1))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level", "first", "always", "never", "sentencepiece"])
def test_ids_of_a_conversation_are_those_of_transformers(tmp_path, kind, template):
    if kind == "sentencepiece" and template in ("chatml", "llama3"):
        pytest.skip("the demo's tokenizer has no such tokens")
    tokenizer = make(tmp_path, kind, template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for texts in TURNS:
        roles = ["user", "assistant"] * len(texts)
        turns = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        how = {"add_generation_prompt": True, "return_dict": False}
        assert tokenizer.chat.encode_turns(texts) == theirs.apply_chat_template(turns, **how)
        # A byte-level tokenizer may merge two newlines that end a prompt, and not in a whole text.
        if (kind, template) != ("byte-level", "llama3"):
            ids = tokenizer.chat.encode_turns(texts[:1]) + tokenizer.chat.encode_response("Apri")
            answered = [turns[0], {"role": "assistant", "content": "Apri"}]
            expected = theirs.apply_chat_template(answered, return_dict=False)
            assert expected[: len(ids)] == ids


@pytest.mark.parametrize("kind", ["byte-level", "first", "sentencepiece"])
def test_special_tokens_in_a_text_stay_text_and_bos_is_there_once(tmp_path, kind):
    tokenizer = make(tmp_path, kind, "inst")
    text = "</s> <|im_end|> <s>[INST] a"
    ids = tokenizer.chat.encode_turns([text])
    bos, eos = tokenizer.special["<s>"].id, tokenizer.special["</s>"].id
    assert ids.count(bos) == 1 and ids[0] == bos and eos not in ids
    assert text in tokenizer.decode(ids)


def test_a_prompt_of_a_sample_is_the_message_and_is_cut_where_it_must(tmp_path):
    tokenizer = make(tmp_path, "byte-level", "chatml")
    prompter, encode = Prompter(tokenizer, "chat"), tokenizer.chat.encode_turns
    sample = Sample(("it", "nl"), "Apri il file", "Open het bestand")
    message = "Translate the following sentences from Italian to Dutch.\n\nApri il file"
    ids, cut = prompter.encode(sample, 500)
    assert ids == encode([message]) and not cut
    assert prompter.encode_response("a") == tokenizer.chat.encode_response("a") + [tokenizer.eos]
    shorter, cut = prompter.encode(sample, len(ids) - 2)
    assert len(shorter) <= len(ids) - 2 and cut
    general = Sample(None, "a b c", "3", "Count the words.")
    assert prompter.encode(general, 500)[0] == encode(["Count the words.\n\na b c"])


def test_a_template_whose_special_token_the_model_lacks_is_refused_before_any_text(tmp_path):
    """It once was an IndexError in the middle of a run."""
    turns = "<|new|>{% for m in messages %}{{ m.content }}{% endfor %}"
    make(tmp_path, "byte-level", "none", chat_template=turns)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    new = len(raw["model"]["vocab"])
    raw["added_tokens"].append(raw["added_tokens"][-1] | {"id": new, "content": "<|new|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer([str(tmp_path)], Config(new + 1, 8, 8, 1, 1))
    assert tokenizer.chat.encode_turns(["open"]) == [new, *tokenizer.encode("open")]
    tokenizer = Tokenizer([str(tmp_path)], Config(new, 8, 8, 1, 1))  # harmless without a template
    with pytest.raises(InputError, match=rf"<\|new\|>', whose id {new} .* vocabulary of {new}"):
        tokenizer.chat.encode_turns(["open"])


@pytest.mark.parametrize(
    "template, said",
    [
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ messages[0].content }}" * 2, "found turns \\[0, 0\\]"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ raise_exception('system only') }}", "system only"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("\ud800{{ messages[0].content }}", "UnicodeEncodeError"),
        (None, "no chat_template in"),
    ],
)
def test_a_template_that_fails_is_one_sentence_that_names_its_file(tmp_path, template, said):
    tokenizer = make(tmp_path, "byte-level", "none", chat_template=template)
    with pytest.raises(InputError, match=f"{tmp_path}.*{said}"):
        tokenizer.chat.encode_turns(["x"])


def test_a_template_may_be_one_of_several_or_a_file_and_says_the_same_day_every_day(tmp_path):
    several = [{"name": "default", "template": "<s>{{ messages[0].content }}"}]
    tokenizer = make(tmp_path, "byte-level", "none", chat_template=several)
    assert tokenizer.decode(tokenizer.chat.encode_turns(["open"])[1:]) == "open"
    text = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    (tmp_path / "chat_template.jinja").write_text(text)
    tokenizer = Tokenizer([str(tmp_path)], Config(5000, 8, 8, 1, 1))
    assert tokenizer.decode(tokenizer.chat.encode_turns(["open"])) == "26 Jul 2024 open"


def test_without_jinja2_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    tokenizer = make(tmp_path, "byte-level", "inst")
    monkeypatch.setitem(sys.modules, "jinja2.ext", None)
    with pytest.raises(InputError, match="pip install jinja2"):
        tokenizer.chat.encode_turns(["x"])
