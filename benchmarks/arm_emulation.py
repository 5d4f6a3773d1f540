"""Cross-compiled code under emulation: plain C, TVM's C ABI, no Python and no TVM on the target.

A :class:`Plan` is a list of tensors and calls. ``tools/arm/run_plan.c`` executes it under
``qemu-aarch64`` or ``qemu-arm``. Emulation proves results and counts instructions; it says nothing
about time.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from relay_passes.dataflow import bindings_of, constant, op_name, shape_of
from tvm_pattern.crosscompile import find_linker
from tvm_pattern.machine import host_target, target_architecture

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools" / "arm"
CACHE = ROOT / ".cache" / "arm"
SYMBOL_PREFIX = "__tvm_ffi_"
_TYPE_CODES = {"i": 0, "u": 1, "f": 2}


@dataclass(frozen=True)
class Machine:
    """How to emulate an architecture: emulator, its library root, and the packages they come in."""

    emulator: str
    root: str
    packages: str


MACHINES = {
    "aarch64": Machine("qemu-aarch64", "/usr/aarch64-linux-gnu", "qemu-user gcc-aarch64-linux-gnu"),
    "arm": Machine("qemu-arm", "/usr/arm-linux-gnueabihf", "qemu-user gcc-arm-linux-gnueabihf"),
}


class EmulationError(RuntimeError):
    """An emulator, compiler or library that is missing, or a program that failed."""


def emulator(architecture: str) -> Machine:
    """The machine, checked.

    Raises
    ------
    EmulationError
        If the emulator or its libraries are missing; the message names the packages.
    """
    machine = MACHINES[architecture]
    if shutil.which(machine.emulator) is None or not Path(machine.root).is_dir():
        raise EmulationError(
            f"{machine.emulator} with {machine.root} is needed to run {architecture} code; on"
            f" Debian and Ubuntu: apt-get install {machine.packages} (or `make arm-tools`)"
        )
    return machine


@dataclass
class Plan:
    """Tensors and calls for ``run_plan``; ids are positions in ``tensors``."""

    tensors: list[np.ndarray | tuple[tuple[int, ...], str]] = field(default_factory=list)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def constant(self, value: np.ndarray) -> int:
        self.tensors.append(np.ascontiguousarray(value))
        return len(self.tensors) - 1

    def empty(self, shape: Sequence[int], dtype: str) -> int:
        self.tensors.append((tuple(shape), dtype))
        return len(self.tensors) - 1

    def call(self, function: str, arguments: Sequence[int]) -> None:
        self.calls.append((SYMBOL_PREFIX + function, list(arguments)))

    def write(self, folder: Path) -> Path:
        """Write the plan and its tensors; return the plan's file."""
        lines = []
        for number, tensor in enumerate(self.tensors):
            name = "-"
            shape, dtype = tensor if isinstance(tensor, tuple) else (tensor.shape, tensor.dtype)
            if not isinstance(tensor, tuple):
                name = str(folder / f"t{number}.bin")
                tensor.tofile(name)
            kind = np.dtype(dtype)
            head = [number, _TYPE_CODES[kind.kind], 8 * kind.itemsize, len(shape), *shape, name]
            lines.append("tensor " + " ".join(map(str, head)))
        for symbol, ids in self.calls:
            lines.append(" ".join(map(str, ["call", symbol, len(ids), *ids])))
        lines += [f"save {number} {folder / f'o{number}.bin'}" for number in self.outputs]
        path = folder / "plan.txt"
        path.write_text("\n".join(lines) + "\n")
        return path

    def read(self, folder: Path) -> list[np.ndarray]:
        """The outputs that ``run_plan`` saved."""
        results = []
        for number in self.outputs:
            tensor = self.tensors[number]
            shape, dtype = tensor if isinstance(tensor, tuple) else (tensor.shape, tensor.dtype)
            results.append(np.fromfile(folder / f"o{number}.bin", dtype).reshape(shape))
        return results


