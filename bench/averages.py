"""Averages against pandas, SciPy, torch and the machine's stream, interleaved in one run.

python bench/averages.py        needs pandas, scipy and, for the last two lines, torch
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pandas as pd
from compare import ALL_THREADS, batch
from scipy.signal import lfilter
from stream import Stream

import fastgd
from fastgd.averages import EMA, ewma

BETA = 0.98


def interleaved(steps, rounds=15):
    """Median seconds of each of several functions, taking turns."""
    counts = {name: batch(step, 0.002) for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            time.sleep(0.002)
            step()
            start = time.perf_counter()
            for _ in range(counts[name]):
                step()
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: median(t) for name, t in times.items()}


def report(title, steps):
    """Print the first one's time, and the others' over it."""
    times = interleaved(steps)
    own = times[next(iter(times))]
    others = "  ".join(f"{name} {t / own:.2f}" for name, t in times.items())
    print(f"{title:<32}{own * 1e6:10.1f} µs   {others}", flush=True)


def series():
    """One long series, and many short ones."""
    rng = np.random.default_rng(0)
    for shape in ((1_000_000,), (1000, 1000)):
        x = rng.standard_normal(shape)
        out = np.empty_like(x)
        frame = pd.Series(x) if x.ndim == 1 else pd.DataFrame(x.T)

        def pandas(frame=frame):
            return frame.ewm(alpha=1 - BETA).mean()

        def filtered(x=x):
            return lfilter([1 - BETA], [1, -BETA], x)

        expected = pandas().to_numpy().T
        assert np.allclose(ewma(x, BETA)[0], expected, rtol=1e-9, atol=1e-12)
        assert np.allclose(ewma(x, BETA, bias_correction=False)[0], filtered(), rtol=1e-9)
        steps = {
            "fastgd": lambda x=x, out=out: ewma(x, BETA, out=out),
            "uncorrected": lambda x=x, out=out: ewma(x, BETA, bias_correction=False, out=out),
            "new array": lambda x=x: ewma(x, BETA),
            "pandas": pandas,
            "scipy lfilter": filtered,
        }
        report(f"ewma, {' × '.join(map(str, shape))}", steps)


def weights():
    """A model's weights."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    fastgd.set_num_threads(ALL_THREADS)
    torch.set_num_threads(ALL_THREADS)
    for count, size in ((32, 1_000_000), (300, 64)):
        params = [np.random.default_rng(k).random(size, np.float32) for k in range(count)]
        model = torch.nn.ParameterList([torch.from_numpy(p) for p in params])
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        ema = EMA(params, 0.999, bias_correction=False)
        averaged.update_parameters(model)
        steps = {
            "fastgd": ema.update,
            "stream": Stream().over(count * size, 0, ALL_THREADS),
            "torch AveragedModel": lambda averaged=averaged, model=model: (
                averaged.update_parameters(model)
            ),
        }
        report(f"EMA.update, {count} × {size}", steps)


if __name__ == "__main__":
    series()
    weights()
