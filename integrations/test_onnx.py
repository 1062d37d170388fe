"""The reference operators of ONNX for training, step by step.

ONNX counts steps from 0.  Conventions that differ: Adam's ε is added to √h without its bias
correction, and with a count of 0 there is none at all, so Adam's count starts from 1 here; its
``norm_coefficient_post`` shrinks weights after the step, where `fastgd.AdamW` does before it.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastgd

helper = pytest.importorskip("onnx.helper", reason="onnx is not installed")
reference = pytest.importorskip("onnx.reference")

DOMAIN = "ai.onnx.preview.training"
STEPS = 30


def evaluator(operator, states, **attributes):
    """A function of (rate, count, x, g, *states) by an operator; returns x and its states."""
    given = ["R", "T", "X", "G", *[f"S{k}" for k in range(states)]]
    made = ["X_new", *[f"S{k}_new" for k in range(states)]]
    node = helper.make_node(operator, given, made, domain=DOMAIN, **attributes)
    kind = helper.make_tensor_type_proto(11, None)  # of double
    graph = helper.make_graph(
        [node],
        "step",
        [helper.make_value_info(name, kind) for name in given],
        [helper.make_value_info(name, kind) for name in made],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(DOMAIN, 1)])
    session = reference.ReferenceEvaluator(model)
    return lambda *arrays: session.run(None, dict(zip(given, map(np.asarray, arrays), strict=True)))


CASES = {
    # Attributes of the operator, how many states and from which count; and the same here.
    "Adam": (
        "Adam",
        {"alpha": 0.875, "beta": 0.96875, "epsilon": 2.0**-20, "norm_coefficient": 0.125},
        (2, 1),
        fastgd.Adam,
        {
            "betas": (0.875, 0.96875),
            "weight_decay": 0.125,
            "eps": lambda step: 2.0**-20 / np.sqrt(1 - 0.96875 ** (step + 1)),
        },
    ),
    "Adagrad": (
        "Adagrad",
        {"decay_factor": 0.125, "epsilon": 2.0**-20, "norm_coefficient": 0.0625},
        (1, 0),
        fastgd.Adagrad,
        {"lr_decay": 0.125, "eps": 2.0**-20, "weight_decay": 0.0625},
    ),
    "Momentum": (
        "Momentum",
        {"alpha": 0.875, "beta": 0.75, "norm_coefficient": 0.0625, "mode": "standard"},
        (1, 0),
        fastgd.SGD,
        {"momentum": 0.875, "dampening": 0.25, "weight_decay": 0.0625},
    ),
    "Momentum of Nesterov": (
        "Momentum",
        {"alpha": 0.875, "beta": 1.0, "norm_coefficient": 0.0625, "mode": "nesterov"},
        (1, 0),
        fastgd.SGD,
        {"momentum": 0.875, "nesterov": True, "weight_decay": 0.0625},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_onnx(name):
    operator, attributes, (states, first), kind, hyper = CASES[name]
    theirs = evaluator(operator, states, **attributes)
    rng = np.random.default_rng(0)
    p = rng.standard_normal(50)
    found = [p.copy(), *[np.zeros(50) for _ in range(states)]]
    opt = kind(p, lr=0.0625, **hyper)
    for step in range(STEPS):
        g = rng.standard_normal(50)
        found = theirs(0.0625, np.int64(step + first), found[0], g, *found[1:])
        opt.step(g)
        assert np.allclose(p, found[0], rtol=1e-12, atol=1e-14), step
