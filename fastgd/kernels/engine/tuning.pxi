# Tuning by the running program: of policies that don't change bits, each kind of loop takes the one
# that was faster here, as real steps have shown.  Included by _engine.pyx.
#
# The policies are to prefetch or not where arrays don't stay in cache, and in which portions.  To
# prefetch gains a fifth on one processor and costs as much, or more, on another, and which it is
# also follows from the loop.  Smaller portions gain 5 to 8 % in loops for AVX2, and cost as much in
# those for AVX-512, on one and the same processor.  How far ahead made no difference to either.
#
# Of two policies one is the choice and one its rival; who wins is the choice, and meets those that
# are left.  While there is no verdict, consecutive chunks of a kind are cut into runs, which take
# both policies in the order a, b, b, a, …, and each pair of neighbours is evidence: the relative
# difference of their times for an element, bounded, so that an interrupt in the middle of a run
# weighs no more than a clear win.  All plans of the process share what is known.
#
# Whole steps are kinds, too: see crews.pxi.  Evidence may be lost without harm, so nobody waits for
# the lock: who does not get it goes on.

cdef extern from "ticks.h" nogil:
    const char* FASTGD_CLOCK
    cnp.uint64_t fastgd_ticks()
    bint fastgd_try_lock(int*)
    void fastgd_unlock(int*)

# What is done with a tensor.
cdef enum:
    OFF = 0
    ON = 1                     # to prefetch half a tile at a time, as where nothing is tuned
    FINE = 2                   # a stride
    # Of a verdict alone: not yet, two of these in turn.
    TRY = 3

# What is done with all of them; the order of `tuning.MODES`.
cdef enum:
    TUNED = 0
    NOT_TUNED = 1
    ALWAYS = 2
    NEVER = 3
    FINELY = 4

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

# Where `ways` says that a kind is one of whole steps.
cdef cnp.uint64_t OF_STEPS = <cnp.uint64_t> 1 << 61

cdef Kind kinds[256]
cdef int n_kinds = 0
cdef int tuning_lock = 0
cdef int tuning_mode = TUNED
# Pretended costs of an element by each policy, in ticks, for tests; 0: real time.
cdef double pretended[3]


cdef inline int portion(int policy) noexcept nogil:
    """How many elements a policy prefetches at a time."""
    return 0 if policy == OFF else STRIDE if policy == FINE else HALF_TILE


cdef int verdict(const Kind* kind) noexcept nogil:
    """Which of two policies, by the evidence; or TRY, where that is thin.  Ties keep the choice."""
    cdef double mean, error
    if kind.pairs < kind.least:
        return TRY
    mean = kind.total / kind.pairs
    error = sqrt(max(kind.squares / kind.pairs - mean * mean, 0.0) / kind.pairs)
    if fabs(mean) > MARGIN + 4 * error:
        return kind.policy if mean > 0 else kind.rival
    return TRY if kind.pairs < kind.most else kind.policy


cdef void begin_pairs(Kind* kind) noexcept nogil:
    """Gather evidence against the next rival from now on."""
    kind.rival = OFF if kind.rivals & 1 << OFF else ON if kind.rivals & 1 << ON else FINE
    kind.rivals &= ~(1 << kind.rival)
    kind.pairs, kind.total, kind.squares = 0, 0.0, 0.0
    kind.waiting[0] = kind.waiting[1] = 0.0


cdef void begin_trial(Kind* kind) noexcept nogil:
    """Gather evidence from now on."""
    kind.trying, kind.tried = True, 0.0
    kind.rivals = kind.all & ~(1 << kind.policy)
    begin_pairs(kind)


cdef void end_trial(Kind* kind) noexcept nogil:
    """Keep to the choice for a while."""
    kind.trying = False
    kind.left = REST * kind.tried
    kind.looks += 1


cdef void settle_pairs(Kind* kind, int found) noexcept nogil:
    """Note which of two policies was faster, and go on to the next rival, if there is one."""
    cdef double mean = kind.total / kind.pairs
    if kind.policy == OFF or kind.rival == OFF:
        # That smaller portions were no good either says nothing of it.
        if kind.rival != FINE or found == FINE:
            kind.gain = mean if kind.policy != OFF else -mean
    else:
        kind.finer = mean if kind.policy == FINE else -mean
    kind.policy, kind.last_pairs = found, kind.pairs
    if kind.rivals:
        begin_pairs(kind)
    else:
        end_trial(kind)


