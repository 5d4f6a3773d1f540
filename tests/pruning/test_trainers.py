"""Pruning inside trainings by Lightning, Hugging Face and timm: sparsity, resuming, refusals."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvm_pattern import pruning
from tvm_pattern.pruning import ConfigError, Gradual, OneShot, PatternConfig, Pruner, Rule
from tvm_pattern.pruning.checkpoint import load_pruned
from tvm_pattern.pruning.epochs import EpochPruning

from .small import CONFIG, TRAINERS, batch, make_net, train_step


def needs(*packages):
    """Skip where the trainer is not installed: no dependency. ``make test-trainers`` has all."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    reason = f"not installed: {', '.join(missing)}"
    return pytest.mark.skipif(bool(missing) and not TRAINERS, reason=reason)


def check(net, report, kept):
    """Exactly the asked weights are left, and the file holds them."""
    assert net[3].weight.count_nonzero() == sum(r.weights_kept for r in report.pruned)
    other = make_net(seed=5)
    load_pruned(kept, other)
    assert torch.equal(other[3].weight, net[3].weight)


class Images(torch.utils.data.Dataset):
    """Two batches of four."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        images, labels = batch(index, 1)
        return {"x": images[0], "labels": labels[0]}


# Epochs -------------------------------------------------------------------------------------------


def test_epochs_step_freeze_and_finish(tmp_path):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = EpochPruning(CONFIG, Gradual(steps=2), tmp_path / "net.safetensors")
    with pytest.raises(RuntimeError, match="call prepare"):
        run.epoch_end()
    run.prepare(net).attach(optimizer)
    phases = []
    for epoch in range(4):
        train_step(net, optimizer, epoch)
        run.epoch_end()
        phases.append(run.pruner.phase)
    assert phases == ["training", "frozen", "frozen", "frozen"]
    check(net, run.finish(), run.output)


def test_too_few_epochs_are_refused():
    run = EpochPruning(CONFIG, Gradual(steps=10))
    run.prepare(make_net())
    run.check_epochs(None)
    run.check_epochs(-1)  # Lightning's endless training
    with pytest.raises(ValueError, match=r"4 epochs and a method of 10 steps.*Gradual\(steps=2\)"):
        run.check_epochs(4)


# Lightning ----------------------------------------------------------------------------------------


def lightning_parts(path=None, steps=2):
    import lightning

    from tvm_pattern.pruning.lightning import PatternPruning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def training_step(self, batch, _index):
            return F.cross_entropy(self.net(batch["x"]), batch["labels"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Module(), PatternPruning(CONFIG, Gradual(steps=steps), path, module="net")


def lightning_trainer(folder, callback, epochs, checkpoints=(), **more):
    import lightning

    return lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback, *checkpoints],
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def loader():
    return torch.utils.data.DataLoader(Images(), batch_size=4)


@needs("lightning")
def test_lightning(tmp_path):
    module, callback = lightning_parts(tmp_path / "net.safetensors")
    trainer = lightning_trainer(tmp_path, callback, 3, enable_checkpointing=False)
    trainer.fit(module, loader())
    assert callback.pruner.phase == "finished"
    assert "pruning/kernels_kept" in trainer.logged_metrics
    check(module.net, callback.report, tmp_path / "net.safetensors")


@needs("lightning")
def test_lightning_goes_on_from_a_checkpoint(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    module, callback = lightning_parts()
    keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    lightning_trainer(tmp_path, callback, 4, [keep]).fit(module, loader())
    for epoch in (0, 2):  # while pruning, and with fixed masks
        again, callback = lightning_parts()
        trainer = lightning_trainer(tmp_path, callback, 4, enable_checkpointing=False)
        trainer.fit(again, loader(), ckpt_path=tmp_path / "kept" / f"epoch={epoch}.ckpt")
        assert callback.pruner.phase == "finished"
        for one, other in zip(module.net.parameters(), again.net.parameters(), strict=True):
            assert torch.equal(one, other)


@needs("lightning")
def test_lightning_refuses_a_training_that_is_too_short(tmp_path):
    module, callback = lightning_parts(steps=5)
    with pytest.raises(ValueError, match="train longer"):
        lightning_trainer(tmp_path, callback, 2, enable_checkpointing=False).fit(module, loader())


# Hugging Face -------------------------------------------------------------------------------------


class Loss(nn.Module):
    """What ``Trainer`` wants of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def hugging_face(folder, callback, epochs, save="no"):
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        save_strategy=save,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        lr_scheduler_type="constant",
    )
    return transformers.Trainer(Loss(), arguments, train_dataset=Images(), callbacks=[callback])


