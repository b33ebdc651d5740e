"""Text to ids and back, BOS and EOS: SentencePiece, or the tokenizers library."""

import os

import sentencepiece

from plumbing.errors import InputError, require
from plumbing.files import read_json
from plumbing.folders import Config


class Tokenizer:
    """tokenizer.model (SentencePiece) or tokenizer.json of the first folder that has one.
    encode(text) gives ids without BOS and EOS, and special tokens inside a text ("</s>") stay text;
    decode(ids) gives the text. bos: the ids that the folder's own configuration puts before a text,
    perhaps none; eos: the id that ends a response. Raises InputError."""

    def __init__(self, folders: list[str], config: Config):
        names = ("tokenizer.model", "tokenizer.json")
        paths = [os.path.join(folder, name) for folder in folders for name in names]
        path = next(filter(os.path.exists, paths), None)
        sentence = "no tokenizer.model and no tokenizer.json; expected the model's tokenizer"
        require(path, f"{folders[0]}: {sentence}")
        self.folder = os.path.dirname(path)
        config_path = os.path.join(self.folder, "tokenizer_config.json")
        tokenizer_config = read_json(config_path) if os.path.exists(config_path) else {}
        try:
            tokens = tokenizer_config.get("added_tokens_decoder", {}).items()
            added = {token["content"]: int(i) for i, token in tokens}
            bos = token_text(tokenizer_config, "bos_token")
            eos = token_text(tokenizer_config, "eos_token")
            if path.endswith(".model"):
                add_bos = tokenizer_config.get("add_bos_token", True)
                self._load_sentencepiece(path, added, bos, eos, add_bos)
            else:
                self._load_tokenizers(path, eos, config.eos_token_id)
        except Exception as error:  # both libraries raise bare Exceptions
            found = " ".join(str(error).split())[:200]
            hint = "copy it and tokenizer_config.json again"
            if isinstance(error, ImportError):
                hint = "pip install tokenizers"
            raise InputError(f"{path}: no tokenizer can be read ({found}); {hint}") from None
        used = [self.size - 1, *self.bos, self.eos]
        require(
            all(0 <= i < config.vocab_size for i in used),
            f"{path}: {self.size:,} pieces, BOS {self.bos}, EOS {self.eos} do not belong to a "
            f"model with a vocabulary of {config.vocab_size:,}",
        )

    def _load_sentencepiece(
        self, path: str, added: dict[str, int], bos: str | None, eos: str | None, add_bos: bool
    ) -> None:
        pieces = sentencepiece.SentencePieceProcessor(model_file=path)
        self.size, self.encode = pieces.vocab_size(), pieces.encode
        # A token that was added to the model alone has no text.
        self.decode = lambda ids: pieces.decode([i for i in ids if i < self.size])
        ids = added | {pieces.id_to_piece(i): i for i in range(self.size)}
        self.bos = [ids.get(bos, pieces.bos_id())] if add_bos else []
        self.eos = ids.get(eos, pieces.eos_id())

    def _load_tokenizers(self, path: str, eos: str | None, eos_token_id: list[int]) -> None:
        import tokenizers  # optional: only for a folder without tokenizer.model

        bpe = tokenizers.Tokenizer.from_file(path)
        bpe.no_truncation()  # whatever the file is set to
        bpe.no_padding()
        bpe.encode_special_tokens = True
        self.size = bpe.get_vocab_size(with_added_tokens=False)
        self.encode = lambda text: bpe.encode(text, add_special_tokens=False).ids
        self.decode = bpe.decode
        framed = bpe.encode("a").ids  # as the file's post-processor frames a text
        self.bos = framed[: framed.index(self.encode("a")[0])]
        self.eos = bpe.token_to_id(eos) if eos else (eos_token_id or [-1])[0]


def token_text(tokenizer_config: dict, name: str) -> str | None:
    """The text of a special token in tokenizer_config.json, which may be an object."""
    token = tokenizer_config.get(name)
    return token["content"] if isinstance(token, dict) else token
