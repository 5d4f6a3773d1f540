"""The kernels of a plan's calls, for a GPU."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.target import Target

from topi_kernels.schedules.opencl.source import KernelSource, kernel_sources

from .errors import KitError
from .plan import Gpu, Launch, Plan, PlanCall


def gpu_part(plan: Plan, lowered: tvm.IRModule, target: Target) -> Gpu:
    """What a GPU runs for a plan.

    Raises
    ------
    KitError
        If a function of the network keeps a result between two of its kernels, or copies on the
        host.
    """
    gpu = Gpu(str(target.attrs.get("device", "")) or "opencl")
    kernels: dict[str, list[KernelSource]] = {}
    for call in plan.calls:
        if call.function not in kernels:
            kernels[call.function] = _kernels(lowered, call.function, target)
        for kernel in kernels[call.function]:
            gpu.launches.append(_launch(gpu, kernel, call, lowered[call.function]))
    return gpu


def _kernels(lowered: tvm.IRModule, name: str, target: Target) -> list[KernelSource]:
    func = lowered[name].with_attr("global_symbol", name)
    found = kernel_sources(func, target)
    if not found:
        raise KitError(f"{name} has no kernel; the kit would lack what it computes")
    return found


def _launch(gpu: Gpu, kernel: KernelSource, call: PlanCall, func: tirx.PrimFunc) -> Launch:
    names = [str(param.name) for param in func.params]
    places = dict(zip(names, call.arguments, strict=True))
    missing = [a.name for a in kernel.arguments if a.name not in places]
    if missing:
        raise KitError(
            f"{call.function} keeps {', '.join(missing)} between its kernels, which a kit does not"
            " hold; use the library that compile writes"
        )
    file = f"{call.function}.cl"
    if file not in gpu.programs:
        gpu.programs[file] = kernel.source
    arguments = tuple(places[argument.name] for argument in kernel.arguments)
    program = list(gpu.programs).index(file)
    textures = tuple(i for i, a in enumerate(kernel.arguments) if a.is_texture)
    sizes = (kernel.work_groups, kernel.work_items)
    return Launch(program, kernel.name, *sizes, arguments, textures)
