"""From parallel text to batches: prompts, tokenizer, corpora, conflicting twins. Everything random is a pure function of the
seed and the step, so a step's samples and its conflicting instructions are the same however the run got there."""

import functools
import os
import random
from collections import Counter, namedtuple

import sentencepiece
import torch

from plumbing.corpora import LANGUAGES, TEMPLATES
from plumbing.distributed import progress
from plumbing.errors import InputError, require
from plumbing.files import read_json


def write_prompt(template, direction, text):
    """The prompt of a template in prompts.json; a response follows its last character, then EOS. A template in
    several languages (ptl) speaks the target language and has its own names of the others."""
    names, lines = LANGUAGES, TEMPLATES.get(template, {})
    if isinstance(lines, dict):
        require(
            {*direction} <= {*lines},
            f"--template {template}: no prompt for {'-'.join(direction)}; it has {' '.join(lines)}",
        )
        names, lines = lines[direction[1]]["names"], lines[direction[1]]["prompt"]
    return "\n".join(lines).format(
        source=names[direction[0]], target=names[direction[1]], input=text
    )


class Tokenizer:
    """tokenizer.model (SentencePiece) or tokenizer.json (the tokenizers library) of the first folder that has one. Special
    tokens inside a text ("</s>") stay text. `bos`: the ids that the folder's own configuration puts before a text,
    perhaps none; `eos`: the id that ends a response."""

    def __init__(self, folders, config, template="alpaca"):
        paths = [
            os.path.join(f, name) for f in folders for name in ("tokenizer.model", "tokenizer.json")
        ]
        path = next(filter(os.path.exists, paths), None)
        require(
            path,
            f"{folders[0]}: no tokenizer.model and no tokenizer.json; expected the model's tokenizer",
        )
        self.folder, self.template = os.path.dirname(path), template
        stated = (
            read_json(file)
            if os.path.exists(file := os.path.join(self.folder, "tokenizer_config.json"))
            else {}
        )
        try:
            ids = {
                token["content"]: int(i)
                for i, token in stated.get("added_tokens_decoder", {}).items()
            }
            bos, eos = (
                t["content"] if isinstance(t, dict) else t
                for t in map(stated.get, ("bos_token", "eos_token"))
            )
            if path.endswith(".model"):
                sp = sentencepiece.SentencePieceProcessor(model_file=path)
                size, self.encode = sp.vocab_size(), sp.encode
                self.decode = lambda ids: sp.decode(
                    [i for i in ids if i < size]
                )  # an added token has no text
                ids |= {sp.id_to_piece(i): i for i in range(size)}
                self.bos = [ids.get(bos, sp.bos_id())] if stated.get("add_bos_token", True) else []
                self.eos = ids.get(eos, sp.eos_id())
            else:
                import tokenizers  # optional: only for a folder without tokenizer.model

                bpe = tokenizers.Tokenizer.from_file(path)
                bpe.no_truncation()  # whatever the file is set to
                bpe.no_padding()
                bpe.encode_special_tokens, size = True, bpe.get_vocab_size(with_added_tokens=False)
                self.encode, self.decode = (
                    (lambda text: bpe.encode(text, add_special_tokens=False).ids),
                    bpe.decode,
                )
                self.bos = bpe.encode("a").ids[: bpe.encode("a").ids.index(self.encode("a")[0])]
                self.eos = bpe.token_to_id(eos) if eos else (config.eos_token_id or [-1])[0]
        except Exception as error:  # both libraries raise bare Exceptions
            hint = (
                "pip install tokenizers"
                if isinstance(error, ImportError)
                else "copy it and tokenizer_config.json again"
            )
            raise InputError(
                f"{path}: no tokenizer can be read ({' '.join(str(error).split())[:200]}); {hint}"
            ) from None
        require(
            all(0 <= i < config.vocab_size for i in [size - 1, *self.bos, self.eos]),
            f"{path}: {size:,} pieces, BOS "
            f"{self.bos}, EOS {self.eos} do not belong to a model with a vocabulary of {config.vocab_size:,}",
        )

    def prompt(self, direction, text, room):
        """(BOS and the prompt as at most `room` ids, whether the text's end was cut for it), in training and decoding;
        the ids are None where even the empty prompt is too long."""
        whole = text
        while (
            len(ids := self.bos + self.encode(write_prompt(self.template, direction, text))) > room
            and text
        ):
            kept = self.decode(self.encode(text)[: room - len(ids)]).rstrip(
                "\ufffd"
            )  # half a character
            text = kept[: len(text) - 1]
        return (ids if len(ids) <= room else None), text != whole


