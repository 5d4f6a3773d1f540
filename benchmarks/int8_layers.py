"""Layers of bytes: ours pruned to 8.1x, and dense engines, as shares of the peak of dot products.

Run as ``python -m benchmarks.int8_layers --json FILE``. One thread, no tuning. Ours is the operator
alone, on planes as a network of such layers hands them on, with bias, relu and requantisation;
peers get bytes and give bytes, changes of layout at their borders included. Engines take turns. The
peak is that of the fastest dot product of bytes that the compiler finds for this machine, measured
in the same turns.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from rich.console import Console

from relay_passes import targets
from topi_kernels.backend import Backend
from topi_kernels.schedules.cpu_int8.byte_layout import byte_layout
from topi_kernels.schedules.cpu_int8.plan import Int8Layer, Int8Plan, plan_int8_conv
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.structure import Structure
from tvm_pattern.atomic import write_file

from . import device as device_info
from .dot_peak import DotPeak
from .harness import OURS, Budget, Contender, Row, Selection, interleave
from .session import JsonOption, OnlyOption, QuickOption, run_main
from .workloads import LayerSpec, load_workloads, sparse_weights

LAYERS = ("56x56x256", "28x28x512", "14x14x256", "14x14x512", "56x56x64")
GROUPS = (1, 2, 4)
RESULTS = Path("benchmarks/results/int8_layers.json")
SOURCE, RESULT = Quantisation(0.02, 7), Quantisation(0.2, 5)


def layer_of(spec: LayerSpec, group: int | None) -> Int8Layer:
    """The layer with random bytes as weights; dense without a group."""
    shape = (spec.out_channels, spec.in_channels, spec.kernel, spec.kernel)
    kept = np.ones(shape, bool) if group is None else sparse_weights(spec, group)[0] != 0
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, shape).astype(np.int8) * kept
    scale = np.full(spec.out_channels, 1e-3, np.float32)
    bias = rng.standard_normal(spec.out_channels).astype(np.float32)
    return Int8Layer(weight, scale, bias, spec.geometry, SOURCE, RESULT, Structure(kept), low=0.0)


@dataclass
class OurLayer:
    """The operator, built for this machine, with its arguments."""

    plan: Int8Plan
    function: Any
    arguments: list[Any]

    @classmethod
    def build(cls, spec: LayerSpec, layer: Int8Layer) -> OurLayer:
        target = targets.resolve("pattern/native")
        backend = Backend.of(target, 1)
        if not backend.int8:
            raise RuntimeError("this machine has no instructions for bytes that are used here")
        layouts = (byte_layout(*spec.size, 1), byte_layout(*spec.out_size, 1))
        plan = plan_int8_conv(layer, 1, layouts, backend.int8)
        library = tvm.compile(plan.primfunc(), target=target)
        rng = np.random.default_rng(1)
        x = rng.integers(0, 256, (1, spec.in_channels, layouts[0].size), np.uint8)
        result = np.zeros((1, spec.out_channels, layouts[1].size), np.uint8)
        arguments = [tvm.runtime.tensor(a) for a in (x, *plan.arrays, result)]
        return cls(plan, library["int8_conv2d"], arguments)

    def run(self) -> None:
        self.function(*self.arguments)


def qdq_model(spec: LayerSpec, layer: Int8Layer) -> bytes:
    """The dense layer as an ONNX QDQ file, bytes in and bytes out."""
    onnx = importlib.import_module("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    sizes = ((1, spec.in_channels, *spec.size), (1, spec.out_channels, *spec.out_size))
    kind = onnx.TensorProto.UINT8
    values = {
        "sx": np.float32(SOURCE.scale),
        "zx": np.uint8(SOURCE.zero_point),
        "sy": np.float32(RESULT.scale),
        "zy": np.uint8(RESULT.zero_point),
        "w": layer.weight,
        "sw": layer.weight_scale,
        "zw": np.zeros(spec.out_channels, np.int8),
        "b": np.rint(layer.bias / (layer.weight_scale * SOURCE.scale)).astype(np.int32),
        "sb": (layer.weight_scale * np.float32(SOURCE.scale)).astype(np.float32),
        "zb": np.zeros(spec.out_channels, np.int32),
    }
    pad = layer.geometry.padding[0]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["bf"], axis=0),
        helper.make_node(
            "Conv", ["xf", "wf", "bf"], ["c"], pads=[pad] * 4, strides=[spec.stride] * 2
        ),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, sizes[0])],
        [helper.make_tensor_value_info("y", kind, sizes[1])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


PEERS = ("onnxruntime", "openvino")


def peer(name: str, model: bytes, x: np.ndarray) -> Callable[[], Any]:
    """A dense engine on the layer, one thread."""
    engine = importlib.import_module(name)
    if name == "onnxruntime":
        options = engine.SessionOptions()
        options.intra_op_num_threads = 1
        session = engine.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x})
    core = engine.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    request.set_input_tensor(engine.Tensor(x, shared_memory=True))
    return request.infer


def rows_of(spec: LayerSpec, select: Selection, budget: Budget, peak: DotPeak) -> list[Row]:
    """All engines on one layer."""
    calls: dict[str, Callable[[], Any]] = {}
    contenders = []
    dense = spec.dense_flops
    for group in (*GROUPS, None):
        if select(spec.name, OURS, group):
            layer = layer_of(spec, group)
            share = layer.structure.kept_weights / layer.structure.kept.size
            ours = OurLayer.build(spec, layer)
            flops = round(dense * share)
            note = str(ours.plan.config)
            contenders.append(
                Contender(spec.name, OURS, None, dense, flops, 1 - share, group, None, note, "int8")
            )
            calls[f"{OURS}/{group}"] = ours.run
    x = np.random.default_rng(1).integers(0, 256, (1, spec.in_channels, *spec.size), np.uint8)
    model = qdq_model(spec, layer_of(spec, None))
    for name in PEERS:
        if select(spec.name, name) and importlib.util.find_spec(name):
            contenders.append(Contender(spec.name, name, None, dense, dense, dtype="int8"))
            calls[name] = peer(name, model, x)
    timings = interleave(calls, budget, each_round=peak.sample)
    rows = []
    for contender, timing in zip(contenders, timings.values(), strict=True):
        contender.samples_ms, contender.busy = timing.samples_ms, timing.busy
        rows.append(contender.row(1, peak.gflops))
    return rows


def _line(row: Row, peak: float) -> str:
    """What is printed of a row."""
    filters = "dense" if row.group is None else f"F={row.group}"
    return (
        f"{row.workload} {row.engine} {filters}: {row.median_ms or 0:.3f} ms, p10"
        f" {row.p10_ms or 0:.3f}, {row.peak_fraction or 0:.0%} of {peak:.0f} GOP/s"
    )


def main(
    json_path: JsonOption = RESULTS,
    quick: QuickOption = False,
    only: OnlyOption = None,
) -> None:
    """Time layers of bytes."""
    console, peak = Console(stderr=True), DotPeak()
    budget = Budget.quick() if quick else Budget(seconds=10.0)
    cores = device_info.pin(1, None)
    select = Selection(only)
    layers, _ = load_workloads()
    missing = [name for name in PEERS if not importlib.util.find_spec(name)]
    for name in missing:
        console.print(
            f"{name} is not installed (pip install '.[bench]' in a clone)",
            markup=False,
        )
    rows: list[Row] = []
    for spec in layers:
        if spec.name not in LAYERS or not any(select(spec.name, name) for name in (OURS, *PEERS)):
            continue
        measured = rows_of(spec, select, budget, peak)
        rows += measured
        for row in measured:
            console.print(_line(row, peak.gflops), highlight=False)
        result = {
            "device": device_info.describe(1, cores, {}),
            "dot_peak_gops": peak.gflops,
            "unavailable": missing,
            "rows": [row.as_dict() for row in rows],
        }
        write_file(json_path, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_main(main)
