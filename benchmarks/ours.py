"""This project on the benchmarks' workloads.

Layers run as the operator alone on its plane layout, because inside a network layers hand each
other planes; networks run whole, numpy in and numpy out, packing included.
"""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

import tvm_pattern
from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.layout import PlaneLayout, from_planes, to_planes
from topi_kernels.layout_choice import ConvNeed, LaneOrder, TensorSet
from topi_kernels.layout_links import StridedLink
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.structure import determine
from topi_kernels.workload import Epilogue
from tvm_pattern.threads import run_on

from .workloads import LayerSpec, NetworkSpec

TARGET = "pattern/native"


def layer_layouts(
    spec: LayerSpec, weight: np.ndarray, backend: Backend
) -> tuple[PlaneLayout, PlaneLayout]:
    """Layouts of input and output as in a network whose other layers are like this one."""
    sizes, pad = (spec.size, spec.out_size), spec.padding
    need = ConvNeed(spec.geometry, weight.shape[:2], determine(weight), pad)
    orders: list[LaneOrder | None] = [None, None]
    if sizes[0] == sizes[1] and spec.stride == 1:
        orders = [backend.lane_order_for([need], spec.size, pad, 0)] * 2
    elif sizes[0] == (2 * sizes[1][0], 2 * sizes[1][1]):
        others = replace(need, geometry=replace(spec.geometry, stride=(1, 1)))
        sets = [TensorSet([others], size, pad) for size in sizes]
        orders = backend.lane_orders_for(sets, [StridedLink(need, 0, 1)])
    input_layout, output_layout = (
        backend.layout_for(*size, pad) if order is None else order.layout(*size, pad, need.reach)
        for size, order in zip(sizes, orders, strict=True)
    )
    if not output_layout.keeps_lanes_of(input_layout, spec.geometry.stride):  # copied to plain rows
        return backend.layout_for(*spec.size, pad), backend.layout_for(*spec.out_size, pad)
    return input_layout, output_layout


def compiled(plan: ConvPlan, target: tvm.target.Target, objects: Path | None) -> Any:
    """The operator of ``plan``; a library in the folder ``objects`` is taken if it is the same."""
    primfunc = plan.primfunc().with_attr("global_symbol", "main")
    module = tvm.IRModule({"main": primfunc})
    if objects is None:
        return tvm.compile(module, target)["main"]
    text = f"{tvm.__version__}\n{target}\n{tvm.ir.save_json(primfunc)}"
    path = objects / f"{hashlib.sha256(text.encode()).hexdigest()}.so"
    if not path.exists():
        objects.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}.so")
        tvm.compile(module, target).export_library(str(whole))
        whole.replace(path)
    return tvm.runtime.load_module(str(path))["main"]


class LayerEngine:
    """One convolution with bias and ReLU as the built operator, level-0 configuration."""

    def __init__(
        self, plan: ConvPlan, function: Any, arguments: list[Any], num_threads: int
    ) -> None:
        self.num_threads = num_threads
        self.plan = plan
        self.function = function
        self.arguments = arguments

    @classmethod
    def build(
        cls,
        weight: np.ndarray,
        bias: np.ndarray,
        image: np.ndarray,
        spec: LayerSpec,
        num_threads: int,
        target: str = TARGET,
        objects: Path | None = None,
        *,
        winograd: bool = True,
    ) -> LayerEngine:
        """Plan, pack and build for ``target``, with ``image`` (``[1, C, H, W]``) as the input.

        ``objects`` is a folder that keeps what was built, so that the next process builds nothing.
        ``winograd`` lets a dense layer be computed by Winograd's filtering.

        Raises
        ------
        ValueError
            If the weights or the target cannot be used.
        """
        resolved = resolve(target)
        backend = Backend.of(resolved, num_threads)
        in_layout, out_layout = layer_layouts(spec, weight, backend)
        task = ConvTask.from_weight(
            weight,
            spec.geometry,
            in_layout,
            out_layout,
            family=backend.name,
            epilogue=Epilogue(bias=True, activation="relu"),
            winograd=winograd,
        )
        plan = plan_conv(task, weight, num_threads=num_threads)
        function = compiled(plan, resolved, objects)
        out = np.zeros((1, spec.out_channels, out_layout.size), np.float32)
        arrays = [to_planes(image, in_layout), *plan.arrays, bias, out]
        return cls(plan, function, [tvm.runtime.tensor(a) for a in arrays], num_threads)

    def describe(self) -> str:
        """The chosen configuration, for the note of a row."""
        c = self.plan.config
        tile = f"{c.filter_lanes}x{c.filter_vectors} filters, {c.tile_rows}x{c.tile_cols} tile"
        blocks = f", blocks of {c.channel_block} in_channels" if c.channel_block else ""
        if c.is_gemm:
            return f"{c.body}, {c.group} filters, {c.tile_cols} of {c.positions} positions"
        layout = self.plan.task.in_layout
        bands = f" in {layout.bands} bands" if layout.is_interleaved else ""
        return f"{tile}, {c.vector_width} lanes{bands}, {c.shift}, {c.loop_order}{blocks}"

    def run(self) -> None:
        run_on(self.num_threads, self.function, *self.arguments)

    def output(self) -> np.ndarray:
        return from_planes(self.arguments[-1].numpy(), self.plan.workload.out_layout)


class NetworkEngine:
    """A network compiled as a user would, timed through the call a user makes."""

    def __init__(self, library: Any, image: np.ndarray) -> None:
        self.library = library
        self._input = image
        self._output = image

    @classmethod
    def load(cls, path: Path, example: torch.Tensor, num_threads: int) -> NetworkEngine:
        """A library that :meth:`build` exported."""
        return cls(tvm_pattern.load(path, num_threads), example.numpy())

    @classmethod
    def build(
        cls,
        model: Any,
        example: torch.Tensor,
        num_threads: int,
        target: str = TARGET,
        path: Path | None = None,
    ) -> NetworkEngine:
        """Compile ``model``, a module or a quantised one, for ``target``.

        With ``path``, what was exported there before is loaded; else it is exported there.
        """
        if path is not None and path.exists():
            return cls.load(path, example, num_threads)
        # The harness holds every engine's output against torch itself.
        library = tvm_pattern.compile(
            model, (example,), target=target, num_threads=num_threads, verify=False
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            library.export(path)
        return cls(library, example.numpy())

    def run(self) -> None:
        self._output = self.library(self._input)

    def output(self) -> np.ndarray:
        return self._output


def library_name(group: int | None, target: str, threads: int) -> str:
    """File of one of our libraries in the folder of its network."""
    which = "dense" if group is None else f"F{group}"
    return f"{which}-{target.rpartition('/')[2]}-{threads}.so"


def pruned(model: nn.Module, spec: NetworkSpec, group: int, block_1x1: int = 1) -> nn.Module:
    """A copy of ``model``, pruned in one shot to the sparsity of ``spec``.

    1x1 kernels are kept or removed ``block_1x1`` in_channels together.
    """
    model = copy.deepcopy(model)
    tvm_pattern.pruning.oneshot(
        model,
        connectivity=spec.connectivity,
        connectivity_1x1=spec.connectivity_1x1,
        connectivity_linear=spec.connectivity_linear,
        group=group,
        block_1x1=block_1x1,
    )
    return model
