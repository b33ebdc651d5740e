"""The forward passes of decoding: a prefill, then steps of one token a row over a KV cache.

On CUDA a step's some hundred small kernels are recorded once and replayed as a graph, which needs
the same shapes and the same memory each time: the cache stays from batch to batch, all of its slots
are looked at, and the number of rows is rounded up to a power of two.
"""

import torch
from torch import Tensor, nn

from plumbing.compute.cache import Paths

ROUND = 64  # slots of a cache that is kept are a multiple of this


class Decoder:
    """A model with its KV cache and, where its steps are static, their graphs.

    It decodes B sentences. Each has C rows of the cache, for its prompt and for those that it is
    contrasted with, and n beams, which the rows have in common."""

    def __init__(self, model: nn.Module, static: bool = False, beams: int = 1):
        """static: keep shapes and memory from step to step, and on CUDA replay the steps; beams
        have no such steps."""
        self.model, self.n, self.static = model, beams, static and beams == 1
        self.record = self.static and model.lm_head.weight.is_cuda
        self.cache, self.size, self.graphs = None, (0, 0), {}
        self.computed = 0  # tokens that passed the network

    def prefill(
        self, prompts: list[list[int]], max_new_tokens: int, others: tuple[list[list[int]]] = ()
    ) -> Tensor:
        """Logits [B, C, 1, V] after each of B prompts, then of the C - 1 others of its sentence,
        each B prompts too."""
        self.C = 1 + len(others)
        together = [prompt for row in zip(prompts, *others, strict=True) for prompt in row]
        lengths = [len(prompt) for prompt in together]
        self.reserve(len(together), max(lengths) + self.n * max_new_tokens)
        ids = torch.tensor([i for prompt in together for i in prompt])  # [T]
        last = torch.tensor(lengths).cumsum(0) - 1  # [B C]
        logits = self.model(ids, lengths, self.cache, at=last)
        self.computed += self.model.computed
        if self.static:
            self.cache.longest = self.size[1]  # from now on all slots are looked at
        return logits.view(len(prompts), self.C, 1, -1)

    def reserve(self, rows: int, slots: int) -> None:
        """An empty cache of at least this size."""
        if not self.static:
            self.cache = self.model.new_cache(rows, slots)
            return
        size = (power_of_two(rows), -(-slots // ROUND) * ROUND)
        if size[0] > self.size[0] or size[1] != self.size[1]:
            self.graphs, self.cache = {}, None  # its memory first
            self.cache, self.size = self.model.new_cache(*size), size
        self.cache.clear()

    def drop(self, sentence: int, last: int) -> None:
        """A sentence is finished: the last one takes its place."""
        for row in range(self.C if sentence != last else 0):
            self.cache.move(last * self.C + row, to=sentence * self.C + row)

    def step(self, new: list[list[int]], parents: list[list[int]] | None = None) -> Tensor:
        """Logits [B, C, n, V] after one more token in each beam of the first B sentences. parents:
        which beam of before each goes on, where there are several."""
        B = len(new)
        tokens = [token for beams in new for _ in range(self.C) for token in beams]  # [B C n]
        self.computed += len(tokens)
        if self.n == 1:
            return self.step_rows(tokens).view(B, self.C, 1, -1)
        if self.cache.paths is None:
            self.cache.paths = Paths(self.cache.used, self.n, self.cache.k.shape[3])
        parents = torch.tensor(parents, device=self.cache.used.device)  # [B, n]
        self.cache.paths.extend(parents.repeat_interleave(self.C, 0))
        logits = self.model(torch.tensor(tokens), [self.n] * (B * self.C), self.cache)
        return logits.view(B, self.C, self.n, -1)

    def step_rows(self, new: list[int]) -> Tensor:
        """Logits [B C, V] after one more token in each of as many rows."""
        B = len(new)
        if not self.static:
            return self.model(torch.tensor(new), [1] * B, self.cache)
        rows = power_of_two(B)
        # Rows beyond B hold a prompt that nobody waits for, or none: what they compute is not read.
        ids = torch.tensor(new + [0] * (rows - B)).to(self.cache.used.device)
        if not self.record:
            return self.model(ids, [1] * rows, self.cache)[:B]
        if rows not in self.graphs:
            self.graphs[rows] = self.record_step(rows)
        graph, static_ids, logits = self.graphs[rows]
        static_ids.copy_(ids)
        graph.replay()
        return logits[:B]

    def record_step(self, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """(the graph of a step, the ids [rows] that it reads, the logits [rows, V] it writes)."""
        ids = torch.zeros(rows, dtype=torch.long, device=self.cache.used.device)
        used = self.cache.used.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries get their workspaces before the recording
            self.model(ids, [1] * rows, self.cache)
        torch.cuda.current_stream().wait_stream(aside)
        self.cache.used.copy_(used)  # what was written lies in slots that come next
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.model(ids, [1] * rows, self.cache)
        return graph, ids, logits


def power_of_two(n: int) -> int:
    """The least that is no less than n."""
    return 1 << (n - 1).bit_length()
