"""Machine code of a lowered module, PrimFunc by PrimFunc, so that what was built before is taken.

``tvm.compile`` generates one object file for all PrimFuncs. Here each has its own, in the same
library; their instructions are the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule
from tvm.ir.transform import PassContext
from tvm.target import Target

from .code_cache import CodeCache
from .footprint import planned_activations
from .linking import object_code
from .machine import target_architecture, triple_of
from .mapped_weights import FUNCTION, Weights, take_out
from .weight_section import takes_weights

#: Part of every key; to be raised when what is built from a PrimFunc changes.
_FORMAT = 3

# CompactBufferAllocation shrinks buffers to what is accessed. On the CPU ours have exactly that
# size; looking for it takes half of the build of VGG-16, and the generated code is the same.
# AnnotateEntryFunc gives the only PrimFunc of a module the name of an entry point, of which a
# library may hold one.
_DISABLED = ("s_tir.CompactBufferAllocation", "tirx.AnnotateEntryFunc")
# What lowers threads of a GPU, its memories and tensor cores, and what a schedule asks for by
# annotations: a PrimFunc without a word of them leaves each of these as it went in.
_FOR_DEVICES = (
    "s_tir.InferFragment",
    "s_tir.InjectDoubleBuffer",
    "s_tir.InjectPermutedLayout",
    "s_tir.InjectSoftwarePipeline",
    "s_tir.InjectVirtualThread",
    "s_tir.LiftThreadBinding",
    "s_tir.LowerAutoCopy",
    "s_tir.LowerCrossThreadReduction",
    "s_tir.LowerThreadAllreduce",
    "s_tir.LowerVtcmAlloc",
    "s_tir.ManifestSharedMemoryLocalStage",
    "s_tir.MergeSharedMemoryAllocations",
    "s_tir.ThreadSync",
    "s_tir.TransformMmaBufferLayout",
    "s_tir.UnifyThreadBinding",
    "s_tir.VerifyVTCMLimit",
)
# What tidies up code: schedules of this project leave nothing to them, and the code is the same.
_FOR_OTHERS = (
    "s_tir.HoistIfThenElse",
    "s_tir.RenormalizeSplitPattern",
    "tirx.RemoveNoOp",
)
_OURS = "tirx.is_scheduled"
# A call checks each of its arguments. The virtual machine has checked what a network is given, all
# else has the shapes it was compiled for, and the checks were half of the code.
_UNCHECKED = {"tirx.disable_assert": True}
_OF_DEVICES = re.compile(
    r'"thread_binding":[1-9]|Idx|vthread|pipeline|double_buffer|auto_copy|permuted|shared|warp|vtcm'
    r"|fragment|mma|m16n8k8|matrix|barrier|async|local_stage"
)


@dataclass(frozen=True)
class Built:
    """An executable without its PrimFuncs, the object files that hold them, their TIR as JSON.

    ``activations`` are the bytes that each function has planned for its values, ``weights`` those
    that lie outside the executable.
    """

    executable: relax.VMExecutable
    objects: tuple[bytes, ...]
    primfuncs: dict[str, str]
    activations: dict[str, int]
    weights: Weights | None = None


@dataclass(frozen=True)
class _Unit:
    """PrimFuncs that are built together, and the JSON of each."""

    functions: tuple[tuple[GlobalVar, tirx.PrimFunc], ...]
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """What stands for all of them."""
        named = zip(self.functions, self.texts, strict=True)
        return "\n".join(f"{var.name_hint}\n{text}" for (var, _), text in named)


def build(
    mod: IRModule, target: Target, cache: CodeCache | None, *, maps_weights: bool = False
) -> Built:
    """Build a lowered module for a CPU.

    Parameters
    ----------
    mod : tvm.IRModule
        Lowered by :func:`relay_passes.pipeline.lower`.
    target : tvm.target.Target
        Of kind ``llvm``.
    cache : CodeCache, optional
        Where object files are looked up and kept.
    maps_weights : bool
        Take large weights out of the executable, where the target's libraries can have them.
    """
    with target:
        mod = relax.get_pipeline("default")(mod)
    activations = planned_activations(mod)
    weights = None
    if maps_weights and takes_weights(triple_of(target), target_architecture(target)):
        mod, weights = take_out(mod, target)
    builder = relax.ExecBuilder()
    constants = dict((mod.attrs or {}).get("const_name_to_constant", {}))
    rest = relax._ffi_api.VMCodeGen(builder, mod)
    with _context_without(_DISABLED):
        units = _units(rest)
        objects = _objects(units, target, cache)
        empty = _generate(IRModule({}), target)
    externals = list((mod.attrs or {}).get("external_mods", []))
    linked = relax._ffi_api.VMLink(builder, target, empty, externals, constants)
    primfuncs = {
        var.name_hint: text
        for unit in units
        for (var, _), text in zip(unit.functions, unit.texts, strict=True)
        if var.name_hint != FUNCTION
    }
    return Built(relax.VMExecutable(linked), tuple(objects), primfuncs, activations, weights)


def assembly(functions: Mapping[str, tirx.PrimFunc], target: Target) -> str:
    """The assembly of PrimFuncs, as :func:`build` generates their code."""
    texts = tuple(map(tvm.ir.save_json, functions.values()))
    unit = _Unit(tuple((GlobalVar(name), func) for name, func in functions.items()), texts)
    with _context_without(_DISABLED):
        return _module(unit, target).inspect_source("s")


def _units(mod: IRModule) -> list[_Unit]:
    """What can be built apart: each PrimFunc, unless they call each other."""
    functions = [(g, f) for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]
    texts = [tvm.ir.save_json(f) for _, f in functions]
    if any('"ir.GlobalVar"' in text for text in texts):
        return [_Unit(tuple(functions), tuple(texts))]
    return [_Unit((named,), (text,)) for named, text in zip(functions, texts, strict=True)]


def _objects(units: Sequence[_Unit], target: Target, cache: CodeCache | None) -> list[bytes]:
    """An object file for each unit, from the cache or new."""
    surroundings = None if cache is None else _surroundings(target)
    if cache is None or surroundings is None:
        return [_object(unit, target) for unit in units]
    objects: list[bytes] = []
    new: dict[str, bytes] = {}
    for unit in units:
        key = hashlib.sha256(f"{surroundings}\n{unit.text}".encode()).hexdigest()
        code = cache.read(key)
        if code is None:
            code = new[key] = _object(unit, target)
        objects.append(code)
    if new:
        cache.write(new)
    return objects


def _object(unit: _Unit, target: Target) -> bytes:
    return object_code(_module(unit, target))


def _module(unit: _Unit, target: Target) -> tvm.runtime.Module:
    """LLVM's module of a unit."""
    needless: tuple[str, ...] = () if _OF_DEVICES.search(unit.text) else _FOR_DEVICES
    options = {}
    if all(_OURS in (func.attrs or {}) for _, func in unit.functions):
        needless += _FOR_OTHERS
        options = _UNCHECKED
    with _context_without(needless, options):
        return tvm.tirx.build(IRModule(dict(unit.functions)), target=target)


