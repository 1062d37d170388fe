"""Choosing a backend: by itself, by the environment, by name; refusing what isn't there."""

from __future__ import annotations

import pytest
from support.helpers import COMPILED, run_python

import fastgd
from fastgd import kernels
from fastgd.kernels import _engine


def test_the_best_supported_one_is_chosen():
    done = run_python("import fastgd; print(fastgd.get_backend())", FASTGD_BACKEND="")
    assert done.stdout.strip() == fastgd.available_backends()[0]


@pytest.mark.parametrize("name", [*COMPILED, "numpy"])
def test_each_backend_runs_in_a_process_of_its_own(name):
    code = """
import numpy as np, fastgd
p = {"W": np.linspace(-1, 1, 100000, dtype=np.float32)}
opt = fastgd.AdamW(p, lr=0.1)
for t in range(3):
    opt.step({"W": np.sin(p["W"] * (t + 1))})
import hashlib
print(fastgd.get_backend(), hashlib.sha256(p["W"].tobytes()).hexdigest())
"""
    done = run_python(code, FASTGD_BACKEND=name)
    assert done.returncode == 0, done.stderr
    backend, digest = done.stdout.split()
    assert backend == name
    assert digest == run_python(code, FASTGD_BACKEND="numpy").stdout.split()[1]


def test_unknown_names_are_refused():
    before = fastgd.get_backend()
    with pytest.raises(
        ValueError, match=r"backend 'avx9000': no such backend; available here: .*numpy"
    ):
        fastgd.set_backend("avx9000")
    assert fastgd.get_backend() == before
    done = run_python("import fastgd", FASTGD_BACKEND="avx9000")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        "ValueError: environment variable FASTGD_BACKEND: backend 'avx9000': no"
    )


@pytest.mark.parametrize(
    ("level", "reason"),
    [(1, "this CPU and operating system is at x86-64 level 1"), (0, "is no x86-64")],
)
def test_unsupported_names_are_refused(monkeypatch, level, reason):
    monkeypatch.setattr(_engine, "x86_64_level", lambda: level)
    assert fastgd.available_backends() == ("baseline", "numpy")
    with pytest.raises(ValueError, match=reason):
        fastgd.set_backend("x86_64_v3")


def test_a_backend_that_was_not_built_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'baseline': it was not built; available here: numpy"):
        fastgd.set_backend("baseline")


def test_the_detector_agrees_with_the_kernel():
    """/proc/cpuinfo lists what both the processor and the operating system support."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((set(x.split()) for x in lines if x.startswith("flags")), None)
    except OSError:
        flags = None
    if flags is None:
        pytest.skip("this CPU is not described in /proc/cpuinfo")
    v3 = {"fma", "movbe", "xsave", "avx", "f16c", "bmi1", "avx2", "bmi2", "abm"} <= flags
    v4 = v3 and {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"} <= flags
    assert _engine.x86_64_level() == (4 if v4 else 3 if v3 else 1)


def test_show_config(capsys):
    fastgd.set_backend("numpy")
    fastgd.show_config()
    text = capsys.readouterr().out
    assert text.startswith(f"fastgd {fastgd.__version__}, NumPy ")
    assert "backend    numpy      in use" in text
    assert "OpenMP:" in text
