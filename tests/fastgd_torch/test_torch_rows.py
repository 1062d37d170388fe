"""Sparse gradients of torch's embeddings, which are steps by rows."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

import fastgd.torch
from fastgd.torch import SGD, Adagrad, Adam, step_in_backward

nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

# By what torch has sparse steps of, too, and others.
OPTIMIZERS = {
    "SGD": {},
    "momentum": {"kind": "SGD", "momentum": 0.9, "weight_decay": 0.01, "rows": "lazy"},
    "Adagrad": {},
    "AdamW": {"rows": "lazy", "state_dtype": "bfloat16", "clip_norm": 0.5},
    "SparseAdam": {},
    "RowWiseAdagrad": {},
    "RowWiseAdam": {},
}
NAMES = [name for name, own in OPTIMIZERS.items() if hasattr(fastgd, own.get("kind", name))]


class Network(nn.Module):
    """Words and bags of words, and a layer on top of both."""

    def __init__(self, words=20, size=6, dtype=torch.float32, mode="sum"):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(words, size, sparse=True, dtype=dtype)
        self.bags = nn.EmbeddingBag(words, size, sparse=True, mode=mode, dtype=dtype)
        self.top = nn.Linear(2 * size, 1, dtype=dtype)

    def loss(self, t):
        make = torch.Generator().manual_seed(t)
        words, bags = (torch.randint(0, 20, shape, generator=make) for shape in ((8,), (8, 3)))
        return self.top(torch.cat([self.words(words), self.bags(bags)], 1)).square().mean()


def rows_of(g):
    """A gradient of torch's for an optimizer of arrays."""
    if not g.is_sparse:
        return g.numpy()
    return fastgd.Rows(g._indices()[0].numpy(), g._values().numpy())


@pytest.mark.parametrize("name", NAMES)
def test_steps_have_the_bits_of_steps_on_arrays(name):
    options = {"lr": 0.1, **OPTIMIZERS[name]}
    kind = options.pop("kind", name)
    model = Network()
    only = "words.weight" if kind.startswith("RowWise") else ""  # which take matrices alone
    params = dict(p for p in model.named_parameters() if p[0].startswith(only))
    arrays = {key: p.detach().numpy().copy() for key, p in params.items()}
    opt = getattr(fastgd.torch, kind)(params.values(), **options)
    bare = getattr(fastgd, kind)([*arrays.values()], **options)
    for t in range(4):
        opt.zero_grad()
        model.loss(t).backward()
        # Coalesced gradients are those of other indices.
        if t == 2:
            model.words.weight.grad = model.words.weight.grad.coalesce()
        record = bare.step([rows_of(p.grad) for p in params.values()])
        opt.step()
        if "clip_norm" in options:
            assert opt.record.grad_norm == record.grad_norm
    for n, (key, p) in enumerate(params.items()):
        np.testing.assert_array_equal(p.detach().numpy(), arrays[key])
        for state, a in bare.state[n].items():
            if state in opt.state[p]:
                found = opt.state[p][state]
                found = found.view(torch.uint16) if found.dtype == torch.bfloat16 else found
                own = a.view(np.uint16) if a.dtype.itemsize == 2 else a
                np.testing.assert_array_equal(found.numpy(), own)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_torch_s_own_sparse_steps_and_state_dicts(name):
    if name not in NAMES:
        pytest.skip("there is none")
    models = [Network(dtype=torch.float64, mode="mean") for _ in range(2)]
    makers = [getattr(module, name) for module in (fastgd.torch, torch.optim)]
    tables = [[m.words.weight, m.bags.weight] for m in models]
    opts = [make(own, lr=0.05) for make, own in zip(makers, tables, strict=True)]
    for t in range(6):
        if t == 3:  # each goes on from the other's states
            saved = [copy.deepcopy(opt.state_dict()) for opt in opts]
            opts = [make(own, lr=0.05) for make, own in zip(makers, tables, strict=True)]
            for opt, state_dict in zip(opts, reversed(saved), strict=True):
                opt.load_state_dict(state_dict)
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            model.loss(t).backward()
            opt.step()
        for p, q in zip(*tables, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_gradients_are_used_where_they_are(monkeypatch):
    seen = []

    class Spy(fastgd.torch._binding.Binding):
        def _odd(self, k, i, g):
            seen.append(super()._odd(k, i, g))
            return seen[-1]

    monkeypatch.setattr(fastgd.torch._optimizer, "Binding", Spy)
    model = Network()
    model.loss(0).backward()
    Adagrad(model.parameters()).step()
    for rows, p in zip(seen, (model.words.weight, model.bags.weight), strict=True):
        assert rows.values.ctypes.data == p.grad._values().data_ptr()
        assert rows.indices.ctypes.data == p.grad._indices().data_ptr()


def test_rows_and_whole_gradients_may_alternate():
    p = nn.Parameter(torch.zeros(3, 2))
    opt = SGD([p], lr=1.0)
    for grad in (torch.ones(3, 2), torch.ones(3, 2).to_sparse(1), None, torch.ones(3, 2)):
        p.grad = grad
        opt.step()
    assert p.eq(-3).all()
    p.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=int), torch.zeros(0, 2), (3, 2))
    opt.step()  # without rows
    assert p.eq(-3).all()
    p.grad = torch.sparse_coo_tensor([[1, 1]], torch.ones(1, 1).expand(2, 2), (3, 2))
    opt.step()
    assert p.tolist() == [[-3, -3], [-5, -5], [-3, -3]]


