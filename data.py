"""From parallel text to batches: prompts, tokenizer, corpora, conflicting twins. Everything random is a pure function of the
seed and the step, so a step's samples and its conflicting instructions are the same however the run got there."""
import argparse, functools, glob, itertools, json, os, random, re, sys, time
from collections import Counter, namedtuple
from dataclasses import field, fields
import sentencepiece
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from model import RANK, WORLD, InputError, progress, read_json, require

LANGUAGES, TEMPLATES = read_json(os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompts.json")).values()
CODES = {name: code for code, name in LANGUAGES.items()}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Sample = namedtuple("Sample", "direction source target")  # direction: (source code, target code)

def write_prompt(template, direction, text):
    """The prompt of a template in prompts.json; a response follows its last character, then EOS. A template in
    several languages (ptl) speaks the target language and has its own names of the others."""
    names, lines = LANGUAGES, TEMPLATES.get(template, {})
    if isinstance(lines, dict):
        require({*direction} <= {*lines}, f"--template {template}: no prompt for {'-'.join(direction)}; "
                f"it has {' '.join(lines)}")
        names, lines = lines[direction[1]]["names"], lines[direction[1]]["prompt"]
    return "\n".join(lines).format(source=names[direction[0]], target=names[direction[1]], input=text)

class Tokenizer:
    """tokenizer.model (SentencePiece) or tokenizer.json (the tokenizers library) of the first folder that has one. Special
    tokens inside a text ("</s>") stay text. `bos`: the ids that the folder's own configuration puts before a text,
    perhaps none; `eos`: the id that ends a response."""
    def __init__(self, folders, config, template="alpaca"):
        paths = [os.path.join(f, name) for f in folders for name in ("tokenizer.model", "tokenizer.json")]
        path = next(filter(os.path.exists, paths), None)
        require(path, f"{folders[0]}: no tokenizer.model and no tokenizer.json; expected the model's tokenizer")
        self.folder, self.template = os.path.dirname(path), template
        stated = read_json(file) if os.path.exists(file := os.path.join(self.folder, "tokenizer_config.json")) else {}
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
                self.bos = bpe.encode("a").ids[:bpe.encode("a").ids.index(self.encode("a")[0])]
                self.eos = bpe.token_to_id(eos) if eos else (config.eos_token_id or [-1])[0]
        except Exception as error:  # both libraries raise bare Exceptions
            hint = "pip install tokenizers" if isinstance(error, ImportError) else "copy it and tokenizer_config.json again"
            raise InputError(f"{path}: no tokenizer can be read ({' '.join(str(error).split())[:200]}); {hint}") from None
        require(all(0 <= i < config.vocab_size for i in [size - 1, *self.bos, self.eos]), f"{path}: {size:,} pieces, BOS "
                f"{self.bos}, EOS {self.eos} do not belong to a model with a vocabulary of {config.vocab_size:,}")
    def prompt(self, direction, text, room):
        """(BOS and the prompt as at most `room` ids, whether the text's end was cut for it), in training and decoding;
        the ids are None where even the empty prompt is too long."""
        whole = text
        while len(ids := self.bos + self.encode(write_prompt(self.template, direction, text))) > room and text:
            kept = self.decode(self.encode(text)[:room - len(ids)]).rstrip("\ufffd")  # half a character
            text = kept[:len(text) - 1]
        return (ids if len(ids) <= room else None), text != whole

def read_lines(path):
    """The lines of a UTF-8 file; only \\n ends one, U+2028 and U+0085 are text. Raises InputError."""
    lines = []
    try:
        with open(path, "rb") as f:
            for line in f:
                lines.append(line.decode("utf-8" if lines else "utf-8-sig").removesuffix("\n").removesuffix("\r"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}; expected a file of translations") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}, line {len(lines) + 1}: byte {byte:#04x} is not UTF-8; convert the file") from None
    return lines

def read_record(record, where):
    """{code: text} of {"translation": {code: text}}, or, in the order of the instruction, of Alpaca's three fields."""
    if isinstance(record, dict) and isinstance(record.get("translation"), dict):
        return record["translation"]
    words = re.findall(r"\w+", str(record.get("instruction"))) if isinstance(record, dict) else []
    named = list(dict.fromkeys(CODES[word] for word in words if word in CODES))
    require(len(named) > 1, f"{where}: {str(record)[:80]}; expected {{'translation': {{code: text}}}}, or an instruction "
            "'... from English to Italian ...' with input and output")
    return {named[0]: record.get("input"), named[1]: record.get("output")}

def read_rows(path):
    """(format, files, rows) of a data file, recognised from its name and its first character; a row is (where,
    {code: text}, whether it may be used in that order only). Raises InputError with file and line."""
    lines, rows = read_lines(path), []
    first = next((line.strip() for line in lines if line.strip()), "")
    pair = re.search(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)$", path)
    if pair:  # tst2017it-nl.it, train.en-it.en, generaltest2022.en-cs.ref.A.cs
        source, target, kind, here = pair.groups()
        ending = {None: ".", ".src": ".ref*."}.get(kind, ".src.") + (target if here == source else source)
        found = sorted(glob.glob(glob.escape(path[:pair.end(2)]) + ending))
        require(found, f"{path}: its other side is missing; expected {path[:pair.end(2)]}{ending}")
        other = read_lines(found[0])
        require(len(lines) == len(other), f"{path}: {len(lines):,} lines, but {found[0]} has {len(other):,}; expected equal")
        for n, (a, b) in enumerate(zip(lines, other) if here == source else zip(other, lines), start=1):
            rows.append((f"line {n}", {source: a, target: b}, bool(kind)))
        return "paired files", tuple(sorted([path, found[0]])), rows
    if first[:1] in ("[", "{"):  # one array, or an object a line
        for n, text in [(1, "\n".join(lines))] if first[0] == "[" else enumerate(lines, 1):
            try:
                found = json.loads(text or "[]")
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path}, line {n + getattr(error, 'lineno', 1) - 1}: not valid JSON ({error})") from None
            for record in found if isinstance(found, list) else [found]:
                where = f"line {n}, entry {len(rows) + 1}"
                rows.append((where, read_record(record, f"{path}, {where}"), "translation" not in record))
        return ("Alpaca JSON" if any(row[2] for row in rows) else "translation JSON"), (path,), rows
    header, *cells = [line.split("\t") for line in lines or [""]]
    require(len(set(header)) >= max(2, len(header)), f"{path}, line 1: {first[:60]!r}; expected JSON, a TSV whose first line "
            "is different language codes, or paired files named like train.en-it.en and train.en-it.it")
    for n, row in enumerate(cells, start=2):
        require(len(row) == len(header), f"{path}, line {n}: {len(row)} columns, expected {len(header)}: {' '.join(header)}")
        rows.append((f"line {n}", dict(zip(header, row)), False))
    return "multi-parallel TSV", (path,), rows

