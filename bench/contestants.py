"""The contestants of the benchmarks: every optimizer here, in each library that has it.

A contestant is a function ``(params, grads) -> (step, read)`` over lists of float32 arrays: `step`
takes one optimizer step, `read` returns the parameters as NumPy arrays.  One that a library lacks,
or whose library isn't installed, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from importlib.util import find_spec
from itertools import cycle
from typing import NamedTuple

import numpy as np

import fastgd
from fastgd.kernels import reference

LR = 1e-3


class Case(NamedTuple):
    """An optimizer with options, what its step moves, and its names elsewhere.

    Where optax has the rule with another convention, `other` says which: its time is compared, its
    result is not.
    """

    optimizer: str
    options: dict
    states: int
    torch: str | None = None
    torch_options: dict | None = None
    optax: Callable | None = None
    other: str | None = None


def _optax(name, *, lr=LR, **options):
    def make(optax):
        where = optax if hasattr(optax, name) else optax.contrib
        return getattr(where, name)(lr, **options)

    return make


CASES = {
    "SGD": Case("SGD", {}, 0, "SGD", {}, _optax("sgd")),
    "SGD momentum": Case(
        "SGD", {"momentum": 0.9}, 1, "SGD", {"momentum": 0.9}, _optax("sgd", momentum=0.9)
    ),
    "SGD nesterov": Case(
        "SGD", {"momentum": 0.9, "nesterov": True}, 1, "SGD", {"momentum": 0.9, "nesterov": True},
        _optax("sgd", momentum=0.9, nesterov=True),
    ),
    "Momentum": Case("Momentum", {}, 1),
    "Adagrad": Case(
        "Adagrad", {}, 1, "Adagrad", {},
        _optax("adagrad", initial_accumulator_value=0.0, eps=1e-10),
    ),
    "RMSprop": Case(
        "RMSprop", {}, 1, "RMSprop", {}, _optax("rmsprop", decay=0.99, eps=1e-8)
    ),
    "RMSprop momentum": Case(
        "RMSprop", {"momentum": 0.9}, 2, "RMSprop", {"momentum": 0.9},
        _optax("rmsprop", decay=0.99, eps=1e-8, momentum=0.9),
    ),
    "RMSprop centered": Case("RMSprop", {"centered": True}, 2, "RMSprop", {"centered": True}),
    "RMSprop centered momentum": Case(
        "RMSprop", {"centered": True, "momentum": 0.9}, 3,
        "RMSprop", {"centered": True, "momentum": 0.9},
    ),
    "Adam": Case("Adam", {}, 2, "Adam", {}, _optax("adam")),
    "Adam amsgrad": Case(
        "Adam", {"amsgrad": True}, 3, "Adam", {"amsgrad": True}, _optax("amsgrad")
    ),
    "Adam nesterov": Case(
        "Adam", {"nesterov": True}, 2, optax=_optax("nadam"), other="the next step's correction"
    ),
    "AdamW": Case(
        "AdamW", {}, 2, "AdamW", {}, _optax("adamw", weight_decay=1e-2)
    ),
    "NAdam": Case("NAdam", {}, 2, "NAdam", {}),
    "RAdam": Case("RAdam", {}, 2, "RAdam", {}, _optax("radam")),
    "Adamax": Case("Adamax", {}, 2, "Adamax", {}, _optax("adamax")),
    "Adadelta": Case(
        "Adadelta", {}, 2, "Adadelta", {}, _optax("adadelta", rho=0.9, eps=1e-6)
    ),
    "Rprop": Case(
        "Rprop", {}, 2, "Rprop", {}, _optax("rprop"), "the step of the gradient before",
    ),
    "ASGD": Case("ASGD", {}, 1, "ASGD", {}),
    "Yogi": Case("Yogi", {}, 2, optax=_optax("yogi")),
    "LAMB": Case("LAMB", {}, 2, optax=_optax("lamb", weight_decay=1e-2)),
    "LARS momentum": Case(
        "LARS", {"momentum": 0.9}, 1, optax=_optax("lars", momentum=0.9)
    ),
    "Lion": Case("Lion", {}, 1, optax=_optax("lion", weight_decay=0.0)),
    "SignSGD": Case("SignSGD", {}, 0, optax=_optax("sign_sgd")),
    "AdaBelief": Case("AdaBelief", {"rectify": False}, 2, optax=_optax("adabelief")),
    "Adan": Case("Adan", {}, 4, optax=_optax("adan")),  # gradients that change tell them apart
    "AdEMAMix": Case("AdEMAMix", {}, 3, optax=_optax("ademamix", alpha=2.0)),
    "ADOPT": Case("ADOPT", {}, 2, optax=_optax("adopt")),
    "MADGRAD": Case("MADGRAD", {}, 3, optax=_optax("madgrad")),
    "NovoGrad": Case(
        "NovoGrad", {}, 1, optax=_optax("novograd", b1=0.95, b2=0.98, eps=1e-8)
    ),
    "Adafactor": Case(
        "Adafactor", {}, 1, "Adafactor", {}, _optax("adafactor")
    ),
    "Prodigy": Case("Prodigy", {}, 4, optax=_optax("prodigy")),
    "DAdaptAdam": Case("DAdaptAdam", {}, 3, optax=_optax("dadapt_adamw")),
    "SGDScheduleFree": Case("SGDScheduleFree", {}, 1, optax=_optax("schedule_free_sgd")),
    "AdamWScheduleFree": Case(
        "AdamWScheduleFree", {}, 2, optax=_optax("schedule_free_adamw")
    ),
}  # fmt: skip

# Every other optimizer runs, too, with its defaults and against NumPy alone.
for _name in fastgd.optimizers.GENERAL:
    if not any(case.optimizer == _name for case in CASES.values()):
        (_rule,) = getattr(fastgd, _name)([np.zeros((2, 2))]).stepper.rules
        CASES[_name] = Case(_name, {}, len(reference.RULES[_rule].states))

FUSED = {"SGD", "Adagrad", "Adam", "AdamW"}  # what torch fuses on the CPU


def contestants(case: Case, threads: int, only: Container[str] = ()) -> dict[str, Callable]:
    """All contestants that can run a case, or of them those of some names; fastgd first."""
    everybody = _everybody(case, threads)
    return {
        name: enter
        for name, enter in everybody.items()
        if not only or name == "fastgd" or name in only
    }


def _everybody(case: Case, threads: int) -> dict[str, Callable]:
    everybody = {
        "fastgd": lambda p, g: fastgd_step(case, p, g),
        "fastgd fresh": lambda p, g: fastgd_fresh(case, p, g),
        "fastgd bound": lambda p, g: fastgd_bound(case, p, g),
        "NumPy": lambda p, g: numpy_step(case, p, g),
    }
    if case.torch and find_spec("torch"):
        if case.torch in FUSED:
            everybody["torch fused"] = lambda p, g: torch_step(case, p, g, threads, fused=True)
        everybody["torch foreach"] = lambda p, g: torch_step(case, p, g, threads, foreach=True)
    if case.optimizer == "Adam" and not case.options and find_spec("thinc"):
        everybody["thinc"] = thinc_adam
    if find_spec("sklearn"):
        if case.optimizer == "Adam" and not case.options:
            everybody["scikit-learn"] = sklearn_adam
        if case.optimizer == "SGD" and case.options:
            everybody["scikit-learn"] = lambda p, g: sklearn_sgd(case, p, g)
    if case.optimizer == "Lion" and find_spec("torch") and find_spec("deepspeed"):
        everybody["DeepSpeed"] = lambda p, g: deepspeed_lion(p, g, threads)
    if case.optax and find_spec("optax"):
        everybody["optax"] = lambda p, g: optax_step(case, p, g)
    # On one thread only: numba's thread pool, once made, spins while others run, and makes torch's
    # short parallel regions take milliseconds.
    if case.optimizer == "Adam" and not case.options and threads == 1 and find_spec("numba"):
        everybody["numba"] = numba_adam
    return everybody


def fastgd_step(case, params, grads):
    """fastgd, the gradients in the same arrays at each step, as in a loop with buffers."""
    opt = getattr(fastgd, case.optimizer)(params, lr=LR, **case.options)
    return lambda: opt.step(grads), lambda: params


def fastgd_fresh(case, params, grads):
    """fastgd, the gradients in other buffers than at the step before."""
    opt = getattr(fastgd, case.optimizer)(params, lr=LR, **case.options)
    turns = cycle([grads, [g.copy() for g in grads]])
    return lambda: opt.step(next(turns)), lambda: params


def fastgd_bound(case, params, grads):
    """fastgd, the gradients bound once."""
    opt = getattr(fastgd, case.optimizer)(params, lr=LR, **case.options, grads=grads)
    return opt.step, lambda: params


def numpy_step(case, params, grads):
    """The rule's expressions in NumPy alone; the whole reference where there is more to it."""
    opt = getattr(fastgd, case.optimizer)(params, lr=LR, **case.options)
    h = opt.param_groups[0]
    rules = opt.stepper.rules
    states, numbers = [], []
    for name, entry in zip(rules, opt.state.values(), strict=True):
        states.append(tuple(entry[key] for key in reference.RULES[name].states))
        numbers.append({key: entry[key] for key in reference.RULES[name].numbers})
    t = 0

    def step():
        nonlocal t
        t += 1
        settings = {name: opt.settings(name, h, t, 1.0) for name in set(rules)}
        for name, p, g, s, kept in zip(rules, params, grads, states, numbers, strict=True):
            _, coefficients, (_, _, decoupled, *_) = settings[name]
            row = reference.RULES[name]
            if row.before or row.begin or row.settle or row.line_states:
                stages = reference.Stages(*settings[name][2])
                reference.step(name, p, g, s, coefficients, stages, numbers=kept)
                continue
            if decoupled != 1.0:
                p *= p.dtype.type(decoupled)
            typed = map(p.dtype.type, coefficients)
            row.after.update(p, g, *s, **dict(zip(row.after.coefficients, typed, strict=True)))

    return step, lambda: params


