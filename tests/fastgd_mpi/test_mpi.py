"""fastgd.mpi on real ranks: what each of them does and checks stands in support/mpi_ranks.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.helpers import ROOT, SUPPORT

if find_spec("mpi4py") is None:
    pytest.skip("mpi4py is not installed: pip install mpi4py mpich", allow_module_level=True)

# That of this environment before the system's, which may be of another MPI library.
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec: pip install mpich", allow_module_level=True)


PROGRAM = SUPPORT / "mpi_ranks.py"


def environment():
    """Of this process, less what an MPI library left there, with one thread for each of many ranks."""
    kept = re.compile(r"(?!PMI|OMPI_|PRTE_|HYD|MPI_LOCAL)")
    return {
        **{key: value for key, value in os.environ.items() if kept.match(key)},
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # What Open MPI wants to be told: that there may be more ranks than cores, and root's.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }


def launch(ranks, *command, before=()):
    """Run a Python program on some ranks; no longer than two minutes."""
    program = [*before, sys.executable, "-W", "error", *map(str, command)]
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), *program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def results(case, folder):
    """What the ranks that came to the end of a case returned, by rank."""
    found = {path.suffixes[-2][1:]: path for path in Path(folder).glob(f"{case}.*.json")}
    return {int(rank): json.loads(path.read_text()) for rank, path in found.items()}


def run(ranks, case, folder, *arguments):
    done = launch(ranks, PROGRAM, case, folder, *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    found = results(case, folder)
    assert sorted(found) == list(range(ranks)), done.stderr
    return found


# --------------------------------------------------------------------------- equal to one process


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_the_same_bits_as_in_one_process(ranks, tmp_path):
    run(ranks, "equals_one_process", tmp_path)


def test_the_same_bits_with_16_bit_parameters(tmp_path):
    run(3, "equals_with_16_bits", tmp_path)


def test_groups_and_norms(tmp_path):
    run(3, "equals_with_groups", tmp_path)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rules_that_add_up_over_a_parameter(ranks, tmp_path):
    """The same bits on one rank; on more, what sums over shards change in their last bits."""
    run(ranks, "equals_with_sums", tmp_path)


def test_numbers_are_the_same_on_all_ranks(tmp_path):
    run(3, "equals_with_numbers", tmp_path)


def test_rules_are_told_the_size_of_the_whole(tmp_path):
    run(3, "elements_of_the_whole", tmp_path)


@pytest.mark.parametrize("ranks", [2, 4])
def test_uneven_and_tiny_sizes(ranks, tmp_path):
    run(ranks, "sizes", tmp_path)


def test_states_are_shared_out(tmp_path):
    """At four ranks at most 0.26 of the whole on each, and together no more than the whole."""
    ranks = run(4, "shares", tmp_path).values()
    for name in ("float32", "8bit"):
        shares = [found[name] for found in ranks]
        assert max(shares) <= 0.26, (name, shares)
        assert sum(shares) == pytest.approx(1), (name, shares)


def test_sums_order_bound_and_accumulated_gradients(tmp_path):
    run(2, "reductions", tmp_path)


def test_averages(tmp_path):
    run(2, "averages", tmp_path)


@pytest.mark.parametrize("mode", ["goes on", "saves"])
def test_a_rank_that_fails_with_averages_swapped_in(mode, tmp_path):
    done = launch(3, PROGRAM, "fails_swapped", tmp_path, mode)
    assert sorted(results("fails_swapped", tmp_path)) == [0, 1, 2], done.stderr
    assert "AssertionError" not in done.stderr
    assert done.returncode != 0


def test_rows_of_all_ranks(tmp_path):
    run(3, "rows", tmp_path)


def test_subcommunicators(tmp_path):
    run(4, "subcommunicators", tmp_path)


def test_optimizers_in_another_order(tmp_path):
    run(2, "mixed_optimizers", tmp_path)


def test_without_mpiexec():
    code = """
