"""What was probably meant by a name that there is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# Hyper-parameters by the names that they have in other libraries.
ELSEWHERE = {
    "learning_rate": ("lr",), "learn_rate": ("lr",), "alpha": ("lr",), "step_size": ("lr",),
    "beta1": ("betas",), "beta2": ("betas",), "beta_1": ("betas",), "beta_2": ("betas",),
    "b1": ("betas",), "b2": ("betas",), "epsilon": ("eps",), "decay": ("weight_decay",),
    "wd": ("weight_decay",), "l2": ("weight_decay",), "rho": ("alpha", "beta"),
    "beta": ("momentum", "alpha", "betas"), "momentum": ("beta", "betas"),
    "max_grad_norm": ("clip_norm",), "clipnorm": ("clip_norm",), "global_clipnorm": ("clip_norm",),
    "grad_clip": ("clip_norm",), "clipvalue": ("clip_value",), "ema": ("average",),
    "use_ema": ("average",), "ema_decay": ("average",), "decay_rate": ("alpha",),
}  # fmt: skip


def hint(name: object, known: Iterable[str]) -> str:
    """A question to add to an error: the known name that was probably meant; empty for none.

    >>> hint("learning_rate", ["lr", "betas"])
    '; did you mean lr?'
    >>> hint("Adamm", ["SGD", "Adam"]), hint("x", ["SGD"])
    ('; did you mean Adam?', '')
    """
    if not isinstance(name, str):
        return ""
    names = {key.lower(): key for key in known}
    meant = [key for key in ELSEWHERE.get(name.lower(), ()) if key in names]
    meant += get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[meant[0]]}?" if meant else ""
