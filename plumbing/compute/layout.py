"""Where tokens lie when sequences stand end to end in one row, without padding.

Symbols in shape comments: B sequences, T tokens of all of them together, U of these that are
computed, n queries and s keys of a sequence (of the longest one, in rectangles; of a cache s are
the slots that are looked at), H heads of queries, K of keys, d their width.
"""

import operator
from functools import cached_property
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 8192  # tokens; the mask of longer sequences takes more memory than sharing saves


class Ragged:
    """B rows of tokens: end to end [T, ...], or as a rectangle [B, n, ...] with padding on the
    right, where causal order hides it."""

    def __init__(self, lengths: list[int], device=None):
        self.B, self.n, self.T = len(lengths), max(lengths), sum(lengths)
        self.even = self.B * self.n == self.T
        if self.even:  # without a copy from the host, which a CUDA graph could not record
            self.sizes = torch.full((self.B,), self.n, device=device)
        else:
            self.sizes = send(lengths, device)  # [B]
        rows = torch.arange(self.B, device=device)
        self.row = torch.repeat_interleave(rows, self.sizes, output_size=self.T)  # [T]
        first = self.sizes.cumsum(0) - self.sizes  # [B]
        self.col = torch.arange(self.T, device=device) - first[self.row]  # [T]

    @cached_property
    def ends(self) -> Tensor:
        """[B + 1], int32: 0, then where each row ends, as FlashAttention wants it."""
        return F.pad(self.sizes.cumsum(0), (1, 0)).int()

    def pad(self, x: Tensor) -> Tensor:
        """[T, H, d] -> [B, H, n, d]"""
        if self.even:
            return x.view(self.B, self.n, *x.shape[1:]).transpose(1, 2)
        padded = x.new_zeros(self.B, self.n, *x.shape[1:])  # [B, n, H, d]
        return padded.index_put((self.row, self.col), x).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """[B, H, n, d] -> [T, H, d]"""
        x = x.transpose(1, 2)  # [B, n, H, d]
        return x.reshape(self.T, *x.shape[2:]) if self.even else x[self.row, self.col]


