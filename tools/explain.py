"""What instruction a model listens to: p of each token of a response under right and wrong ones.

    python -m tools.explain --ckpt runs/stage1 runs/stage2 --direction it-nl --source "Apri il file"

Under the right instruction -log p, in brackets, is the token's term in Eq. 1; under each wrong one
-log(1 - p) is its term in Eq. 2. The response is --target, else the reference, where the source is
one of --data, else the first model's answer.
"""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data import CONFLICTS, EncodedSample, Sample, TwinPair, collate
from evaluate import (
    MAX_NEW_TOKENS,
    System,
    encode_prompts,
    load_for_decoding,
    prepare_prompter,
    require_finite,
    translate,
)
from loss import log_not_p, log_p
from model import LlamaForCausalLM
from plumbing.base.errors import require
from plumbing.base.files import require_folder
from plumbing.base.flags import DeviceSettings, option, ours, refuse_given, run_script
from plumbing.checkpoint.peft import read_adapter
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import UNREADABLE, clean, read_corpus
from plumbing.corpus.languages import TEMPLATES, add_languages
from plumbing.run.record import read_setting, supervised_directions
from plumbing.score.report import align
from tools.translate import parse_direction


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option((), "runs or models", "data")
    direction: str = option("", "of the sentence, as in it-nl", "data")
    source: str = option("", "the sentence", "data")
    target: str = option("", "its translation; left out: the reference, or an answer", "data")
    data: list = option((ours("demo/data/test.tsv"),), "files with references", "data")
    languages: str = option("", "file of more languages, {code: name} (docs/data.md)", "data")
    model: str = option("", "base of the adapters; left out: the one that each names", "model")
    template: str = option("", "prompt; left out: the run's", "decoding", choices=TEMPLATES)
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest answer", "decoding", least=1)
    beam: int = option(1, "beams of beam search; 1: greedy", "decoding", least=1, most=100)


@torch.inference_mode()
def response_terms(
    model: LlamaForCausalLM, prompts: list[list[int]], response: list[int]
) -> tuple[Tensor, Tensor]:
    """(-log p, -log(1 - p)), both [C, R], of each of R tokens of a response under each of C
    prompts: its terms in Eq. 1 under the right instruction, in Eq. 2 under a wrong one."""
    pairs = [TwinPair(EncodedSample(None, prompt, response), None) for prompt in prompts]
    batch = collate(pairs)
    logits = model(batch.ids, batch.lengths, at=batch.at)  # [C R, V]
    y = batch.y.to(logits.device)
    shape = len(prompts), len(response)
    return -log_p(logits, y).view(shape), -log_not_p(logits, y).view(shape)


def terms_table(tokens: list[str], names: list[str], mle: Tensor, ul: Tensor) -> str:
    """p of each of R tokens under C instructions, the right one first, and in brackets their loss:
    under the right one mle [C, R], under the others ul [C, R]. Last the means."""
    header = ["token", f"{names[0]} (MLE)", *(f"{name} (UL)" for name in names[1:])]
    p, terms = (-mle).exp(), torch.cat([mle[:1], ul[1:]])
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for n, token in enumerate(tokens):
        cells = zip(p[:, n].tolist(), terms[:, n].tolist(), strict=True)
        rows.append([token, *(f"{one:.3f} ({term:.2f})" for one, term in cells)])
    means = zip(p.mean(1).tolist(), terms.mean(1).tolist(), strict=True)
    rows.append(["**mean**", *(f"{one:.3f} ({term:.2f})" for one, term in means)])
    return "\n".join(align(rows))


def main(s: Settings) -> None:
    """Print the table of each model. Raises InputError."""
    require(s.ckpt, "nothing to explain: expected --ckpt RUN ...")
    add_languages(s.languages)
    direction, source = parse_direction(s.direction), " ".join(clean(s.source).split())
    for name, text in (("source", source), ("target", s.target)):
        require(not UNREADABLE.search(text), f"--{name} {text!r:.60} is not UTF-8; convert it")
    require(source, "--source is blank; expected a sentence")
    corpus, _ = read_corpus(s.data)
    known = (y for x, y in corpus.get(direction, []) if " ".join(x.split()) == source)
    reference = next(known, "")
    target, what = (s.target, "given") if s.target else (reference, "the reference")
    if target:
        refuse_given(s, ["beam"], f"nothing is decoded, as the response is {what}")
    for ckpt in s.ckpt:
        require_folder(ckpt, "a run or a model")
        if len(s.ckpt) == 1 and not read_adapter(ckpt, s.model)[0]:
            refuse_given(s, ["model"], f"{ckpt} is no adapter")
        system = System(os.path.basename(os.path.normpath(ckpt)), ckpt, replace(s))
        prompter = prepare_prompter(system, {direction: []})
        model = load_for_decoding(system)
        limits = model.config.max_position_embeddings, s.max_new_tokens
        if not target:
            prompts, _ = encode_prompts(prompter, [Sample(direction, source, "")], *limits)
            decoder = Decoder(model, s.beam)
            (target,), _ = translate(decoder, prompter, prompts, None, s.max_new_tokens)
            what = f"the answer of {system.name}"
        instructions = dict.fromkeys(supervised_directions(ckpt) or corpus, 1)
        conflict = read_setting(ckpt, "conflict", "target")
        wrong = sorted(CONFLICTS.get(conflict, CONFLICTS["target"])(direction, instructions))
        prompts, _ = encode_prompts(
            prompter, [Sample(d, source, "") for d in (direction, *wrong)], *limits
        )
        response = prompter.encode_response(target)[: s.max_new_tokens]
        terms = response_terms(model, prompts, response)
        require_finite(terms[0])
        tokens = prompter.tokenizer.texts_of(response, prompter.encoder.end)
        print(f"\n{system.name}: {source} → {target or '(empty)'} ({what})\n")
        print(terms_table(tokens, ["→".join(d) for d in (direction, *wrong)], *terms))


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
