"""fastgd.torch in 2 and 4 processes of torch.distributed, on loopback, beside one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support.workers import made_once

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.distributed's use of what torch itself deprecates
    from support import distributed_scenarios

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without gloo",
)
SECONDS = 120  # for all scenarios of one number of processes, which take a tenth of that
CASES = [
    (world, name)
    for world in (4, 2)
    for name, (_, worlds) in distributed_scenarios.SCENARIOS.items()
    if world in worlds
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each scenario raised in each process, by number of processes, name and process.

    All scenarios of a number run in the same processes, as these take longer to start than to run;
    those of two processes load what four have saved.
    """
    return made_once(
        tmp_path_factory, "processes", lambda folder: launch(4, folder) | launch(2, folder)
    )[1]


def launch(world, folder):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "FASTGD_SHARED": str(folder / "checkpoint"),
    }
    script = Path(distributed_scenarios.__file__)
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), folder],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    except subprocess.TimeoutExpired:
        said = ["took too long"] * world
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = {}
    for rank in range(world):
        file = folder / f"{world}-{rank}.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        for number, name in CASES:
            if number == world:
                missing = f"was not reached: {said[rank]}"
                found[f"{world} {name} {rank}"] = results.get(name, missing)
    return found


@pytest.mark.parametrize(("world", "name"), CASES)
def test_processes_together_do_what_one_does(outcomes, world, name):
    failures = {rank: outcomes[f"{world} {name} {rank}"] for rank in range(world)}
    assert not any(failures.values()), "\n".join(
        f"process {rank}: {said}" for rank, said in failures.items() if said
    )
