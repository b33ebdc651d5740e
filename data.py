"""From parallel text to batches: prompts, tokenizer, corpora, conflicting twins.

Everything random is a pure function of the seed and the step, so a step's samples and its conflicting
instructions are the same however the run got there.
"""
import argparse
import glob
import json
import os
import random
import re
import sys
from collections import Counter, namedtuple
from dataclasses import dataclass, field, fields
from itertools import permutations

import sentencepiece
import torch
from tqdm import tqdm

from model import InputError, read_json

LANGUAGES, TEMPLATES = read_json(os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompts.json")).values()
CODES = {name: code for code, name in LANGUAGES.items()}
Sample = namedtuple("Sample", "direction source target")  # direction: (source code, target code)

def write_prompt(template, direction, text):
    """The prompt of a template in prompts.json; a response follows its last character, then EOS. A template in
    several languages (ptl) speaks the target language and has its own names of the others."""
    names, lines = LANGUAGES, TEMPLATES.get(template, {})
    if isinstance(lines, dict):
        if not {*direction} <= lines.keys():
            raise InputError(f"--template {template}: no prompt for {'-'.join(direction)}; it has {' '.join(lines)}")
        names, lines = lines[direction[1]]["names"], lines[direction[1]]["prompt"]
    return "\n".join(lines).format(source=names[direction[0]], target=names[direction[1]], input=text)

class Tokenizer:
    """tokenizer.model (SentencePiece) or tokenizer.json (the tokenizers library) of the first folder that has one.
    Special-token strings inside a text ("</s>") stay text. `bos`: the ids that the folder's own configuration puts
    before a text, perhaps none; `eos`: the id that ends a response."""

    def __init__(self, folders, config, template="alpaca"):
        paths = [os.path.join(f, name) for f in folders for name in ("tokenizer.model", "tokenizer.json")]
        path = next(filter(os.path.exists, paths), None)
        if not path:
            raise InputError(f"{folders[0]}: no tokenizer.model and no tokenizer.json; expected the model's tokenizer")
        self.folder, self.template = os.path.dirname(path), template
        stated = os.path.join(self.folder, "tokenizer_config.json")
        stated = read_json(stated) if os.path.exists(stated) else {}
        try:
            ids = {token["content"]: int(i) for i, token in stated.get("added_tokens_decoder", {}).items()}
            bos, eos = (t["content"] if isinstance(t, dict) else t for t in map(stated.get, ("bos_token", "eos_token")))
            if path.endswith(".model"):
                sp = sentencepiece.SentencePieceProcessor(model_file=path)
                size, self.encode = sp.vocab_size(), sp.encode
                self.decode = lambda ids: sp.decode([i for i in ids if i < size])  # an added token has no text
                ids |= {sp.id_to_piece(i): i for i in range(size)}
                self.bos = [ids.get(bos, sp.bos_id())] if stated.get("add_bos_token", True) else []
                self.eos = ids.get(eos, sp.eos_id())
            else:
                import tokenizers  # optional: only for a folder without tokenizer.model
                bpe = tokenizers.Tokenizer.from_file(path)
                bpe.no_truncation()  # whatever the file is set to
                bpe.no_padding()
                bpe.encode_special_tokens, size = True, bpe.get_vocab_size(with_added_tokens=False)
                self.encode, self.decode = (lambda text: bpe.encode(text, add_special_tokens=False).ids), bpe.decode
                whole = bpe.encode("a").ids
                self.bos = whole[:whole.index(self.encode("a")[0])]
                self.eos = bpe.token_to_id(eos) if eos else (config.eos_token_id or [-1])[0]
        except ImportError:
            raise InputError(f"{path}: one more package reads it; pip install tokenizers") from None
        except Exception as error:  # both libraries raise bare Exceptions
            raise InputError(f"{path}: {os.path.getsize(path):,} bytes that, with tokenizer_config.json, make no "
                             f"tokenizer ({' '.join(str(error).split())[:200]}); copy both again") from None
        if size > config.vocab_size or not all(i in range(config.vocab_size) for i in [*self.bos, self.eos]):
            raise InputError(f"{path}: {size:,} pieces, BOS {self.bos}, EOS {self.eos}; the model's vocabulary has "
                             f"{config.vocab_size:,}: tokenizer and model do not belong together")

    def prompt(self, direction, text, room):
        """(BOS and the prompt as at most `room` ids, whether the text's end was cut for it), in training and decoding;
        the ids are None where even the empty prompt is too long."""
        cut = False
        while True:
            ids = self.bos + self.encode(write_prompt(self.template, direction, text))
            if len(ids) <= room or not text:
                return (ids if len(ids) <= room else None), cut
            kept = self.decode(self.encode(text)[:room - len(ids)]).rstrip("\ufffd")  # half a character
            text, cut = kept[:len(text) - 1], True

def read_lines(path):
    """The lines of a UTF-8 file; only \\n ends one, U+2028 and U+0085 are text. Raises InputError."""
    try:
        with open(path, "rb") as f:
            blob = f.read().removeprefix(b"\xef\xbb\xbf")
        lines = [line.removesuffix("\r") for line in blob.decode().split("\n")]
        return lines if lines[-1] else lines[:-1]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}; expected a file of translations") from None
    except UnicodeDecodeError as error:
        line, byte = blob[:error.start].count(b"\n") + 1, blob[error.start]
        raise InputError(f"{path}, line {line}: byte {byte:#04x} is not UTF-8; convert the file") from None

