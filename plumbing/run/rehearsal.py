"""`train.py --plan`: the run's own steps, tried without memory.

train is the module train.py, which is handed in: plumbing imports none of the five.
"""

import copy
import os
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor, nn

from plumbing.run import planning
from plumbing.base.flags import DTYPES
from plumbing.corpus.corpus import read_corpus
from plumbing.checkpoint.folder import ModelFolder
from plumbing.corpus.general import read_general


def plan(s: object, train: ModuleType) -> None:
    """Print what a run with the Settings s of train.py would need: from config.json, the tokenizer
    and the data, without weights. Raises InputError."""
    start = s.init or s.model
    if start == train.FIRST_RUN and not os.path.isdir(
        start
    ):  # a plan of stage 2 comes before stage 1
        start = s.model or "demo/base"
    folder = ModelFolder(start, s.model)
    s.refuse_misfit(start, folder)
    lora = folder.lora or s.adapter()
    tokenizer = planning.tokenizer_of([folder.folder, folder.source], folder.config)
    corpus, _ = read_corpus(s.data, s.directions, None, s.skip_unknown, pairs=s.pairs, seed=s.seed)
    general = read_general(s.general, tuning=True)
    prompter = train.Prompter(tokenizer, s.template)
    tuning_set = train.TuningSet(corpus, prompter, s.max_length, s.pairs, s.seed, general)
    visits, steps = s.visits(len(tuning_set.samples))
    few = min(steps, planning.looked_at(s.batch_size))
    first = [train.pairs_of_step(tuning_set, step, visits, s) for step in range(few)]

    here = copy.copy(s)
    here.device = "cpu"

    def make_model(layers: int) -> nn.Module:
        with planning.default_dtype(torch.float32 if s.full else DTYPES[s.dtype]):
            model = train.LlamaForCausalLM(replace(folder.config, num_hidden_layers=layers))
        if not s.full:
            train.add_lora(model, lora)
        return model.train()

    def make_shares(tokens: int, gpus: int) -> list:
        return [train.micro_batches(pairs, tokens, world=gpus) for pairs in first]

    def find_loss(model: nn.Module, batch: object) -> Tensor:
        mle_sum, ul_sum = train.loss_sums(model, batch, here)
        return train.loss.language_aware(mle_sum, 1, ul_sum, 1, s.alpha)

    layers, share = folder.config.num_hidden_layers, s.full or not lora.lora_dropout
    planner = planning.Planner(make_model, make_shares, find_loss, layers, share)
    print(f"plan of stage {s.stage}: {start} -> {s.out}, {'full' if s.full else 'LoRA'}, {s.dtype}")
    print(planner.report(s, steps, len(tuning_set.samples)))