cdef void count_elements(Kind* kind, Py_ssize_t n) noexcept nogil:
    """Count the elements of a step, after which evidence may be gathered, or given up."""
    if kind.trying:
        kind.tried += n
        if kind.tried > MOST_TRIED:
            end_trial(kind)
    else:
        kind.left -= n
        if kind.left <= 0:
            begin_trial(kind)


cdef void add_pair(Kind* evidence, double choice, double rival) noexcept nogil:
    """Add what two runs took for an element."""
    cdef double difference = max(-BOUND, min(BOUND, (rival - choice) / (rival + choice)))
    evidence.pairs += 1
    evidence.total += difference
    evidence.squares += difference * difference


cdef bint add_run(Kind* evidence, bint rival, double rate) noexcept nogil:
    """Add a run: to one that waits, or to wait; returns whether there was a pair."""
    evidence.waiting[rival] = rate
    if evidence.waiting[not rival] == 0.0:
        return False
    add_pair(evidence, evidence.waiting[0], evidence.waiting[1])
    evidence.waiting[0] = evidence.waiting[1] = 0.0
    return True


cdef void judge(Kind* kind, const Kind* evidence) noexcept nogil:
    """Add what a thread found, and see whether it is enough."""
    cdef int k, found
    if not kind.trying or kind.policy != evidence.policy or kind.rival != evidence.rival:
        return
    kind.pairs += evidence.pairs
    kind.total += evidence.total
    kind.squares += evidence.squares
    for k in range(2):
        if evidence.waiting[k] != 0.0:
            add_run(kind, k, evidence.waiting[k])
    found = verdict(kind)
    if found != TRY:
        settle_pairs(kind, found)


cdef inline double rate_of(cnp.uint64_t start, cnp.uint64_t stop, Py_ssize_t n,
                           int policy) noexcept nogil:
    """What a run took for an element; 0 where the clock has been set back, or stands still."""
    if pretended[0] != 0.0:
        return pretended[policy]
    return <double> (stop - start) / n if stop > start else 0.0


cdef inline bint is_tried(const Tensor* t) noexcept nogil:
    """Whether this step takes two policies in turn."""
    return t.rival != t.policy