def draw_conflict(direction, instructions, mode, rng):
    """The instruction I~ != I of a conflicting sample (paper, section 3), from those of the tuning set,
    {direction: number of samples}; frequent ones are drawn more often, as from the data itself. mode 'any' is the paper's
    I~ != I, which may keep the target language (it->en under nl->en punishes a right-language output); 'target' never
    keeps it. Raises InputError."""
    wrong = {
        d: n
        for d, n in instructions.items()
        if (d != direction if mode == "any" else d[1] != direction[1])
    }
    require(
        wrong,
        f"no instruction in the tuning data conflicts with {'-'.join(direction)} (--conflict {mode}); add more",
    )
    return rng.choices(list(wrong), wrong.values())[0]


class Batch(namedtuple("Batch", "ids lengths at y weight positives samples")):
    """ids [T]: sequences end to end, positives before their conflicting twins; lengths: B ints, sum T; at [R]: the positions
    whose logits predict y [R], the response tokens and EOS; weight [R] of their losses: 1, or 1 / the response's length for
    a mean of sentence means, or 0 where a process idles; so many of the R are `positives`; samples: without twins."""


def collate(sequences, samples, reduction="token"):
    """A Batch of (prompt ids, response ids): one for each of the samples, then their twins."""
    ids, lengths, at, y, weight = [], [], [], [], []
    for prompt, response in sequences:
        at += range(len(ids) + len(prompt) - 1, len(ids) + len(prompt) + len(response) - 1)
        ids += prompt + response
        y += response
        weight += [1.0 if reduction == "token" else 1 / len(response)] * len(response)
        lengths.append(len(prompt) + len(response))
    ids, at, y, weight = map(torch.tensor, (ids, at, y, weight))
    return Batch(
        ids,
        lengths,
        at,
        y,
        weight,
        sum(len(response) for _, response in sequences[: len(samples)]),
        samples,
    )


@functools.lru_cache(2)
def shuffled(n, seed):
    return random.Random(seed).sample(range(n), n)


class Encoded:
    """A tuning set as ids, of `pairs` samples of each direction (0: all), drawn without replacement; prompts and responses
    are tokenized apart, so no token straddles the border."""

    def __init__(self, corpus, tokenizer, max_length, pairs=0, seed=0):
        self.tokenizer, self.max_length, self.items = tokenizer, max_length, []
        samples = []
        for direction, found in corpus.items():
            found = found[:]
            random.Random(f"{seed} {direction}").shuffle(found)
            samples += found[: pairs or None]
        notes = Counter()
        for sample in progress(samples, desc="tokenizing", unit="pair", leave=False, delay=3):
            response = tokenizer.encode(sample.target) + [tokenizer.eos]
            prompt, cut = tokenizer.prompt(
                sample.direction, sample.source, max_length - len(response)
            )
            if prompt:
                self.items.append((sample, prompt, response))
            if cut:  # the response never is: that would teach the model to stop mid-sentence
                notes[
                    "-".join(sample.direction),
                    "sources cut" if prompt else "pairs left out for their response",
                ] += 1
        require(
            self.items, f"none of {len(samples)} samples fits --max-length {max_length}; raise it"
        )
        for (direction, what), n in notes.items():
            print(f"  {direction}: {n:,} over-long {what}")
        self.instructions = Counter(sample.direction for sample, _, _ in self.items)

    def step_items(self, step, batch_size, total, seed):
        """The items of one step out of `total` item visits: every epoch a new permutation, the last step shorter."""
        n, visits = len(self.items), range(step * batch_size, min((step + 1) * batch_size, total))
        return [self.items[shuffled(n, f"{seed} epoch {i // n}")[i % n]] for i in visits]

    def micro_batches(self, items, tokens, conflict=None, rng=None, reduction="token", world=1):
        """Split a step's items over `world` processes: for each a list of Batches, as many as the others have, of at most
        `tokens` tokens (or one item), similar lengths together. With `conflict` each item brings its twin: the same
        response under a conflicting instruction, if that fits. Whatever the split, the items and twins are the same."""
        pairs, shares = [], []
        for sample, prompt, response in sorted(items, key=lambda i: len(i[1]) + len(i[2])):
            pairs.append((sample, (prompt, response), []))
            if conflict:
                wrong = draw_conflict(sample.direction, self.instructions, conflict, rng)
                prompt, _ = self.tokenizer.prompt(
                    wrong, sample.source, self.max_length - len(response)
                )
                pairs[-1][2].extend([(prompt, response)] if prompt else [])
        for rank in range(world):
            groups, size = [], tokens
            for sample, positive, twins in pairs[rank::world]:
                cost = sum(len(prompt) + len(response) for prompt, response in [positive, *twins])
                if size + cost > tokens:
                    groups.append(([], [], []))
                    size = 0
                size += cost
                for part, new in zip(groups[-1], ([sample], [positive], twins)):
                    part.extend(new)
            shares.append(
                [
                    collate(positives + twins, chosen, reduction)
                    for chosen, positives, twins in groups
                ]
            )
        idle = shares[0][0]._replace(
            weight=torch.zeros_like(shares[0][0].weight), samples=[]
        )  # FSDP counts forwards
        return [share + [idle] * (max(map(len, shares)) - len(share)) for share in shares]
