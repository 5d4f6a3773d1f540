"""Pruning in a training by Hugging Face's ``Trainer``: one callback.

>>> from tvm_pattern.pruning import Gradual, PatternConfig
>>> from tvm_pattern.pruning.huggingface import PatternPruning
>>> pruning = PatternPruning(PatternConfig(connectivity=3.6), Gradual(steps=30), "net.safetensors")
>>> trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[pruning])
>>> trainer.train()
>>> print(pruning.report)

Accelerate alone needs no callback: ``pruner.attach`` looks through the optimizer that
``accelerator.prepare`` gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .epochs import PruningCallback, missing

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing("transformers (pip install transformers accelerate)", error) from None

#: The pruner's state in a checkpoint's folder.
STATE = "pattern_pruning.pt"


class PatternPruning(PruningCallback, TrainerCallback):
    """Prunes the model's convolutions while ``Trainer`` trains it.

    The pruner's state is saved into the folders of checkpoints, so that
    ``train(resume_from_checkpoint=...)`` goes on as if it had not stopped.

    Parameters
    ----------
    config, method, output, example_inputs, module
        As for :class:`tvm_pattern.pruning.epochs.EpochPruning`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the layers, go on from a checkpoint's state, hook into the optimizer."""
        pruner = self._run.prepare(kwargs["model"])
        self._run.check_epochs(state.num_train_epochs)
        saved = self._file(args, state)
        if state.global_step and saved.is_file():
            pruner.load_state_dict(torch.load(saved, weights_only=True))
        pruner.attach(kwargs["optimizer"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the method."""
        self._run.epoch_end()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the pruner's state beside the checkpoint."""
        saved = self._file(args, state)
        if state.is_world_process_zero and saved.parent.is_dir():
            torch.save(self._run.prepare(kwargs["model"]).state_dict(), saved)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check and write what came out."""
        self._run.finish(write=state.is_world_process_zero)

    @staticmethod
    def _file(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
