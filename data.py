"""From parallel text to batches: tokenizer, corpus, directions, the Alpaca prompt, conflicting twins.

Everything random is a pure function of the seed and the step, so a step's samples and its conflicting
instructions are the same however the run got there.
"""
import argparse
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field, fields

import sentencepiece
import torch

from model import InputError

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "ha": "Hausa", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "is": "Icelandic", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian",
    "vi": "Vietnamese", "zh": "Chinese"}

# The Alpaca prompt with the paper's instruction; a response follows the last colon, then EOS.
PROMPT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Translate the following sentences from {source} to {target}.

### Input:
{input}

### Response:"""


class Tokenizer:
    """A SentencePiece model. Special-token strings inside a text ("</s>") stay text; BOS and EOS are ids."""

    def __init__(self, folder, vocab_size):
        path = os.path.join(folder, "tokenizer.model")
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file; expected the SentencePiece tokenizer of the model")
        try:
            self.sp = sentencepiece.SentencePieceProcessor(model_file=path)
        except RuntimeError:
            size = os.path.getsize(path)
            raise InputError(f"{path}: {size:,} bytes that are not a SentencePiece model; copy it again") from None
        if self.sp.vocab_size() > vocab_size:
            raise InputError(f"{path}: {self.sp.vocab_size():,} pieces, but the model's vocabulary has "
                             f"{vocab_size:,}; tokenizer and model do not belong together")
        self.folder, self.bos, self.eos = folder, self.sp.bos_id(), self.sp.eos_id()

    def encode(self, text):
        return self.sp.encode(text)

    def decode(self, ids):
        return self.sp.decode(ids)

    def prompt(self, direction, text, room):
        """BOS and the prompt as at most `room` ids. Too long: words are cut from the end of the source text
        alone; None if even the empty prompt does not fit. Training and decoding both come through here."""
        source, target = (LANGUAGES[code] for code in direction)
        ids = [self.bos] + self.encode(PROMPT.format(source=source, target=target, input=text))
        if len(ids) <= room:
            return ids
        kept = self.encode(text)[:-(len(ids) - room)]
        return self.prompt(direction, self.decode(kept), room) if text else None


# Corpora and directions

def check_languages(codes, where):
    for code in codes:
        if code not in LANGUAGES:
            raise InputError(f"{where}: unknown language code {code!r}; expected some of {' '.join(LANGUAGES)}")
    if len(set(codes)) < len(codes):
        raise InputError(f"{where}: {' '.join(codes)} names a language twice; expected each once")
    if len(codes) < 2:
        raise InputError(f"{where}: found {len(codes)} language ({' '.join(codes)}); translation needs at least two")
    return list(codes)


def read_tsv(path, languages=None):
    """(language codes, rows {code: text}) of a multi-parallel TSV: first line codes, then one sentence per cell.

    languages: the columns to keep; default all. A blank cell is a missing sentence. Raises InputError with
    file and line.
    """
    try:
        with open(path, "rb") as f:
            lines = f.read().decode("utf-8-sig").split("\n")  # not splitlines: U+2028 and U+0085 are text
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}; expected a TSV file of parallel sentences") from None
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise InputError(f"{path}, line {line}: byte {byte:#04x} is not UTF-8; convert the file") from None
    lines = [line.removesuffix("\r") for line in lines]
    header = check_languages(lines[0].split("\t"), f"{path}, line 1")
    languages = check_languages(languages, "--languages") if languages else header
    for code in languages:
        if code not in header:
            raise InputError(f"{path}, line 1: no column {code!r} among {' '.join(header)}; choose with --languages")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line and number == len(lines):
            break
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} columns, expected {len(header)}: {' '.join(header)}")
        rows.append({code: cell.strip() for code, cell in zip(header, cells) if code in languages})
    if not rows:
        raise InputError(f"{path}: no sentences after the header line")
    return languages, rows


def directions(languages):
    """(English-centric, zero-shot) lists of (source, target) codes: tuned on, and never tuned on."""
    if "en" not in languages:
        raise InputError(f"languages {' '.join(languages)}: no 'en'; tuning pairs are English-centric")
    pairs = [(s, t) for s in languages for t in languages if s != t]
    return [p for p in pairs if "en" in p], [p for p in pairs if "en" not in p]


@dataclass(frozen=True)
class Sample:
    direction: tuple  # (source code, target code)
    source: str
    target: str


def parallel(rows, direction):
    """The samples of one direction, rows with a blank side left out."""
    s, t = direction
    return [Sample(direction, row[s], row[t]) for row in rows if row[s] and row[t]]


def tuning_samples(rows, pairs, per_direction, seed):
    """`per_direction` samples (0: all) of each direction, drawn by row without replacement."""
    samples = []
    for direction in pairs:
        found = parallel(rows, direction)
        random.Random(f"{seed} {direction}").shuffle(found)
        samples += found[:per_direction or None]
    if not samples:
        raise InputError("no sentence pair has both sides; expected at least one in the data")
    return samples


# Instruction-conflicting samples: the same x and y under I~ != I (paper, section 3)

def draw_conflict(direction, instructions, mode, rng):
    """A wrong direction for a sample of `direction`, drawn from the tuning set's instructions.

    instructions: {direction: number of samples}, so that frequent instructions are drawn more often, as from
    the data itself. mode 'any' is the paper's I~ != I, which may keep the target language (it->en under
    nl->en punishes a right-language output); 'target' never keeps it. Nothing is changed.
    """
    wrong = {d: n for d, n in instructions.items() if (d != direction if mode == "any" else d[1] != direction[1])}
    if not wrong:
        raise InputError(f"no instruction in the tuning data conflicts with {'->'.join(direction)} (--conflict {mode}), "
                         f"expected another direction{' with another target' if mode == 'target' else ''}")
    return rng.choices(list(wrong), wrong.values())[0]


