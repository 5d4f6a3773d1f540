"""Pruning in a training by Lightning: one callback.

>>> from tvm_pattern.pruning import Gradual, PatternConfig
>>> from tvm_pattern.pruning.lightning import PatternPruning
>>> pruning = PatternPruning(PatternConfig(connectivity=3.6), Gradual(steps=30), "net.safetensors")
>>> trainer = lightning.Trainer(max_epochs=50, callbacks=[pruning])
>>> trainer.fit(module, loader)
>>> print(pruning.report)
"""

from __future__ import annotations

from typing import Any

from .epochs import PruningCallback, missing

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise missing("Lightning (pip install lightning)", error) from None


class PatternPruning(PruningCallback, Callback):
    """Prunes the module's convolutions while Lightning trains it.

    Checkpoints hold the pruner's state, so that ``fit(ckpt_path=...)`` goes on as if it had not
    stopped. Gradient accumulation, precision plugins and DDP need nothing special.

    Parameters
    ----------
    config, method, output, example_inputs, module
        As for :class:`tvm_pattern.pruning.epochs.EpochPruning`.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Choose the layers, before a checkpoint is loaded."""
        if stage == "fit":
            self._run.prepare(pl_module)
            self._run.check_epochs(trainer.max_epochs)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hook into the optimizers, which are there now."""
        self._run.prepare(pl_module).attach(*trainer.optimizers)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """One step of the method."""
        for name, value in self._run.epoch_end().items():
            if isinstance(value, int | float):
                pl_module.log(f"pruning/{name}", float(value))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Check and write what came out."""
        if not trainer.interrupted:
            self._run.finish(write=trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return {} if self._run.pruner is None else {"pruner": self._run.pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints."""
        if "pruner" in state_dict and self._run.pruner is not None:
            self._run.pruner.load_state_dict(state_dict["pruner"])
