"""What every engine we compare with offers."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..device import package_version
from ..harness import Runner


class Peer(ABC):
    """An inference engine on the CPU, float32; some read networks of bytes too.

    ``name`` is the engine in results, ``packages`` the distributions it needs (the first one's
    version is reported) and ``modules`` what they are imported as.
    """

    name: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    #: Whether :meth:`open` reads networks of bytes.
    reads_qdq = False
    #: Whether :meth:`quantised` makes them by the engine's own rules.
    quantises = False

    def version(self) -> str:
        return package_version(self.packages[0]) or "not installed"

    def unavailable(self) -> str | None:
        """Why the engine cannot be used here, or None."""
        missing = [
            package
            for package, module in zip(self.packages, self.modules, strict=True)
            if importlib.util.find_spec(module) is None
        ]
        if missing:
            return f"not installed: {', '.join(missing)} (pip install '.[bench]' in a clone)"
        return None

    @abstractmethod
    def build(self, model: nn.Module, example: torch.Tensor, threads: int, folder: Path) -> Runner:
        """Convert ``model`` for the input ``example``; ``folder`` is for intermediate files.

        Raises
        ------
        RuntimeError, ValueError, OSError, subprocess.SubprocessError
            If the engine refuses the model; the result file then says so.
        """

    def open(self, path: Path, example: torch.Tensor, threads: int) -> Runner:
        """Read an ONNX file with the input ``example``, of floats or of QDQ pairs.

        Raises
        ------
        ValueError
            If the engine reads no such files.
        """
        raise ValueError(f"{self.name} reads no networks of bytes here")

    def quantised(
        self,
        model: nn.Module,
        batches: Sequence[torch.Tensor],
        example: torch.Tensor,
        threads: int,
        folder: Path,
    ) -> Runner:
        """Quantise ``model`` as the engine's own tools do, ranges set by ``batches``.

        Raises
        ------
        ValueError
            If nothing here does that.
        """
        raise ValueError(f"{self.name} quantises no networks here")

    def reopen(
        self,
        make_model: Callable[[], nn.Module],
        example: torch.Tensor,
        threads: int,
        folder: Path,
    ) -> Runner:
        """Open what :meth:`build` left in ``folder``, without the model in torch if that will do.

        Raises
        ------
        RuntimeError, ValueError, OSError
            As :meth:`build`.
        """
        return self.build(nn.Identity(), example, threads, folder)


def export_onnx(model: nn.Module, example: torch.Tensor, folder: Path) -> Path:
    """ONNX file of ``model`` with input ``x`` and output ``y``, shared by the engines that read it.

    Uses torch's TorchScript exporter: for plain CNNs it gives the same graph as the newer one, 100
    times faster.
    """
    path = folder / "model.onnx"
    if not path.exists():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["x"],
            output_names=["y"],
            opset_version=17,
            dynamo=False,
        )
    return path
