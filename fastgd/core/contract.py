"""What a family of optimizers declares: hyper-parameters, rule, coefficients, starts, conflicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fastgd.core.domains import ANNOTATIONS, Domain, flag
from fastgd.core.options import HYPER, Options
from fastgd.kernels._engine import COEFFICIENTS
from fastgd.kernels.memory import checks
from fastgd.kernels.spec.registry import RULES

if TYPE_CHECKING:
    from fastgd.kernels._engine import _Translation as Translation

# The hyper-parameters of a group as they are at a step: numbers and words by name.
Hyper = Mapping[str, Any]

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_LOST = 2.0**-150  # float32 rounds this and all that is less to 0


class HyperParameter(NamedTuple):
    """A hyper-parameter as a class of optimizers declares it."""

    domain: Domain
    default: Any
    keyword: bool  # whether it is given by keyword alone


def hyper(domain: Domain, default: Any, *, keyword: bool = False) -> Any:
    """Declare a hyper-parameter of a class: by an attribute of its name, in the signature's order.

    Parameters
    ----------
    domain : callable
        One of `fastgd.core.domains`: what values it may take, and whether these may be schedules.
    default : object
        Its value where none is given.
    keyword : bool
        Whether it is given by keyword alone, as hyper-parameters that torch's class lacks are.
    """
    return HyperParameter(domain, default, keyword)


class Contract:
    """What a class of optimizers says of itself.

    A class of a family declares its hyper-parameters (`hyper`), and says with `rule`,
    `coefficients`, `initial` and `consistent` what a step does with them.
    """

    # Own and inherited hyper-parameters, in the signature's order; and with those that all have
    # (`fastgd.core.options.HYPER`) the domain of each.
    hypers: ClassVar[Mapping[str, HyperParameter]] = {"maximize": hyper(flag, False, keyword=True)}
    domains: ClassVar[Mapping[str, Domain]] = {"maximize": flag, **HYPER}
    year: ClassVar[int] = 0  # of the paper: the order in which optimizers are listed
    decoupled: ClassVar[bool] = False  # whether weight decay bypasses the gradient
    own_decay: ClassVar[bool] = False  # whether the rule itself decays weights, as one of its terms
    remade: ClassVar[bool] = False  # whether parameters follow from states, or average in one
    restarts: ClassVar[bool] = False  # whether steps count from when states were made
    sparse: ClassVar[bool] = False  # whether it is for tables: rows without a gradient wait
    # The hyper-parameters that all groups have to have alike, as numbers of all parameters follow
    # from them; none, if there are no such numbers.  A learning rate may be 0 in some groups.
    shared: ClassVar[tuple[str, ...]] = ()
    # The methods that the build put into C, of which all make coefficients, and what the engine has
    # of them.
    translated: ClassVar[tuple[Mapping[str, object], Translation] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {key: h for key, h in vars(cls).items() if isinstance(h, HyperParameter)}
        for key in own:
            if key in (*Options.__annotations__, "params", "options"):
                raise TypeError(f"{cls.__name__}.{key}: is the name of what all optimizers take")
            delattr(cls, key)
        for key in (*cls.hypers, "hypers", "domains"):
            if key in vars(cls):
                raise TypeError(
                    f"{cls.__name__}.{key}: hyper-parameters are declared by "
                    "fastgd.core.contract.hyper(domain, default)"
                )
        order = sorted(
            {**cls.hypers, **own}.items(), key=lambda item: (item[1].keyword, item[0] == "maximize")
        )
        cls.hypers = dict(order)
        cls.domains = {key: h.domain for key, h in order} | HYPER
        if (found := COEFFICIENTS.get((cls.__module__, cls.__name__))) is not None:
            cls.translated = {key: cls._declared(key) for key in found[0]}, found

    @classmethod
    def arguments(
        cls, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The hyper-parameters and the options of a call of the class, after its parameters.

        Raises
        ------
        TypeError
            If there are too many by place, or one is given twice.
        """
        names = [key for key, h in cls.hypers.items() if not h.keyword]
        if len(args) > len(names):
            raise TypeError(
                f"{cls.__name__}: expected params and at most {len(names)} hyper-parameters by "
                f"place, found {len(args)}"
            )
        given = dict(zip(names, args, strict=False))
        if twice := [key for key in given if key in kwargs]:
            raise TypeError(f"{cls.__name__}: {twice[0]} is given twice, by place and by keyword")
        given |= kwargs
        hyper = {key: given.pop(key, h.default) for key, h in cls.hypers.items()}
        hyper |= {key: given.get(key) for key in HYPER}
        return hyper, given

    @classmethod
    def parameters(cls, schedules: bool = True, keyword: bool = False) -> list[Any]:
        """The hyper-parameters as `inspect.Parameter`, annotated with schedules or without."""
        from inspect import Parameter

        return [
            Parameter(
                key,
                Parameter.KEYWORD_ONLY if keyword or h.keyword else Parameter.POSITIONAL_OR_KEYWORD,
                default=h.default,
                annotation=ANNOTATIONS.get(h.domain, ("Any", "Any"))[not schedules],
            )
            for key, h in cls.hypers.items()
        ]

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        """The name of the rule in `fastgd.kernels.reference` that steps a parameter.

        The shape is that of the whole parameter, also where it is stepped in pieces.  Schedules
        have no value yet here; each counts as a number that isn't 0.  The rule has to follow from
        `h` and `shape` alone: it is asked for when hyper-parameters have changed.

        Raises
        ------
        ValueError
            If no rule steps parameters of that shape.
        """
        raise NotImplementedError("rule: declared by each optimizer, as fastgd.Adam")

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The rule's coefficients, in its order, for a parameter's t-th step, counted from 1.

        Those of the class's other rules may follow; or a rule has a method of its own, which is
        called `<rule>_coefficients`.  All hyper-parameters are numbers here.
        """
        raise NotImplementedError("coefficients: declared by each optimizer, as fastgd.Adam")

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        """The initial values of states that don't start from 0, by name."""
        return {}

    @staticmethod
    def toward(h: Hyper) -> tuple[str, float] | None:
        """A state z, and w, if what is to be evaluated is not p but p + w(z − p); else None."""
        return None

    @classmethod
    def averages(cls) -> bool:
        """Whether parameters are not what is to be evaluated; see `toward`."""
        return cls._declared("toward") is not vars(Contract)["toward"]

    @staticmethod
    def consistent(h: Hyper) -> None:
        """Raise ValueError if hyper-parameters contradict each other; some may be schedules."""

    @classmethod
    def fits(cls, h: Hyper) -> None:
        """Raise ValueError if a group's hyper-parameters contradict each other or don't fit it."""
        cls.consistent(h)
        for key, start in cls.initial(h).items():
            if start > FLOAT32_MAX:
                for p in h["params"]:
                    if p.dtype != np.float64:
                        raise ValueError(f"{key}: can't start from {start} in {p.dtype}")
        cls._held_by_float32(h)

    @classmethod
    def _held_by_float32(cls, h: Hyper) -> None:
        """Raise ValueError for a number that isn't one in float32, if that is computed with.

        A learning rate may decay to nothing, though, and a bound be so large that it is none.
        """
        for key in cls.domains:
            least = 0.0 if key == "lr" else FLOAT32_LOST
            most = np.inf if key in HYPER else FLOAT32_MAX
            for value in h[key] if isinstance(h[key], tuple) else (h[key],):
                if not isinstance(value, float) or value == 0 or np.isinf(value):
                    continue
                if least < abs(value) <= most:
                    continue
                for name, p in zip(h["param_names"], h["params"], strict=True):
                    if p.dtype != np.float64:
                        raise ValueError(
                            f"{key}: expected 0 or a number that float32 can hold, in which "
                            f"params{checks.label((name,))} is computed, found {value}"
                        )

    @classmethod
    def agree(cls, groups: Sequence[Hyper]) -> None:
        """Raise ValueError if groups differ in what is to be the same for all.

        Asked at the step alone: what is set in one group after the other may differ meanwhile.
        """
        for key in cls.shared:
            own = [h[key] for h in groups if key != "lr" or h[key] != 0]
            if differing := [value for value in own if value != own[0]]:
                zero = " (or 0)" if key == "lr" else ""
                raise ValueError(
                    f"{key}: expected the same in all groups{zero}, as {cls.__name__} adapts one "
                    f"step size to all, found {own[0]!r} and {differing[0]!r}"
                )

    @classmethod
    def stages(cls, h: Hyper, unscale: float) -> tuple[float, ...]:
        """The fields of `reference.Stages`: the arguments of the stages before the rule."""
        decay = h.get("weight_decay", 0.0)
        l2, decoupled = 0.0, 1.0
        if h.get("decoupled_weight_decay", cls.decoupled):
            decoupled = 1.0 - h["lr"] * decay
        elif not cls.own_decay:
            l2 = decay
        factor = -unscale if h["maximize"] else unscale
        limits = [h[key] for key in ("clip_value", "clip_norm", "clip_ratio")]
        return factor, l2, decoupled, *(math.inf if most is None else most for most in limits)

    @classmethod
    def _declared(cls, key: str) -> object:
        """A method as the class that declares it has it, of which there is only one."""
        return next(vars(base)[key] for base in cls.__mro__ if key in vars(base))

    @classmethod
    def in_c(cls) -> Translation | None:
        """What the engine works out `settings` by; None if the class says something else."""
        if cls.translated is None:
            return None
        methods, found = cls.translated
        ours = {**methods, **{key: vars(Contract)[key] for key in ("stages", "settings")}}
        every = {key for base in cls.__mro__ for key in vars(base) if key.endswith("coefficients")}
        own = all(cls._declared(key) is ours.get(key) for key in every.union(ours))
        return found if own else None

    @classmethod
    def settings(cls, rule: str, h: Hyper, t: int, unscale: float) -> tuple[Any, ...]:
        """The rule, its coefficients and the stages of a parameter's t-th step, counted from 1."""
        # A scheduled momentum may be 0 at a step, and its rule takes it nonetheless: so classes
        # list all coefficients, and each rule takes as many of the first as it has.
        listed = getattr(cls, f"{rule}_coefficients", cls.coefficients)(h, t)
        stages, row = cls.stages(h, unscale), RULES[rule]
        if row.own_decay:
            stages = (stages[0], 0.0, 1.0, *stages[3:])
        return rule, listed[: len(row.coefficients)], stages