def torch_step(case, params, grads, threads, **how):
    """torch.optim on tensors that alias the arrays.

    Its foreach SGD adds the velocity to the gradients under Nesterov, in place; so there each step
    copies them anew, which is in its time.
    """
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    opt = getattr(torch.optim, case.torch)(tensors, lr=LR, **case.torch_options, **how)
    if not (how.get("foreach") and case.options.get("nesterov")):
        return opt.step, lambda: params
    for tensor in tensors:
        tensor.grad = tensor.grad.clone()

    def step():
        for tensor, g in zip(tensors, grads, strict=True):
            tensor.grad.numpy()[...] = g
        opt.step()

    return step, lambda: params


def optax_step(case, params, grads):
    """optax, compiled by jax, with parameters and states donated."""
    import jax
    import optax

    transformation = case.optax(optax)
    held = {"p": [jax.numpy.array(p) for p in params]}
    # States that start as the parameters would be the very same buffers, which can't be donated.
    held["s"] = jax.tree.map(jax.numpy.copy, transformation.init(held["p"]))
    gradients = [jax.numpy.array(g) for g in grads]

    @jax.jit
    def _update(p, s, g):
        updates, s = transformation.update(g, s, p)
        return optax.apply_updates(p, updates), s

    update = jax.jit(_update, donate_argnums=(0, 1))

    def step():
        held["p"], held["s"] = update(held["p"], held["s"], gradients)
        jax.block_until_ready(held["p"])

    return step, lambda: [np.asarray(p) for p in held["p"]]


