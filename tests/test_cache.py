"""The KV cache: what continues sees what it would see uncached, in rows and in beams."""

import pytest
import torch
from conftest import tiny
from test_model import ids_of

from plumbing.compute.cache import KVCache, Paths


@pytest.mark.parametrize(
    "chunks", [[[5, 2, 9]] + [[1, 1, 1]] * 4, [[3, 1, 4], [2, 5, 1], [1, 1, 1]]]
)
def test_cached_logits_equal_uncached_for_unequal_rows(chunks):
    model = tiny()
    totals = [sum(c[b] for c in chunks) for b in range(3)]
    rows = ids_of(totals).split(totals)
    full = [model(row, [len(row)]) for row in rows]
    cache, done = KVCache(model.config, 3, max(totals)), [0, 0, 0]
    for chunk in chunks:
        ids = torch.cat([rows[b][done[b] : done[b] + chunk[b]] for b in range(3)])
        out = model(ids, chunk, cache).split(chunk)
        for b in range(3):
            torch.testing.assert_close(
                out[b], full[b][done[b] : done[b] + chunk[b]], rtol=1e-4, atol=1e-5
            )
            done[b] += chunk[b]


@pytest.mark.parametrize("window", [None, 5])
def test_beams_that_are_reordered_see_their_own_path_alone(window):
    model = tiny(seed=2, sliding_window=window)
    prompts = [part.tolist() for part in ids_of([7, 3]).split([7, 3])]
    cache = model.new_cache(2, 7 + 3 * 4)
    model(torch.tensor(sum(prompts, [])), [7, 3], cache)
    cache.paths = Paths(cache.used, 3, 7 + 3 * 4)
    beams = [[list(prompt)] * 3 for prompt in prompts]
    steps = [[[0, 0, 0], [0, 0, 0]], [[2, 0, 0], [1, 1, 2]], [[0, 1, 2], [2, 1, 0]]]
    for number, parents in enumerate([*steps, [[1, 1, 1], [2, 0, 2]]]):
        new = ids_of([6], seed=number).view(2, 3)
        beams = [
            [beams[row][parent] + [int(new[row, b])] for b, parent in enumerate(parents[row])]
            for row in range(2)
        ]
        cache.paths.extend(torch.tensor(parents))
        logits = model(new.flatten(), [3, 3], cache).view(2, 3, -1)
        for row in range(2):
            for b in range(3):
                ids = torch.tensor(beams[row][b])
                torch.testing.assert_close(
                    logits[row, b], model(ids, [len(ids)])[-1], rtol=1e-4, atol=1e-5
                )


def test_a_row_that_moves_takes_what_its_beams_see_along():
    model = tiny(seed=2)
    cache = model.new_cache(2, 12)
    model(ids_of([5, 2]), [5, 2], cache)
    cache.paths = Paths(cache.used, 2, 12)
    cache.paths.extend(torch.tensor([[0, 0], [0, 0]]))
    before = model(ids_of([4]), [2, 2], cache).view(2, 2, -1)[1]
    assert before.isfinite().all()
    cache.move(1, to=0)
    cache.paths.extend(torch.tensor([[1, 0]]))
    both = model(torch.tensor([9, 9]), [2], cache)
    cache.clear()
    assert cache.paths is None
    ids, chosen = ids_of([5, 2])[5:], ids_of([4])[2:]
    for beam, parent in enumerate([1, 0]):
        whole = torch.cat([ids, chosen[parent : parent + 1], torch.tensor([9])])
        expected = model(whole, [4])[-1]
        torch.testing.assert_close(both[beam], expected, rtol=1e-4, atol=1e-5)
