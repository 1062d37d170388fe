# Tuning by the running program, continued: whether a step takes one thread or all that it may.
# Included by _engine.pyx.
#
# What it takes to wake threads follows less from the processor than from what happens between
# steps.  Two threads are worth it from some 8,000 elements on where steps follow each other while
# threads still spin, from some 130,000 where they have gone to sleep, and from far more, if at all,
# where another program has the second core, as a step waits until each thread had its turn.
#
# So whole steps are timed, the norms before them too: two on one thread, two on all, the other way
# round, and so on.  Of each two the second counts, as the first finds the arrays in other cores'
# caches.  The rest is as with loops, but that a rest is measured by time, in steps or by the clock:
# what is tried costs less than a hundredth of what steps take, or else a ten-thousandth of what the
# program does.  So steps that suddenly take long are looked at soon, and no choice is for ever.
#
# That a step waits for a thread may be rare and take a hundred times as long as the step, of which
# pairs, being bounded, tell little.  So where steps on all threads took longer on the mean, over a
# rest, than those on one thread had, one it is, for as long as makes up for it.

cdef enum:
    ALONE = OFF                # one thread
    TOGETHER = ON              # all

# From so many elements on threads may be worth it,
cdef Py_ssize_t CREW_FROM = PARALLEL_FROM // 4
# and from so many on they mostly are, so that the first look can wait until it is cheap,
cdef Py_ssize_t CREW_TO = PARALLEL_FROM * 8
# which is after so many times what the fastest step took, for each thread.
cdef double AHEAD = 2048
cdef Py_ssize_t LEAST_PAIRS_OF_STEPS = 8
cdef Py_ssize_t MOST_PAIRS_OF_STEPS = 64
# Evidence is gathered anew at the latest after so many times as long as it took.
cdef double REST_BY_CLOCK = 10_000
# And steps that took so many times as long on the mean as on one thread were waiting.
cdef double WAITED = 2
# More than any plan has.
cdef Py_ssize_t NEVER_PARALLEL = <Py_ssize_t> 1 << 62

# Pretended costs of an element by each policy, in ticks, for tests; 0: real time.
cdef double pretended_steps[2]


