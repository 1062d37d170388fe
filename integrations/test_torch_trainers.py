"""fastgd.torch in other libraries' trainers: Hugging Face's Trainer, accelerate and Lightning.

Run by `make integrations`, as what they bring along is large.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fastgd.torch

# Their warnings can't be fixed here.
pytestmark = pytest.mark.filterwarnings("default")


def data():
    """Points on a plane, and a line that parts them."""
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > x[:, 1]).long())


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def test_trainer(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    tokens = torch.randint(3, 30, (64, 12), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": t, "labels": t} for t in tokens]

    def train(module, folder, epochs, resume=None):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        opt = module.AdamW(model.parameters(), lr=1e-2)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8,
            save_strategy="epoch", report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=4,
            max_grad_norm=1.0,
        )  # fmt: skip
        schedule = transformers.get_linear_schedule_with_warmup(opt, 4, 24)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=dataset, optimizers=(opt, schedule)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, [log["loss"] for log in trainer.state.log_history if "loss" in log]

    ours, curve = train(fastgd.torch, tmp_path / "ours", 3)
    _, expected = train(torch.optim, tmp_path / "theirs", 3)
    assert curve[-1] < curve[0] - 0.1
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-3, atol=0)
    resumed, _ = train(
        fastgd.torch, tmp_path / "resumed", 3, str(tmp_path / "ours" / "checkpoint-8")
    )
    for a, b in zip(parameters(ours), parameters(resumed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accelerate(tmp_path):
    import accelerate

    trained = []
    for module in (fastgd.torch, torch.optim):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        opt = module.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 16)
        loader = DataLoader(data(), batch_size=32)
        model, opt, loader, schedule = accelerator.prepare(model, opt, loader, schedule)
        for _ in range(2):
            for x, y in loader:
                with accelerator.accumulate(model):
                    loss = torch.nn.functional.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    opt.step()
                    schedule.step()
                    opt.zero_grad()
        before = parameters(model)
        accelerator.save_state(str(tmp_path / module.__name__))
        accelerator.load_state(str(tmp_path / module.__name__))
        assert all(map(torch.equal, before, parameters(model)))
        trained.append(before)
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lightning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

    class Module(lightning.LightningModule):
        def __init__(self, module):
            super().__init__()
            self.network, self.module, self.losses = network(), module, []

        def training_step(self, batch):
            loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            opt = self.module.SGD(self.parameters(), lr=0.1, momentum=0.9)
            schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, 48)
            return [opt], [{"scheduler": schedule, "interval": "step"}]

    def fit(module, epochs, checkpoint=None):
        model = Module(module)
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=1.0,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(model, DataLoader(data(), batch_size=32), ckpt_path=checkpoint)
        file = str(tmp_path / f"{module.__name__}-{epochs}.ckpt")
        trainer.save_checkpoint(file)
        return model, file

    ours, _ = fit(fastgd.torch, 3)
    theirs, _ = fit(torch.optim, 3)
    assert ours.losses[-1] < 0.3
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    _, file = fit(fastgd.torch, 1)
    resumed, _ = fit(fastgd.torch, 3, file)
    for a, b in zip(parameters(ours), parameters(resumed), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
