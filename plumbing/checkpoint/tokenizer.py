"""Text to ids and back, BOS and EOS: SentencePiece, or the tokenizers library."""

import functools
import json
import os
import re
from collections.abc import Callable

import sentencepiece

from plumbing.base.errors import InputError, require
from plumbing.base.files import read_json, require_file
from plumbing.checkpoint.chat import ChatTemplate, Special, without_prefix
from plumbing.checkpoint.config import Config

# A token covers at most its own characters; text in which spaces are dropped may need some more.
MARGIN = 4


class Tokenizer:
    """tokenizer.model (SentencePiece) or tokenizer.json of the first folder that has one.

    encode(text): ids without BOS and EOS; what reads like a special token ("</s>") stays text.
    continued(text): the ids of a text that goes on behind another. behind_special(text): of one
    behind a special token of a chat template. decode(ids): the text.
    bos: the ids that the folder's own configuration puts before a text, perhaps none. eos: the id
    that ends a response. special: {text: Special}, for chat templates. names: {"bos_token": text,
    ...}, as these may name them. rows: ids that the model knows; an added token beyond them stays
    text. Raises InputError."""

    def __init__(self, folders: list[str], config: Config):
        path = find_tokenizer(folders)
        self.folder = os.path.dirname(path)
        self.stated = read_stated(self.folder)
        try:
            self.names = special_names(self.stated)
            if path.endswith(".model"):
                self.load_sentencepiece(path, config)
            else:
                self.load_tokenizers(path, config)
            self.continued = without_prefix(self.encode)
        except Exception as error:  # both libraries raise bare Exceptions
            found = " ".join(str(error).split())[:200]
            hint = "copy it and the JSON files beside it again"
            if isinstance(error, ImportError):
                hint = "pip install tokenizers"
            raise InputError(f"{path}: no tokenizer can be read ({found}); {hint}") from None
        self.rows, used = config.vocab_size, [self.size - 1, *self.bos, self.eos]
        require(
            all(0 <= i < config.vocab_size for i in used),
            f"{path}: {self.size:,} pieces, BOS {self.bos}, EOS {self.eos} do not belong to a "
            f"model with a vocabulary of {config.vocab_size:,}",
        )

    def load_sentencepiece(self, path: str, config: Config) -> None:
        """Read tokenizer.model. The model's own BOS and EOS count where the files beside it name
        none."""
        pieces = sentencepiece.SentencePieceProcessor(model_file=path)
        texts = [pieces.id_to_piece(i) for i in range(pieces.vocab_size())]
        self.size, self.longest = len(texts), max(map(len, texts))
        # A token that was added to the network alone has no text.
        self.decode = lambda ids: pieces.decode([i for i in ids if i < self.size])

        tokens = self.stated.get("added_tokens_decoder", {}).items()
        added = {token["content"]: int(i) for i, token in tokens}
        ids = added | {text: i for i, text in enumerate(texts)}
        bos, eos = self.names.get("bos_token"), self.names.get("eos_token")
        self.bos = [ids.get(bos, pieces.bos_id())] if self.stated.get("add_bos_token", True) else []
        self.eos = ids.get(eos, pieces.eos_id())

        text_of = {i: text for text, i in ids.items()}
        own = {"bos_token": text_of.get(pieces.bos_id()), "eos_token": text_of.get(self.eos)}
        named = {*added, *own.values(), bos, eos}
        self.special = {t: Special(ids[t], re.escape(t)) for t in named if t and t in ids}
        self.names = {name: text or "" for name, text in own.items()} | self.names

        stays_text = {token["content"] for _, token in tokens if token.get("special")} | {bos, eos}
        stays_text |= {text_of.get(i) for i in (self.eos, *config.eos_token_id)}
        stays_text |= {text for text in texts if re.fullmatch(r"<\|.*\|>", text)}
        self.encode = without_special(pieces, stays_text & {*texts})
        if self.stated.get("add_prefix_space") is False:
            self.encode = without_prefix(self.encode)
        self.behind_special = self.encode
        # As transformers does, where the file does not ask for its older behaviour.
        if not self.stated.get("legacy", False):
            self.behind_special = without_prefix(self.encode)

    def load_tokenizers(self, path: str, config: Config) -> None:
        """Read tokenizer.json. What its post-processor puts before a text is BOS; EOS is
        config.json's where the files beside it name none."""
        import tokenizers  # optional: only for a folder without tokenizer.model

        bpe, eos = tokenizers.Tokenizer.from_file(path), self.names.get("eos_token")
        stays_text = {eos, *(bpe.id_to_token(i) for i in config.eos_token_id if i >= 0)}
        added = bpe.get_added_tokens_decoder()
        stays_text |= {token.content for i, token in added.items() if i >= config.vocab_size}
        if any(token.content in stays_text and not token.special for token in added.values()):
            bpe = tokenizers.Tokenizer.from_str(with_special(read_json(path), stays_text))
        bpe.no_truncation()  # whatever the file is set to
        bpe.no_padding()
        bpe.encode_special_tokens = True
        self.size = 1 + max(bpe.get_vocab(with_added_tokens=False).values())
        self.longest = max(map(len, bpe.get_vocab()))
        self.encode = lambda text: bpe.encode(text, add_special_tokens=False).ids
        self.decode = bpe.decode

        framed = bpe.encode("a").ids
        self.bos = framed[: framed.index(self.encode("a")[0])]
        self.eos = bpe.token_to_id(eos) if eos else (config.eos_token_id or [-1])[0]
        require(self.eos is not None, f"eos_token {eos} is not in it")
        bos_text = bpe.id_to_token(self.bos[0]) if self.bos else ""
        eos_text = bpe.id_to_token(self.eos) if self.eos >= 0 else ""
        self.names = {"bos_token": bos_text, "eos_token": eos_text} | self.names

        self.special = {}
        for i, token in bpe.get_added_tokens_decoder().items():
            if token.special:
                before, after = (r"\s*" if strip else "" for strip in (token.lstrip, token.rstrip))
                pattern = before + re.escape(token.content) + after
                self.special[token.content] = Special(i, pattern)
        self.behind_special = self.encode
        if self.special:  # how the library goes on behind one
            bpe.encode_special_tokens = False
            _, *behind = bpe.encode(f"{next(iter(self.special))}a", add_special_tokens=False).ids
            bpe.encode_special_tokens = True
            if behind != self.encode("a"):
                self.behind_special = without_prefix(self.encode)

    def encode_turns(self, texts: list[str]) -> list[int]:
        """The ids of [prompt, response, prompt, ..., prompt] behind BOS. Each prompt begins a line;
        there is no EOS."""
        ids = [*self.bos, *self.encode(texts[0])]
        for response, prompt in zip(texts[1::2], texts[2::2], strict=True):
            ids += self.encode(response) + self.continued("\n" + prompt)
        return ids

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response, without its end."""
        return self.encode(text)

    @property
    def end(self) -> int:
        """The id that ends a response."""
        return self.eos

    @functools.cached_property
    def chat(self) -> ChatTemplate:
        """The folder's chat template. Raises InputError where it has none."""
        return ChatTemplate(self)

    def texts_of(self, response: list[int], end: int) -> list[str]:
        """What each token of a response adds to the text, a space as "▁"; the id `end` is <end>."""
        texts, before = [], ""
        for n, token in enumerate(response, start=1):
            text = self.decode(response[:n])
            added = text[len(before) :].replace(" ", "▁").replace("\n", "↵")
            texts.append("<end>" if token == end else added or "·")
            before = text
        return texts

    def shorten(self, text: str, tokens: int) -> str:
        """A text without its last so many tokens; always shorter, with no half character."""
        shorter = self.decode(self.encode(text)[:-tokens])
        return shorter.rstrip("\ufffd")[: len(text) - 1]

    def head(self, text: str, tokens: int) -> str:
        """The beginning of a text, more than so many tokens of it: to encode 100 MB takes hours."""
        return text[: max(0, tokens) * self.longest * MARGIN]


