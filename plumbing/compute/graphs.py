"""CUDA graphs of decoding: the kernels of a step, recorded once and launched together.

At a small batch the GPU would wait for the host, which launches each kernel by itself.
"""

import torch
from torch import Tensor, nn

from plumbing.compute.cache import KVCache

SLOTS = 128  # a graph looks at a multiple of so many slots of the cache


class Graphs:
    """The steps of one token a row over a cache, by the number of rows B."""

    def __init__(self, model: nn.Module, cache: KVCache):
        self.model, self.cache = model, cache
        self.seen, self.recorded = set(), {}  # numbers of rows; {B: (graph, ids, logits)}
        self.pool = None

    def step(self, ids: Tensor) -> Tensor:
        """Logits [B, V] of the token after ids [B], until the next step."""
        B, lengths = len(ids), self.cache.lengths
        needed = max(lengths[:B]) + 1
        if needed > self.cache.least:  # slots only grow, so that graphs are seldom lost
            self.cache.least = min(-(-needed // SLOTS) * SLOTS, self.cache.slots)
            self.recorded.clear()
        if B not in self.seen:  # it may be the only time; and what is lazy in the kernels is done
            self.seen.add(B)
            return self.model(ids, [1] * B, self.cache)
        if B not in self.recorded:
            self.recorded[B] = self.record(B)
        graph, static, logits = self.recorded[B]
        static.copy_(ids)
        graph.replay()
        lengths[:B] = [length + 1 for length in lengths[:B]]
        return logits

    def record(self, B: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """(a graph of the step of B rows, its ids, its logits). Nothing is computed yet."""
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()  # graphs run one at a time, in one memory
        ids = torch.zeros(B, dtype=torch.long, device=self.cache.used.device)
        graph, lengths = torch.cuda.CUDAGraph(), [*self.cache.lengths]
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.model(ids, [1] * B, self.cache)
        self.cache.lengths[:] = lengths
        return graph, ids, logits
