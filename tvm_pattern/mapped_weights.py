"""Weights outside the virtual machine: bytes in the library's file that calls read there.

TVM keeps a library's constants as one text in its machine code, from which every loading makes
tensors: a network of half a gigabyte takes several times that while it is loaded, and as long to
compile. Here the large ones are taken out of the lowered module. They lie, aligned, in a section of
their own, which the system maps when they are read and shares between processes; a function of the
library, generated with the others, gives their place to the calls that read them. So any runtime
of TVM runs such a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import Call, Expr, GenericConst, GlobalVar
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script import builder as T

from relay_passes.dataflow import bindings_of, rebuild, relax_functions

from .weight_section import ALIGNMENT, MARK, SYMBOL, aligned

#: The function of a library that gives the place of a weight.
FUNCTION = "tvm_pattern_weight"
# Smaller weights, and those of smaller networks, stay with the virtual machine: a run asks for the
# place of each, which takes longer than reading a register.
_LEAST_BYTES = 1 << 16
_LEAST_TOTAL = 1 << 22
# Bytes that are looked at before two arrays are compared.
_SAMPLED = 4096
_CPU = 1
# DLPack's codes by numpy's kinds.
_DLPACK_CODES = {"i": 0, "u": 1, "f": 2}

_Key = tuple[int, tuple[int, ...], str]


@dataclass(frozen=True)
class Weights:
    """Arrays that lie behind each other, each aligned; at the start stands :data:`MARK`.

    Parameters
    ----------
    arrays : tuple of numpy.ndarray
        Contiguous, in the memory of the constants that they were.
    """

    arrays: tuple[np.ndarray, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each array begins, in bytes."""
        found, offset = [], ALIGNMENT
        for array in self.arrays:
            found.append(offset)
            offset += aligned(array.nbytes)
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return ALIGNMENT + sum(aligned(array.nbytes) for array in self.arrays)

    def write_to(self, file: BinaryIO) -> None:
        """Write them at the end of what a file holds."""
        file.write(MARK.ljust(ALIGNMENT, b"\0"))
        for array in self.arrays:
            file.write(array.reshape(-1).view(np.uint8).data)
            file.write(bytes(aligned(array.nbytes) - array.nbytes))


def take_out(mod: tvm.IRModule, target: Target) -> tuple[tvm.IRModule, Weights | None]:
    """Take the large weights out of a module that is about to become code.

    Parameters
    ----------
    mod : tvm.IRModule
        As TVM's ``default`` Relax pipeline leaves it; it is not changed.
    target : tvm.target.Target
        Of kind ``llvm``.

    Returns
    -------
    tuple of (tvm.IRModule, Weights or None)
        The module with a PrimFunc :data:`FUNCTION` that the calls ask instead; None, and the same
        module, if its weights are small.
    """
    arrays = {key: array for call in _calls(mod) for key, array in _large(call)}
    indices, kept = _once(arrays)
    if sum(array.nbytes for array in kept) < _LEAST_TOTAL:
        return mod, None
    weights = Weights(tuple(kept))
    result = mod.clone()
    for gv, function in relax_functions(mod):
        result.update_func(gv, _asking(function, indices))
    result[GlobalVar(FUNCTION)] = _place_function(weights, target)
    return result, weights


def _calls(mod: tvm.IRModule) -> Iterator[Call]:
    """Calls of PrimFuncs."""
    for _, function in relax_functions(mod):
        for block in bindings_of(function):
            for binding in block:
                if _calls_primfunc(binding.value):
                    yield binding.value


def _calls_primfunc(expr: Expr) -> bool:
    return isinstance(expr, Call) and isinstance(expr.op, GlobalVar)


def _large(call: Call) -> Iterator[tuple[_Key, np.ndarray]]:
    """The large weights among a call's arguments."""
    for argument in call.args:
        array = _array_of(argument)
        if array is not None and array.nbytes >= _LEAST_BYTES:
            yield _key(array), array


def _key(array: np.ndarray) -> _Key:
    """What tells an array in memory from all others."""
    return array.ctypes.data, array.shape, array.dtype.str


