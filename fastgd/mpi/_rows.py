"""Gradients by rows of all ranks, for optimizers that each rank steps by itself."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from fastgd.core import domains
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.memory.rows import Rows
from fastgd.mpi._link import NO_BITS, link_of

TIMEOUT = 60.0  # seconds


def gather_rows(rows: Rows, *, comm: MPI.Intracomm | None = None, timeout: float = TIMEOUT) -> Rows:
    """All ranks' rows of a gradient, in the order of ranks; to be called by all ranks.

    Each rank then takes the same step with an optimizer of its own, and has the same table to the
    bit: that of one process that is given the rows of all.  A row that several ranks have is summed
    up in their order.  What travels are the rows alone.

    Parameters
    ----------
    rows : Rows
        This rank's, any number of them.
    comm : MPI.Intracomm, optional
        Whose ranks these are; by default ``MPI.COMM_WORLD``.
    timeout : float
        Seconds to wait for the other ranks.

    Returns
    -------
    Rows
        New arrays, with indices of int64.  For the mean of the ranks' gradients in the place of
        their sum, step with ``grad_scale=comm.size``.

    Raises
    ------
    TypeError, ValueError
        On all ranks the same, if one has no rows, or rows of another shape or dtype.
    RankError
        If a rank did not come.

    Notes
    -----
    Tables and states are whole on every rank.  `Sharded` cuts parameters anywhere, also amid rows,
    and takes no rows: give it the dense parameters, and the tables to an optimizer beside it.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> from mpi4py import MPI
    >>> from fastgd.mpi import gather_rows
    >>> table = np.zeros((5, 2))
    >>> opt = fastgd.Adagrad(table, lr=0.5)
    >>> rows = fastgd.Rows([3], np.ones((1, 2)))
    >>> _ = opt.step(gather_rows(rows), grad_scale=MPI.COMM_WORLD.size)
    >>> table[3]
    array([-0.5, -0.5])
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"comm: expected an intracommunicator, found {shown(comm)}")
    error: Exception | None = None
    patience, lines = TIMEOUT, []
    try:
        patience = domains.positive(timeout, "timeout")
        if not isinstance(rows, Rows):
            raise TypeError(f"rows: expected Rows, found {shown(rows)}")
        lines = [f"rows: {rows.values.dtype} of shape {rows.values.shape[1:]}"]
    except Exception as caught:
        error = caught
    link = link_of(comm, patience)
    link.refuse_broken()
    with link.patience(patience):
        link.agree("gather_rows", error, lines, NO_BITS)
        indices = link.gather_all(rows.indices.astype(np.int64, copy=False), "indices of rows")
        return Rows(indices, link.gather_all(rows.values, "values of rows"))
