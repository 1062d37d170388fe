"""Optimizers for NumPy loops on several processes, by MPI; needs mpi4py and an MPI library.

Each process, a rank, computes the gradients of its own samples of the batch; `Sharded` reduces them
over ranks and updates the parameters.  Each rank has a shard of the optimizer's states (ZeRO).
Tables that are stepped by rows go to an optimizer of each rank's own: see `gather_rows`.

>>> import numpy as np, fastgd
>>> from fastgd.mpi import Sharded
>>> w = np.zeros(3)
>>> opt = Sharded(fastgd.SGD, w, lr=0.5)
>>> _ = opt.step(np.ones(3))
>>> w
array([-0.5, -0.5, -0.5])

Run a program on four ranks with ``mpiexec -n 4 python program.py``.
"""

try:
    from mpi4py import MPI as MPI
except ImportError as error:
    hint = 'fastgd.mpi needs mpi4py and an MPI library: pip install "fastgd[mpi]" mpich'
    raise ImportError(hint) from error

from fastgd.mpi._link import RankError
from fastgd.mpi._rows import gather_rows
from fastgd.mpi._sharded import Sharded

__all__ = ["RankError", "Sharded", "gather_rows"]
