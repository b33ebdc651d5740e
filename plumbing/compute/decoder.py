"""The forward passes of decoding: a prefill, then one token a step for every beam, over a KV cache.

Symbols in shape comments: B sentences, n beams of each, V vocabulary.
"""

import torch
from torch import Tensor, nn

from plumbing.compute.cache import Paths
from plumbing.compute.graphs import Graphs


class Decoder:
    """A model with the KV cache of the sentences that it decodes: one row a sentence, which the
    beams of the sentence share."""

    def __init__(self, model: nn.Module, beams: int = 1, record: bool = False):
        """record: take CUDA graphs for greedy decoding on a GPU. The model's weights must stay
        whole and where they are."""
        self.model, self.n, self.record = model, beams, record and beams == 1
        self.cache = self.graphs = None
        self.computed = 0  # tokens that passed the network

    def reserve(self, prompts: list[list[int]], rows: int, max_new_tokens: int) -> None:
        """A cache with room for any so many of the prompts at a time: the one of before, if it is
        large enough."""
        slots = max(map(len, prompts)) + self.n * max_new_tokens
        if self.cache is None or rows > self.cache.rows or slots > self.cache.slots:
            self.cache = self.graphs = None  # before there are two of them
            self.cache = self.model.new_cache(rows, slots)
            if self.record and self.cache.used.is_cuda:
                self.graphs = Graphs(self.model, self.cache)
        self.cache.paths = None

    def prefill(self, prompts: list[list[int]], after: int = 0) -> Tensor:
        """Logits [B, 1, V] of the token after each of B prompts, which take the rows behind the
        first so many."""
        lengths = [len(prompt) for prompt in prompts]
        cache = self.cache.behind(after)
        ids = torch.tensor([i for prompt in prompts for i in prompt])  # [T]
        last = torch.tensor(lengths).cumsum(0) - 1  # [B]
        logits = self.model(ids, lengths, cache, at=last)  # [B, V]
        self.cache.lengths[after:] = cache.lengths
        self.computed += self.model.computed
        return logits[:, None]

    def step(self, new: list[list[int]], parents: list[list[int]] | None = None) -> Tensor:
        """Logits [B, n, V] after one more token in each beam of the first B sentences. parents:
        which beam of before each goes on, where there are several."""
        ids = torch.tensor([token for beams in new for token in beams])  # [B n]
        self.computed += len(ids)
        if self.n > 1:
            if self.cache.paths is None:
                self.cache.paths = Paths(self.cache.used, self.n, self.cache.k.shape[3])
            self.cache.paths.extend(torch.tensor(parents, device=self.cache.used.device))
        if self.graphs:
            return self.graphs.step(ids)[:, None]
        logits = self.model(ids, [self.n] * len(new), self.cache)  # [B n, V]
        return logits.view(len(new), self.n, -1)

    def drop(self, sentence: int, last: int) -> None:
        """A sentence is finished: the last one takes its place."""
        if sentence != last:
            self.cache.move(last, to=sentence)