# Batches

@dataclass
class Batch:
    """Sequences end to end, positives before their conflicting twins; `at` are the positions before y."""
    ids: torch.Tensor  # [T]
    lengths: list      # B ints, sum T
    at: torch.Tensor   # [R], the logits there predict y
    y: torch.Tensor    # [R], response tokens and EOS: nothing else is supervised
    positives: int     # the first so many of the R belong to positives

    def to(self, device):
        return Batch(self.ids.to(device), self.lengths, self.at.to(device), self.y.to(device), self.positives)


def collate(sequences, positives):
    """A Batch of (prompt ids, response ids); the first `positives` sequences are positives."""
    ids, lengths, at, y, supervised = [], [], [], [], 0
    for i, (prompt, response) in enumerate(sequences):
        at += range(len(ids) + len(prompt) - 1, len(ids) + len(prompt) + len(response) - 1)
        ids += prompt + response
        y += response
        lengths.append(len(prompt) + len(response))
        supervised += len(response) * (i < positives)
    return Batch(torch.tensor(ids), lengths, torch.tensor(at), torch.tensor(y), supervised)


class Encoded:
    """The tuning set as ids: prompts and responses tokenized apart, so no token straddles the border."""

    def __init__(self, samples, tokenizer, max_length):
        self.tokenizer, self.max_length, self.items, self.dropped = tokenizer, max_length, [], 0
        for sample in samples:
            response = tokenizer.encode(sample.target) + [tokenizer.eos]
            prompt = tokenizer.prompt(sample.direction, sample.source, max_length - len(response))
            if prompt is None:
                self.dropped += 1  # a response is never cut: it would teach the model to stop mid-sentence
            else:
                self.items.append((sample, prompt, response))
        if not self.items:
            raise InputError(f"none of {len(samples)} samples fits --max-length {max_length}; raise it")
        self.instructions = Counter(sample.direction for sample, _, _ in self.items)
        self.order_of = self.order = None  # the permutation in use and the (epoch, seed) it belongs to

    def step_items(self, step, batch_size, total, seed):
        """The items of one step out of `total` item visits: every epoch a new permutation, the last step shorter."""
        n, chosen = len(self.items), []
        for i in range(step * batch_size, min((step + 1) * batch_size, total)):
            epoch, place = divmod(i, n)
            if self.order_of != (epoch, seed):
                self.order_of, self.order = (epoch, seed), random.Random(f"{seed} epoch {epoch}").sample(range(n), n)
            chosen.append(self.items[self.order[place]])
        return chosen

    def twin(self, item, mode, rng):
        """The same response under a conflicting instruction; None where the longer prompt does not fit."""
        sample, _, response = item
        wrong = draw_conflict(sample.direction, self.instructions, mode, rng)
        prompt = self.tokenizer.prompt(wrong, sample.source, self.max_length - len(response))
        return prompt and (prompt, response)

    def micro_batches(self, items, tokens, conflict=None, rng=None):
        """Split a step's items into Batches of at most `tokens` tokens (at least one item each), items of
        similar length together. With `conflict`, every item brings its conflicting twin into the same Batch."""
        groups, size = [], tokens
        for item in sorted(items, key=lambda i: len(i[1]) + len(i[2])):
            twin = self.twin(item, conflict, rng) if conflict else None
            cost = sum(len(prompt) + len(item[2]) for prompt in (item[1], twin and twin[0]) if prompt)
            if size + cost > tokens:
                groups.append([])
                size = 0
            groups[-1].append((item[1:], twin))
            size += cost
        return [collate([pos for pos, _ in g] + [twin for _, twin in g if twin], len(g)) for g in groups]


# Command lines: a dataclass of settings is its own parser

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def option(default, help, **extra):
    """A settings field whose flag has this default and help; extra goes to argparse."""
    return field(default=default, metadata={"help": help, **extra})


def pick_device(s):
    """Resolve the settings' 'auto' device and dtype, in place."""
    cuda = torch.cuda.is_available()
    if s.device == "auto":
        s.device = "cuda" if cuda else "cpu"
    if s.device != "cpu" and not (cuda and s.device.startswith("cuda")):
        raise InputError(f"--device {s.device}: not available here; expected cpu{' or cuda' if cuda else ''}")
    if s.dtype == "auto":
        s.dtype = "fp32" if s.device == "cpu" else "bf16"
    if s.dtype == "fp16" and s.device == "cpu":
        raise InputError("--dtype fp16 needs a CUDA device; on a CPU use fp32 or bf16")


def parse(settings, argv=None):
    """Fill a settings dataclass from the command line; every field is a flag, an unknown flag fails."""
    parser = argparse.ArgumentParser(description=sys.modules[settings.__module__].__doc__.split("\n\n")[0])
    for f in fields(settings):
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type, "default": f.default}
        default = f" (default: {f.default})" if f.default not in (None, "", False) else ""
        parser.add_argument("--" + f.name.replace("_", "-"), **kind | f.metadata | {"help": f.metadata["help"] + default})
    return settings(**vars(parser.parse_args(argv)))


def run(main, settings):
    """Run a script's main; an InputError becomes one sentence and exit code 2."""
    try:
        main(parse(settings))
    except InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print("interrupted: nothing was saved", file=sys.stderr) or 130)