def find_tokenizer(folders: list[str]) -> str:
    """The path of the first tokenizer. LLaMA-3's folders may have tiktoken's file under the name of
    SentencePiece's; tokenizer.json beside it is the same tokenizer. Raises InputError."""
    for folder in folders:
        pieces, bpe = (os.path.join(folder, f"tokenizer.{kind}") for kind in ("model", "json"))
        for path in filter(os.path.exists, (pieces, bpe)):
            require_file(path, "the model's tokenizer")
        if os.path.exists(pieces):
            with open(pieces, "rb") as f:
                tiktoken = re.fullmatch(rb"[\w+/]+=* \d+\n", f.readline(1000))
            sentence = f"{pieces} is a file of tiktoken; expected tokenizer.json beside it"
            require(not tiktoken or os.path.exists(bpe), sentence)
            return bpe if tiktoken else pieces
        if os.path.exists(bpe):
            return bpe
    sentence = "no tokenizer.model and no tokenizer.json; expected the model's tokenizer"
    raise InputError(f"{folders[0]}: {sentence}")


def read_stated(folder: str) -> dict:
    """What tokenizer_config.json says, if there is one. Where it lists no added tokens, as in older
    folders, special_tokens_map.json counts before it, and added_tokens.json lists them. Raises
    InputError."""
    names = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
    paths = [os.path.join(folder, name) for name in names]
    stated, special, added = (read_json(path) if os.path.exists(path) else {} for path in paths)
    if "added_tokens_decoder" in stated:
        return stated
    listed = {str(i): {"content": text} for text, i in added.items()}
    return stated | special | {"added_tokens_decoder": listed}


def without_special(
    pieces: sentencepiece.SentencePieceProcessor, special: set[str]
) -> Callable[[str], list[int]]:
    """SentencePiece's encode, but what reads like a special token stays text. A user-defined symbol
    is one piece wherever it stands in a text; it is replaced by the pieces of its first character
    and of the rest, each encoded behind another such symbol: without the space that begins a
    text."""
    found = {pieces.piece_to_id(t): t for t in special if pieces.piece_to_id(t) in pieces.encode(t)}
    if not found:
        return pieces.encode
    behind, before = next(iter(found.items()))

    def continued(text: str) -> list[int]:
        ids = pieces.encode(before + text)
        return ids[ids.index(behind) + 1 :]

    plain = {}
    for i, text in found.items():
        text = text.replace("\u2581", " ")  # SentencePiece's sign for a space
        plain[i] = [x for x in continued(text[0]) + continued(text[1:]) if x not in found]
    return lambda text: [x for i in pieces.encode(text) for x in plain.get(i, [i])]


def with_special(tokenizer: dict, texts: set[str | None]) -> str:
    """The JSON of a tokenizer in which the tokens of these texts are special."""
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] or token["content"] in texts
    return json.dumps(tokenizer)


def special_names(stated: dict) -> dict[str, str]:
    """{"bos_token": text, ...} of tokenizer_config.json, where a token may be an object."""
    names = {}
    for name, token in stated.items():
        if name.endswith("_token"):
            text = token["content"] if isinstance(token, dict) else token
            names |= {name: text} if isinstance(text, str) else {}
    return names