import numpy as np, fastgd
from fastgd.mpi import Sharded
w, one = np.ones(1000, np.float32), np.ones(1000, np.float32)
Sharded(fastgd.Adam, w, state_dtype="8bit").step(w.copy())
fastgd.Adam(one, state_dtype="8bit").step(one.copy())
assert (w == one).all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------- errors of single ranks


def test_all_ranks_raise_what_one_would(tmp_path):
    run(3, "bad_arguments", tmp_path)


def test_rules_of_whole_parameters_are_refused(tmp_path):
    run(2, "rules_of_wholes", tmp_path)


def test_gradients_are_not_kept(tmp_path):
    run(2, "gradients_go", tmp_path)


def test_what_is_not_finite_on_one_rank(tmp_path):
    run(3, "not_finite", tmp_path)


# What is done to the last rank: what the others are to read, and whether they wait for their time.
FAILURES = {
    "killed": ("no answer from rank 2: dead", True),
    "killed within a step": ("the parameters.*no answer from rank 2: dead", True),
    "killed between sweeps": (
        "states had been changed and parameters not: go back to a checkpoint; no answer from rank 2",
        True,
    ),
    "stopped": ("no answer from rank 2: dead, hung", True),
    "raises outside": ("no answer from rank 2", True),
    "raises": ("rank 2: ValueError: what a loss may raise", False),
    "out of memory": ("rank 2: MemoryError: no more", False),
    "late": ("the other ranks' step.*gave up", True),
}


@pytest.mark.parametrize("mode", FAILURES)
def test_a_rank_that_fails_is_noticed_in_bounded_time(mode, tmp_path):
    """With a timeout of 1 s in two seconds, and more on a busy machine; and an end by abort."""
    # MPICH's launcher ends all ranks when one of its children dies: here its children are shells,
    # which outlive the ranks.
    shell = ("sh", "-c", '"$@"; exec sleep 30', "sh")
    done = launch(3, PROGRAM, "fails", tmp_path, mode, before=shell)
    found = results("fails", tmp_path)
    words, waits = FAILURES[mode]
    assert {0, 1} <= set(found), done.stderr
    # Open MPI lets a process that was stopped go on before it ends it.
    assert (2 in found) == (mode == "late") or mode == "stopped"
    for rank in (0, 1):
        error, seconds = found[rank]["error"], found[rank]["seconds"]
        assert re.search(words, error), error
        assert (0.9 if waits else 0) < seconds < 20, seconds
    assert done.returncode != 0
    if mode in ("raises", "raises outside"):
        assert "ValueError: what a loss may raise" in done.stderr


# ------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (1, 4), (3, 3)])
def test_checkpoints_of_other_numbers_of_ranks(before, after, tmp_path):
    """Parameters, states, averages and accumulated gradients come back to the bit."""
    run(before, "saves", tmp_path)
    assert len(os.listdir(tmp_path / "set")) == before + 1
    run(after, "loads", tmp_path)


def test_checkpoints_of_numbers(tmp_path):
    """Each rank's file has them, and any number of ranks has them alike."""
    run(3, "saves", tmp_path, "NAdam")
    run(2, "loads", tmp_path, "NAdam")


def test_checkpoints_that_are_refused(tmp_path):
    run(2, "refuses_checkpoints", tmp_path)


def test_checkpoints_that_cannot_be_written(tmp_path):
    run(3, "fails_to_save", tmp_path)


def test_killed_while_saving(tmp_path):
    """Whenever a rank dies, the last whole set is there."""
    for seed in range(6):
        done = launch(2, PROGRAM, "killed_while_saving", tmp_path, seed)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr, done.stderr
    assert int((tmp_path / "saved").read_text()) > 6


# ---------------------------------------------------------------------------------------- example


def test_the_example():
    """The digits network, trained on four ranks, is the one trained in a single process."""
    pytest.importorskip("sklearn")
    done = launch(4, ROOT / "examples" / "mpi_digits.py", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "the same bits as in one process" in done.stdout