def read_corpus(paths, wanted="all", supervised=None):
    """({direction: samples}, the supervised ones of all directions) of data files; prints what was found. wanted:
    "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count as such, by default those with
    English. A file named en-it gives it->en too, unless another file is named it-en. Pairs with a blank side are left out,
    duplicates are kept; both are counted aloud. Raises InputError."""
    files = {used: (form, rows) for form, used, rows in map(read_rows, map(os.fspath, paths))}
    named = {used: re.findall(r"([a-z]{2})-([a-z]{2})(?![a-z])", os.path.basename(used[0]))[:1] for used in files}
    samples, blank = {}, Counter()
    for used, (form, rows) in files.items():
        print(f"{' + '.join(used)}: {form}, {len(rows):,} rows")
        theirs = [(t, s) for s, t in named[used] if [(t, s)] in named.values()]  # the direction of another file
        for where, texts, directed in rows:
            if len(texts) < 2 or not texts.keys() <= LANGUAGES.keys():
                raise InputError(f"{used[0]}, {where}: found {' '.join(texts)}; expected some of {' '.join(LANGUAGES)}")
            for code, text in texts.items():
                if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):
                    raise InputError(f"{used[0]}, {where}: the {code} side is {text!r:.60}; expected text without NUL")
            for s, t in [p for p in ([tuple(texts)] if directed else itertools.permutations(texts, 2)) if p not in theirs]:
                sample = Sample((s, t), texts[s].strip(), texts[t].strip())
                samples.setdefault((s, t), []).extend([sample] * all(sample))
                blank[s, t] += not all(sample)
    supervised = [p for p in samples if (p in supervised if supervised else "en" in p)]
    rest = [p for p in samples if p not in supervised]
    keywords = {"all": list(samples), "supervised": supervised, "zero-shot": rest}
    chosen = keywords.get(wanted, [tuple(pair.split("-")) for pair in wanted.split(",")])
    lacking = [pair for pair in chosen if not samples.get(pair)]
    require(len(lacking) < len(chosen) and (not lacking or wanted in keywords),
            f"--directions {wanted}: pairs found in {' '.join(map(str, paths))}: "
            + (", ".join(f"{s}-{t} {len(x):,}" for (s, t), x in samples.items()) or "none"))
    for pair in chosen:
        twice = len(samples[pair]) - len(set(samples[pair]))
        print(f"  {'-'.join(pair)}: {len(samples[pair]):,} pairs" + f", {twice:,} of them duplicates" * bool(twice)
              + f"; {blank[pair]:,} with a blank side left out" * bool(blank[pair]))
    return {pair: samples[pair] for pair in chosen if samples[pair]}, supervised

