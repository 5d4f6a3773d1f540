"""What a run has done, in a file to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pruning.checkpoint import load_training, save_training
from .errors import PosttrainError
from .fit import Fit
from .reconstruct import BlockFit, Tuned


class Saved:
    """Layers that are fitted and blocks that are tuned, in a file where one was named.

    Raises
    ------
    PosttrainError
        If the file is of another run.
    """

    def __init__(self, path: str | Path | None, fingerprint: str) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        self.layers: dict[str, Fit] = {}
        self.blocks: dict[str, Tuned] = {}
        if self._path is None or not self._path.is_file():
            return
        state = load_training(self._path, {"posttrain", "layers"})
        if state["posttrain"] != fingerprint:
            raise PosttrainError(
                f"{self._path} is of another model, configuration or data; remove it, or name"
                " another file"
            )
        self.layers = {name: Fit(**values) for name, values in state["layers"].items()}
        for name, (facts, tensors) in state.get("blocks", {}).items():
            facts = {**facts, "layers": tuple(facts["layers"])}
            self.blocks[name] = Tuned(BlockFit(**facts), tensors)

    def add(self, name: str, fit: Fit) -> None:
        """A fitted layer."""
        self.layers[name] = fit
        self._write()

    def add_block(self, tuned: Tuned) -> None:
        """A tuned block."""
        self.blocks[tuned.fit.name] = tuned
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        state: dict[str, Any] = {
            "posttrain": self._fingerprint,
            "layers": {name: vars(fit) for name, fit in self.layers.items()},
        }
        if self.blocks:
            state["blocks"] = {n: (vars(t.fit), t.tensors) for n, t in self.blocks.items()}
        save_training(self._path, state)