def _generate(mod: IRModule, target: Target) -> tvm.runtime.Module:
    return tvm.get_global_func("target.build.llvm")(mod, target)


def _surroundings(target: Target) -> str | None:
    """All that decides the code of a PrimFunc besides itself; None if that cannot be said."""
    context = PassContext.current()
    if list(context.instruments) or not _is_plain_pipeline():
        return None
    try:
        config = json.dumps(_plain(context.config), sort_keys=True)
    except TypeError:
        return None
    facts = {
        "format": _FORMAT,
        "compiler": _compiler(),
        "target": str(target),
        "host": str(target.host),
        "opt_level": int(context.opt_level),
        "disabled": sorted(map(str, context.disabled_pass)),
        "required": sorted(map(str, context.required_pass)),
        "config": config,
    }
    return json.dumps(facts, sort_keys=True)


def _plain(value: Any) -> Any:
    """Options of passes as JSON's types.

    Raises
    ------
    TypeError
        If one is an object whose text need not say all of it.
    """
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, tvm.ir.Map | dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tvm.ir.Array | list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"an option of type {type(value).__name__}")


def _is_plain_pipeline() -> bool:
    """Whether TVM's own passes build a PrimFunc, and none that someone registered instead."""
    from tvm.s_tir.pipeline import default_s_tir_pipeline
    from tvm.tirx.compilation_pipeline import PIPELINE_MAP

    return PIPELINE_MAP.get("s_tir") is default_s_tir_pipeline


@functools.cache
def _compiler() -> list[Any]:
    """Which TVM and LLVM: their versions, and which build of them."""
    facts: list[Any] = [tvm.__version__, int(tvm.target.codegen.llvm_version_major())]
    for path in sorted(Path(tvm.__file__).parent.rglob("libtvm*.so")):
        status = os.stat(path)
        facts.append([path.name, status.st_size, status.st_mtime_ns])
    return facts


def _context_without(
    passes: Sequence[str], options: Mapping[str, Any] | None = None
) -> PassContext:
    """The current pass context without some passes, and with further options."""
    current = PassContext.current()
    return PassContext(
        opt_level=current.opt_level,
        required_pass=current.required_pass,
        disabled_pass=[*map(str, current.disabled_pass), *passes],
        instruments=current.instruments,
        config={**current.config, **(options or {})},
    )