def network_plan(lowered: tvm.IRModule, inputs: Sequence[np.ndarray]) -> Plan:
    """The calls of a lowered network (:func:`relay_passes.pipeline.lower`), in order.

    Raises
    ------
    EmulationError
        If the network still calls anything but compiled functions.
    """
    main = lowered["main"]
    plan = Plan()
    ids: dict[Any, int] = {
        var: plan.constant(value) for var, value in zip(main.params, inputs, strict=True)
    }

    def argument(expr: Any) -> int:
        if expr in ids:
            return ids[expr]
        value = constant(expr)
        if value is None:
            raise EmulationError(f"cannot run the argument {expr} without TVM's runtime")
        return plan.constant(np.asarray(value))

    for block in bindings_of(main):
        for binding in block:
            value = binding.value
            if isinstance(value, relax.Var):
                ids[binding.var] = ids[value]
                continue
            if op_name(value) != "relax.call_tir":
                raise EmulationError(f"cannot run {op_name(value)!r} without TVM's runtime")
            arguments = [argument(a) for a in value.args[1]]
            out = plan.empty(shape_of(binding.var), str(binding.var.ty.dtype))
            plan.call(str(value.args[0].name_hint), [*arguments, out])
            ids[binding.var] = out
    plan.outputs.append(ids[main.body.body])
    return plan


def primfuncs(lowered: tvm.IRModule) -> tvm.IRModule:
    """The compiled functions of a lowered network, without its graph."""
    functions = {}
    for gv, func in lowered.functions_items():
        if isinstance(func, tvm.tirx.PrimFunc):
            name = str(gv.name_hint)
            functions[name] = func.with_attr("global_symbol", name)
    return tvm.IRModule(functions)


def export(mod: tvm.IRModule | tvm.tirx.PrimFunc, target: Target, path: Path) -> Path:
    """Compile PrimFuncs for ``target`` and link them to ``path``."""
    linker = find_linker(str(host_target(target).attrs["mtriple"]))
    library = tvm.compile(mod, target=target)
    library.export_library(str(path), cc=linker.command, options=list(linker.options))
    return path


def assembly(mod: tvm.IRModule | tvm.tirx.PrimFunc, target: Target) -> str:
    """What LLVM makes of PrimFuncs."""
    return str(tvm.compile(mod, target=target).mod.inspect_source("asm"))


@functools.cache
def driver(architecture: str) -> Path:
    """``run_plan`` for an architecture, compiled at its first use."""
    return _build("run_plan", f"{architecture}-linux-gnu", ("-rdynamic",), ("-ldl", "-lm"))


@functools.cache
def counter_plugin() -> Path:
    """The emulator's plugin that counts instructions, compiled for this machine."""
    return _build("count_instructions", None, ("-shared", "-fPIC"), ())


def _build(
    name: str, triple: str | None, options: tuple[str, ...], libraries: tuple[str, ...]
) -> Path:
    source = TOOLS / f"{name}.c"
    compiler = find_linker(triple).command if triple else "gcc"
    if shutil.which(compiler) is None:
        raise EmulationError(f"no compiler {compiler!r} to build {source.name}; install it")
    digest = hashlib.sha256(source.read_bytes() + compiler.encode()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}-{digest}"
    if not path.exists():
        # A name of its own until it is whole: tests may build the same program at once.
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as partial:
            command = [compiler, "-O2", *options, "-o", partial.name, str(source), *libraries]
        _run(command)
        Path(partial.name).chmod(0o755)
        Path(partial.name).replace(path)
    return path


def _run(command: list[str], timeout: float = 300.0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise EmulationError(
            f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-800:]}"
        )
    return done.stderr + done.stdout


@dataclass(frozen=True)
class Counts:
    """Instructions that ran inside the library's compiled functions."""

    total: int
    fmla: int
    loads: int
    stores: int


def run(
    library: Path, plan: Plan, target: Target, *, count: bool = False
) -> tuple[list[np.ndarray], Counts | None]:
    """Run a plan under emulation.

    Parameters
    ----------
    library : Path
    plan : Plan
    target : tvm.target.Target
        What the library was compiled for.
    count : bool
        Count the instructions of the process (aarch64 only).

    Returns
    -------
    tuple of (list of numpy.ndarray, Counts or None)

    Raises
    ------
    EmulationError
        If a tool is missing or the program fails.
    """
    architecture = target_architecture(target)
    machine = emulator(architecture)
    options = ["-plugin", str(counter_plugin()), "-d", "plugin"] if count else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = plan.write(folder)
        program = [str(driver(architecture)), str(library), str(path)]
        text = _run([machine.emulator, *options, "-cpu", "max", "-L", machine.root, *program])
        outputs = plan.read(folder)
    if not count:
        return outputs, None
    found = re.search(r"total (\d+) fmla (\d+) load (\d+) store (\d+)", text)
    if found is None:
        raise EmulationError(f"the plugin counted nothing: {text[-400:]!r}")
    return outputs, Counts(*map(int, found.groups()))
