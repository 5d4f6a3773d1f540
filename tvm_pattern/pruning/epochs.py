"""A pruner driven by the epochs of someone else's training loop; what the callbacks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .checkpoint import save_pruned
from .config import PatternConfig
from .methods import Method
from .modules import unwrap
from .pruner import Pruner
from .report import PruneReport


class EpochPruning:
    """Steps, freezes and finalises a pruner at the right epochs.

    The method's ``steps`` are epochs: after so many of them the masks are fixed, and the epochs
    that are left retrain with them.

    Parameters
    ----------
    config : PatternConfig, optional
    method : str, dict or settings
        As for :class:`Pruner`: ``Gradual(steps=30)`` prunes for 30 epochs.
    output : path-like, optional
        A ``.safetensors`` file for the pruned weights, written at the end.
    example_inputs : tensor or tuple of them, optional
        As for :class:`Pruner`.
    module : str
        Name of the part that is pruned and saved, where the trained module wraps the network.

    Attributes
    ----------
    pruner : Pruner or None
        None before the training begins.
    report : PruneReport or None
        None before it ends.
    """

    def __init__(
        self,
        config: PatternConfig | None = None,
        method: Method | str | dict[str, Any] = "gradual",
        output: str | Path | None = None,
        example_inputs: Any = None,
        module: str = "",
    ) -> None:
        self._config, self._method, self._examples = config, method, example_inputs
        self._module = module
        self.output = None if output is None else Path(output)
        self.pruner: Pruner | None = None
        self.report: PruneReport | None = None

    def prepare(self, model: nn.Module) -> Pruner:
        """The pruner of ``model``; made at the first call."""
        if self.pruner is None:
            part = unwrap(model).get_submodule(self._module)
            self.pruner = Pruner(part, self._config, self._method, self._examples)
        return self.pruner

    def check_epochs(self, epochs: int | None) -> None:
        """Refuse a training that ends before the method has had its steps.

        Raises
        ------
        ValueError
            With what to change.
        """
        pruner = self._made()
        if epochs is not None and 0 <= epochs < pruner.method.steps:
            raise ValueError(
                f"got a training of {epochs} epochs and a method of {pruner.method.steps} steps,"
                " one for each epoch; train longer, or give the method fewer steps, such as"
                f" method={type(pruner.method).__name__}(steps={max(1, epochs // 2)})"
            )

    def epoch_end(self) -> dict[str, Any]:
        """To be called after each epoch; returns what :meth:`Pruner.step` does."""
        pruner = self._made()
        record = pruner.step()
        if pruner.phase == "training" and pruner.updates >= pruner.method.steps:
            pruner.freeze()
        return record

    def finish(self, *, write: bool = True) -> PruneReport:
        """Check the sparsity, write the weights, take the hooks away."""
        pruner = self._made()
        self.report = pruner.finalize()
        if write and self.output is not None:
            save_pruned(self.output, pruner.model, self.report.assignment)
        return self.report

    def _made(self) -> Pruner:
        if self.pruner is None:
            raise RuntimeError("there is no pruner yet; call prepare(model) when training begins")
        return self.pruner


class PruningCallback:
    """What the callbacks of all trainers are made of; parameters as for :class:`EpochPruning`."""

    def __init__(
        self,
        config: PatternConfig | None = None,
        method: Method | str | dict[str, Any] = "gradual",
        output: str | Path | None = None,
        example_inputs: Any = None,
        module: str = "",
    ) -> None:
        self._run = EpochPruning(config, method, output, example_inputs, module)

    @property
    def pruner(self) -> Any:
        """The :class:`Pruner`, None before the training begins."""
        return self._run.pruner

    @property
    def report(self) -> Any:
        """The :class:`PruneReport`, None before the training ends."""
        return self._run.report


def missing(package: str, error: ImportError) -> ImportError:
    """The error for a callback of a package that is not installed."""
    return ImportError(f"this callback is for {package}, which is not installed: {error}")
