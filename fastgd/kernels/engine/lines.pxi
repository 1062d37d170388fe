# States of rows and columns: where their lines lie, and the sweep that sums up squares over these.
# Included by _engine.pyx.

# A thread's piece of that sweep: as many elements of a tensor, `times` times, `apart` elements from
# each other.  It has all of each block of a line that it has some of.
cdef struct LinePiece:
    Py_ssize_t tensor
    Py_ssize_t offset
    Py_ssize_t n
    Py_ssize_t times
    Py_ssize_t apart


cdef inline Py_ssize_t n_line_blocks(const Axis* axis, Py_ssize_t size) noexcept:
    """How many blocks all lines along an axis have."""
    cdef Py_ssize_t most = BLOCK if axis.stride == 1 else SLICES
    return size // axis.length * ((axis.length + most - 1) // most)


cdef Py_ssize_t cut_lines(LinePiece* pieces, Py_ssize_t tensor, const Lines* lines) noexcept:
    """Cut a tensor into pieces, unless there is no room for them; returns how many there are.

    Along the axis whose elements are further apart a line's block is SLICES slices, and so is a
    piece, or some of these; where slices are long, it has a part of each.
    """
    cdef bint further = lines.axes[1].stride > lines.axes[0].stride
    cdef const Axis* far = &lines.axes[further]
    cdef const Axis* near = &lines.axes[not further]
    cdef Py_ssize_t count = 0, start = 0, slices, part, i, n
    cdef Py_ssize_t slice = far.stride, period = near.length * near.stride
    cdef Py_ssize_t whole = far.length * slice, size = min(SLICES, far.length) * slice
    if whole <= BLOCK:
        whole = size = BLOCK // whole * whole
    elif size <= BLOCK:
        size *= BLOCK // size
    while start < lines.size:
        n = min(min(size, whole - start % whole), lines.size - start)
        if slice <= BLOCK:
            if pieces != NULL:
                pieces[count] = LinePiece(tensor, start, n, 1, 0)
            count += 1
            start += n
            continue
        i, slices = 0, n // slice
        while i < slice:
            if near.stride == 1 and period > BLOCK:
                part = min(<Py_ssize_t> BLOCK, period - i % period)
            else:
                part = min(max(BLOCK // period, 1) * period, slice - i)
            if pieces != NULL:
                pieces[count] = LinePiece(tensor, start + i, part, slices, slice)
            count += 1
            i += part
        start += n
    return count


cdef int make_lines(Layout layout, list axes) except -1:
    """Make room for the sums of lines, and cut their tensors into pieces."""
    cdef Py_ssize_t i, k, size, most, doubles = 0, pieces = 0
    cdef Lines* lines
    cdef Tensor* t
    cdef double* room
    layout.lines = <Lines*> calloc(max(layout.n_lined, 1), sizeof(Lines))
    if layout.lines == NULL:
        raise MemoryError
    lines = layout.lines
    for i in range(layout.n):
        t = &layout.tensors[i]
        if t.info.rows < 0 or t.n == 0:
            continue
        t.lines, lines.size = lines, t.n
        for k in range(3):
            lines.axes[k] = Axis(axes[i][k][0], axes[i][k][1])
        lines.state[0], lines.state[1] = t.s[t.info.rows], t.s[t.info.columns]
        doubles += room_for(lines)
        pieces += cut_lines(NULL, i, lines)
        lines += 1
    layout.line_room = <double*> calloc(max(doubles, 1), sizeof(double))
    layout.pieces = <LinePiece*> calloc(max(pieces, 1), sizeof(LinePiece))
    if layout.line_room == NULL or layout.pieces == NULL:
        raise MemoryError
    lines, room = layout.lines, layout.line_room
    for i in range(layout.n):
        if layout.tensors[i].lines == NULL:
            continue
        lines.blocks[0] = room
        lines.blocks[1] = room + n_line_blocks(&lines.axes[0], lines.size)
        lines.seen[0] = <char*> (lines.blocks[1] + n_line_blocks(&lines.axes[1], lines.size))
        lines.seen[1] = lines.seen[0] + lines.size // lines.axes[0].length * sizeof(double)
        lines.mean = lines.seen[1] + lines.size // lines.axes[1].length * sizeof(double)
        room += room_for(lines)
        layout.n_pieces += cut_lines(layout.pieces + layout.n_pieces, i, lines)
        lines += 1


cdef Py_ssize_t room_for(const Lines* lines) noexcept:
    """How many doubles the sums and means of a tensor's lines take."""
    cdef Py_ssize_t rows = lines.size // lines.axes[0].length
    cdef Py_ssize_t columns = lines.size // lines.axes[1].length
    return (n_line_blocks(&lines.axes[0], lines.size) + n_line_blocks(&lines.axes[1], lines.size)
            + rows + columns + max(rows, columns))


cdef inline void describe_lines(ChunkArgs* args, const Tensor* t) noexcept nogil:
    """What sweeps see of rows and columns: numbers of all lines, each at all its elements."""
    args.s[t.info.rows].code, args.axes[t.info.rows] = t.lines.seen[0], t.lines.axes[0]
    args.s[t.info.columns].code = t.lines.seen[1]
    args.axes[t.info.columns] = t.lines.axes[1]


cdef void square_piece(Tensor* tensors, const GroupStep* group_steps, const StepArgs* step,
                       const LinePiece* piece) noexcept nogil:
    """Sum up the squares of a piece of a gradient over its rows and columns."""
    cdef Tensor* t = &tensors[piece.tensor]
    cdef ChunkArgs args
    cdef const Codec* codecs = &step.loops.codecs[0]
    cdef const Coding* coding = step.codings + piece.tensor
    cdef int kind = t.is_double
    if t.g == NULL:
        return
    describe(&args.p, &codecs[t.p_codec], t.p, coding.p_aux, -1, kind, piece.offset)
    describe(&args.g, &codecs[t.g_codec], t.g, NULL, -1, kind, piece.offset)
    if t.p_codec == kind:
        args.p.load = NULL
    if t.g_codec == kind:
        args.g.load = NULL
    args.n, args.offset, args.prefetch = piece.n, piece.offset, step.prefetch
    args.flags, args.factor = t.flags & OF_GRADIENT, t.factor
    args.factors, args.means = t.factors, t.means
    args.units = t.units
    (<squared_lines> step.loops.squared[kind])(&args, &group_steps[t.group_step].stages, t.lines,
                                               piece.times, piece.apart)


cdef void settle_lines(Tensor* t, const GroupStep* group_steps,
                       const StepArgs* step) noexcept nogil:
    """Bring the states of a tensor's rows and columns up to date."""
    cdef const GroupStep* own
    if t.lines == NULL or t.g == NULL:
        return
    own = &group_steps[t.group_step]
    if t.is_double:
        (<settled_f64> step.loops.settled[1])(t.lines, own.lines[1], doubles_of(t, own))
    else:
        (<settled_f32> step.loops.settled[0])(t.lines, own.lines[0], floats_of(t, own))
