# What a step returns.  Included by _engine.pyx.

@cython.freelist(8)
cdef class StepRecord:
    """What a step did.

    Attributes
    ----------
    step : int
        The number of steps that the parameter with the most has taken.
    skipped : bool
        Whether gradients were not finite, so that nothing was updated.
    grad_norm : float or None
        The norm of all gradients after ``grad_scale`` and ``centralize`` and before clipping, if
        the step needed it: to clip by it, or to see whether gradients are finite.
    clip_factor : float or None
        What gradients were multiplied by to clip their norm, the smallest if several were; 1 if
        none was too large, None if none is clipped.  Norms of units (``clip_ratio``) don't count.
    """

    cdef readonly long long step
    cdef readonly bint skipped
    cdef readonly object grad_norm, clip_factor

    def __repr__(self):
        return (f"StepRecord(step={self.step}, skipped={self.skipped}, "
                f"grad_norm={self.grad_norm}, clip_factor={self.clip_factor})")