def test_bfloat16_tables_with_stochastic_rounding():
    p = nn.Parameter(torch.ones(5, 64, dtype=torch.bfloat16))
    a = p.detach().view(torch.uint16).numpy().copy()
    opt = SGD([p], lr=1e-3, rounding="stochastic", seed=3)
    bare = fastgd.SGD(a, lr=1e-3, rounding="stochastic", seed=3)
    values = torch.ones(3, 64, dtype=torch.bfloat16)
    p.grad = torch.sparse_coo_tensor([[4, 0, 4]], values, p.shape)
    opt.step()
    bare.step(fastgd.Rows([4, 0, 4], values.view(torch.uint16).numpy()))
    np.testing.assert_array_equal(p.detach().view(torch.uint16).numpy(), a)
    assert p[[0, 4]].ne(1).any()
    assert p[1:4].eq(1).all()


def test_steps_in_backward_and_scaled_losses():
    models = [Network() for _ in range(3)]
    plain, backward, scaled = opts = [Adagrad(m.parameters(), lr=0.1) for m in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(3):
        for opt in opts:
            opt.zero_grad()
        models[0].loss(t).backward()
        plain.step()
        with step_in_backward(models[1], backward):
            models[1].loss(t).backward()
        scaler.scale(models[2].loss(t)).backward()
        scaler.step(scaled)
        scaler.update()
    for model in models[1:]:
        for p, q in zip(models[0].parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_rows_that_are_not_finite(nonfinite):
    model = Network()
    opt = Adagrad(model.parameters(), nonfinite=nonfinite)
    model.loss(0).backward()
    model.bags.weight.grad._values()[2, 1] = float("nan")
    before = copy.deepcopy(model.state_dict())
    if nonfinite == "skip":
        opt.step()
        assert opt.skipped == 1
    else:
        with pytest.raises(FloatingPointError, match=r"grads\[0\]\[1\]"):
            opt.step()
    assert all(torch.equal(a, before[key]) for key, a in model.state_dict().items())


REFUSED = {
    r"grads\[0\]\[0\] \(w\): expected a contiguous parameter.*sparse=False": (
        lambda: torch.zeros(2, 3).t(), lambda p: torch.ones(3, 2).to_sparse(1)),
    r"grads\[0\]\[0\] \(w\): expected .* two axes or more": (
        lambda: torch.zeros(3), lambda p: torch.ones(3).to_sparse(1)),
    r"grads\[0\]\[0\].*: expected indices from 0 to below 3, found 3": (
        lambda: torch.zeros(3, 2), lambda p: torch.sparse_coo_tensor(
            [[0, 3]], torch.ones(2, 2), (4, 2))._coalesced_(True)),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_can_not_be_rows_is_refused(message):
    tensor, grad = REFUSED[message]
    p = nn.Parameter(tensor())
    opt = SGD([("w", p)], lr=1.0)
    g = grad(p)
    if g.shape != p.shape:  # an index that torch itself would not have let through
        g = torch.sparse_coo_tensor(g._indices(), g._values(), p.shape, check_invariants=False)
    p.grad = g
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert p.eq(0).all()
    assert not opt.state[p] if p in opt.state else True


def test_gradients_without_rows_let_autograd_add_to_them():
    """Which resizes them in place, as `numpy()` would forbid."""
    table = nn.Embedding(50, 8, sparse=True)
    opt = SGD(table.parameters(), lr=0.1)
    before = table.weight.detach().clone()
    table(torch.arange(0)).sum().backward()
    opt.step()
    table(torch.tensor([1])).sum().backward()
    opt.step()
    before[1] -= 0.1
    torch.testing.assert_close(table.weight.detach(), before)


def test_rows_catch_up():
    """With counts that torch's users see, save and load; states stay theirs."""
    tables = [nn.Embedding(20, 6, sparse=sparse) for sparse in (True, False)]
    tables[0].load_state_dict(tables[1].state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    opts = [
        SGD(table.parameters(), **options, rows="catch_up" if k == 0 else "exact")
        for k, table in enumerate(tables)
    ]
    opts[0].catch_up()  # of which nothing is left
    with pytest.raises(ValueError, match='made with rows="catch_up", found rows="exact"'):
        opts[1].catch_up()
    for t in range(12):
        for table, opt in zip(tables, opts, strict=True):
            opt.zero_grad()
            # Whose gradients don't follow from rows that are behind.
            (table(torch.tensor([t, 2, t // 2])) * (1 + t)).sum().backward()
            if t == 5:
                opt.param_groups[0]["lr"] = 0.05
            opt.step()
        if t == 6:
            p, saved = tables[0].weight, opts[0].state_dict()
            again = nn.Embedding.from_pretrained(p.detach().clone(), freeze=False, sparse=True)
            opt = SGD(again.parameters(), **options, rows="catch_up")
            opt.load_state_dict(copy.deepcopy(saved))
            lazy = SGD(again.parameters(), **options, rows="lazy")
            with pytest.raises(ValueError, match="found rows that missed steps"):
                lazy.load_state_dict(saved)
            tables[0], opts[0] = again, opt
    p = tables[0].weight
    entry = opts[0].state[p]
    assert entry["row_steps"].dtype == torch.uint32
    assert entry["row_steps"].tolist().count(12) == 3
    version = p._version
    opts[0].catch_up()
    assert p._version > version
    assert entry["row_steps"].tolist() == [12] * 20
    torch.testing.assert_close(p, tables[1].weight)
    buffers = [o.state[t.weight]["momentum_buffer"] for o, t in zip(opts, tables, strict=True)]
    torch.testing.assert_close(*buffers)
    for wrapper in (fastgd.torch.Lookahead, fastgd.torch.SAM):
        with pytest.raises(ValueError, match='expected one without rows="catch_up"'):
            wrapper(opts[0])


def test_adam_asks_what_is_meant():
    model = Network()
    model.loss(0).backward()
    with pytest.raises(ValueError, match=re.escape('rows="lazy"')):
        Adam(model.parameters()).step()
    Adam(model.parameters(), rows="lazy").step()


@pytest.mark.parametrize("in_backward", [False, True])
def test_rows_catch_up_before_they_are_looked_up(in_backward):
    """Then gradients are those of dense steps, whose loss follows from all rows as they are."""
    torch.manual_seed(0)
    models = [nn.Embedding(20, 6, sparse=sparse, dtype=torch.float64) for sparse in (True, False)]
    models[0].load_state_dict(models[1].state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    kinds = zip(models, ("catch_up", "exact"), strict=True)
    opts = [SGD(model.parameters(), **options, rows=rows) for model, rows in kinds]
    p = models[0].weight
    opts[0].catch_up({p: torch.tensor([3])})  # of which nothing is left
    handle = step_in_backward(models[0], opts[0]) if in_backward else None
    make = torch.Generator().manual_seed(0)
    for _ in range(25):
        words = torch.randint(0, 20, (2, 2), generator=make)
        opts[0].catch_up({p: words})
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            (model(words) - 1).square().sum().backward()
            opt.step()
    torch.testing.assert_close(p[words], models[1].weight[words], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(p, models[1].weight)
    before, version = p.detach().clone(), p._version
    for rows, error, said in (
        ({p: torch.tensor([1, 20])}, ValueError, r"rows\[0\]\[0\]: expected indices from 0 to"),
        ({p: torch.tensor([1.0])}, TypeError, r"rows\[0\]\[0\]: expected dtype int32 or int64"),
        ({p: [1]}, TypeError, r"rows\[0\]\[0\]: expected a tensor, found list"),
        ({models[1].weight: words}, ValueError, "expected parameters of the optimizer as keys"),
        (words, TypeError, "expected a dict of indices by parameter, found Tensor"),
    ):
        with pytest.raises(error, match=said):
            opts[0].catch_up(rows)
    assert torch.equal(p, before)
    assert p._version == version
    opts[0].catch_up()
    torch.testing.assert_close(p, models[1].weight, rtol=1e-12, atol=1e-12)
    if handle is not None:
        handle.remove()


def test_rows_without_state_have_missed_nothing_but_must_be_there():
    table, other = (torch.nn.Embedding(6, 3, sparse=True) for _ in range(2))
    other.weight.requires_grad_(False)
    opt = fastgd.torch.SGD([table.weight, other.weight], lr=0.5, weight_decay=0.1, rows="catch_up")
    for _ in range(2):
        for weight, name in ((table.weight, r"rows\[0\]\[0\]"), (other.weight, r"rows\[0\]\[1\]")):
            with pytest.raises(ValueError, match=f"{name}: expected indices from 0 to below 6"):
                opt.catch_up({weight: torch.tensor([2, 99])})
        kept = other.weight.clone()
        opt.catch_up({table.weight: torch.tensor([1]), other.weight: torch.tensor([[5]])})
        assert torch.equal(other.weight, kept)
        table(torch.tensor([0])).sum().backward()
        opt.step()
    with pytest.raises(ValueError, match="parameters of the optimizer as keys, found str"):
        opt.catch_up({"weight": torch.tensor([1])})
