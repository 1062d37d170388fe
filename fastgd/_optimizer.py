"""The base of all optimizers: parameters, groups, states and steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastgd import _groups, _state_dict
from fastgd._trees import Path, Structure, flatten, name_of
from fastgd.kernels import checks
from fastgd.kernels._engine import Plan
from fastgd.kernels.reference import RULES

Array = NDArray[Any]
Hyper = Mapping[str, Any]

# The hyper-parameters that several optimizers share.
DOMAINS: dict[str, _groups.Domain] = {
    "lr": _groups.nonnegative,
    "eps": _groups.nonnegative,
    "eps_root": _groups.nonnegative,
    "weight_decay": _groups.nonnegative,
    "maximize": _groups.flag,
}

# The subclasses, by name in the order of their definition.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


def zeros_beside(p: Array) -> Array:
    """Zeros in the shape and layout of `p`, and as far from the start of a cache line.

    So a chunk whose parameters start on a line has its states start on one, too, and no 64-byte
    load straddles two lines: on AVX-512 that makes a step in cache 1.3 times as fast.
    """
    raw = np.zeros(p.nbytes + 64, np.uint8)
    offset = (p.ctypes.data - raw.ctypes.data) % 64
    return np.ndarray(p.shape, p.dtype, raw, offset, order="C" if p.flags.c_contiguous else "F")


class Optimizer:
    """Parameters, and the step that updates them in place.

    Not for direct use: each subclass is an optimizer.  It declares its hyper-parameters by the
    arguments of its ``__init__``, and says with `rule`, `coefficients`, `initial` and `consistent`
    what a step does with them.

    Attributes
    ----------
    param_groups : list of dict
        The groups.  ``param_groups[0]["lr"] = 0.01`` takes effect with the next step; a value that
        is out of range is refused there and then.
    state : mapping
        The states of each parameter by its name (its index in a list, its keys joined by dots in
        dicts): the arrays that the steps update, and ``"step"``, the number of steps taken.  Write
        into these arrays to change them.
    """

    domains: ClassVar[Mapping[str, _groups.Domain]] = DOMAINS  # a subclass adds those of its own
    decoupled: ClassVar[bool] = False  # whether weight decay acts beside the gradient

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.domains = {**cls.__base__.domains, **cls.domains}  # type: ignore[union-attr]
        OPTIMIZERS[cls.__name__] = cls

    # ------------------------------------------------------- what a subclass says of its rule

    @staticmethod
    def rule(h: Hyper) -> str:
        """The rule in `fastgd.kernels.reference` that hyper-parameters ask for."""
        raise NotImplementedError

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The rule's coefficients, in its order, for a parameter's t-th step, counted from 1."""
        raise NotImplementedError

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        """What states start from, where that isn't 0."""
        return {}

    @staticmethod
    def consistent(h: Hyper) -> None:
        """Raise ValueError if hyper-parameters contradict each other."""

    @classmethod
    def stages(cls, h: Hyper, unscale: float) -> tuple[float, float, float]:
        """What the stages before the rule are given: factor of the gradient, L2 and other decay."""
        decay = h["weight_decay"]
        factor = -unscale if h["maximize"] else unscale
        return (factor, 0.0, 1.0 - h["lr"] * decay) if cls.decoupled else (factor, decay, 1.0)

    # ----------------------------------------------------------------------------- construction

    def __init__(self, params: object, grads: object, arguments: Mapping[str, Any]) -> None:
        """Take the arguments of a subclass's ``__init__``, its ``locals()``."""
        self.defaults = {key: arguments[key] for key in arguments if key in self.domains}
        self.param_groups: list[_groups.ParamGroup] = []
        self.state: Mapping[int | str, Mapping[str, Array]] = {}
        self._bound = grads
        self._structure: Structure = []
        self._paths: list[Path] = []
        if isinstance(params, Iterator):
            params = list(params)
        self._grouped = isinstance(params, (list, tuple)) and any(
            isinstance(entry, Mapping) and "params" in entry for entry in params
        )
        if self._grouped:
            self._structure = [self._take_group(g, (k,)) for k, g in enumerate(params)]  # type: ignore[arg-type,var-annotated]
        else:
            self._structure = self._take_group({"params": params}, ())
        self._make_plan(np.zeros(len(self._paths), np.int64))

    def _take_group(self, group: Any, prefix: Path) -> Structure:
        """Check a group and append it; returns its structure."""
        where = f"params{checks.label(prefix)}"
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{where}: expected a group, a dict with 'params', found {group!r}")
        structure, leaves = flatten(group["params"], prefix)
        if not leaves:
            raise ValueError(f"{where}: expected at least one parameter, found none")
        paths = [path for path, _ in leaves]
        names = [name_of(path) for path in paths]
        taken = {name for g in self.param_groups for name in g["param_names"]}
        for name in names:
            if name in taken:
                raise ValueError(f"{where}: expected names of their own, found {name!r} twice")
            taken.add(name)
        arrays = [checks.check_parameter(p, f"params{checks.label(path)}") for path, p in leaves]
        self.param_groups.append(
            _groups.ParamGroup(
                {"params": arrays, "param_names": names},
                self.defaults | {key: group[key] for key in group if key != "params"},
                {key: self.domains[key] for key in self.defaults},
                self.consistent,
                f"{where}: " if prefix else "",
            )
        )
        self._paths += paths
        return structure

    def _make_plan(self, steps: NDArray[np.int64]) -> None:
        """Lay out the states that the groups' rules ask for, and resolve all to pointers."""
        rules = [self.rule(group) for group in self.param_groups]
        state: dict[int | str, Mapping[str, Array]] = {}
        params: list[Array] = []
        arrays: list[tuple[Array, ...]] = []
        owners: list[int] = []
        for k, (group, rule) in enumerate(zip(self.param_groups, rules, strict=True)):
            start = self.initial(group)
            for name, p in zip(group["param_names"], group["params"], strict=True):
                kept = {**self.state.get(name, {}), "step": steps[len(params), ...]}
                for key in RULES[rule].states:
                    if key not in kept:
                        kept[key] = zeros_beside(p)
                        if start.get(key):
                            kept[key].fill(start[key])
                state[name] = MappingProxyType(kept)
                arrays.append(tuple(kept[key] for key in RULES[rule].states))
                params.append(p)
                owners.append(k)
        names = [RULES[rules[k]].states for k in owners]
        labels = [checks.label(path) for path in self._paths]
        self._plan = Plan(
            self._structure, params, labels, owners, arrays, names, steps, self._bound
        )
        self.state, self._rules, self._steps = MappingProxyType(state), rules, steps

    def add_param_group(self, group: Mapping[str, Any], grads: object = None) -> None:
        """Add parameters, with hyper-parameters of their own if wanted.

        From then on gradients come as a list with one entry a group, each in the form of its
        group's ``"params"``.

        Parameters
        ----------
        group : dict
            ``"params"``, in any form that the constructor takes, and any hyper-parameters that
            differ from the constructor's.
        grads : object, optional
            The new parameters' gradients, to be bound, if those of the others are.

        Raises
        ------
        TypeError, ValueError, KeyError
            As for the constructor; the optimizer stays as it was.
        """
        if (grads is None) != (self._bound is None):
            raise TypeError("grads: bind the gradients of all groups, or of none")
        before = dict(self.__dict__)
        self.param_groups, self._paths = list(self.param_groups), list(self._paths)
        try:
            if not self._grouped:
                self._structure, self._bound = [self._structure], [self._bound]
                self._paths = [(0, *path) for path in self._paths]
                self._grouped = True
            assert isinstance(self._structure, list)
            new = self._take_group(group, (len(self.param_groups),))
            self._structure = [*self._structure, new]
            self._bound = None if grads is None else [*self._bound, grads]  # type: ignore[misc]
            added = len(self._paths) - len(self._steps)
            self._make_plan(np.append(self._steps, np.zeros(added, np.int64)))
        except BaseException:
            self.__dict__.update(before)
            raise

    # --------------------------------------------------------------------------------- the step

    def step(self, grads: object = None, *, grad_scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            The gradients in the form of the parameters, with their dtypes, shapes and layouts;
            None in the place of an array leaves its parameter, states and step count alone.  They
            are only read.  May be left out if gradients were bound in the constructor.
        grad_scale : float
            The factor by which the loss was scaled: gradients count as divided by it.

        Raises
        ------
        TypeError, ValueError
            If a gradient is missing or doesn't fit its parameter.  Nothing was changed then.
        RuntimeError
            If another thread is stepping this optimizer.
        """
        if grad_scale == 1.0:
            unscale = 1.0
        else:
            scale = _groups.number(grad_scale, "grad_scale")
            if scale == 0 or not math.isfinite(unscale := 1.0 / scale):
                raise ValueError(f"grad_scale: expected a number to divide by, found {grad_scale}")
        if [self.rule(group) for group in self.param_groups] != self._rules:
            self._make_plan(self._steps)  # a hyper-parameter that picks the rule was changed
        self._plan.step(grads, self._configure, unscale)

    def _configure(self, k: int, t: int, unscale: float) -> tuple[Any, ...]:
        """What the engine asks of group `k` for a parameter's t-th step."""
        group = self.param_groups[k]
        return (self._rules[k], self.coefficients(group, t), *self.stages(group, unscale))

    @property
    def lr(self) -> float:
        """The learning rate of all groups; setting it sets it in all of them.

        Raises ValueError on reading if groups differ.
        """
        rates = {group["lr"] for group in self.param_groups}
        if len(rates) != 1:
            raise ValueError(f"lr: differs between groups: {sorted(rates)}; see param_groups")
        return float(rates.pop())

    @lr.setter
    def lr(self, value: float) -> None:
        checked = _groups.nonnegative(value, "lr")
        for group in self.param_groups:
            group["lr"] = checked

    # -------------------------------------------------------------------------------- the states

    def state_dict(self) -> dict[str, Any]:
        """A copy of all states, step counts and hyper-parameters, in torch.optim's layout.

        Returns
        -------
        dict
            ``"state"`` maps the running number of each parameter to its states (arrays) and
            ``"step"``; ``"param_groups"`` lists each group's hyper-parameters, the numbers of its
            parameters (``"params"``) and their names (``"param_names"``).
        """
        groups = self.param_groups
        rules = [self.rule(group) for group in groups]
        eager = [bool(self.initial(group)) for group in groups]
        return _state_dict.write(groups, rules, self.state, eager)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take states, step counts and hyper-parameters from a state dict, fastgd's or torch's.

        Arrays are copied into the optimizer's own.  Parameters are matched by name where both
        sides have names, else by order.

        Raises
        ------
        TypeError, ValueError, KeyError
            If it doesn't fit: other groups, names, shapes, dtypes or states, or hyper-parameters
            out of range.  The optimizer stays as it was.
        """
        changes, entries = _state_dict.read(
            state_dict, self.param_groups, self.rule, self.decoupled
        )
        # All fits: from here on nothing fails.
        for group, change in zip(self.param_groups, changes, strict=True):
            group.update(change)
        self._make_plan(self._steps)
        for group in self.param_groups:
            start = self.initial(group)
            for name in group["param_names"]:
                step, arrays = entries[name]
                for key, own in self.state[name].items():
                    own[...] = step if key == "step" else arrays.get(key, start.get(key, 0))

    def __getstate__(self) -> dict[str, Any]:
        """All but the plan, which holds addresses."""
        content = {key: value for key, value in self.__dict__.items() if key != "_plan"}
        return {**content, "state": {name: dict(entry) for name, entry in self.state.items()}}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(content)
        self._make_plan(self._steps)

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            elements = sum(p.size for p in group["params"])
            hyper = ", ".join(f"{key}={group[key]!r}" for key in self.defaults)
            size = f"{len(group['params'])} parameters, {elements:,} elements"
            lines.append(f"{type(self).__name__}({size}, {hyper})")
        return "\n".join(lines)