class Layout:
    """Whole sequences. What several of them begin with is computed once: they form a trie, whose
    nodes, a token after all those before it, are the U tokens that pass the network. Of a sequence
    these are its last own[b] tokens; those before them it takes from an earlier sequence.

    Of [a b c] and [a b d] U = 4 tokens a b c d are computed: own = [3, 1], position = [0, 1, 2, 2],
    place = [0, 1, 2, 0, 1, 3]. Queries are the U tokens, keys and values all T."""

    def __init__(self, ids: Tensor, lengths: list[int], device=None, window=None, share=True):
        """ids [T]: the tokens of B sequences of these lengths. window: the sliding window's width.
        share: whether to look for what they have in common, unless one is LONG."""
        share = share and max(lengths) <= LONG
        nodes, place, own, depth = {}, [], [], []
        tokens = iter(ids.tolist())
        for number, length in enumerate(lengths):
            node, before = -1 - (0 if share else number), len(nodes)  # a root, of all or its own
            for token in islice(tokens, length):
                node = nodes.setdefault((node, token), len(nodes))
                place.append(node)
            own.append(len(nodes) - before)
            depth += range(length - own[-1], length)
        tokens = [token for _, token in nodes]

        self.lengths, self.own, self.window, self.device = lengths, own, window, device
        self.ids = send(tokens, device)  # [U]
        self.position = send(depth, device)  # [U]
        self.place = None  # [T], of each token among the U
        if len(tokens) < len(place):
            self.place = send(place, device)
        self.masks = {}

    @cached_property
    def computed(self) -> Ragged:
        """The U tokens, as rows of the sequences that computed them."""
        return Ragged(self.own, self.device)

    @cached_property
    def whole(self) -> Ragged:
        """The T tokens."""
        return Ragged(self.lengths, self.device)

    def expand(self, x: Tensor) -> Tensor:
        """What the U tokens have, for all T: [U, ...] -> [T, ...]"""
        return x if self.place is None else x.index_select(0, self.place)

    def pick(self, x: Tensor, at: Tensor | None) -> Tensor:
        """What the tokens `at` [R] in 0..T-1 have (None: all): [U, ...] -> [R, ...]"""
        if at is None:
            return self.expand(x)
        at = at.to(x.device, non_blocking=True)
        return x[at if self.place is None else self.place[at]]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[s, s]: 0 where one token (row) of a sequence sees another (column), else -inf."""
        if dtype not in self.masks:
            s = max(self.lengths)
            visible = seen_by(torch.arange(s, device=self.device)[:, None], s, self.window)
            zeros = torch.zeros(s, s, dtype=dtype, device=self.device)
            self.masks[dtype] = zeros.masked_fill(~visible, -torch.inf)
        return self.masks[dtype]

    def padded_mask(self, dtype: torch.dtype, G: int) -> Tensor:
        """[B, 1, G n, s]: what the own tokens of each sequence see, padded to the most of them, for
        each of G heads of queries."""
        if (dtype, G) not in self.masks:
            n, s = self.computed.n, self.whole.n
            first = (self.whole.sizes - self.computed.sizes)[:, None]  # [B, 1]
            query = (first + torch.arange(n, device=self.device)).clamp(max=s - 1)  # [B, n]
            visible = seen_by(query[:, :, None], s, self.window)
            self.masks[dtype, G] = grouped_mask(visible, dtype, G)
        return self.masks[dtype, G]


class CachedLayout:
    """Tokens that continue the sequences of a KV cache."""

    def __init__(
        self,
        ids: Tensor,
        lengths: list[int],
        used: Tensor,
        slots: int,
        window: int | None = None,
        paths=None,
    ):
        """ids [T]: the new tokens of B rows, of each so many as lengths says. used [B or more]:
        how many tokens a row of the cache holds already; slots: so many of its slots are looked
        at, no fewer than any row has tokens then. window: the sliding window's width.
        paths, of cache.py: the new tokens are those of beams, one each."""
        self.ids, self.slots = ids, slots
        self.whole = Ragged(lengths, ids.device)
        row, col, n = self.whole.row, self.whole.col, self.whole.n
        self.slot = self.position = used[row] + col  # [T]
        self.masks = {}
        if paths:
            self.position = paths.position(len(lengths)).flatten()
            self.visible = paths.visible(len(lengths), slots, window)
            return
        step = torch.arange(n, device=ids.device)
        query = used[: len(lengths), None, None] + step[None, :, None]  # [B, n, 1]
        self.visible = seen_by(query, slots, window)  # [B, n, s]

    def expand(self, x: Tensor) -> Tensor:
        return x  # nothing is shared

    def pick(self, x: Tensor, at: Tensor | None) -> Tensor:
        return x if at is None else x[at.to(x.device, non_blocking=True)]

    def mask(self, dtype: torch.dtype, G: int) -> Tensor:
        """[B, 1, G n, s]: 0 where a token sees a slot, else -inf, once for each of G heads."""
        if (dtype, G) not in self.masks:
            self.masks[dtype, G] = grouped_mask(self.visible, dtype, G)
        return self.masks[dtype, G]


def send(numbers: list[int], device: torch.device | None) -> Tensor:
    """Numbers as a tensor on a device, which the host does not wait for."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def seen_by(query: Tensor, s: int, window: int | None) -> Tensor:
    """[..., s]: which of s keys a token sees from its position, query [..., 1]: none that comes
    later, and none before the sliding window."""
    key = torch.arange(s, device=query.device)
    return (key <= query) & (key > query - (window or s))


def grouped_mask(visible: Tensor, dtype: torch.dtype, G: int) -> Tensor:
    """[B, 1, G n, s]: 0 where visible [B, n, s], else -inf, once for each of G heads of queries. In
    memory its rows begin at multiples of 8: CUDA's kernels would copy others in every layer."""
    B, n, s = visible.shape
    zeros = torch.zeros(B, G, n, -(-s // 8) * 8, dtype=dtype, device=visible.device)[..., :s]
    return zeros.masked_fill_(~visible[:, None], -torch.inf).flatten(1, 2)[:, None]


def lay_out(
    ids: Tensor, lengths: list[int], device: torch.device, window: int | None, share: bool, cache
) -> Layout | CachedLayout:
    """The Layout of sequences that begin, where `share` is what they begin with in common computed
    once; or the CachedLayout of those that go on from a cache. Advances cache.used and
    cache.lengths by these tokens."""
    if cache is not None and any(cache.lengths[: len(lengths)]):
        slots = max(cache.least, *map(operator.add, cache.lengths, lengths))
        cached = cache.used, slots, window, cache.paths
        layout = CachedLayout(ids.to(device, non_blocking=True), lengths, *cached)
    else:
        layout = Layout(ids, lengths, device, window, share)
    if cache is not None:
        cache.used[: len(lengths)] += layout.whole.sizes
        cache.lengths[: len(lengths)] = map(operator.add, cache.lengths, lengths)
    return layout