def read_record(record, where):
    """({code: text}, whether only in that order) of {"translation": {code: text}}, or of Alpaca's three fields."""
    record = record if isinstance(record, dict) else {}
    if isinstance(record.get("translation"), dict):
        return record["translation"], False
    words = re.findall(r"\w+", str(record.get("instruction")))
    named = list(dict.fromkeys(CODES[word] for word in words if word in CODES))
    if len(named) < 2:
        raise InputError(f"{where}: {str(record)[:80]}; expected {{'translation': {{code: text}}}}, or an instruction "
                         "'... from English to Italian ...' with input and output")
    return {named[0]: record.get("input"), named[1]: record.get("output")}, True

def read_rows(path):
    """(format, files, rows) of a data file, recognised from its name and its first character; a row is (where,
    {code: text}, whether it may be used in that order only). Raises InputError with file and line."""
    lines, (folder, name) = read_lines(path), os.path.split(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    pair = re.search(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.([a-z]{2})$", name)
    if pair and pair[4] in pair.groups()[:2]:  # tst2017it-nl.it, train.en-it.en, generaltest2022.en-cs.ref.A.cs
        source, target, kind, here = pair.groups()
        there, beside = target if here == source else source, os.path.join(folder, name[:pair.end(2)])
        ending = {None: ".", ".src": ".ref*."}.get(kind, ".src.") + there
        others = sorted(glob.glob(glob.escape(beside) + ending))
        if not others:
            raise InputError(f"{path}: its other side is missing; expected {beside}{ending}")
        sides = {code: lines if code == here else read_lines(others[0]) for code in (source, target)}
        if len(sides[source]) != len(sides[target]):
            raise InputError(f"{path}: {len(lines):,} lines, but {others[0]} has {len(sides[there]):,}; expected equal")
        return "paired files", tuple(sorted([path, others[0]])), [(f"line {n}", {source: a, target: b}, bool(kind))
                                                                  for n, (a, b) in enumerate(zip(*sides.values()), 1)]
    if first[:1] in ("[", "{"):  # an array, or one object after another
        text, end, line, counted, rows, decoder = "\n".join(lines), 0, 1, 0, [], json.JSONDecoder()
        try:
            while (start := re.compile(r"\s*").match(text, end).end()) < len(text):
                line, counted = line + text.count("\n", counted, start), start
                found, end = decoder.raw_decode(text, start)
                for record in found if isinstance(found, list) else [found]:
                    where = f"line {line}, entry {len(rows) + 1}"
                    rows.append((where, *read_record(record, f"{path}, {where}")))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {getattr(error, 'lineno', line)}: not valid JSON ({error})") from None
        return ("Alpaca JSON" if any(row[2] for row in rows) else "translation JSON"), (path,), rows
    header, *cells = [line.split("\t") for line in lines or [""]]
    if len(set(header)) < max(2, len(header)):
        raise InputError(f"{path}, line 1: {first[:60]!r}; expected JSON, a TSV whose first line is different language "
                         "codes, or paired files named like train.en-it.en and train.en-it.it")
    for n, row in enumerate(cells, start=2):
        if len(row) != len(header):
            raise InputError(f"{path}, line {n}: {len(row)} columns, expected {len(header)}: {' '.join(header)}")
    return "multi-parallel TSV", (path,), [(f"line {n}", dict(zip(header, r)), False) for n, r in enumerate(cells, 2)]

def read_corpus(paths, wanted="all", supervised=None):
    """({direction: samples}, the supervised ones of all directions) of data files; prints what was found.

    wanted: "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count as such, by
    default those with English. A file named en-it gives it->en too, unless another file is named it-en. Pairs
    with a blank side are left out, duplicates are kept; both are counted aloud. Raises InputError.
    """
    files = {used: (form, rows) for form, used, rows in map(read_rows, map(os.fspath, paths))}
    named = {used: re.findall(r"([a-z]{2})-([a-z]{2})(?![a-z])", os.path.basename(used[0]))[:1] for used in files}
    samples, blank = {}, Counter()
    for used, (form, rows) in files.items():
        print(f"{' + '.join(used)}: {form}, {len(rows):,} rows")
        theirs = [(t, s) for s, t in named[used] if [(t, s)] in named.values()]  # another file's own
        for where, texts, directed in rows:
            if len(texts) < 2 or not texts.keys() <= LANGUAGES.keys():
                raise InputError(f"{used[0]}, {where}: found {' '.join(texts)}; expected some of {' '.join(LANGUAGES)}")
            for code, text in texts.items():
                if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):
                    raise InputError(f"{used[0]}, {where}: the {code} side is {text!r:.60}; expected text without NUL")
            for s, t in [tuple(texts)] if directed else permutations(texts, 2):
                if (s, t) not in theirs:
                    sample = Sample((s, t), texts[s].strip(), texts[t].strip())
                    whole = bool(sample.source and sample.target)
                    samples.setdefault((s, t), []).extend([sample] * whole)
                    blank[s, t] += not whole
    supervised = [p for p in samples if (p in supervised if supervised else "en" in p)]
    rest = [p for p in samples if p not in supervised]
    keywords = {"all": list(samples), "supervised": supervised, "zero-shot": rest}
    chosen = keywords.get(wanted, [tuple(pair.split("-")) for pair in wanted.split(",")])
    lacking = [pair for pair in chosen if not samples.get(pair)]
    if lacking and wanted not in keywords or len(lacking) == len(chosen):
        raise InputError(f"--directions {wanted}: pairs found in {' '.join(map(str, paths))}: "
                         + (", ".join(f"{s}-{t} {len(x):,}" for (s, t), x in samples.items()) or "none"))
    for pair in chosen:
        twice = len(samples[pair]) - len(set(samples[pair]))
        print(f"  {'-'.join(pair)}: {len(samples[pair]):,} pairs" + f", {twice:,} of them duplicates" * bool(twice)
              + f"; {blank[pair]:,} with a blank side left out" * bool(blank[pair]))
    return {pair: samples[pair] for pair in chosen if samples[pair]}, supervised

def draw_pairs(corpus, per_direction, seed):
    """`per_direction` samples (0: all) of each direction, drawn without replacement."""
    drawn = {direction: list(samples) for direction, samples in corpus.items()}
    for direction, samples in drawn.items():
        random.Random(f"{seed} {direction}").shuffle(samples)
    return [sample for samples in drawn.values() for sample in samples[:per_direction or None]]

def draw_conflict(direction, instructions, mode, rng):
    """The instruction I~ != I of a conflicting sample (paper, section 3), from those of the tuning set.

    instructions: {direction: number of samples}; frequent ones are drawn more often, as from the data itself. mode
    'any' is the paper's I~ != I, which may keep the target language (it->en under nl->en punishes a right-language
    output); 'target' never keeps it.
    """
    wrong = {d: n for d, n in instructions.items() if (d != direction if mode == "any" else d[1] != direction[1])}
    if not wrong:
        raise InputError(f"no instruction in the tuning data conflicts with {'-'.join(direction)} (--conflict {mode}), "
                         f"expected another direction{' with another target' if mode == 'target' else ''}")
    return rng.choices(list(wrong), wrong.values())[0]

@dataclass
class Batch:
    """Sequences end to end, positives before their conflicting twins; `at` are the positions before y."""
    ids: torch.Tensor  # [T]
    lengths: list      # B ints, sum T
    at: torch.Tensor   # [R], the logits there predict y
    y: torch.Tensor    # [R], response tokens and EOS: nothing else is supervised
    positives: int     # the first so many of the R belong to positives

def collate(sequences, positives):
    """A Batch of (prompt ids, response ids), of which the first `positives` are positives."""
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
        self.tokenizer, self.max_length, self.items = tokenizer, max_length, []
        self.cut, self.dropped = Counter(), Counter()
        for sample in tqdm(samples, desc="tokenizing", unit="pair", leave=False, delay=3):
            response = tokenizer.encode(sample.target) + [tokenizer.eos]
            prompt, cut = tokenizer.prompt(sample.direction, sample.source, max_length - len(response))
            if prompt is None:
                self.dropped[sample.direction] += 1  # a cut response would teach the model to stop mid-sentence
            else:
                self.cut[sample.direction] += cut
                self.items.append((sample, prompt, response))
        if not self.items:
            raise InputError(f"none of {len(samples)} samples fits --max-length {max_length}; raise it")
        for what, counts in (("sources cut", +self.cut), ("pairs left out for their response", self.dropped)):
            if counts:
                print(f"  over-long {what}: " + ", ".join(f"{s}-{t} {n:,}" for (s, t), n in counts.items()))
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

    def micro_batches(self, items, tokens, conflict=None, rng=None):
        """Split a step's items into Batches of at most `tokens` tokens (or one item), similar lengths together.
        With `conflict` each brings its twin: the same response under a conflicting instruction, if that fits."""
        groups, size = [], tokens
        for sample, prompt, response in sorted(items, key=lambda i: len(i[1]) + len(i[2])):
            pair = [(prompt, response)]
            if conflict:
                wrong = draw_conflict(sample.direction, self.instructions, conflict, rng)
                prompt, _ = self.tokenizer.prompt(wrong, sample.source, self.max_length - len(response))
                pair += [(prompt, response)] if prompt else []
            cost = sum(len(prompt) + len(response) for prompt, response in pair)
            if size + cost > tokens:
                groups.append([])
                size = 0
            groups[-1].append(pair)
            size += cost
        return [collate([pair[0] for pair in g] + [x for pair in g for x in pair[1:]], len(g)) for g in groups]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

def option(default, help, **extra):
    """A settings field whose flag has this default and help; extra goes to argparse."""
    return field(default=default, metadata={"help": help, **extra})

def pick_device(s):
    """Resolve the settings' 'auto' device and dtype, in place."""
    cuda = torch.cuda.is_available()
    s.device = ("cuda" if cuda else "cpu") if s.device == "auto" else s.device
    s.dtype = ("fp32" if s.device == "cpu" else "bf16") if s.dtype == "auto" else s.dtype
    if not (s.device == "cpu" and s.dtype != "fp16" or cuda and s.device.startswith("cuda")):
        raise InputError(f"--device {s.device} --dtype {s.dtype}: not possible here; expected cpu with fp32 or bf16"
                         + ", or cuda" * cuda)

def parse(settings, argv=None):
    """Fill a settings dataclass from the command line: every field is a flag, an unknown flag fails."""
    parser = argparse.ArgumentParser(description=sys.modules[settings.__module__].__doc__.split("\n\n")[0])
    for f in fields(settings):
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type, "default": f.default}
        default = " ".join(f.default) if isinstance(f.default, tuple) else f.default
        help = f.metadata["help"] + f" (default: {default})" * (default not in (None, "", False))
        parser.add_argument("--" + f.name.replace("_", "-"), **kind | f.metadata | {"help": help})
    return settings(**vars(parser.parse_args(argv)))

def run_setting(folder, name, default):
    """What settings.json of a run folder says of `name`; the default where it says nothing."""
    path = os.path.join(folder, "settings.json")
    value = read_json(path).get(name) if folder and os.path.exists(path) else default
    return value if isinstance(value, type(default)) else default

def run(main, settings):
    """Run a script's main; an InputError becomes one sentence and exit code 2."""
    try:
        main(parse(settings))
    except InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print("interrupted: nothing was saved", file=sys.stderr) or 130)