cdef void size_up(Crew* crew, Layout layout) noexcept:
    """Note whether it is found out for a plan how many threads its steps take.

    Not where one chunk is most of it, nor where many tensors are small and all are below the
    limit: these would pay for being timed.
    """
    cdef Py_ssize_t elements = 0, largest = 0, k
    for k in range(layout.n_chunks):
        elements += layout.chunks[k].n
        largest = max(largest, layout.chunks[k].n)
    crew.tuned = (elements >= CREW_FROM and largest <= elements * 3 // 4
                  and layout.n_matrices == 0 and layout.missed is None
                  and (elements >= PARALLEL_FROM or elements // layout.n >= TUNED_FROM))
    crew.large = elements > CREW_TO or layout.prefetch
    while elements > 1:
        elements //= 2
        crew.magnitude += 1


cdef Kind* find_crew(const Crew* crew, const Tensor* t, const GroupStep* group_step,
                     bint norms) noexcept:
    """What is known of steps like this one: by the first tensor's rule and storage, and the size.

    And by whether there are norms, and how many threads, up to 15.
    """
    cdef cnp.uint64_t ways = ways_of(t, crew.magnitude, False)
    cdef int known = n_kinds
    cdef Kind* kind
    ways &= ~(<cnp.uint64_t> 0xffff << 32 | <cnp.uint64_t> 15 << 56)
    ways |= OF_STEPS | <cnp.uint64_t> norms << 32 | <cnp.uint64_t> min(most_threads(), 15) << 56
    kind = find_kind(group_step.rule[t.is_double], t.info, ways, 1 << ALONE | 1 << TOGETHER)
    if n_kinds > known:
        begin_crew(kind, (<Py_ssize_t> 1 << crew.magnitude) >= PARALLEL_FROM, crew.large)
    return kind


cdef void begin_crew(Kind* kind, int policy, bint large) noexcept:
    """Know nothing yet: begin with a policy, and with evidence, unless that can wait."""
    kind.policy, kind.all = policy, 1 << ALONE | 1 << TOGETHER
    kind.least, kind.most = LEAST_PAIRS_OF_STEPS, MOST_PAIRS_OF_STEPS
    begin_look(kind)
    kind.trying = not large


cdef void begin_look(Kind* kind) noexcept:
    """Gather evidence from now on."""
    begin_trial(kind)
    kind.alone, kind.alones = 0, 0


cdef void take_turn(Crew* crew, const Kind* kind) noexcept:
    """Note which policy a step takes."""
    crew.policy, crew.rival, crew.trying = kind.policy, kind.rival, kind.trying
    crew.takes = kind.policy
    if kind.trying and ((crew.turn >> 1) + 1) >> 1 & 1:
        crew.takes = kind.rival


cdef Py_ssize_t begin_step(Crew* crew, Layout layout, const GroupStep* group_steps,
                           bint norms) noexcept:
    """Choose, and begin to time a step; returns from how many elements on it uses threads."""
    cdef Py_ssize_t i = 0
    cdef const Tensor* t
    if tuning_mode != TUNED or FASTGD_CLOCK[0] == 0:
        return PARALLEL_FROM
    while i < layout.n and layout.tensors[i].g == NULL:
        i += 1
    if i == layout.n or not fastgd_try_lock(&tuning_lock):
        return PARALLEL_FROM
    t = &layout.tensors[i]
    crew.kind = find_crew(crew, t, &group_steps[t.group_step], norms)
    if crew.kind != NULL:
        take_turn(crew, crew.kind)
    fastgd_unlock(&tuning_lock)
    if crew.kind == NULL:
        return PARALLEL_FROM
    crew.start = fastgd_ticks()
    return NEVER_PARALLEL if crew.takes == ALONE else CREW_FROM


cdef void note_step(Crew* crew, Py_ssize_t elements) noexcept:
    """Note what a step took that has ended."""
    cdef cnp.uint64_t stop = fastgd_ticks()
    cdef double took = <double> (stop - crew.start)
    if pretended_steps[0] != 0.0:
        took = pretended_steps[crew.takes] * elements
    elif stop <= crew.start:
        return
    if elements and fastgd_try_lock(&tuning_lock):
        note_time(crew, crew.kind, took, elements, <double> stop)
        fastgd_unlock(&tuning_lock)


cdef void note_time(Crew* crew, Kind* kind, double took, Py_ssize_t elements,
                    double now) noexcept:
    """Add what a step took to the evidence, or to what was done since there was a verdict."""
    cdef Kind evidence
    if not crew.trying:
        if not kind.trying:
            rest_from(kind, took, elements, now)
        return
    crew.turn += 1
    kind.tried += took
    if crew.turn & 1:
        return
    if crew.takes == ALONE:
        kind.alone += took / elements
        kind.alones += 1
    memset(&evidence, 0, sizeof(evidence))
    evidence.policy, evidence.rival = crew.policy, crew.rival
    evidence.waiting[crew.takes == crew.rival] = took / elements
    judge(kind, &evidence)
    if not kind.trying:
        kind.rested, kind.until = 0, now + REST_BY_CLOCK * kind.tried


cdef void rest_from(Kind* kind, double took, Py_ssize_t elements, double now) noexcept:
    """Count a step that was not tried, and begin to try if there were enough."""
    cdef double spent, alone
    if kind.looks:
        kind.left -= took
        kind.rested += elements
        if kind.left > 0 and now <= kind.until:
            return
        spent, alone = REST * kind.tried - kind.left, kind.alone / max(kind.alones, 1)
        if kind.policy == TOGETHER and spent > WAITED * alone * kind.rested:
            kind.policy = ALONE
            kind.gain = (alone * kind.rested - spent) / (alone * kind.rested + spent)
            kind.tried, kind.left = spent, REST * spent
            kind.rested, kind.until = 0, now + REST_BY_CLOCK * spent
        else:
            begin_look(kind)
        return
    kind.tried += took
    if kind.left == 0 or took < kind.left:
        kind.left = took       # the fastest so far
    if kind.tried > AHEAD * <double> (kind.ways >> 56 & 15) * kind.left:
        begin_look(kind)


def pretend_steps(double alone, double together):
    """Have steps take so many ticks an element on one thread and on all; 0: real time again."""
    pretended_steps[0], pretended_steps[1] = alone, together


cdef tuple steps_record_of(const Kind* kind):
    """What is known of a kind of steps, as plain values; see `tuning.TunedThreads`."""
    cdef cnp.uint64_t ways = kind.ways
    return (*names_of(kind), bool(ways >> 32 & 1), ways >> 48 & 0xff, ways >> 56 & 15,
            kind.policy == TOGETHER, bool(kind.trying), kind.looks, kind.last_pairs, kind.gain)


def steps_records():
    """What is known of each kind of steps."""
    cdef int k
    return [steps_record_of(&kinds[k]) for k in range(n_kinds) if kinds[k].ways & OF_STEPS]


@cython.final
cdef class ThreadsChooser:
    """One kind of steps alone, for tests, with a clock that is told the time."""

    cdef Kind kind
    cdef Crew crew
    cdef double now

    def __cinit__(self, bint together=True, bint large=False):
        self.kind.ways = <cnp.uint64_t> 2 << 56
        begin_crew(&self.kind, together, large)

    def begin(self):
        """Begin a step; returns whether it takes all threads."""
        take_turn(&self.crew, &self.kind)
        return self.crew.takes == TOGETHER

    def end(self, double took, double gap=0.0):
        """End it after so many ticks, with so many until the next one begins."""
        self.now += took
        note_time(&self.crew, &self.kind, took, 1, self.now)
        self.now += gap

    @property
    def together(self):
        """The choice: whether steps take all threads."""
        return self.kind.policy == TOGETHER

    @property
    def trying(self):
        """Whether evidence is being gathered."""
        return bool(self.kind.trying)

    @property
    def looks(self):
        """How often there was a verdict."""
        return self.kind.looks
