"""The OpenCL C that TVM makes of a PrimFunc, and how its kernels are launched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import SBlockRealize
from tvm.target import Target
from tvm.tirx.build import codegen_build, split_host_device_mods

from .textures import textures_of

_AXES = "xyz"


@dataclass(frozen=True)
class KernelArgument:
    """One buffer of a kernel; ``name`` is that of the PrimFunc's parameter.

    ``is_texture`` says that the kernel reads it as an image of its memory, where it is built so.
    """

    name: str
    dtype: str
    is_texture: bool = False


@dataclass(frozen=True)
class KernelSource:
    """One compiled function of an OpenCL program.

    Parameters
    ----------
    name : str
    source : str
        OpenCL C of the program that holds it.
    arguments : tuple of KernelArgument
        In the order in which the kernel takes them, which is not that of the PrimFunc.
    work_groups, work_items : tuple of (int, int, int)
        Work_groups of a launch, and work_items of one of them.
    """

    name: str
    source: str
    arguments: tuple[KernelArgument, ...]
    work_groups: tuple[int, int, int]
    work_items: tuple[int, int, int]

    @property
    def global_size(self) -> tuple[int, int, int]:
        """Work_items of a launch, as ``clEnqueueNDRangeKernel`` wants them."""
        x, y, z = (g * i for g, i in zip(self.work_groups, self.work_items, strict=True))
        return x, y, z


def kernel_sources(func: tirx.PrimFunc, target: Target) -> list[KernelSource]:
    """The kernels of a scheduled PrimFunc.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
    target : tvm.target.Target
        Of kind ``opencl``, with a host.

    Raises
    ------
    ValueError
        If the target is of another kind, or a launch depends on more than constants.
    """
    if target.kind.name != "opencl":
        raise ValueError(
            f"OpenCL C is made for targets of kind opencl, got {target.kind.name}; name a target"
            " such as pattern/mali"
        )
    if "global_symbol" not in (func.attrs or {}):
        func = func.with_attr("global_symbol", "main")
    name = str(func.attrs["global_symbol"])
    mod = tirx.transform.BindTarget(target)(tvm.IRModule({name: func}))
    # By name: asked for an Adreno, TVM gives the passes for textures, alone.
    pipeline, _, finish = tirx.get_tir_pipeline("s_tir")
    _, devices = split_host_device_mods(pipeline(mod))
    result = []
    for device_target, part in devices.items():
        part = finish()(part)
        source = str(codegen_build(part, device_target).inspect_source())
        for _, kernel in part.functions_items():
            result.append(_kernel(kernel, source))
    return sorted(result, key=lambda kernel: kernel.name)


def launches_of(mod: tvm.IRModule) -> dict[str, list[list[int]]]:
    """How the kernels of scheduled PrimFuncs are launched, before they are lowered.

    Returns
    -------
    dict of str to [[int, int, int], [int, int, int]]
        Kernel -> work_groups, work_items; without those that TVM schedules.
    """
    result = {}
    for gv, func in mod.functions_items():
        if not isinstance(func, tirx.PrimFunc) or "tirx.is_scheduled" not in (func.attrs or {}):
            continue
        extents = {"blockIdx": [1, 1, 1], "threadIdx": [1, 1, 1]}
        for place, axis, extent in _launch(func.body):
            extents[place][_AXES.index(axis)] = int(extent)
        result[f"{gv.name_hint}_kernel"] = [extents["blockIdx"], extents["threadIdx"]]
    return result


def _kernel(func: tirx.PrimFunc, source: str) -> KernelSource:
    name = str(func.attrs["global_symbol"])
    extents = {"blockIdx": [1, 1, 1], "threadIdx": [1, 1, 1]}
    for place, axis, extent in _launch(func.body):
        if not isinstance(extent, tirx.IntImm):
            raise ValueError(
                f"the launch of {name} depends on {extent}; compile the model with fixed shapes"
            )
        extents[place][_AXES.index(axis)] = int(extent)
    textures = textures_of(source)
    arguments = tuple(
        KernelArgument(
            str(p.name).removesuffix("_ptr"),
            str(p.ty.element_type.dtype),
            str(p.name) in textures,
        )
        for p in func.params
    )
    (gx, gy, gz), (x, y, z) = extents["blockIdx"], extents["threadIdx"]
    return KernelSource(name, source, arguments, (gx, gy, gz), (x, y, z))


def _launch(stmt: tirx.Stmt) -> Iterator[tuple[str, str, Any]]:
    """``("blockIdx" or "threadIdx", axis, extent)`` of what encloses a kernel's statements."""
    if isinstance(stmt, tirx.SeqStmt):
        for part in stmt.seq:
            yield from _launch(part)
    if isinstance(stmt, SBlockRealize):
        yield from _launch(stmt.block.body)
    if isinstance(stmt, tirx.AttrStmt):
        if str(stmt.attr_key) == "thread_extent":
            place, axis = str(stmt.node.thread_tag).split(".")
            yield place, axis, stmt.value
        yield from _launch(stmt.body)
