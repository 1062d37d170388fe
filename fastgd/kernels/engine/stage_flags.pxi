# Which of the stages before a rule there is something to do for.
# Included by _engine.pyx and c_api.pyx.

cdef inline int flag_of_scale(double factor) noexcept nogil:
    return SCALE if factor != 1.0 else 0


cdef inline int flags_of_stages(const Stages* stages) noexcept nogil:
    """The flags of the stages after scaling; the factor may be known later, of each tensor."""
    return ((CLIP_VALUE if not isinf(stages.clip_value) else 0)
            | (L2_DECAY if stages.weight_decay != 0.0 else 0)
            | (DECOUPLED_DECAY if stages.decoupled != 1.0 else 0))
