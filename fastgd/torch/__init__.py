"""fastgd's optimizers as `torch.optim.Optimizer`: the step of torch's CPU training loops.

>>> import torch, fastgd.torch
>>> model = torch.nn.Linear(3, 1)
>>> opt = fastgd.torch.AdamW(model.parameters(), lr=1e-2)
>>> for _ in range(3):
...     opt.zero_grad()
...     model(torch.ones(8, 3)).square().mean().backward()
...     opt.step()
>>> opt.state[model.weight]["step"]
tensor(3.)

There is a class for every optimizer of fastgd, by its name.  Where torch has that name, too, the
class has torch's signature, and each loads the other's state dicts, also in mid-training; fastgd's
further options, like ``eps_root``, are given by keyword.  Groups, closures, hooks, schedulers,
``GradScaler``, ``deepcopy``, pickling and ``torch.save`` work as they do for `torch.optim`.

What a step does:

- It updates the tensors in place, parameters and states alike: ``opt.state[p]`` has torch's keys,
  and the next step uses what is written there.  States are made by a parameter's first step.
- It checks the address of every tensor before it writes to one.  ``p.data = ...``,
  ``model.to(dtype)``, ``share_memory_()``, states replaced or loaded: all are noticed; states
  follow their parameter.
- It takes float32, float64, bfloat16 and float16 in CPU memory, in any dense memory format
  (`torch.contiguous_format`, ``channels_last``); of a DTensor, the local shard.  A gradient must
  have its parameter's strides, as those of autograd do; other strides and other devices are
  refused, by name, before anything is changed.  No gradient is ever copied silently.
- It takes the sparse gradients of ``nn.Embedding(sparse=True)`` and ``EmbeddingBag`` as
  `fastgd.Rows`, uncoalesced, in the memory where they are (values that autograd has not laid out
  are copied), and steps their rows alone: see ``rows`` in `fastgd.Options`.  With
  ``rows="catch_up"``, ``opt.catch_up()`` does to all rows what they missed, and
  ``opt.catch_up({embedding.weight: words})`` to those that a forward pass is about to look up;
  ``"row_steps"`` in their state is a tensor of `torch.uint32`.
- It has the same bits as fastgd's optimizer on arrays, on any number of threads:
  `fastgd.set_num_threads`, or as many as OpenMP takes (`torch.set_num_threads` is for torch's own).

torch's options of how to compute are accepted where they are true: ``fused`` may be None or True,
``foreach`` None or False, ``capturable`` and ``differentiable`` False.

By keyword there are fastgd's options (`fastgd.Options` has their meaning):

- ``clip_norm``, ``clip_value`` and ``clip_ratio``, hyper-parameters of groups; ``clip_by``;
  ``centralize``; ``layout``, by default ``"out_in"``, as torch's layers store their weights;
  ``nonfinite="skip"`` or ``"raise"``; ``zero_grads``, which leaves zeros in each ``p.grad``.
  ``opt.record`` says what the last step did, ``opt.skipped`` how many were skipped.
- ``average``, a decay or an `EMA`: ``opt.average.swapped()`` swaps the averages in for the
  parameters in a ``with`` block.  They are in ``opt.state[p]["average"]``.
  A schedule-free optimizer has ``opt.average`` by itself; ``opt.eval()`` changes its parameters to
  that average, and ``opt.train()`` back, up to rounding.  A state dict says which they are.
- ``state_dtype``, ``min_8bit_size``, ``seed``: 8-bit states are tensors of uint8, with their scales
  in ``opt.state[p]["exp_avg_exponent"]`` and its like.
- For parameters of 16 bits one of ``master=True``, ``master="split"``, ``rounding="stochastic"``.
  A master is in ``opt.state[p]["master"]``; the next step takes over what is written to the
  parameter itself, except behind autograd's back (``p.data.copy_()``): then write to the master.

``copy_to``, ``grads`` and schedules are for optimizers of arrays, and are refused here.

In several processes of `torch.distributed` (gloo), the results are those of one process, up to
the rounding of sums over processes, and but for stochastic rounding (see the last point):

- With ``DistributedDataParallel`` every process takes the same step.
- ``ZeroRedundancyOptimizer(params, fastgd.torch.AdamW, lr=...)`` splits parameters and states among
  processes, with ``parameters_as_bucket_view``, too; ``consolidate_state_dict()`` makes a state
  dict that any number of processes load, or torch's own classes.  ``overlap_with_ddp`` needs one of
  torch's own classes: torch refuses others.  What would be done to a process's own parameters alone
  is refused: ``zero_grads``, and ``swapped()``; to evaluate averages, load the consolidated state
  dict into an optimizer of all parameters.
- ``fully_shard()`` (FSDP2) on a mesh of CPUs, with any ``MixedPrecisionPolicy`` and
  ``CPUOffloadPolicy(pin_memory=False)``: states are DTensors like their parameters, and
  `torch.distributed.checkpoint` saves them in one number of processes and loads them in another.
- ``clip_norm`` and ``nonfinite`` refer to whole gradients: processes that have shards of them, by
  ``fully_shard()``, as other DTensors or in a ``ZeroRedundancyOptimizer``, exchange their sums of
  squares first, and so clip, skip or raise alike.  All must step then, as with any collective: if
  one raises before, say for a gradient of another shape, the others wait for the timeout of their
  process group.  ``FullyShardedDataParallel`` (FSDP1) doesn't tell which processes have the other
  shards: there, these two are refused.
- So do the norms in the formulas of `LAMB`, `LARS` and `NovoGrad`: processes that have shards of a
  parameter exchange their sums of squares amid the step.  If one is gone then, the others raise
  RuntimeError: states have been changed and parameters not, and steps are refused until
  ``load_state_dict()``; load the parameters, too.  In FSDP1 these optimizers are refused.
  `Prodigy` and `DAdaptAdam` add up over all parameters as well, and are refused in a
  ``ZeroRedundancyOptimizer`` and in backward, too.
- ``clip_ratio`` and ``centralize`` refer to whole units: they are refused for DTensors and in
  FSDP1, and work with the others.
- Stochastic rounding, by ``rounding="stochastic"`` or ``state_dtype``, uses other random bits than
  in one process in a ``ZeroRedundancyOptimizer`` and with DTensors: the distribution is the same,
  the bits are not.  They depend on a parameter's index in this process's optimizer, and on an
  element's in its shard.  8-bit states of DTensors are refused.

`step_in_backward` steps each parameter as soon as its gradient is made, and frees the gradient.
`Lookahead` and `SAM` go around any of these optimizers, and are that optimizer to schedulers.
"""

from __future__ import annotations

from typing import Any

from fastgd.torch._average import EMA
from fastgd.torch._backward import StepInBackward, step_in_backward
from fastgd.torch._classes import CLASSES
from fastgd.torch._lookahead import Lookahead
from fastgd.torch._optimizer import Optimizer
from fastgd.torch._sam import SAM

__all__ = [
    "EMA",
    "SAM",
    "Lookahead",
    "Optimizer",
    "StepInBackward",
    "step_in_backward",
    *CLASSES,
]

globals().update(CLASSES)


def __getattr__(name: str) -> Any:  # for type checkers; all there is was found before this is asked
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