@needs("transformers", "accelerate")
def test_hugging_face(tmp_path):
    from tvm_pattern.pruning.huggingface import PatternPruning

    callback = PatternPruning(CONFIG, Gradual(steps=2), tmp_path / "net.safetensors", module="net")
    trainer = hugging_face(tmp_path / "out", callback, 3)
    trainer.train()
    assert callback.pruner.phase == "finished"
    check(trainer.model.net, callback.report, tmp_path / "net.safetensors")


@needs("transformers", "accelerate")
def test_hugging_face_goes_on_from_a_checkpoint(tmp_path):
    from tvm_pattern.pruning.huggingface import PatternPruning

    first = PatternPruning(CONFIG, Gradual(steps=2))
    trainer = hugging_face(tmp_path / "out", first, 3, save="epoch")
    trainer.train()
    # The checkpoint after the first of three epochs: two batches of four images each.
    again = PatternPruning(CONFIG, Gradual(steps=2))
    other = hugging_face(tmp_path / "out", again, 3)
    other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert again.pruner.history[0] == first.pruner.history[0]
    kept = other.model.net[3].weight != 0
    assert torch.equal(kept, trainer.model.net[3].weight != 0)


@needs("accelerate")
def test_accelerate():
    """Its wrapper of the optimizer is looked through."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = make_net()
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    run = EpochPruning(CONFIG, OneShot())
    run.prepare(net).attach(optimizer)
    for epoch in range(2):
        for step in range(2):
            optimizer.zero_grad()
            images, labels = batch(10 * epoch + step)
            accelerator.backward(F.cross_entropy(net(images), labels))
            optimizer.step()
        run.epoch_end()
    report = run.finish()
    assert run.pruner.model[3].weight.count_nonzero() == report.pruned[0].weights_kept


# timm ---------------------------------------------------------------------------------------------


@needs("timm")
def test_timm():
    """A model, an optimizer, a scheduler and an average of weights of timm."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    net = timm.create_model("resnet18", pretrained=False, num_classes=4)
    optimizer = create_optimizer_v2(net, opt="lookahead_momentum", lr=0.01, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=2)
    pruner = Pruner(net, PatternConfig(connectivity=2.0), Gradual(steps=1)).attach(optimizer)
    for epoch in range(2):
        images, labels = batch(epoch, 2)
        optimizer.zero_grad()
        F.cross_entropy(net(F.interpolate(images, size=32)), labels).backward()
        optimizer.step()
        scheduler.step(epoch + 1)
        pruner.step()
        if pruner.phase == "training":
            pruner.freeze()
    report = pruner.finalize()
    for row in report.pruned:
        weight = dict(net.named_modules())[row.name].weight
        assert weight.count_nonzero() == row.weights_kept


# oneshot with a configuration ---------------------------------------------------------------------


def test_oneshot_takes_a_configuration():
    config = PatternConfig(connectivity=2.0, first="skip", rules=(Rule(name="6", skip=True),))
    one, other = make_net(), make_net()
    report = pruning.oneshot(one, config)
    same = pruning.oneshot(
        other, connectivity=2.0, first="skip", rules=(Rule(name="6", skip=True),)
    )
    assert report.rows == same.rows
    assert torch.equal(one[3].weight, other[3].weight)


def test_oneshot_refuses_settings_beside_a_configuration():
    net = make_net()
    before = net[3].weight.clone()
    with pytest.raises(ConfigError, match="got a PatternConfig and skip, group"):
        pruning.oneshot(net, CONFIG, group=4, skip=("0",))
    assert torch.equal(net[3].weight, before)
