"""``quantize``: a trained network, pruned or not, becomes one of 8-bit values."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from topi_kernels.structure import Structure, kept_by_zeros

from ..assigned import assigned_structures
from ..pruning.modules import unwrap
from .batch_norms import as_affine
from .capture import (
    Inputs,
    captured,
    checked_batches,
    inputs_of,
    layers_of,
    pieces,
    why_float,
)
from .converted import correct_biases, quantized_layers, store_by_layer, without_unused
from .errors import QuantizationError
from .model import LayerQuantization, QuantizedModel
from .observers import CALIBRATIONS, Calibration, NotFiniteError
from .quantizer import PatternQuantizer, weighted_nodes


def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    example_inputs: Any = None,
    *,
    method: Calibration = "mse",
    percentile: float = 99.99,
    weight_bits: int = 8,
    bias_correction: bool = True,
    skip: Iterable[str] = (),
    inputs: Callable[[Any], Inputs] = inputs_of,
    progress: bool | None = None,
) -> QuantizedModel:
    """Quantise a trained network by calibration data; the model is not changed.

    Batch norms are folded. Activations become uint8 with one range per tensor, weights symmetric
    int8 with one per out_channel. Patterns that the model carries stay its structure, kept weights
    that round to zero included.

    Parameters
    ----------
    model : nn.Module
        Trained, in evaluation mode, float32.
    calibration : iterable
        Batches: tensors, or tuples that begin with one. Read once, or twice for the biases; some
        hundred inputs are enough, labels are not needed.
    example_inputs : tensor or tuple of them, optional
        Shapes of the quantised program. Default: one input of the first batch.
    method : {"mse", "percentile", "minmax"}
        How ranges follow from the data: least squared rounding error, all but the outermost share,
        or all of it. ``mse`` also searches the weights' ranges.
    percentile : float
        Per cent of the values that are within the range of ``percentile``.
    weight_bits : int
        8; or 7, with which pairs of products fit 16 bits on x86 without VNNI.
    bias_correction : bool
        Correct biases for what rounded weights shift.
    skip : iterable of str
        Layers that stay in float32: names with wildcards.
    inputs : callable, optional
        Batch -> tuple of tensors, for networks of several inputs.
    progress : bool, optional
        Show a bar; by default where standard error is a terminal.

    Returns
    -------
    QuantizedModel

    Raises
    ------
    QuantizationError
        If the data is empty or not finite, an activation or weight is, the model cannot be traced
        or is in training mode, a ``skip`` matches no layer, or a setting is unknown.
    """
    check_settings(method, percentile, weight_bits)
    inner = unwrap(model)
    check_weights(inner)
    data = Data(calibration, inputs, progress=progress)
    prepared = prepare(inner, data, example_inputs, method, percentile, weight_bits, skip)
    prepared.calibrate(data)
    settings = {
        "method": method,
        "percentile": percentile,
        "weight_bits": weight_bits,
        "bias_correction": bias_correction,
        "inputs": data.seen,
    }
    return prepared.finish(data if bias_correction else None, settings)


def check_settings(method: str, percentile: float, weight_bits: int) -> None:
    if method not in CALIBRATIONS:
        raise QuantizationError(f"got method={method!r}, expected one of {', '.join(CALIBRATIONS)}")
    if not 50 < percentile <= 100:
        raise QuantizationError(f"got percentile={percentile}, expected above 50, up to 100")
    if weight_bits not in (7, 8):
        raise QuantizationError(f"got weight_bits={weight_bits}, expected 7 or 8")


def check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise QuantizationError(
                f"weights {name!r}: {bad} of {tensor.numel()} values are NaN or Inf; expected"
                " finite numbers, check the checkpoint"
            )


class Data:
    """Calibration batches that may be read again, and the first of them."""

    def __init__(
        self, batches: Iterable[Any], inputs: Callable[[Any], Inputs], *, progress: bool | None
    ) -> None:
        if isinstance(batches, Iterator):
            batches = list(batches)
        self._batches, self._inputs, self._progress = batches, inputs, progress
        self.first = next(self._read())
        self.seen = 0

    def _read(self) -> Iterator[Inputs]:
        return checked_batches(self._batches, self._inputs)

    def each(self, label: str, size: int | None) -> Iterator[Inputs]:
        """Inputs in parts that the graph takes, under a bar."""
        console = Console(stderr=True)
        hidden = not console.is_terminal if self._progress is None else not self._progress
        total = len(self._batches) if isinstance(self._batches, Sized) else None
        for given in track(
            self._read(), label, total=total, console=console, transient=True, disable=hidden
        ):
            yield from pieces(given, size)


class Prepared:
    """A graph with observers, and what is known of its layers.

    Parameters
    ----------
    graph : GraphModule
        Prepared by torchao.
    example : tuple of Tensor
        Inputs of the program to come.
    size : int or None
        Inputs that the graph takes at once; None for any number.
    """

    def __init__(
        self,
        graph: GraphModule,
        example: Inputs,
        size: int | None,
        layers: dict[str, str],
        reasons: dict[str, str],
        structures: dict[str, Structure],
    ) -> None:
        self.graph, self.example, self.size = graph, example, size
        self.layers, self.reasons, self.structures = layers, reasons, structures

    def weights(self) -> dict[str, torch.Tensor]:
        """Weighted node -> its float weight."""
        found = {node.name: self.source_of(node) for node in weighted_nodes(self.graph)}
        return {n: w.detach().clone() for n, w in found.items() if w is not None}

    def source_of(self, node: Node) -> nn.Parameter | None:
        """The weight of a weighted node, None where it is computed."""
        source: Any = node.args[1]
        while getattr(source, "op", "") == "call_module":  # its observer
            source = source.args[0]
        if getattr(source, "op", "") != "get_attr":
            return None
        owner, _, name = source.target.rpartition(".")
        value: nn.Parameter = getattr(self.graph.get_submodule(owner), name)
        return value

    def calibrate(self, data: Data) -> None:
        """Run the data through the observers.

        Raises
        ------
        QuantizationError
            If a value inside is NaN or Inf, or no batch is large enough for the graph.
        """
        with torch.no_grad():
            for given in data.each("calibration", self.size):
                try:
                    self.graph(*given)
                except NotFiniteError as error:
                    raise QuantizationError(
                        f"{error.bad} of {error.size} values {self._where(error.observer)} are NaN"
                        " or Inf on the calibration data; expected finite numbers, check weights"
                        " and data"
                    ) from error
                data.seen += len(given[0])
        if not data.seen:
            raise QuantizationError(
                f"no calibration batch has {self.size} inputs, the size that the network is made"
                " for; give larger batches or example_inputs of one input"
            )

    def _where(self, observer: nn.Module) -> str:
        names = {id(m): n for n, m in self.graph.named_modules()}
        name = names.get(id(observer), "").split(".")[0]  # or a part of its fake quantisation
        for node in self.graph.graph.nodes:
            if node.op == "call_module" and node.target == name:
                source = node.args[0]
                return f"of {self.layers.get(source.name) or source.name!r}"
        return "of an activation"

    def finish(self, data: Data | None, settings: dict[str, Any]) -> QuantizedModel:
        """Convert, correct the biases on ``data``, and export."""
        weights = self.weights()
        as_affine(self.graph)
        with quiet():
            graph = convert_pt2e(self.graph)
        found = list(quantized_layers(graph, self.layers, weights))
        store_by_layer(found)
        shifts = {}
        if data is not None:
            shifts = correct_biases(found, graph, data.each("bias correction", self.size))
        for layer in found:
            layer.bound_bias()
        without_unused(graph)
        rows = {
            q.node.name: q.figures(shifts.get(q.node.name), self._kept(q.name, q.weight))
            for q in found
        }
        with torch.no_grad(), quiet():
            program = torch.export.export(graph, self.example)
        layers = tuple(rows.get(n) or self._left(n) for n in self.layers)
        return QuantizedModel(program, self.structures, layers, settings)

    def _kept(self, layer: str, weight: torch.Tensor) -> torch.Tensor:
        structure = self.structures.get(layer)
        if structure is None:
            return torch.from_numpy(kept_by_zeros(weight.numpy()))
        return torch.from_numpy(structure.kept.copy()).view(weight.shape)

    def _left(self, node: str) -> LayerQuantization:
        return LayerQuantization(
            self.layers[node] or node, "conv", self.reasons[node] or "no integers reach it"
        )


def prepare(
    model: nn.Module,
    data: Data,
    example_inputs: Any,
    method: Calibration,
    percentile: float,
    weight_bits: int,
    skip: Iterable[str],
    *,
    trainable: bool = False,
) -> Prepared:
    """Trace a network and have torchao put observers (or fake quantisation) into it."""
    example = tuple(t[:1].clone() for t in data.first)
    if example_inputs is not None:
        given = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
        example = tuple(given)
    structures = assigned_structures(model)
    graph, is_free = captured(model, example)
    layers = layers_of(graph)
    skipping = _skipping(skip, layers)
    reasons = {n.name: why_float(n, skipping) for n in weighted_nodes(graph)}
    quantizer = PatternQuantizer(
        method, percentile, weight_bits, lambda node: reasons[node.name], trainable=trainable
    )
    with quiet():
        graph = prepare_pt2e(graph, quantizer)
    size = None if is_free else len(example[0])
    prepared = Prepared(graph, example, size, layers, reasons, structures)
    for node, weight in prepared.weights().items():
        if weight.ndim != 4 or layers[node] in structures:
            continue
        if not kept_by_zeros(weight.numpy()).all():
            structures[layers[node]] = Structure.from_zeros(weight.numpy())
    return prepared


def _skipping(skip: Iterable[str], layers: dict[str, str]) -> Callable[[str], bool]:
    patterns = [skip] if isinstance(skip, str) else list(skip)
    for pattern in patterns:
        if not fnmatch.filter(layers.values(), pattern):
            known = ", ".join(list(layers.values())[:12])
            raise QuantizationError(f"skip {pattern!r} matches no layer; the network has {known}")
    return lambda layer: any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what torchao says of its own future."""
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
