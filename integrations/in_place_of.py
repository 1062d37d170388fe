"""A pytest plugin that puts fastgd in the place of a library, whose own tests then run.

``FASTGD_IN_PLACE_OF`` names the library.  What is replaced is what its tests import or call; what
is left out has its reason beside it.
"""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest

# By the library, then by the beginning of a test's name.
LEFT_OUT: dict[str, dict[str, str]] = {
    "sklearn": {
        "test_lbfgs": "L-BFGS is SciPy's, there as here, and takes half of the time",
        "test_learning_rate_warmstart": "reads _optimizer.learning_rate, private to scikit-learn",
        "test_adaptive_learning_rate": "reads _optimizer.learning_rate, private to scikit-learn",
    },
    "thinc": {},
    "pandas": {},
    "optax": {"test_clip_by_block_rms": "fastgd has no clipping by root mean squares"},
}
# Of a suite that is about other things as well, what begins so.
KEPT: dict[str, tuple[str, ...]] = {
    "optax": ("test_clip", "test_adaptive_grad_clip", "test_centralize"),
}
CALLS: list[object] = []


def in_place_of_sklearn():
    theirs = importlib.import_module("sklearn.neural_network")
    ours = importlib.import_module("fastgd.sklearn")
    for name in ("MLPClassifier", "MLPRegressor"):
        setattr(theirs, name, counted(getattr(ours, name)))


def counted(kind):
    """The class, with each fit counted."""
    fit = kind._fit

    def counting(self, *args, **kwargs):
        CALLS.append(type(self))
        return fit(self, *args, **kwargs)

    kind._fit = counting
    return kind


def in_place_of_thinc():
    api, ours = importlib.import_module("thinc.api"), importlib.import_module("fastgd.thinc")
    call = ours.Optimizer.__call__

    def counting(self, *args, **kwargs):
        CALLS.append(type(self))
        return call(self, *args, **kwargs)

    ours.Optimizer.__call__ = counting
    api.Optimizer = ours.Optimizer
    for name in ("Adam", "SGD"):
        api.registry.optimizers(f"{name}.v1", func=getattr(ours, name))


def in_place_of_pandas():
    """The averages behind ``ewm(…).mean()``, each window of a call by itself."""
    theirs = importlib.import_module("pandas.core.window.ewm").window_aggregations
    ewma = importlib.import_module("fastgd.averages").ewma
    original = theirs.ewm

    def ours(values, start, end, minp, com, adjust, ignore_na, deltas=None, normalize=True):
        if not normalize:  # sums
            return original(values, start, end, minp, com, adjust, ignore_na, deltas, normalize)
        CALLS.append(len(start))
        averages = np.full(len(values), np.nan)
        options = {} if adjust else {"bias_correction": False, "initial": np.nan}
        regular = deltas is None or np.all(np.asarray(deltas) == 1.0)
        for one, other in zip(start, end, strict=True):
            x = np.asarray(values[one:other], np.float64)
            if not len(x):
                continue
            if regular:
                found, _ = ewma(x, com / (1 + com), ignore_na=ignore_na, **options)
            else:
                passed = np.asarray(deltas[one : other - 1], np.float64)
                times = np.concatenate([[0.0], np.cumsum(passed)])
                found, _ = ewma(x, 0.5, times=times, **options)
            enough = np.cumsum(~np.isnan(x)) >= max(minp, 1)
            averages[one:other] = np.where(enough, found, np.nan)
        return averages

    theirs.ewm = ours


def in_place_of_optax():
    """The transformations of gradients that are options of fastgd's optimizers."""
    clipping = importlib.import_module("optax.transforms._clipping")
    transform = importlib.import_module("optax._src.transform")
    clips = clipping.adaptive_grad_clip

    def adaptive_grad_clip(clipping, eps=1e-3, axis=None):
        if axis is not None:  # units of other axes
            return clips(clipping, eps, axis)
        return transformation(clip_ratio=clipping, layout="in_out")

    clipping.clip = lambda most: transformation(clip_value=most)
    clipping.clip_by_global_norm = lambda most: transformation(clip_norm=most)
    clipping.adaptive_grad_clip = adaptive_grad_clip
    transform.centralize = lambda: transformation(centralize=True)


def transformation(**options):
    """One of optax's by the options of a step of SGD: what that subtracts from the parameters."""
    import jax
    import optax

    import fastgd

    def update(updates, state, params=None):
        CALLS.append(updates)
        grads, structure = jax.tree.flatten(updates)
        grads = [np.array(g, np.float64) for g in grads]
        before = [np.zeros_like(g) for g in grads]
        if params is not None:
            before = [np.array(p, np.float64) for p in jax.tree.leaves(params)]
        after = [p.copy() for p in before]
        fastgd.SGD(after, lr=1.0, **options).step(grads)
        moved = [jax.numpy.asarray(p - q, np.float32) for p, q in zip(before, after, strict=True)]
        return jax.tree.unflatten(structure, moved), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Absent where this is no plugin, but looked through for examples.
LIBRARY = os.environ.get("FASTGD_IN_PLACE_OF", "")
if LIBRARY:
    globals()[f"in_place_of_{LIBRARY}"]()


def pytest_collection_modifyitems(items):
    if LIBRARY in KEPT:
        items[:] = [item for item in items if item.name.startswith(KEPT[LIBRARY])]
    for item in items:
        for name, reason in LEFT_OUT[LIBRARY].items():
            if item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session):
    """A suite that never met fastgd has shown nothing."""
    if not CALLS:
        session.exitstatus = 1
