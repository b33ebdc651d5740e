"""Chat templates: the ids that transformers makes of a conversation; special tokens in a text."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import BASE

from plumbing.base.errors import InputError
from plumbing.base.files import write_json
from plumbing.checkpoint.chat import without_prefix
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
EVERY_TURN = "{% for message in messages %}{{ message.content }} {% endfor %}"
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "inst": INST, "zephyr": ZEPHYR}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>"]
TURNS = [
    ["Apri il file"],
    ["Open the file: it's 90% damaged.\n\nè", "Perché?", "  two  spaces\n- a\n- b"],
    ["x", "y", "z", "w", "v"],
]


def byte_level(folder):
    """Byte-level BPE, as LLaMA-3 and SmolLM2 have it."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["open the file assistant user\n", "Apri il file\n\n"] * 9, trainer)
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
    bpe.train_from_iterator(["open the file assistant user", "Apri il file"] * 9, trainer)
    data = json.loads(bpe.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL]
    Path(folder, "tokenizer.json").write_text(json.dumps(data))


def sentencepiece(folder):
    shutil.copy(f"{BASE}/tokenizer.model", folder)


def make(folder, kind, template, **changes):
    folder.mkdir(exist_ok=True)
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATES.get(template)}
    if kind == "byte-level":
        byte_level(folder)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    elif kind == "sentencepiece":
        sentencepiece(folder)
        config |= {"tokenizer_class": "LlamaTokenizer"}
    else:
        metaspace(folder, kind)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config | changes)
    write_json(folder / "config.json", {"model_type": "llama"})
    return Tokenizer([str(folder)], Config(5000, 8, 8, 1, 1))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte-level", "first", "always", "never", "sentencepiece"])
def test_ids_of_a_conversation_are_those_of_transformers(tmp_path, kind, template):
    if kind == "sentencepiece" and template in ("chatml", "llama3"):
        pytest.skip("the demo's tokenizer has no such tokens")
    tokenizer = make(tmp_path / "model", kind, template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    for texts in TURNS:
        messages = [
            {"role": "assistant" if n % 2 else "user", "content": text.strip()}
            for n, text in enumerate(texts)
        ]
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert tokenizer.chat.encode_turns([text.strip() for text in texts]) == expected
        # A byte-level tokenizer may merge two newlines that end a prompt, and not in a whole text.
        prompt = tokenizer.chat.encode_turns(texts[:1])
        messages = [messages[0], {"role": "assistant", "content": "Apri"}]
        whole = theirs.apply_chat_template(messages, return_dict=False)
        if (kind, template) != ("byte-level", "llama3"):
            answered = prompt + tokenizer.chat.encode_response("Apri")
            assert whole[: len(answered)] == answered


@pytest.mark.parametrize("kind", ["byte-level", "first", "sentencepiece"])
def test_special_tokens_in_a_text_stay_text_and_bos_is_there_once(tmp_path, kind):
    tokenizer = make(tmp_path / "model", kind, "inst")
    text = "</s> <|im_end|> <s>[INST] a"
    ids = tokenizer.chat.encode_turns([text])
    bos, eos = tokenizer.special["<s>"].id, tokenizer.special["</s>"].id
    assert ids.count(bos) == 1 and ids[0] == bos and eos not in ids
    assert text in tokenizer.decode(ids)


def test_the_end_is_what_the_template_has_behind_a_response_else_eos(tmp_path):
    tokenizer = make(tmp_path / "a", "byte-level", "llama3")
    assert tokenizer.chat.end == tokenizer.special["<|end|>"].id != tokenizer.eos
    tokenizer = make(tmp_path / "b", "byte-level", "none", chat_template=EVERY_TURN)
    assert tokenizer.chat.end == tokenizer.eos


@pytest.mark.parametrize(
    "template, said",
    [
        ("{{ messages[7].content }}", "fails .UndefinedError"),
        ("{{ messages[0].content }}" * 2, "found turns \\[0, 0\\]"),
        ("{% for", "the chat template fails .TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "fails .ZeroDivisionError"),
        ("{{ raise_exception('system only') }}", "fails .TemplateError: system only"),
        ("{{ ''.__class__.__mro__ }}", "fails .SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails .OverflowError"),
        ("{{ nothing.at.all }}", "fails .UndefinedError"),
        ("{% include 'x' %}", "fails .TypeError"),
        ("no turn at all", "found turns \\[\\]"),
        ("\ud800{{ messages[0].content }}", "fails .UnicodeEncodeError"),
        ([{"name": [1], "template": "x"}], "no chat_template in"),
        (None, "no chat_template in tokenizer_config.json and no chat_template.jinja"),
        ([{"name": "rag", "template": "x"}], "no chat_template in"),
        (3, "no chat_template in"),
    ],
)
def test_a_template_that_fails_is_one_sentence_that_names_its_file(tmp_path, template, said):
    tokenizer = make(tmp_path / "model", "byte-level", "none", chat_template=template)
    with pytest.raises(InputError, match=said) as error:
        tokenizer.chat.encode_turns(["x"])
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_its_own_and_a_list_of_templates(tmp_path):
    several = [{"name": "default", "template": "<s>{{ messages[0].content }}"}]
    tokenizer = make(tmp_path / "model", "byte-level", "none", chat_template=several)
    assert tokenizer.decode(tokenizer.chat.encode_turns(["open"])[1:]) == "open"
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }} !")
    tokenizer = Tokenizer([str(tmp_path / "model")], Config(5000, 8, 8, 1, 1))
    assert tokenizer.decode(tokenizer.chat.encode_turns(["open"])) == "open !"


def test_a_day_in_a_template_is_always_the_same(tmp_path):
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    tokenizer = make(tmp_path / "model", "byte-level", "none", chat_template=template)
    assert tokenizer.decode(tokenizer.chat.encode_turns(["x"])) == "26 Jul 2024 x"


def test_without_jinja2_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    tokenizer = make(tmp_path / "model", "byte-level", "inst")
    for name in ("jinja2", "jinja2.ext", "jinja2.sandbox"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install jinja2"):
        tokenizer.chat.encode_turns(["x"])


def test_a_text_behind_another_has_no_space_of_its_own(tokenizer):
    continued = without_prefix(tokenizer.encode)
    assert continued("a")[0] != tokenizer.encode("a")[0]
    assert tokenizer.decode(tokenizer.encode("file") + continued("s")) == "files"
