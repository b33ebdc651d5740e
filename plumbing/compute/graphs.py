"""CUDA graphs of decoding: the kernels of a step, recorded once and launched together.

At a small batch the GPU would wait for the host, which launches each kernel by itself.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from plumbing.compute.cache import KVCache

SLOTS = 128  # a graph looks at a multiple of so many slots of the cache
SELDOM = 3  # a number of rows that comes less often is not worth a graph


class Graphs:
    """The steps of one token a row over a cache, by the number of rows B."""

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
        if self.seen[B] < SELDOM:  # whatever a kernel does once, it does here
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