def _once(arrays: Mapping[_Key, np.ndarray]) -> tuple[dict[_Key, int], list[np.ndarray]]:
    """Arrays without those of equal content, and where each is among them."""
    kept: list[np.ndarray] = []
    indices: dict[_Key, int] = {}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for key, array in arrays.items():
        elements = array.reshape(-1).view(np.uint8)
        sample = elements[:: max(1, elements.size // _SAMPLED)].tobytes()
        candidates = alike.setdefault((*key[1:], sample), [])
        for index in candidates:
            if np.array_equal(elements, kept[index].reshape(-1).view(np.uint8)):
                indices[key] = index
                break
        else:
            indices[key] = len(kept)
            candidates.append(len(kept))
            kept.append(array)
    return indices, kept


def _array_of(expr: Expr) -> np.ndarray | None:
    """The elements of a constant that can lie in a file as they are."""
    if not isinstance(expr, GenericConst) or not isinstance(expr.value, tvm.runtime.Tensor):
        return None
    if expr.value.device.dlpack_device_type() != _CPU:
        return None
    try:
        array = np.from_dlpack(expr.value)
    except (BufferError, RuntimeError, TypeError):  # an element type that numpy does not have
        return None
    return array if array.dtype.kind in _DLPACK_CODES and array.flags.c_contiguous else None


def _asking(function: relax.Function, indices: Mapping[_Key, int]) -> relax.Function:
    """The function with every large weight asked for right before it is read."""
    blocks = []
    for block in bindings_of(function):
        bindings: list[relax.Binding] = []
        for binding in block:
            if _calls_primfunc(binding.value):
                bindings += _ask_and_call(binding, indices)
            else:
                bindings.append(binding)
        blocks.append(bindings)
    return rebuild(function, blocks)


def _ask_and_call(binding: relax.Binding, indices: Mapping[_Key, int]) -> list[relax.Binding]:
    call, asked = binding.value, []
    arguments = list(call.args)
    for position, argument in enumerate(arguments):
        array = _array_of(argument)
        index = None if array is None else indices.get(_key(array))
        if index is not None:
            place = Call(
                relax.ExternFunc(FUNCTION), [tvm.tirx.IntImm("int64", index)], ty_args=[argument.ty]
            )
            arguments[position] = relax.Var("weight", argument.ty)
            asked.append(relax.VarBinding(arguments[position], place))
    if not asked:
        return [binding]
    changed = Call(call.op, arguments, call.attrs, call.ty_args, call.span)
    return [*asked, relax.VarBinding(binding.var, changed)]


def _place_function(weights: Weights, target: Target) -> tirx.PrimFunc:
    """``index -> DLTensor *``; refuses a file whose weights are gone."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(FUNCTION)
        T.func_attr({"global_symbol": FUNCTION, "target": target})
        index = T.arg("index", T.int64())
        with T.attr(T.int32(0), "pragma_import_llvm", _llvm_text(weights)):
            place = T.bind(T.call_extern("handle", "tvm_pattern_place", index))
            with T.Assert(
                tirx.Not(T.isnullptr(place)),
                "the weights of this library are not in its file; copy it again",
            ):
                T.Return(place)
    return ib.get()


def _llvm_text(weights: Weights) -> str:
    """The weights' DLTensors and the function that completes one, in LLVM's language.

    They are the same for every machine: what differs between 32 and 64 bits is LLVM's to lay out.
    The distance of the weights is written into the library once it is linked, so no load of it is
    ever folded.
    """
    count = len(weights.arrays)
    offsets = ", ".join(f"i64 {offset}" for offset in weights.offsets)
    mark = int.from_bytes(MARK, "little")
    shapes = "\n".join(map(_shape_text, range(count), weights.arrays))
    tensors = ",\n  ".join(map(_tensor_text, range(count), weights.arrays))
    return f"""
%device = type {{ i32, i32 }}
%dtype = type {{ i8, i8, i16 }}
%tensor = type {{ ptr, %device, i32, %dtype, ptr, ptr, i64 }}
@{SYMBOL} = external hidden global i64, align 8
{shapes}
@tvm_pattern_offsets = internal constant [{count} x i64] [{offsets}]
@tvm_pattern_tensors = internal global [{count} x %tensor] [
  {tensors}]

define ptr @tvm_pattern_place(i64 %index) {{
  %distance = load volatile i64, ptr @{SYMBOL}, align 8
  %start = getelementptr i8, ptr @{SYMBOL}, i64 %distance
  %mark = load i64, ptr %start, align 8
  %there = icmp eq i64 %mark, {mark}
  %offset.at = getelementptr [{count} x i64], ptr @tvm_pattern_offsets, i64 0, i64 %index
  %offset = load i64, ptr %offset.at, align 8
  %data = getelementptr i8, ptr %start, i64 %offset
  %tensor = getelementptr [{count} x %tensor], ptr @tvm_pattern_tensors, i64 0, i64 %index
  store atomic ptr %data, ptr %tensor monotonic, align 8
  %place = select i1 %there, ptr %tensor, ptr null
  ret ptr %place
}}
"""


def _shape_text(number: int, array: np.ndarray) -> str:
    sizes = ", ".join(f"i64 {size}" for size in array.shape)
    return f"@tvm_pattern_shape{number} = internal constant [{array.ndim} x i64] [{sizes}]"


def _tensor_text(number: int, array: np.ndarray) -> str:
    code, bits = _DLPACK_CODES[array.dtype.kind], array.dtype.itemsize * 8
    return (
        f"%tensor {{ ptr null, %device {{ i32 {_CPU}, i32 0 }}, i32 {array.ndim},"
        f" %dtype {{ i8 {code}, i8 {bits}, i16 1 }}, ptr @tvm_pattern_shape{number}, ptr null,"
        " i64 0 }"
    )