cdef Chunk* try_both(Tensor* tensors, const GroupStep* group_steps, StepArgs* own, Chunk* chunk,
                     Chunk* end, bint first) noexcept nogil:
    """Run consecutive chunks of one kind by two policies; returns the chunk after them."""
    cdef Kind* kind = tensors[chunk.tensor].kind
    cdef Kind evidence
    # Those of this step: other threads may meanwhile have changed the kind's.
    cdef int policies[2]
    cdef bint rival = (chunk.before // CHUNK + own.turn) & 1
    cdef Py_ssize_t n = 0
    cdef cnp.uint64_t start, stop
    cdef double rate
    memset(&evidence, 0, sizeof(evidence))
    evidence.policy = policies[0] = tensors[chunk.tensor].policy
    evidence.rival = policies[1] = tensors[chunk.tensor].rival
    own.prefetch = portion(policies[rival])
    start = fastgd_ticks()
    while chunk < end and tensors[chunk.tensor].kind == kind and is_tried(&tensors[chunk.tensor]):
        run_chunk(tensors, group_steps, own, chunk, first)
        n += chunk.n
        chunk += 1
        if n >= RUN:
            stop = fastgd_ticks()
            rate = rate_of(start, stop, n, policies[rival])
            # One policy after the other, and the other first in the next pair.
            if rate != 0.0 and not add_run(&evidence, rival, rate):
                rival = not rival
                own.prefetch = portion(policies[rival])
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
        if is_tried(&tensors[chunk.tensor]):
            chunk = try_both(tensors, group_steps, &own, chunk, end, first)
        else:
            own.prefetch = portion(tensors[chunk.tensor].policy)
            run_chunk(tensors, group_steps, &own, chunk, first)
            chunk += 1


cdef inline cnp.uint64_t ways_of(const Tensor* t, int magnitude, bint parallel) noexcept:
    """What a kind is told by, besides its rule: 4 bits for each of 8 codecs, then the rest."""
    cdef cnp.uint64_t ways = 0
    cdef int j
    for j in range(t.n_states):
        ways = ways << 4 | t.s_codec[j]
    ways = ways << 8 | t.g_codec << 4 | t.p_codec
    return (ways | <cnp.uint64_t> t.flags << 32 | <cnp.uint64_t> magnitude << 48
            | <cnp.uint64_t> t.n_words << 56 | <cnp.uint64_t> parallel << 60)


cdef inline int policies_of(const Tensor* t) noexcept:
    """The policies of a tensor's loops, as bits: in stages and fused loops portions are given."""
    if t.lines == NULL and (t.flags == 0 or t.flags == DECOUPLED_DECAY and not t.fusable):
        return 1 << OFF | 1 << ON | 1 << FINE
    return 1 << OFF | 1 << ON


cdef Kind* find_kind(const void* rule, const RuleInfo* info, cnp.uint64_t ways,
                     int policies) noexcept:
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
    kind.rule, kind.info, kind.ways, kind.policy, kind.all = rule, info, ways, ON, policies
    kind.least, kind.most = LEAST_PAIRS, MOST_PAIRS
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
        args.each, args.prefetch = False, portion(
            OFF if tuning_mode == NEVER else FINE if tuning_mode == FINELY else ON)
        return
    if not fastgd_try_lock(&tuning_lock):
        return                 # as in the last step
    args.turn = not args.turn
    for i in range(layout.n):
        t = &layout.tensors[i]
        t.policy = t.rival = ON
        if t.g != NULL and t.rows == NULL and t.n >= TUNED_FROM:
            ways = ways_of(t, layout.magnitude, parallel)
            rule = group_steps[t.group_step].rule[t.is_double]
            if kind == NULL or kind.ways != ways or kind.rule != rule:
                kind = find_kind(rule, t.info, ways, policies_of(t))
            if kind != NULL:
                count_elements(kind, t.n)
                t.kind, t.policy = kind, kind.policy
                t.rival = kind.rival if kind.trying else kind.policy
        met |= 1 << t.policy | 1 << t.rival
    fastgd_unlock(&tuning_lock)
    args.prefetch = portion(OFF if met == 1 << OFF else FINE if met == 1 << FINE else ON)
    args.each = met & (met - 1)


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


def pretend(double off, double on, double fine=1e3):
    """Have runs take so many ticks an element without and with prefetching; 0: real time again.

    And so many where they prefetch in smaller portions, which is no good if nothing else is said.
    """
    pretended[0], pretended[1], pretended[2] = off, on, fine


cdef tuple names_of(const Kind* kind):
    """The rule of a kind, its loop, the codecs of parameter and gradient, and those of states."""
    cdef RuleRow row
    names = [row.rule.name for row in [*_rows.values(), *_replaced]
             if row is not None and &row.info == kind.info]
    codec_names = [CODEC_NAMES[kind.ways >> shift & 15] for shift in range(0, 32, 4)]
    return (names[0], <size_t> kind.rule, codec_names[0], codec_names[1],
            codec_names[2:2 + kind.info.n_states][::-1])


cdef tuple record_of(const Kind* kind):
    """What is known of a kind, as plain values; see `tuning.Tuned`."""
    cdef cnp.uint64_t ways = kind.ways
    return (*names_of(kind), ways >> 32 & 0xffff, ways >> 48 & 0xff, bool(ways >> 60),
            portion(kind.policy), bool(kind.trying), kind.looks, kind.last_pairs, kind.gain,
            kind.finer)


def tuning_records():
    """What is known of each kind of loops."""
    cdef int k
    return [record_of(&kinds[k]) for k in range(n_kinds) if not kinds[k].ways & OF_STEPS]


@cython.final
cdef class Chooser:
    """One kind of loops alone, for tests: what the sweep tells it is told by calls."""

    cdef Kind kind

    def __cinit__(self, int policy=ON, int policies=1 << OFF | 1 << ON):
        self.kind.policy, self.kind.all = policy, policies
        self.kind.least, self.kind.most = LEAST_PAIRS, MOST_PAIRS
        begin_trial(&self.kind)

    def run(self, int policy, double rate):
        """A run that took so long for an element; returns whether there was a pair."""
        cdef Kind evidence = self.kind
        if policy not in (self.kind.policy, self.kind.rival):
            raise ValueError(f"policy: {policy} has no turn")
        evidence.pairs, evidence.total, evidence.squares = 0, 0.0, 0.0
        evidence.waiting[0] = evidence.waiting[1] = 0.0
        evidence.waiting[policy == self.kind.rival] = rate
        before = self.kind.pairs
        judge(&self.kind, &evidence)
        return self.kind.pairs != before or not self.kind.trying

    def count(self, Py_ssize_t n):
        """So many elements in a step."""
        count_elements(&self.kind, n)

    @property
    def policy(self):
        """The choice: 0 not to prefetch, 1 to do so, 2 in smaller portions."""
        return self.kind.policy

    @property
    def rival(self):
        """What it is tried against."""
        return self.kind.rival

    @property
    def trying(self):
        """Whether evidence is being gathered."""
        return bool(self.kind.trying)

    @property
    def pairs(self):
        """How many pairs there are, or led to the verdict."""
        return self.kind.pairs
