"""What ranks do in test_mpi.py: ``mpiexec -n R python mpi_ranks.py CASE FOLDER``.

Each rank that comes to the end of its case leaves a file in the folder, with what the case returns.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from mpi_cases import checkpoints, equality, errors, failures, ways
from mpi_cases.common import COMM, RANK

CASES = {
    name: case
    for module in (checkpoints, equality, errors, failures, ways)
    for name, case in vars(module).items()
}


def main(case, folder, *arguments):
    try:
        found = CASES[case](folder, *arguments)
        (Path(folder) / f"{case}.{RANK}.json").write_text(json.dumps(found))
    except BaseException:
        if case != "fails":
            traceback.print_exc()
            COMM.Abort(1)  # the others may wait where nobody polls
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
