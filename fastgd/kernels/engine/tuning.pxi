# Tuning by the running program: of policies that don't change bits, each kind of loop takes the one
# that was faster here, as real steps have shown.  Included by _engine.pyx.
#
# There is one such choice so far: whether to prefetch where arrays don't stay in cache.  It gains a
# fifth on one processor and costs as much, or more, on another, and which it is also follows from
# the loop.  While there is no verdict, consecutive chunks of a kind are cut into runs, which take
# both policies in the order on, off, off, on, …, and each pair of neighbours is evidence: the
# relative difference of their times for an element, bounded, so that an interrupt in the middle of
# a run weighs no more than a clear win.  All plans of the process share what is known.
#
# Evidence may be lost without harm, so that nobody waits for the lock: who doesn't get it goes on.

cdef extern from "ticks.h" nogil:
    const char* FASTGD_CLOCK
    cnp.uint64_t fastgd_ticks()
    bint fastgd_try_lock(int*)
    void fastgd_unlock(int*)

# What is done with a tensor.
cdef enum:
    USUAL = 0                  # what is done where nothing is tuned: to prefetch
    OFF = 1
    ON = 2
    TRY = 3                    # both in turn

# What is done with all of them; the order of `tuning.MODES`.
cdef enum:
    TUNED = 0
    NOT_TUNED = 1
    ALWAYS = 2
    NEVER = 3

cdef int MAX_KINDS = 256
# Smaller tensors are done as usual, and don't pay for being told apart.
cdef Py_ssize_t TUNED_FROM = 1024
# Elements of a run: enough for the clock not to matter.
cdef Py_ssize_t RUN = CHUNK // 2
# A verdict takes so many pairs, and at the latest after this many there is one, or after so many
# elements, where chunks of a kind are too few for pairs to form.
cdef Py_ssize_t LEAST_PAIRS = 64
cdef Py_ssize_t MOST_PAIRS = 256
cdef double MOST_TRIED = 2e8
# The difference of a pair, (on - off) / (on + off), is bounded by this,
cdef double BOUND = 0.25
# and the mean has to exceed this, which is one percent of the time, by four standard errors.
cdef double MARGIN = 0.005
# Evidence is gathered anew after so many times as many elements as it took: at 1.7 times the time
# for half of them that costs 0.3 %.
cdef double REST = 128

cdef Kind kinds[256]
cdef int n_kinds = 0
cdef int tuning_lock = 0
cdef int tuning_mode = TUNED
# Pretended costs of an element without and with prefetching, in ticks, for tests; 0: real time.
cdef double pretended[2]


cdef int verdict(bint prefetch, Py_ssize_t pairs, double total, double squares) noexcept nogil:
    """OFF or ON, by the evidence; or TRY, where more is wanted.  Ties keep what there was."""
    cdef double mean, error
    if pairs < LEAST_PAIRS:
        return TRY
    mean = total / pairs
    error = sqrt(max(squares / pairs - mean * mean, 0.0) / pairs)
    if fabs(mean) > MARGIN + 4 * error:
        return OFF if mean > 0 else ON
    if pairs < MOST_PAIRS:
        return TRY
    return ON if prefetch else OFF


cdef void begin_trial(Kind* kind) noexcept nogil:
    """Gather evidence from now on."""
    kind.trying = True
    kind.pairs, kind.total, kind.squares, kind.tried = 0, 0.0, 0.0, 0.0
    kind.waiting[0] = kind.waiting[1] = 0.0


cdef void end_trial(Kind* kind, bint prefetch) noexcept nogil:
    """Keep to a policy for a while."""
    kind.prefetch, kind.trying = prefetch, False
    kind.left = REST * kind.tried
    kind.looks += 1
    kind.last_pairs, kind.last_mean = kind.pairs, kind.total / max(kind.pairs, 1)


cdef void count_elements(Kind* kind, Py_ssize_t n) noexcept nogil:
    """Count the elements of a step, after which evidence may be gathered, or given up."""
    if kind.trying:
        kind.tried += n
        if kind.tried > MOST_TRIED:
            end_trial(kind, kind.prefetch)
    else:
        kind.left -= n
        if kind.left <= 0:
            begin_trial(kind)


cdef void add_pair(Kind* evidence, double off, double on) noexcept nogil:
    """Add what two runs took for an element."""
    cdef double difference = max(-BOUND, min(BOUND, (on - off) / (on + off)))
    evidence.pairs += 1
    evidence.total += difference
    evidence.squares += difference * difference


