"""Fixtures, and the rule that a strict run skips nothing without a reason of the machine's.

As there is no `__init__.py` beside this file, pytest puts the folder on ``sys.path`` before it imports
anything below: tests import `support` and `tools` from here, also in workers of pytest-xdist.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.register_assert_rewrite("support")  # before anything of it is imported
from support.helpers import ROOT
from support.sampling import HOW_MUCH

import fastgd
from fastgd.kernels import _engine

# What tests share and what stands around them; neither has tests.
collect_ignore = ["support", "tools"]
if HOW_MUCH == "quick":  # what needs libraries whose import takes longer than many tests
    collect_ignore += ["adapters", "commands", "fastgd_mpi", "fastgd_torch", "plot", "project"]
    collect_ignore_glob = ["*/test_torch_*", "*_torch.py"]
# What builds the package once more, counts instructions, clicks through a page.
WHOLE = [
    "commands/test_live_page.py",
    "project/test_instruction_counts.py",
    "project/test_new_family.py",
]
if HOW_MUCH != "whole":
    collect_ignore += WHOLE
# What `make docs` has built, where it has.
if HOW_MUCH != "whole" or not (ROOT / "build" / "site" / "index.html").exists():
    collect_ignore += ["project/test_site.py"]

# With FASTGD_STRICT=1 (continuous integration) a skip for any other reason fails the run.
MACHINE_REASONS = ("this CPU", "too little memory", "may not mount", "no counts are noted")
# Peers that are not among the requirements of tests; the continuous integration installs them later.
PEERS = tuple(f"{name} is not installed" for name in ("optax", "prodigyopt", "keras"))


@pytest.fixture(autouse=True)
def restored_backend_and_threads():
    """Leave backend, tuning and thread count as they were; begin with nothing found out."""
    backend, tuning = fastgd.get_backend(), fastgd.get_tuning()
    _engine.forget_tuning()  # else threads might not be used where another test was slow with them
    yield
    fastgd.set_backend(backend)
    fastgd.set_tuning(tuning)
    fastgd.set_num_threads(None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_configure(config):
    """Where several workers share the processors, let idle threads sleep, and BLAS start none.

    OpenBLAS's threads spin while they wait for each other: products of small matrices then take
    six times as long.
    """
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Mark tests by where they are and what they use; `slow` stands at the tests themselves."""
    for item in items:
        path = item.path
        if path.parent.name == "fastgd_torch" or "torch" in path.stem:
            item.add_marker("torch")
        if path.parent.name == "fastgd_mpi":
            item.add_marker("mpi")
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if f"{path.parent.name}/{path.name}" in WHOLE:
            item.add_marker("more")


def refuse_skip(report, name):
    """Turn a skip into a failure in a strict run, unless its reason is the machine's."""
    if report.skipped and os.environ.get("FASTGD_STRICT") == "1":
        reason = str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else ""
        if not any(known in reason for known in (*MACHINE_REASONS, *PEERS)):
            report.outcome = "failed"
            report.longrepr = f"{name} was skipped in a strict run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    refuse_skip(report, collector.nodeid)
    return report
