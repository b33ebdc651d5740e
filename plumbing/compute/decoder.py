"""The forward passes of decoding: a prefill, then one token a step for every beam, over a KV cache.

Symbols in shape comments: B sentences, n beams of each, V vocabulary.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from plumbing.compute.cache import KVCache, Paths

SLOTS = 128  # a graph looks at a multiple of so many slots of the cache
SELDOM = 3  # a number of rows that comes less often is not worth a graph


class Decoder:
    """A model with the KV cache of the sentences that it decodes: one row a sentence, which the
    beams of the sentence share."""

    def __init__(self, model: nn.Module, beams: int = 1, record: bool = False):
        """record: record CUDA graphs for greedy decoding on a GPU. The model's weights must stay
        whole and where they are."""
        self.model, self.n, self.record = model, beams, record and beams == 1
        self.cache = self.graphs = None
        self.computed = 0  # tokens that passed the network

    def reserve(self, prompts: list[list[int]], rows: int, max_new_tokens: int) -> None:
        """A cache with room for any so many of the prompts at a time: the one of before, if it is
        large enough."""
        slots = max(map(len, prompts)) + self.n * max_new_tokens
        if self.cache is None or rows > self.cache.rows or slots > self.cache.slots:
            self.cache = self.graphs = None  # the old one is freed before the new one is made
            self.cache = self.model.new_cache(rows, slots)
            if self.record and self.cache.used.is_cuda:
                self.graphs = Graphs(self.model, self.cache)
        self.cache.paths = None

    def prefill(self, prompts: list[list[int]], after: int = 0) -> Tensor:
        """Logits [B, 1, V] of the token after each of B prompts, which take the cache's rows from
        the row `after` on."""
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
                self.cache.paths = Paths(self.cache.used, self.n, self.cache.slots)
            self.cache.paths.extend(torch.tensor(parents, device=self.cache.used.device))
        if self.graphs:
            return self.graphs.step(ids)[:, None]
        logits = self.model(ids, [self.n] * len(new), self.cache)  # [B n, V]
        return logits.view(len(new), self.n, -1)

    def drop(self, sentence: int, last: int) -> None:
        """A sentence is finished: the last one takes its place."""
        if sentence != last:
            self.cache.move(last, to=sentence)


class Graphs:
    """The steps of one token a row over a cache as CUDA graphs, by the number of rows B. A step's
    kernels are recorded once and launched together. At a small batch the GPU would wait for the
    host, which launches each by itself."""

    def __init__(self, model: nn.Module, cache: KVCache):
        self.model, self.cache = model, cache
        self.seen, self.recorded = Counter(), {}  # {B: how often}; {B: (graph, ids, logits)}

    def step(self, ids: Tensor) -> Tensor:
        """Logits [B, V] of the token after ids [B], until the next step."""
        B, lengths = len(ids), self.cache.lengths
        needed = max(lengths[:B]) + 1
        if needed > self.cache.least:  # slots only grow, so that graphs are seldom lost
            self.cache.least = min(-(-needed // SLOTS) * SLOTS, self.cache.slots)
            self.recorded.clear()
        self.seen[B] += 1
        if self.seen[B] < SELDOM:  # what happens once is not recorded: kernels are loaded here
            return self.model(ids, [1] * B, self.cache)
        if B not in self.recorded:
            self.recorded[B] = self.record(B)
        graph, static, logits = self.recorded[B]
        static.copy_(ids, non_blocking=True)
        graph.replay()
        lengths[:B] = [length + 1 for length in lengths[:B]]
        return logits

    def record(self, B: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """(a graph of the step of B rows, its ids, its logits). Nothing is computed yet."""
        # Graphs run one at a time, in one memory, which goes with the last of them.
        pool = next((graph.pool() for graph, *_ in self.recorded.values()), None)
        ids = torch.zeros(B, dtype=torch.long, device=self.cache.used.device)
        graph, lengths = torch.cuda.CUDAGraph(), [*self.cache.lengths]
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = self.model(ids, [1] * B, self.cache)
        self.cache.lengths[:] = lengths
        return graph, ids, logits
