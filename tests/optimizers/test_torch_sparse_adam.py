"""SparseAdam steps as torch's does, on uncoalesced gradients."""

import numpy as np
import pytest

import fastgd
from fastgd import Rows

torch = pytest.importorskip("torch")


def test_sparse_adam_is_torchs():
    rng = np.random.default_rng(1)
    p = rng.standard_normal((12, 5))
    W = torch.tensor(p, requires_grad=True)
    opt, theirs = fastgd.SparseAdam(p, lr=0.01), torch.optim.SparseAdam([W], lr=0.01)
    for k in range(100):
        indices, values = rng.integers(0, 12, 6), rng.standard_normal((6, 5))
        W.grad = torch.sparse_coo_tensor(
            torch.tensor(indices)[None], torch.tensor(values), p.shape, check_invariants=True
        )
        theirs.step()
        opt.step(Rows(indices, values))
        if k == 50:  # their states go on in another one of ours
            opt = fastgd.SparseAdam(p, lr=0.5)
            opt.load_state_dict(theirs.state_dict())
    np.testing.assert_allclose(p, W.detach().numpy(), rtol=1e-12)
    state = theirs.state_dict()["state"][0]
    for key in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(opt.state[0][key], state[key].numpy(), rtol=1e-12)
    assert int(opt.state[0]["step"]) == int(state["step"])
