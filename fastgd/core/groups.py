"""The groups of parameters that share hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from fastgd.core.domains import SCHEDULABLE, Domain, check_schedule, is_schedule, limit
from fastgd.core.names import hint


def not_an_attribute(name: str) -> AttributeError:
    """The error for a hyper-parameter that is set as an attribute of an optimizer."""
    hint = f"opt.param_groups[0][{name!r}] = …"
    return AttributeError(f"{name}: hyper-parameters but lr are set in groups: {hint}")


class Changes:
    """The latest change of hyper-parameters in some groups: another object for each."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest: object = self


class ParamGroup(dict[str, Any]):
    """Parameters that share hyper-parameters: a dict that refuses entries that aren't valid.

    ``group["lr"] = 0.01`` takes effect with the next step, and so does a schedule, say
    ``group["lr"] = lambda step: 0.1 / (1 + step)``, which the group then holds as it is.
    ``group["params"]`` is the flat tuple of arrays and ``group["param_names"]`` their names in the
    group; these two are fixed.

    Parameters
    ----------
    fixed : dict
        The entries that may not be set.
    hyper : dict
        Name and value of every hyper-parameter.
    domains : dict
        Name and `Domain` of every hyper-parameter.
    consistent : callable
        Raises ValueError if entries contradict each other.
    name : str
        What to call the group in an error.
    changes : Changes, optional
        Where to count the changes of hyper-parameters.

    Attributes
    ----------
    scheduled : tuple of str
        The hyper-parameters that are schedules, or hold one.
    """

    def __init__(
        self,
        fixed: Mapping[str, Any],
        hyper: Mapping[str, Any],
        domains: Mapping[str, Domain],
        consistent: Callable[[Mapping[str, Any]], None],
        name: str = "",
        changes: Changes | None = None,
    ) -> None:
        self._domains, self._consistent, self._name = domains, consistent, name
        self._changes = changes or Changes()
        super().__init__(fixed)
        super().update(self.checked(hyper))
        self._note_change()

    def checked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The validated changes; raises if one is refused, and changes nothing yet."""
        clean = {}
        for key, value in changes.items():
            if key in {"params", "param_names"}:
                raise TypeError(f"{self._name}{key}: is fixed; add_param_group adds parameters")
            if key not in self._domains:
                known = ", ".join(self._domains)
                raise KeyError(
                    f"{self._name}{key}: no such hyper-parameter; there are {known}"
                    f"{hint(key, self._domains)}"
                )
            domain, name = self._domains[key], f"{self._name}{key}"
            check = domain in SCHEDULABLE and is_schedule(value)
            clean[key] = check_schedule(value, domain, name) if check else domain(value, name)
        self._consistent({**self, **clean})
        return clean

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self.checked({key: value})[key])
        self._note_change()

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take several changes, or none if one of them is refused."""
        super().update(self.checked(dict(*args, **kwargs)))
        self._note_change()

    def _note_change(self) -> None:
        # Cached, as every step reads it.
        self.scheduled = tuple(key for key in self._domains if is_schedule(self[key]))
        self._changes.latest = object()

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a parameter group always has all its entries: set them, don't remove them")

    __delitem__ = pop = popitem = clear = _refuse

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The entry of that name; all entries exist, so none is added."""
        return self[key]

    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters alone."""
        return {key: self[key] for key in self._domains}

    def at(self, step: int) -> dict[str, Any]:
        """The hyper-parameters with schedules evaluated at a step, counted from 0."""
        return self.hyper() | {key: self.value(key, step) for key in self.scheduled}

    def value(self, key: str, step: int) -> Any:
        """The value of a hyper-parameter at a step, counted from 0.

        Raises
        ------
        TypeError, ValueError
            If a schedule's value is not in the hyper-parameter's domain.
        Exception
            What a schedule raises itself, with a note of the hyper-parameter and the step.
        """
        value, name = self[key], f"{self._name}{key}"
        if key not in self.scheduled:
            return value
        try:
            if callable(value):
                value = value(step)
            else:
                value = tuple(v(step) if callable(v) else v for v in value)
        except Exception as error:
            error.add_note(f"{name}: raised by its schedule at step {step}")
            raise
        if self._domains[key] is limit and isinstance(value, (int, float)) and value == 0:
            return 0.0  # where a bound may end: nothing of the gradients is left
        try:
            return self._domains[key](value, name)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, from its schedule at step {step}") from None

    def __reduce__(self) -> Any:
        fixed = {key: self[key] for key in ("params", "param_names")}
        own = self._domains, self._consistent, self._name, self._changes
        return ParamGroup, (fixed, self.hyper(), *own)