cdef bint add_run(Kind* evidence, bint prefetch, double rate) noexcept nogil:
    """Add a run: to one that waits, or to wait; returns whether there was a pair."""
    evidence.waiting[prefetch] = rate
    if evidence.waiting[not prefetch] == 0.0:
        return False
    add_pair(evidence, evidence.waiting[0], evidence.waiting[1])
    evidence.waiting[0] = evidence.waiting[1] = 0.0
    return True


cdef void judge(Kind* kind, const Kind* evidence) noexcept nogil:
    """Add what a thread found, and see whether it is enough."""
    cdef int k, found
    if not kind.trying:
        return
    kind.pairs += evidence.pairs
    kind.total += evidence.total
    kind.squares += evidence.squares
    for k in range(2):
        if evidence.waiting[k] != 0.0:
            add_run(kind, k, evidence.waiting[k])
    found = verdict(kind.prefetch, kind.pairs, kind.total, kind.squares)
    if found != TRY:
        end_trial(kind, found == ON)


cdef inline double rate_of(cnp.uint64_t start, cnp.uint64_t stop, Py_ssize_t n,
                           bint prefetch) noexcept nogil:
    """What a run took for an element; 0 where the clock has been set back, or stands still."""
    if pretended[0] != 0.0:
        return pretended[prefetch]
    return <double> (stop - start) / n if stop > start else 0.0


