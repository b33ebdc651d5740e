"""Which samples a step visits."""

import pytest
from conftest import TSV, tuning_set

from plumbing.corpora import read_corpus


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.fixture
def encoded(tmp_path, tokenizer):
    corpus, _ = read_corpus([write(tmp_path / "train.tsv", TSV)], "supervised")
    return tuning_set(corpus, tokenizer, 512, pairs=20, seed=1)


def test_every_epoch_is_a_new_permutation_of_all_samples(encoded):
    n = len(encoded.samples)
    first, second = (
        [
            item[0]
            for step in range(e * 4, e * 4 + 4)
            for item in encoded.of_step(step, n // 4, 2 * n, seed=1)
        ]
        for e in (0, 1)
    )
    assert n % 4 == 0 and set(first) == set(second) and len(set(first)) == n and first != second
    # whatever was asked before
    assert [i[0] for i in encoded.of_step(3, n // 4, 2 * n, seed=1)] == first[-n // 4 :]
    # the last step is what is left, not a full batch
    assert len(encoded.of_step(1, n - 5, n + 3, seed=1)) == 8
