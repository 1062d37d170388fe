"""Epochs of batches under pytest-benchmark, against torch's DataLoader: ``make bench``.

A round is one epoch, with its shuffling; ``extra_info["us_per_batch"]`` is the median over batches.
"""

from __future__ import annotations

import numpy as np
import pytest

from fastgd.data import batches

BATCH = 32
SHAPES = {"digits": (1437, 64), "1e6 x 100": (1_000_000, 100)}


def ours(x, y):
    return batches((x, y), BATCH, seed=0)


def fresh(x, y):
    return batches((x, y), BATCH, seed=0, copy=True)


def fancy(x, y):
    """What loops without a library do."""

    class Loader:
        def __len__(self):
            return -(-len(x) // BATCH)

        def __iter__(self):
            order = np.random.default_rng(0).permutation(len(x))
            for start in range(0, len(x), BATCH):
                rows = order[start : start + BATCH]
                yield x[rows], y[rows]

    return Loader()


def torch_loader(x, y):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=0)


LOADERS = {"fastgd": ours, "fastgd, copy": fresh, "NumPy": fancy, "DataLoader": torch_loader}


@pytest.fixture(scope="module", params=SHAPES)
def arrays(request):
    rng = np.random.default_rng(0)
    n, features = SHAPES[request.param]
    return request.param, rng.random((n, features), np.float32), rng.integers(0, 10, n)


@pytest.mark.parametrize("who", LOADERS)
def test_epoch(benchmark, arrays, who):
    shape, x, y = arrays
    loader = LOADERS[who](x, y)

    def epoch():
        for _ in loader:
            pass

    benchmark.group = f"an epoch of {shape}, batches of {BATCH}"
    benchmark.name = who
    rounds = 3 if who == "DataLoader" else 10
    benchmark.pedantic(epoch, rounds=rounds, warmup_rounds=1 if shape == "digits" else 0)
    if benchmark.stats:  # there are none where benchmarks are disabled
        benchmark.extra_info["us_per_batch"] = benchmark.stats.stats.median / len(loader) * 1e6
