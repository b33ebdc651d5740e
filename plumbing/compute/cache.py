"""The KV cache of decoding, and what beams see of it.

Symbols in shape comments: L layers, B rows, K key heads, S slots, s of them that are looked at, d
width of a head, n beams, T new tokens.
"""

import copy

import torch
from torch import Tensor

from plumbing.compute.layout import CachedLayout, Layout


class Paths:
    """Which slots of a KV cache's rows n beams see. A row's tokens form a tree: its prompt, then at
    each step one token of every beam; a beam is a path in it. So all share their prompt, and when
    they are reordered nothing in the cache moves."""

    def __init__(self, used: Tensor, n: int, slots: int):
        """used [B]: how many tokens of its prompt a row holds. slots: of the cache, S."""
        self.prompt, self.n, self.steps = used.clone(), n, 0
        seen = torch.arange(slots, device=used.device) < used[:, None]  # [B, S]
        self.seen = seen[:, None].repeat(1, n, 1)  # [B, n, S]

    def extend(self, parents: Tensor) -> None:
        """One more token for every beam of the first rows, each after its parent's: [B, n]."""
        seen = self.seen[: len(parents)]
        own = self.prompt[: len(parents), None] + self.steps * self.n
        own = own + torch.arange(self.n, device=own.device)  # [B, n]
        seen = seen.gather(1, parents[:, :, None].expand(-1, -1, seen.shape[2]))
        self.seen[: len(parents)] = seen.scatter(2, own[:, :, None], True)
        self.steps += 1

    def position(self, rows: int) -> Tensor:
        """[rows, n]: of the newest tokens, each as if its beam were alone."""
        return (self.prompt[:rows, None] + self.steps - 1).expand(-1, self.n)

    def visible(self, rows: int, slots: int, window: int | None) -> Tensor:
        """[rows, n, slots]: what the newest tokens see."""
        seen = self.seen[:rows, :, :slots]
        if not window:
            return seen
        prompt = self.prompt[:rows, None]
        slot = torch.arange(slots, device=prompt.device)  # [s]
        depth = torch.where(slot < prompt, slot, prompt + (slot - prompt) // self.n)  # [rows, s]
        return seen & (depth > prompt + self.steps - 1 - window)[:, None]

    def move(self, row: int, to: int) -> None:
        """Copy a row over another, as KVCache does."""
        self.seen[to], self.prompt[to] = self.seen[row], self.prompt[row]


class KVCache:
    """Keys and values of B growing sequences, one a row. Slot i of a row holds the i-th token that
    was written there: those of its prompt, then one token a step or, with beams, one of each."""

    def __init__(
        self, layers: int, B: int, K: int, slots: int, d: int, device=None, dtype=torch.float32
    ):
        self.rows, self.slots = B, slots
        self.k = torch.zeros(layers, B, K, slots, d, device=device, dtype=dtype)
        self.v = torch.zeros(layers, B, K, slots, d, device=device, dtype=dtype)
        self.used = torch.zeros(B, dtype=torch.long, device=device)  # [B]
        self.lengths = [0] * B  # the same numbers on the host, which need not wait for the GPU
        self.least = 0  # so many slots are looked at even where no row has as many tokens
        self.paths = None  # with beams, what each of them sees of its row

    def append(self, layer: int, k: Tensor, v: Tensor, layout: Layout | CachedLayout):
        """Write k, v [T, K, d] into their slots. Returns what the tokens see: of sequences that
        begin here k and v themselves, else all that is in use of their rows, [B, K, s, d]."""
        rows = layout.whole
        slot = rows.col if isinstance(layout, Layout) else layout.slot  # [T]
        for store, new in ((self.k[layer], k), (self.v[layer], v)):
            store[rows.row, :, slot] = new.to(store.dtype)
        if isinstance(layout, Layout):
            return k, v
        k, v = (store[layer, : rows.B, :, : layout.slots].to(k.dtype) for store in (self.k, self.v))
        return k, v

    def move(self, row: int, to: int) -> None:
        """Copy a row over another, whose sequence is finished."""
        self.k[:, to], self.v[:, to] = self.k[:, row], self.v[:, row]
        self.used[to], self.lengths[to] = self.used[row], self.lengths[row]
        if self.paths:
            self.paths.move(row, to)

    def behind(self, row: int) -> "KVCache":
        """A cache of the rows from this one on, emptied. It is the same memory."""
        rest = copy.copy(self)
        rest.k, rest.v, rest.used = self.k[:, row:], self.v[:, row:], self.used[row:]
        rest.used.zero_()
        rest.lengths = [0] * len(self.lengths[row:])
        return rest