def deepspeed_lion(params, grads, threads):
    """DeepSpeed's compiled Lion, which it builds at first use, for this processor."""
    import torch
    from deepspeed.ops.lion import DeepSpeedCPULion

    torch.set_num_threads(threads)  # OpenMP's, by which it counts its own
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    opt = DeepSpeedCPULion(tensors, lr=LR, betas=(0.9, 0.99))
    return opt.step, lambda: params


def thinc_adam(params, grads):
    """thinc's compiled Adam, which leaves the bias correction of the learning rate to its caller.

    It zeroes the gradients, so each step copies them anew, which is in its time.
    """
    from thinc.api import NumpyOps

    ops = NumpyOps()
    flat = [(p.reshape(-1), g.reshape(-1)) for p, g in zip(params, grads, strict=True)]
    states = [(np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)) for p, _ in flat]
    t = 0

    def step():
        nonlocal t
        t += 1
        lr = LR * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        for (p, g), (own, m, v) in zip(flat, states, strict=True):
            np.copyto(own, g)
            ops.adam(p, own, m, v, 0.9, 0.999, 1e-8, lr)

    return step, lambda: params


def sklearn_adam(params, grads):
    """The optimizer inside scikit-learn's MLPClassifier."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

    opt = AdamOptimizer(params, learning_rate_init=LR)
    return lambda: opt.update_params(params, grads), lambda: params


def sklearn_sgd(case, params, grads):
    """The optimizer inside scikit-learn's MLPClassifier, with momentum."""
    from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

    nesterov = case.options.get("nesterov", False)
    opt = SGDOptimizer(params, learning_rate_init=LR, momentum=0.9, nesterov=nesterov)
    return lambda: opt.update_params(params, grads), lambda: params


def numba_adam(params, grads):
    """A fused loop in Numba, as a user would write it."""
    import math

    import numba

    @numba.njit(error_model="numpy")
    def loop(p, g, m, v, lr, eps):
        b1, c1 = np.float32(0.9), np.float32(0.1)
        b2, c2 = np.float32(0.999), np.float32(0.001)
        for i in range(p.size):
            m[i] = b1 * m[i] + c1 * g[i]
            v[i] = b2 * v[i] + c2 * (g[i] * g[i])
            p[i] -= lr * m[i] / (math.sqrt(v[i]) + eps)

    flat = [(p.reshape(-1), g.reshape(-1)) for p, g in zip(params, grads, strict=True)]
    states = [(np.zeros_like(p), np.zeros_like(p)) for p, _ in flat]
    t = 0

    def step():
        nonlocal t
        t += 1
        root = (1 - 0.999**t) ** 0.5
        lr, eps = np.float32(LR * root / (1 - 0.9**t)), np.float32(1e-8 * root)
        for (p, g), (m, v) in zip(flat, states, strict=True):
            loop(p, g, m, v, lr, eps)

    return step, lambda: params
