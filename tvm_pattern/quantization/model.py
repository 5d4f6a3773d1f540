"""A quantised network: an exported program with its pairs of quantise and dequantise, and facts."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from topi_kernels.structure import Structure

from ..atomic import write_file
from .errors import QuantizationError
from .onnx_export import to_onnx

EXTRA_FILE = "tvm_pattern.quantization.json"
"""Name of the facts in a saved program."""
_VERSION = 1


def check_name(path: Path) -> Path:
    """A name that :meth:`QuantizedModel.save` takes.

    Raises
    ------
    QuantizationError
        If the suffix is another one, or there is no such folder.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise QuantizationError(f"got {path}, expected a name ending in .pt2 or .onnx")
    if not path.parent.is_dir():
        raise QuantizationError(f"no such folder: {path.parent}; create it first")
    return path


@dataclass(frozen=True)
class LayerQuantization:
    """What became of one layer.

    Attributes
    ----------
    layer : str
    kind : {"conv", "dense"}
    reason : str
        Why it stays in float32; empty if it is quantised.
    input_range : tuple of float
        What uint8 stands for, from 0 to 255.
    weight_sqnr : float
        Signal over rounding error of the weights, in dB.
    rounded_to_zero : int
        Kept weights that became zero; the structure still has them.
    bias_shift : float
        Largest correction of a bias, in steps of the weight times the input; 0 without correction.
    """

    layer: str
    kind: str
    reason: str = ""
    input_range: tuple[float, float] = (0.0, 0.0)
    weight_sqnr: float = 0.0
    rounded_to_zero: int = 0
    bias_shift: float = 0.0


@dataclass
class QuantizedModel:
    """What :func:`tvm_pattern.quantization.quantize` gives and :func:`tvm_pattern.compile` takes.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        With ``quantized_decomposed`` operators and integer weights; it computes what the compiled
        library computes.
    structures : dict
        Layer -> kept weights, of the float weights or as the pruner assigned: rounding to zero
        removes nothing.
    layers : tuple of LayerQuantization
    settings : dict
        Arguments of the calibration.
    """

    program: torch.export.ExportedProgram
    structures: dict[str, Structure] = field(default_factory=dict)
    layers: tuple[LayerQuantization, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def module(self) -> torch.nn.Module:
        """The network as a module: fake-quantised, in float32 arithmetic."""
        return self.program.module(check_guards=False)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Run the network as exported: inputs of the example's shapes."""
        with torch.no_grad():
            return self.module()(*inputs)

    def to_dict(self) -> dict[str, Any]:
        """Settings and layers as plain data."""
        return {"settings": self.settings, "layers": [asdict(layer) for layer in self.layers]}

    def save(self, path: str | Path) -> None:
        """Write a ``.pt2`` file, or an ``.onnx`` file of QuantizeLinear and DequantizeLinear.

        ``compile`` and the command line read both, torch and ONNX Runtime their own. An ONNX file
        has no figures of :attr:`layers`.

        Raises
        ------
        QuantizationError
            If the suffix is another one, there is no such folder, or torch cannot export the
            network.
        ImportError
            For ``.onnx`` without ``onnxscript``.
        """
        path = check_name(Path(path))
        if path.suffix == ".onnx":
            to_onnx(self.program, self.structures, path)
            return
        facts = {
            "version": _VERSION,
            "structures": {name: s.to_plain() for name, s in self.structures.items()},
            **self.to_dict(),
        }
        buffer = io.BytesIO()
        torch.export.save(self.program, buffer, extra_files={EXTRA_FILE: json.dumps(facts)})
        write_file(path, buffer.getvalue())

    @classmethod
    def from_program(cls, program: torch.export.ExportedProgram, facts: str) -> QuantizedModel:
        """A program with the facts that :meth:`save` left beside it.

        Raises
        ------
        QuantizationError
            If they are damaged or of a later version.
        """
        try:
            data = json.loads(facts)
            if data["version"] != _VERSION:
                raise QuantizationError(
                    f"the quantised program is of version {data['version']}, expected {_VERSION};"
                    " quantise the network again by this version of tvm-pattern"
                )
            structures = {n: Structure.from_plain(s) for n, s in data["structures"].items()}
            layers = tuple(
                LayerQuantization(**{**row, "input_range": tuple(row["input_range"])})
                for row in data["layers"]
            )
            return cls(program, structures, layers, data["settings"])
        except QuantizationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise QuantizationError(
                f"the quantised program's facts are damaged ({error}); quantise it again"
            ) from error
