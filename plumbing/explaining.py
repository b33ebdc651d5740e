"""What instruction a model listens to: each token of a response under the right and wrong ones.

ours is the module evaluate.py, which is handed in: plumbing imports none of the five.
"""

from types import ModuleType

from torch import Tensor

from plumbing.corpora import Direction, Sample, read_corpus
from plumbing.errors import require
from plumbing.lines import read_direction
from plumbing.provenance import read_setting
from plumbing.systems import System, read_systems
from plumbing.tables import align


def explain(ours: ModuleType, s: object) -> None:
    """Print for each system of evaluate.py's Settings s, --explain it-nl SENTENCE, p of each token
    of the response under every instruction. The response is the reference, where the sentence is a
    source of --data, else the system's own. Raises InputError."""
    require(len(s.explain) == 2, f"--explain {' '.join(s.explain)}: expected it-nl 'SENTENCE'")
    name, sentence = s.explain
    direction, sentence = read_direction(name, "--explain"), sentence.strip()
    require(sentence, "--explain: the sentence is blank; expected some words")
    systems = read_systems(s)
    corpus, _ = read_corpus(s.data, skip_unknown=s.skip_unknown)
    rows = corpus.get(direction, [])
    reference = next((x.target for x in rows if x.source == sentence), "")
    for system in systems:
        print(f"\n{explain_one(ours, system, Sample(direction, sentence, reference), corpus)}")


def explain_one(ours: ModuleType, system: System, sample: Sample, corpus: dict) -> str:
    """The table of a system, with a line above it."""
    prompter, positions = ours.make_prompter(system)
    decoder, own = ours.load_decoder(system), system.settings
    limits = positions, own.max_new_tokens
    if not sample.target:
        prompts, _ = ours.encode_prompts(prompter, [sample], *limits)
        how = own.max_new_tokens, own.batch_size, own.length_penalty
        (answer,) = ours.translate(decoder, prompter, prompts, None, *how)
        what, sample = "its own answer", sample._replace(target=answer)
    else:
        what = "the reference"
    tuned = [tuple(x.split("-")) for x in read_setting(system.ckpt, "supervised", [])]
    directions = instructions_beside(sample.direction, tuned or list(corpus))
    samples = [sample._replace(direction=direction) for direction in directions]
    prompts, _ = ours.encode_prompts(prompter, samples, *limits)
    response = prompter.encode_response(sample.target)[: own.max_new_tokens]
    p, ul = ours.response_terms(decoder.model, prompts, response)
    tokens = prompter.tokenizer.texts_of(response)
    about = f"{system.name}: {sample.source} → {sample.target or '(empty)'} ({what})"
    return f"{about}\n\n{terms_table(tokens, directions, p, ul)}"


def instructions_beside(right: Direction, others: list[Direction]) -> list[Direction]:
    """The right instruction, then those that conflict with it."""
    return [right, *sorted({*others} - {right})]


def terms_table(tokens: list[str], directions: list[Direction], p: Tensor, ul: Tensor) -> str:
    """p [C, R] of each of R tokens under C instructions, the right one first, and for the others in
    brackets the unlikelihood, -log(1 - p), ul [C, R]; last the means, a loss's terms."""
    names = ["→".join(direction) for direction in directions]
    header = ["token", f"p {names[0]}", *(f"{name} (UL)" for name in names[1:])]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for n, token in enumerate(tokens):
        wrong = [f"{p[c, n]:.3f} ({ul[c, n]:.2f})" for c in range(1, len(directions))]
        rows.append([token.replace("|", "\\|"), f"{p[0, n]:.3f}", *wrong])
    means = [f"{p[c].mean():.3f} ({ul[c].mean():.2f})" for c in range(1, len(directions))]
    rows.append(["**mean**", f"{p[0].mean():.3f}", *means])
    return "\n".join(align(rows))
