"""A class whose rule depends on a parameter's shape: AMSGrad for matrices, Adam for others."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.commands.optimizers import described
from fastgd.core.storage import Piece
from fastgd.core.variants import Pick, rules_of, variants
from fastgd.kernels.spec.registry import RULES

SHAPES = ((3, 4), (5,), (2, 2), ())


def by_shape(h, shape):
    """What picks the rule."""
    return "amsgrad" if h["amsgrad"] or len(shape) == 2 else "adam"


class Shaped(fastgd.Adam):
    """Adam, and AMSGrad for matrices."""

    rule = staticmethod(by_shape)


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape)[...] for shape in SHAPES]


def test_each_parameter_has_the_states_of_its_rule():
    opt = Shaped(drawn(0))
    assert opt.stepper.rules == ["amsgrad", "adam", "amsgrad", "adam"]
    assert opt.stepper.owners == [(0, "amsgrad"), (0, "adam")]
    assert ["max_exp_avg_sq" in entry for entry in opt.state.values()] == [True, False] * 2


@pytest.mark.parametrize("backend", [fastgd.available_backends()[0], "numpy"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "clip_by": "group"}])
def test_steps_are_those_of_two_classes_whose_norms_are_one(backend, options):
    """Tensors of one group share its norm, whichever rules they follow."""
    fastgd.set_backend(backend)
    params, others = drawn(0), drawn(0)
    opt = Shaped([{"params": params[:3]}, {"params": params[3], "lr": 0.1}], **options)
    each = [
        fastgd.Adam(p, amsgrad=p.ndim == 2, lr=1e-3 if i < 3 else 0.1) for i, p in enumerate(others)
    ]
    for t in range(3):
        grads = drawn(t + 1)
        opt.step([grads[:3], grads[3]])
        if options:
            norms = [fastgd.functional.global_norm(g) for g in (grads[:3], grads[3])]
            grads = [g * min(0.5 / norms[i == 3], 1.0) for i, g in enumerate(grads)]
        for one, g in zip(each, grads, strict=True):
            one.step(g)
    for p, q in zip(params, others, strict=True):
        assert same_bits(p, q)


def test_a_piece_follows_the_rule_of_the_whole():
    whole, piece = np.ones((4, 3)), np.ones(6)
    opt = Shaped([Piece(piece, 6, 12, shape=(4, 3)), Piece(np.ones(6), 0, 6)])
    alone = Shaped(whole)
    assert opt.stepper.rules == ["amsgrad", "adam"]
    for t in range(2):
        g = np.full((4, 3), 0.5 + t)
        opt.step([g.ravel()[6:], None])
        alone.step(g)
    assert same_bits(piece, whole.ravel()[6:])


def test_a_rule_of_whole_parameters_refuses_shards(monkeypatch):
    monkeypatch.setitem(RULES, "amsgrad", RULES["amsgrad"]._replace(shards=False))
    Shaped([Piece(np.ones(6), 6, 12), Piece(np.ones(12), 0, 12, shape=(4, 3))])
    message = r"params\[1\]: expected a whole parameter, as rule amsgrad does not step shards"
    with pytest.raises(ValueError, match=message):
        Shaped([np.ones(2), Piece(np.ones(6), 6, 12, shape=(4, 3))])
    opt = Shaped([Piece(np.ones(6), 6, 12)])
    opt.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="expected a whole parameter"):
        opt.step([np.ones(6)])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_go_on(way):
    params = drawn(0)
    opt = Shaped(params)
    opt.step(drawn(1))
    other = way(opt)
    assert other.stepper.rules == opt.stepper.rules
    for one in (opt, other):
        one.step(drawn(2))
    for p, q in zip(params, other.stepper.params().values(), strict=True):
        assert same_bits(p, q)


def test_state_dicts_and_checkpoints_have_each_rules_states(tmp_path):
    params = drawn(0)
    opt = Shaped(params)
    opt.step(drawn(1))
    written = opt.state_dict()
    assert [len(written["state"][i]) for i in range(4)] == [4, 3, 4, 3]
    fastgd.save(tmp_path / "run", opt)
    loaded, read = (Shaped([p.copy() for p in params]) for _ in range(2))
    loaded.load_state_dict(written)
    fastgd.load(tmp_path / "run", read)
    for one in (opt, loaded, read):
        one.step(drawn(2))
    for p, q, r in zip(
        *(one.stepper.params().values() for one in (opt, loaded, read)), strict=True
    ):
        assert same_bits(p, q)
        assert same_bits(p, r)


def test_a_change_that_asks_for_other_rules_makes_their_states():
    opt = Shaped(drawn(0))
    opt.step(drawn(1))
    opt.param_groups[0]["amsgrad"] = True
    opt.step(drawn(2))
    assert opt.stepper.rules == ["amsgrad"] * 4
    assert opt.stepper.owners == [(0, "amsgrad")]
    opt.param_groups[0]["amsgrad"] = False
    with pytest.raises(ValueError, match="shape"):
        opt.step([*drawn(1)[:3], np.zeros(2)])
    assert opt.stepper.rules == ["amsgrad"] * 4
    opt.step(drawn(3))
    assert opt.stepper.owners == [(0, "amsgrad"), (0, "adam")]


def test_tables_and_tests_know_shapes():
    assert rules_of(Shaped) == {"adam": Pick({}, (3,)), "amsgrad": Pick({}, (4, 3))}
    assert rules_of(fastgd.Adam) == {
        "adam": Pick({}, None),
        "amsgrad": Pick({"amsgrad": True}, None),
        "adam_nesterov": Pick({"nesterov": True}, None),
        "cautious_adam": Pick({"cautious": True}, None),
        "cautious_amsgrad": Pick({"amsgrad": True, "cautious": True}, None),
    }
    assert "adam (as for shape (3,))" in described(Shaped)
    assert "amsgrad (as with amsgrad=True)" in described(fastgd.Adam)
    plain, own = (
        [case for case in variants(cls) if not case.keys() & {"nesterov", "cautious"}]
        for cls in (fastgd.Adam, Shaped)
    )
    assert own == plain


def test_functional_and_torch_pick_by_shape(monkeypatch):
    torch = pytest.importorskip("torch")
    import fastgd.torch

    monkeypatch.setattr(fastgd.Adam, "rule", staticmethod(by_shape))
    matrix, m, v, largest = np.ones((4, 2, 2))
    g = np.full((2, 2), 0.5)
    fastgd.functional.adam(matrix, g, m * 0, v * 0, largest * 0, step=1)
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (3,))]
    opt = fastgd.torch.Adam(params)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    opt.step()
    assert np.allclose(params[0].detach().numpy(), matrix)
    assert [len(opt.state[p]) for p in params] == [4, 3]
    opt.load_state_dict(opt.state_dict())
    opt.param_groups[0]["amsgrad"] = True
    opt.step()
    assert [len(opt.state[p]) for p in params] == [4, 4]