cdef Chunk* try_both(Tensor* tensors, const GroupStep* group_steps, StepArgs* own, Chunk* chunk,
                     Chunk* end, bint first) noexcept nogil:
    """Run consecutive chunks of one kind by both policies; returns the chunk after them."""
    cdef Kind* kind = tensors[chunk.tensor].kind
    cdef Kind evidence
    cdef Py_ssize_t n = 0
    cdef cnp.uint64_t start, stop
    cdef double rate
    memset(&evidence, 0, sizeof(evidence))
    own.prefetch = (chunk.before // CHUNK + own.turn) & 1
    start = fastgd_ticks()
    while (chunk < end and tensors[chunk.tensor].kind == kind
           and tensors[chunk.tensor].policy == TRY):
        run_chunk(tensors, group_steps, own, chunk, first)
        n += chunk.n
        chunk += 1
        if n >= RUN:
            stop = fastgd_ticks()
            rate = rate_of(start, stop, n, own.prefetch)
            # One policy after the other, and the other first in the next pair.
            if rate != 0.0 and not add_run(&evidence, own.prefetch, rate):
                own.prefetch = not own.prefetch
            start, n = stop, 0
    if (evidence.pairs or evidence.waiting[0] + evidence.waiting[1] > 0.0) and fastgd_try_lock(
            &tuning_lock):
        judge(kind, &evidence)
        fastgd_unlock(&tuning_lock)
    return chunk


cdef void run_by_policies(Tensor* tensors, const GroupStep* group_steps, const StepArgs* step,
                          Chunk* chunk, Chunk* end, bint first) noexcept nogil:
    """A sweep over some chunks, each by the policy of its tensor."""
    cdef StepArgs own = step[0]
    while chunk < end:
        if tensors[chunk.tensor].policy == TRY:
            chunk = try_both(tensors, group_steps, &own, chunk, end, first)
        else:
            own.prefetch = tensors[chunk.tensor].policy != OFF
            run_chunk(tensors, group_steps, &own, chunk, first)
            chunk += 1


cdef inline cnp.uint64_t ways_of(const Tensor* t, int magnitude, bint parallel) noexcept:
    """What a kind is told by, besides its rule: 4 bits for each codec, then the rest."""
    cdef cnp.uint64_t ways = 0
    cdef int j
    for j in range(t.n_states):
        ways = ways << 4 | t.s_codec[j]
    ways = ways << 8 | t.g_codec << 4 | t.p_codec
    return (ways | <cnp.uint64_t> t.n_words << 24 | <cnp.uint64_t> t.flags << 32
            | <cnp.uint64_t> magnitude << 48 | <cnp.uint64_t> parallel << 56)


cdef Kind* find_kind(const void* rule, const RuleInfo* info, cnp.uint64_t ways) noexcept:
    """What is known of a kind; NULL if there are too many."""
    global n_kinds
    cdef int k
    cdef Kind* kind
    for k in range(n_kinds):
        if kinds[k].rule == rule and kinds[k].ways == ways:
            return &kinds[k]
    if n_kinds == MAX_KINDS:
        return NULL
    kind = &kinds[n_kinds]
    memset(kind, 0, sizeof(kind[0]))
    kind.rule, kind.info, kind.ways, kind.prefetch = rule, info, ways, True
    begin_trial(kind)
    n_kinds += 1
    return kind


cdef void tune(Layout layout, const GroupStep* group_steps, StepArgs* args,
               bint parallel) noexcept:
    """Note by which policy this step does each tensor; only where arrays don't stay in cache."""
    cdef Py_ssize_t i
    cdef Tensor* t
    cdef Kind* kind = NULL
    cdef cnp.uint64_t ways
    cdef const void* rule
    cdef int met = 0           # policies, as bits
    if tuning_mode != TUNED or FASTGD_CLOCK[0] == 0:
        args.each, args.prefetch = False, tuning_mode != NEVER
        return
    if not fastgd_try_lock(&tuning_lock):
        return                 # as in the last step
    args.turn = not args.turn
    for i in range(layout.n):
        t = &layout.tensors[i]
        t.policy = USUAL
        if t.g != NULL and t.rows == NULL and t.n >= TUNED_FROM:
            ways = ways_of(t, layout.magnitude, parallel)
            rule = group_steps[t.group_step].rule[t.is_double]
            if kind == NULL or kind.ways != ways or kind.rule != rule:
                kind = find_kind(rule, t.info, ways)
            if kind != NULL:
                count_elements(kind, t.n)
                t.kind, t.policy = kind, ON if kind.prefetch else OFF
                if kind.trying:
                    t.policy = TRY
        met |= 1 << t.policy
    fastgd_unlock(&tuning_lock)
    args.prefetch = met != 1 << OFF
    args.each = (met & 1 << TRY) != 0 or (met & 1 << OFF and met != 1 << OFF)


cdef void recover_tuning() noexcept:
    """After a fork: the lock may have been another thread's, and evidence half written."""
    global tuning_lock
    cdef int k
    tuning_lock = 0
    for k in range(n_kinds):
        if kinds[k].trying:
            begin_trial(&kinds[k])


def clock_name():
    """The clock that runs are timed by; empty where there is none."""
    return FASTGD_CLOCK.decode()


def use_tuning(int mode):
    """Tune by a mode, an index of `tuning.MODES`."""
    global tuning_mode
    tuning_mode = mode


def forget_tuning():
    """Forget what is known; for tests, in between steps."""
    global n_kinds
    n_kinds = 0


def pretend(double off, double on):
    """Have runs take so many ticks an element without and with prefetching; 0: real time again."""
    pretended[0], pretended[1] = off, on


cdef tuple record_of(const Kind* kind):
    """What is known of a kind, as plain values; see `tuning.Tuned`."""
    cdef RuleRow row
    cdef cnp.uint64_t ways = kind.ways
    names = [row.rule.name for row in [*_rows.values(), *_replaced]
             if row is not None and &row.info == kind.info]
    codec_names = [CODEC_NAMES[ways >> shift & 15] for shift in range(0, 24, 4)]
    return (names[0], <size_t> kind.rule, codec_names[0], codec_names[1],
            codec_names[2:2 + kind.info.n_states][::-1], ways >> 32 & 0xffff, ways >> 48 & 0xff,
            bool(ways >> 56), bool(kind.prefetch), bool(kind.trying), kind.looks, kind.last_pairs,
            kind.last_mean)


def tuning_records():
    """What is known of each kind of loops."""
    cdef int k
    return [record_of(&kinds[k]) for k in range(n_kinds)]


@cython.final
cdef class Chooser:
    """One kind of loops alone, for tests: what the sweep tells it is told by calls."""

    cdef Kind kind

    def __cinit__(self, bint prefetch=True):
        self.kind.prefetch = prefetch
        begin_trial(&self.kind)

    def run(self, bint prefetch, double rate):
        """A run that took so long for an element; returns whether there was a pair."""
        cdef Kind evidence
        memset(&evidence, 0, sizeof(evidence))
        evidence.waiting[prefetch] = rate
        before = self.kind.pairs
        judge(&self.kind, &evidence)
        return self.kind.pairs != before or not self.kind.trying

    def count(self, Py_ssize_t n):
        """So many elements in a step."""
        count_elements(&self.kind, n)

    @property
    def prefetch(self):
        """The choice."""
        return bool(self.kind.prefetch)

    @property
    def trying(self):
        """Whether evidence is being gathered."""
        return bool(self.kind.trying)

    @property
    def pairs(self):
        """How many pairs there are, or led to the verdict."""
        return self.kind.pairs
