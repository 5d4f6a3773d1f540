"""Operators that a library leaves to torch on the computer that runs it, called by name.

What nobody translates may stay an operator of torch (``compile(..., host_operators=True)``): the
library calls the packed function :data:`TORCH`, which is registered when this package is imported,
with the operator's name and arguments as text, its tensors, and memory for its results. Such a
library runs where this package, torch and the package that defines the operator are.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import StringImm

from relay_passes.dataflow import op_name

#: The packed function that libraries call.
TORCH = "tvm_pattern.host.torch"


def host_operators_of(mod: tvm.IRModule) -> list[str]:
    """Names of the operators that a module leaves to torch, as ``aten.cummax.default``."""
    return sorted({plan["operator"] for plan in _plans(mod)})


def host_notes(mod: tvm.IRModule) -> list[str]:
    """A line for reports on each operator that is left to torch, with the layers that use it."""
    layers: dict[str, list[str]] = {}
    for plan in _plans(mod):
        layers.setdefault(plan["operator"], []).append(plan["layer"])
    return [
        f"left to torch on the host: {name}" + _of_layers(users) for name, users in layers.items()
    ]


def _of_layers(users: list[str]) -> str:
    named = ", ".join(map(repr, dict.fromkeys(filter(None, users))))
    return f" (of {named})" if named else ""


def _plans(mod: tvm.IRModule) -> Iterable[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def visit(expr: Any) -> None:
        if op_name(expr) != "relax.call_dps_packed":
            return
        function, arguments = expr.args[0], expr.args[1]
        if isinstance(function, relax.ExternFunc) and str(function.global_symbol) == TORCH:
            text = arguments.fields[0]
            if isinstance(text, StringImm):
                found.append(json.loads(str(text.value)))

    for function in mod.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return found


def why_not_on_host(operators: Iterable[str]) -> str | None:
    """Why this Python cannot run the operators that a library leaves to torch; None if it can."""
    operators = list(operators)
    if not operators:
        return None
    try:
        importlib.import_module("torch")
    except ImportError:
        return f"it leaves {', '.join(operators)} to torch, which is not installed here"
    missing = [name for name in operators if _found(name) is None]
    if missing:
        return (
            f"it leaves {', '.join(missing)} to torch, which does not know them here; import the"
            " package that defines them first, such as torchvision"
        )
    return None


def _found(name: str) -> Any:
    """An operator of torch by its name, None if there is none."""
    import torch

    value: Any = torch.ops
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            return None
    return value if isinstance(value, torch._ops.OpOverload) else None


@functools.lru_cache(maxsize=1024)
def _call(text: str) -> tuple[Any, dict[str, Any]]:
    """The operator and its arguments; tensors stand as ``{"tensor": position}``."""
    plan = json.loads(text)
    operator = _found(plan["operator"])
    if operator is None:
        raise RuntimeError(why_not_on_host([plan["operator"]]))
    return operator, plan["arguments"]


def _value(given: Any, tensors: list[Any]) -> Any:
    """An argument from its plain form, see ``frontend.torch_host``."""
    import torch

    if isinstance(given, list):
        return [_value(item, tensors) for item in given]
    if isinstance(given, dict):
        ((kind, content),) = given.items()
        if kind == "tensor":
            return tensors[content]
        return torch.device(content) if kind == "device" else getattr(torch, content)
    return given


def _run_torch(text: str, *buffers: tvm.runtime.Tensor) -> None:
    """The packed function: the tensors, then the memory of the results."""
    import torch

    operator, arguments = _call(text)
    tensors = [torch.from_numpy(np.array(buffer.numpy())) for buffer in buffers]
    with torch.no_grad():
        result = operator(**{name: _value(v, tensors) for name, v in arguments.items()})
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    for buffer, value in zip(buffers[len(buffers) - len(results) :], results, strict=True):
        array = value.detach().contiguous().numpy()
        if array.shape != tuple(buffer.shape) or str(array.dtype) != str(buffer.dtype):
            raise RuntimeError(
                f"{operator} gave {array.dtype}{list(array.shape)}, compiled for"
                f" {buffer.dtype}{list(buffer.shape)}: its shape depends on the data"
            )
        buffer.copyfrom(array)


tvm.register_global_func(TORCH, _run_torch, override=True)