def draw_conflict(direction, instructions, mode, rng):
    """The instruction I~ != I of a conflicting sample (paper, section 3), from those of the tuning set,
    {direction: number of samples}; frequent ones are drawn more often, as from the data itself. mode 'any' is the paper's
    I~ != I, which may keep the target language (it->en under nl->en punishes a right-language output); 'target' never
    keeps it. Raises InputError."""
    wrong = {d: n for d, n in instructions.items() if (d != direction if mode == "any" else d[1] != direction[1])}
    require(wrong, f"no instruction in the tuning data conflicts with {'-'.join(direction)} (--conflict {mode}); add more")
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
    return Batch(ids, lengths, at, y, weight, sum(len(response) for _, response in sequences[:len(samples)]), samples)

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
            samples += found[:pairs or None]
        notes = Counter()
        for sample in progress(samples, desc="tokenizing", unit="pair", leave=False, delay=3):
            response = tokenizer.encode(sample.target) + [tokenizer.eos]
            prompt, cut = tokenizer.prompt(sample.direction, sample.source, max_length - len(response))
            if prompt:
                self.items.append((sample, prompt, response))
            if cut:  # the response never is: that would teach the model to stop mid-sentence
                notes["-".join(sample.direction), "sources cut" if prompt else "pairs left out for their response"] += 1
        require(self.items, f"none of {len(samples)} samples fits --max-length {max_length}; raise it")
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
                prompt, _ = self.tokenizer.prompt(wrong, sample.source, self.max_length - len(response))
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
            shares.append([collate(positives + twins, chosen, reduction) for chosen, positives, twins in groups])
        idle = shares[0][0]._replace(weight=torch.zeros_like(shares[0][0].weight), samples=[])  # FSDP counts forwards
        return [share + [idle] * (max(map(len, shares)) - len(share)) for share in shares]

def option(default, help, **extra):
    """A settings field whose flag has this default, help and `least` value; extra goes to argparse."""
    return field(default=default, metadata={"help": help, **extra})

def parse(settings, argv=None):
    """Fill a settings dataclass from the command line: every field is a flag, an unknown flag fails, 'auto' is resolved."""
    parser = argparse.ArgumentParser(description=sys.modules[settings.__module__].__doc__.split("\n\n")[0])
    for f in fields(settings):
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type, "default": f.default}
        default = " / ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        extra = dict(f.metadata, help=f.metadata["help"] + f" (default: {default})" * (default not in (None, "", False)))
        parser.add_argument("--" + f.name.replace("_", "-"), **kind | {k: v for k, v in extra.items() if k != "least"})
    s, cuda = settings(**vars(parser.parse_args(argv))), torch.cuda.is_available()
    for f in fields(s):
        value, least = getattr(s, f.name), f.metadata.get("least")
        require(least is None or value >= least, f"--{f.name.replace('_', '-')} {value}: expected at least {least}")
    s.device = ("cuda" if cuda else "cpu") if s.device == "auto" else s.device
    s.dtype = ("fp32" if s.device == "cpu" else "bf16") if s.dtype == "auto" else s.dtype
    require(s.device == "cpu" or cuda and s.device.startswith("cuda"), f"--device {s.device}: not possible here; expected cpu")
    s.device += f":{os.environ.get('LOCAL_RANK', 0)}" * (s.device == "cuda")
    return s

def run_setting(folder, name, default):
    """What settings.json of a run folder says of `name`; the default where it says nothing."""
    path = folder and os.path.join(folder, "settings.json")
    value = read_json(path).get(name) if os.path.exists(path) else default
    return value if isinstance(value, type(default)) else default

def run(main, settings):
    """Run a script's main, perhaps as one of torchrun's processes; a user's error, a full disk or memory is one sentence."""
    sys.stdout = open(os.devnull, "w") if RANK else sys.stdout  # the first process speaks for all
    code = 0
    try:
        s = parse(settings)
        if s.device.startswith("cuda"):
            torch.cuda.set_device(s.device)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)  # a resumed run ends with the same bits
        if WORLD > 1:
            dist.init_process_group("nccl" if s.device.startswith("cuda") else "gloo")
        main(s)
        if WORLD > 1:
            dist.destroy_process_group()
    except BaseException as e:
        time.sleep(5 * (RANK > 0))  # torchrun ends this process before it can repeat what the first one says
        if not isinstance(e, (InputError, ImportError, OSError, SafetensorError, torch.OutOfMemoryError, KeyboardInterrupt)):
            raise
        hint = "; nothing that was whole is lost: make room or allow writing there, then repeat"
        print(f"error: {str(e) or 'interrupted'}" + hint * isinstance(e, (OSError, SafetensorError)), file=sys.stderr)
        code = 130 if isinstance(e, KeyboardInterrupt) else 2
    if WORLD > 1:  # threads of gloo outlive their group; one that lets go of a tensor while Python ends would abort the process
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
