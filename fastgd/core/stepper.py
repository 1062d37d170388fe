"""The step over an optimizer's parameters, by the rules that their hyper-parameters pick."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains, fork_locks
from fastgd.core import options as _options
from fastgd.core import state_dict as _state_dict
from fastgd.core import storage as _storage
from fastgd.core.accumulated import Accumulated, Split
from fastgd.core.contract import Contract
from fastgd.core.groups import Changes
from fastgd.core.iterates import IterateAverage
from fastgd.core.layout import LaidOut, Layout
from fastgd.core.storage import ROW_STEPS
from fastgd.core.trees import Name, leaves_as
from fastgd.kernels._engine import StepRecord
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.alloc import aligned_copy
from fastgd.kernels.memory.rows import Rows, rows_to_catch_up

Array = NDArray[Any]


class Stepper(LaidOut):
    """Parameters in groups, their states, and the step that updates them in place.

    What `Optimizer`, torch's `Binding` and MPI's `Sharded` each have one of.

    Parameters
    ----------
    kind : type
        What declares the optimizer.
    params : array, nested lists and dicts of arrays, or groups
        As optimizers take them; a `Piece` or a `Home` may stand in the place of an array.
    hyper : mapping
        The hyper-parameters of groups that have none of their own.
    options : mapping
        Any of `fastgd.Options`.
    states : mapping of mappings, optional
        States that there are, by the name of their parameter; the others are new.
    steps : ndarray of int64, shape (parameters,), optional
        The number of steps that each parameter has taken.
    skipped : ndarray of int64, shape (1,), optional
        Where to count the steps that are skipped.
    first : int
        What stochastic rounding counts the first parameter as.

    Attributes
    ----------
    param_groups, state, options, storage, average, defaults
        As those of `Optimizer`.
    names : tuple of tuples
        The keys in `state` of each group's parameters.
    rules, picks, owners, steps, plan, configure, seen
        See `Layout`.
    iterates : IterateAverage or None
        The average that a schedule-free optimizer has by itself.
    homes : dict of Home
        The parameters that keep their own states, by the ``id`` of their array.
    copies : list of ndarray or None
        What parameters are copied to.
    accumulated : Accumulated or None
        The gradients that no step has taken yet.
    combine, combine_sums : callable or None
        `Plan.step`'s arguments of these names, of a stepper whose parameters are shards.
    taken : ndarray of float64, shape (1,)
        The number of steps since it was made, without those that were skipped.
    perturbed : bool
        Whether parameters are elsewhere for the moment, as `fastgd.SAM` takes them.
    lock : RLock
        Held by every call that steps, or looks at states.
    """

    def __init__(
        self,
        kind: type[Contract],
        params: object,
        hyper: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        states: Mapping[Name, Mapping[str, Array]] | None = None,
        steps: NDArray[np.int64] | None = None,
        skipped: NDArray[np.int64] | None = None,
        first: int = 0,
    ) -> None:
        self.kind = kind
        self.options = _options.checked(options, kind.__name__, kind.hypers)
        self.storage = _storage.checked(options, kind)
        self.defaults = hyper
        self.param_groups = ()
        self.state = states or {}
        self.rules = []
        self.names = ()
        self.homes = {}
        self.copies = None
        self.accumulated: Accumulated | None = None
        self.combine: Callable[[Array], object] | None = None
        self.combine_sums: Callable[[Array], object] | None = None
        self.skipped = np.zeros(1, np.int64) if skipped is None else skipped
        self.taken = np.zeros(1)
        self.perturbed = False
        self.lock = RLock()
        self._first = first
        self._paths = ()
        self.structure = None
        self._changes = Changes()
        self.seen: object = None
        self._agreed: object = None
        if isinstance(params, Iterator):
            params = list(params)
        if isinstance(params, (list, tuple)) and any(
            isinstance(entry, Mapping) and "params" in entry for entry in params
        ):
            self.structure = self._take_groups([(g, (k,)) for k, g in enumerate(params)])
            self._grouped = True
        else:
            (self.structure,) = self._take_groups([({"params": params}, ())])
            self._grouped = False
        if (copies := options.get("copy_to")) is not None:
            self.copies = _options.as_copies(
                copies, self.structure, [*self.params().values()], self._paths
            )
        self.average = _options.as_average(options.get("average"), self.params())
        self.iterates = IterateAverage(self) if kind.averages() else None
        self._share_lock()
        if steps is None:
            steps = self._steps_at_home(self.params().values())
        self.lay_out(self.param_groups, steps, options.get("grads"))
        # All fits: from here on nothing fails.
        if self.average is not None:
            self.average.bind(self.params())
        self.copy_out()

    def _share_lock(self) -> None:
        """Let forks, and swapping averages in, wait for the end of a step."""
        if self.average is not None:
            self.lock = self.average.lock
        fork_locks.guard(self, "lock", self.kind.__name__)

    @property
    def is_swapped(self) -> bool:
        """Whether that average is in the place of the parameters, while the lock is held."""
        return self.iterates is not None and self.iterates.is_swapped

    def refuse_swapped(self, what: str) -> None:
        """Raise RuntimeError while averages are in the place of the parameters."""
        for average in (self.average, self.iterates):
            if average is not None:
                average.refuse_swapped(what)

    def _mark(self) -> None:
        """Tell the parameters that keep their own states that these are about to be written."""
        for home in self.homes.values():
            home.mark(self)

    def _refuse_behind(self) -> None:
        """Raise RuntimeError if rows missed steps by another rule than is to be followed now."""
        _, rules = self._picked(self.param_groups)
        entries = zip(self.state.values(), self.rules, rules, strict=True)
        for i, (entry, before, now) in enumerate(entries):
            if before != now and (entry.get(ROW_STEPS, entry["step"]) != entry["step"]).any():
                raise RuntimeError(
                    f"params{self.labels()[i]}: rows missed steps by rule {before}: call "
                    f"catch_up() before steps are by rule {now}, or set back what picks it"
                )

    def catch_up(self, rows: object = None) -> None:
        """Do what `Optimizer.catch_up` says."""
        with self.lock:
            self.refuse_elsewhere("catch_up")
            if not self.storage.catch_up:
                raise ValueError(
                    'catch_up: expected an optimizer that was made with rows="catch_up", found '
                    f'rows="{self.options["rows"]}"'
                )
            some = None if rows is None else self._rows_given(rows)
            if self.homes:
                self._mark()
            self.plan.catch_up(some)

    def _rows_given(self, rows: object) -> list[Rows | Array | None]:
        """The rows of each parameter that are to catch up, whose indices are not looked at yet."""
        given = leaves_as(self.structure, rows)
        if given is None:
            checks.refuse_structure(self.structure, rows, "rows")
        leaves = zip(given, self.labels(), strict=True)
        return [a if a is None else rows_to_catch_up(a, f"rows{label}") for a, label in leaves]

    def add_group(self, group: Mapping[str, Any], grads: object, copy_to: object) -> None:
        """Do what `Optimizer.add_param_group` says."""
        with self.lock:
            self._refuse_pending("add_param_group")
            bound = self.bound()
            for name, given, kept in (("grads", grads, bound), ("copy_to", copy_to, self.copies)):
                if (given is None) != (kept is None):
                    raise TypeError(f"{name}: expected for all groups or for none")
            before = dict(self.__dict__)
            average = {} if self.average is None else dict(self.average.__dict__)
            try:
                if not self._grouped:
                    self.structure, bound = [self.structure], [bound]
                    self._paths = tuple((0, *path) for path in self._paths)
                    self._grouped = True
                known = len(self._paths)
                (new,) = self._take_groups([(group, (len(self.param_groups),))])
                self.structure = [*self.structure, new]  # type: ignore[misc]
                params = dict(list(self.params().items())[known:])
                if self.copies is not None:
                    arrays, paths = list(params.values()), self._paths[known:]
                    self.copies = [
                        *self.copies,
                        *_options.as_copies(copy_to, new, arrays, paths),
                    ]
                if self.average is not None:
                    self.average.extend(params)
                self.accumulated = None
                steps = np.append(self.steps, self._steps_at_home(params.values()))
                grads = None if grads is None else [*bound, grads]  # type: ignore[misc]
                self.lay_out(self.param_groups, steps, grads)
            except BaseException:
                self.__dict__.update(before)
                if self.average is not None:
                    self.average.__dict__.update(average)
                raise
            self.copy_out()

    def _refuse_pending(self, what: str) -> None:
        if self.pending:
            raise RuntimeError(f"{what}: gradients were accumulated that no step has taken yet")
        self.refuse_elsewhere(what)

    def refuse_elsewhere(self, what: str) -> None:
        """Raise RuntimeError while the parameters are not those that steps update."""
        if self.perturbed:
            raise RuntimeError(f"{what}: the parameters are perturbed, and will be restored")
        self.refuse_swapped(what)

    # ------------------------------------------------------------------------ following the rules

    def follow(self) -> Layout | None:
        """Lay out anew if hyper-parameters were changed that pick the rule.

        Returns what `go_back` takes to undo it, or None if nothing was done.  To be called, as
        `go_back`, with the lock held.
        """
        seen = self._changes.latest  # before the rules are asked, or a change could go unseen
        if seen is self.seen:
            return None
        before = None
        if list(map(self._pick, self.param_groups, self.picks)) != self.picks:
            if self.storage.catch_up:
                self._refuse_behind()
            before = Layout(*[getattr(self, key) for key in Layout._fields])
            self.lay_out(self.param_groups, self.steps, self.bound())
        else:
            self.plan.refresh()
        self.seen = seen
        return before

    def go_back(self, before: Layout | None) -> None:
        """Undo what `follow` did, unless states have been stepped since."""
        if before is not None and not (self.plan.torn or self.plan.wrote):
            for key, value in before._asdict().items():
                setattr(self, key, value)

    def agree(self) -> None:
        """Raise ValueError if groups differ in hyper-parameters that all have to have alike."""
        latest = self._changes.latest
        if latest is not self._agreed:
            self.kind.agree(self.param_groups)
            self._agreed = latest

    @contextmanager
    def following(self, keep: bool = True) -> Iterator[None]:
        """Follow the rules under the lock; if the block raises or only looks, go back."""
        with self.lock:
            before = self.follow()
            try:
                yield
            except BaseException:
                self.go_back(before)
                raise
            if not keep:
                self.go_back(before)

    # ---------------------------------------------------------------------------------- the steps

    def step(self, grads: object = None, grad_scale: float = 1.0) -> StepRecord:
        """Do what `Optimizer.step` says."""
        if type(grad_scale) is float and grad_scale == 1.0:
            scale = unscale = 1.0
        else:
            scale = domains.number(grad_scale, "grad_scale")
            unscale = _inverse(scale, "grad_scale")
        with self.lock:
            # What there is nothing to do for is not called: of small tensors, a call is much.
            latest = self._changes.latest
            if latest is not self._agreed:
                self.agree()
            before = None if latest is self.seen else self.follow()
            try:
                average, weights = self.average, None
                if self.perturbed or average is not None or self.iterates is not None:
                    self.refuse_elsewhere("step")
                if self.homes:
                    self._mark()
                if average is not None:
                    weights = average.weights(average.step + 1)
                if self.accumulated is not None and self.pending:
                    return self._step_accumulated(grads, scale, weights)
                return self.plan.step(
                    grads,
                    self.configure,
                    unscale,
                    average=weights,
                    zero=self.options["zero_grads"],
                    tally=self.taken,
                    amount=1.0,
                    combine=self.combine,
                    combine_sums=self.combine_sums,
                )
            except BaseException:
                self.go_back(before)
                raise

    def _step_accumulated(
        self, grads: object, scale: float, average: tuple[float, float] | None
    ) -> StepRecord:
        """Step along the mean of what was accumulated."""
        pending = self.accumulated
        assert pending is not None
        if grads is not None:
            self._refuse_pending("step")
        return self.plan.step(
            pending.grads(),
            self.configure,
            _inverse(scale * self.pending, "grad_scale times weight"),
            average=average,
            zero=True,
            reset=(pending.counts, pending.weight),
            tally=self.taken,
            amount=1.0,
            combine=self.combine,
            combine_sums=self.combine_sums,
        )

    @property
    def pending(self) -> float:
        """The weight of the gradients that no step has taken yet."""
        return 0.0 if self.accumulated is None else float(self.accumulated.weight[0])

    def accumulate(self, grads: object = None, weight: float = 1.0) -> None:
        """Do what `Optimizer.accumulate` says."""
        weight = domains.nonnegative(weight, "weight")
        with self.lock:
            if grads is None and (grads := self.bound()) is None:
                raise TypeError("accumulate() needs gradients, as no gradients were bound")
            split = Split(self.structure, grads)
            pending = self.accumulated
            if pending is None or (not self.pending and pending.tables != split.rows.keys()):
                pending = self.nothing_accumulated(split.rows.keys())
            if not math.isfinite(pending.weight[0] + weight):
                raise ValueError(f"weight: expected finite sums, found {weight} on top")
            if weight:
                if split.rows:
                    with self.following(keep=False):
                        self.plan.refuse_rows(split.rows, self.configure)
                pending.add(split, weight)
            self.accumulated = pending

    def nothing_accumulated(self, tables: Collection[int] = ()) -> Accumulated:
        """Sums of no gradients yet; those of tables will come by rows."""
        params = list(self.params().values())
        shapes = [*map(self.storage.shape, params)]
        return Accumulated(self.structure, params, self.labels(), shapes, tables)

    # ---------------------------------------------------------------------------------- the states

    def written(self) -> dict[str, Any]:
        """The state dict, whose arrays are the live ones; to be called within `following`."""
        if self.pending and self.accumulated is not None and self.accumulated.by_rows:
            raise RuntimeError(
                "state_dict: Rows were accumulated that no step has taken, which it can't hold; "
                "step first"
            )
        groups = self.param_groups
        eager = [bool(self.kind.initial(group)) for group in groups]
        entries = [[self.state[name] for name in names] for names in self.names]
        written = _state_dict.write(
            groups, self.rules, entries, eager, self.kind.decoupled, self.storage
        )
        written["fastgd"] = _state_dict.write_extras(
            int(self.skipped[0]),
            self.storage.seed,
            self.average,
            self.accumulated,
            list(self.state),
        )
        rules = dict(zip(self.state, self.rules, strict=True))
        if layouts := self.storage.layouts(self.params(), rules):
            written["fastgd"]["layouts"] = layouts
        return written

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do what `Optimizer.load_state_dict` says."""
        groups, kind = self.param_groups, self.kind
        with self.lock:
            live = [array for entry in self.state.values() for array in entry.values()]
            changes, entries = _state_dict.read(
                state_dict, groups, kind.rule, kind.decoupled, live, self.storage
            )
            extras = _state_dict.read_extras(state_dict, self.params(), self.average)
            shared = _state_dict.shared_numbers(entries, self.rules)
            pending = None
            if extras is not None and extras.weight:
                pending = self.nothing_accumulated()
            hypers = [{**group, **change} for group, change in zip(groups, changes, strict=True)]
            if self._picked(hypers)[1] != self.rules or not self.plan.holds():
                self.lay_out(hypers, self.steps, self.bound())
            self._mark()
            # All fits: from here on nothing fails.
            kinds, rules = self.storage.recall(), iter(self.rules)
            starts = self._starts(hypers, self.rules, shared)
            rows = zip(groups, changes, starts, self.names, entries, strict=True)
            for group, change, start, names, own in rows:
                group.update(change)
                for name, p, (_, arrays) in zip(names, group["params"], own, strict=True):
                    rule = next(rules)
                    self.storage.fill(p, rule, kinds(p, rule), self.state[name], arrays, start)
            self.steps[...] = [step for own in entries for step, _ in own]
            self.plan.torn = False
            if extras is not None:
                self.skipped[0] = extras.skipped
                if extras.seed is not None:
                    self.plan.seed = extras.seed
                    self.storage = self.storage._replace(seed=extras.seed)
                if self.average is not None and extras.average is not None:
                    self.average.take(*extras.average)
                if pending is not None:
                    pending.load(extras.sums, extras.weight)
                self.accumulated = pending

    def __getstate__(self) -> dict[str, Any]:
        """All but the plan, which holds addresses, and the lock."""
        with self.following():
            self.refuse_elsewhere("copy")  # nothing would restore the parameters of the copy
            if self.homes:
                raise TypeError(
                    "copy: expected parameters in memory, found some whose states are in files"
                )
            own = self.__dict__.keys() - {"plan", "lock", "iterates", "configure"}
            content = {key: self.__dict__[key] for key in own}
            content["options"] = dict(self.options)
            content["state"] = {name: dict(entry) for name, entry in self.state.items()}
            return {**content, "bound": self.bound()}

    def __setstate__(self, content: dict[str, Any]) -> None:
        grads = content.pop("bound")
        saved = content.pop("state")
        self.__dict__.update(content, lock=RLock())
        self.iterates = IterateAverage(self) if self.kind.averages() else None
        self.options = MappingProxyType(content["options"])
        pieces = (self.storage.pieces or {}).values()  # by ids of the arrays that were pickled
        self.storage = self.storage._replace(pieces=None).with_pieces(pieces)
        self._share_lock()
        # Also those that the rule of the moment leaves alone, in memory laid out as ever.
        self.state = {
            name: {k: a if k == "step" else aligned_copy(a, p) for k, a in saved[name].items()}
            for name, p in self.params().items()
        }
        self.lay_out(self.param_groups, self.steps, grads)


def _inverse(value: float, name: str) -> float:
    if value == 0 or not math.isfinite(inverse := 1.0 / value):
        raise ValueError(f"{name}: expected a number to divide by, found {value}")
    return inverse
