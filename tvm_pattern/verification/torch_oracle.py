"""torch models run by torch itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..frontend.torch_state import buffers_kept
from .errors import OracleError, first_line
from .sketch import Node, Sketch, sketch
from .torch_kernels import torch_bounded

_OTHER_SEED = 0x5EED
_STEPS = ("round", "floor", "ceil", "trunc", "sign", "fix", "frac", "fmod", "remainder")
_PICKS = ("topk", "sort", "max", "min", "kthvalue", "median", "mode")


class TorchOracle:
    """A ``torch.nn.Module`` or ``torch.export.ExportedProgram``.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
    examples : sequence of tensor, optional
        Where the inputs live; by default on the CPU.
    """

    def __init__(self, model: Any, examples: Sequence[Any] | None) -> None:
        import torch

        self.name = f"torch {torch.__version__}"
        self._model = model
        self._devices = [getattr(e, "device", "cpu") for e in examples or ()]
        is_module = isinstance(model, torch.nn.Module)
        self._module = model if is_module else model.module(check_guards=False)
        self._is_program = not is_module

    def run(self, arrays: Sequence[np.ndarray], seed: int | None = None) -> list[np.ndarray]:
        """The outputs, tuples and dicts flattened.

        Raises
        ------
        OracleError
            If the model fails.
        """
        import torch
        from torch.utils import _pytree

        tensors = self._tensors(arrays)
        try:
            with _undisturbed(self._module):
                if seed is not None:
                    torch.manual_seed(seed)
                if self._is_program:
                    result = _interpret(self._module, tensors, None)
                else:
                    result = self._module(*tensors)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
            raise OracleError(f"{type(self._model).__name__} fails: {first_line(error)}") from error
        return [_array(leaf) for leaf in _pytree.tree_leaves(result) if leaf is not None]

    def run_again(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same with other random numbers, if the model draws any."""
        return self.run(arrays, seed=_OTHER_SEED)

    def trace(self, arrays: Sequence[np.ndarray]) -> list[Node]:
        """Every operator of the exported graph, as torch computes it."""
        nodes: list[Node] = []
        seen: dict[str, Any] = {}

        def look(node: Any, result: Any) -> None:
            seen[node.name] = _dtypes(result)
            if node.op in ("call_function", "call_module", "call_method"):
                nodes.append(_described(node, result, seen))

        tensors = self._tensors(arrays)
        module = self._module if self._is_program else self._exported(tensors)
        with _undisturbed(module):
            _interpret(module, tensors, look)
        return nodes

    def _exported(self, tensors: Sequence[Any]) -> Any:
        from ..frontend import export_module

        return export_module(self._model, tuple(tensors)).module(check_guards=False)

    def _tensors(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        import torch

        devices = self._devices or ["cpu"] * len(arrays)
        return [torch.tensor(a, device=d) for a, d in zip(arrays, devices, strict=True)]


@contextlib.contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """Bounded threads, no gradients; buffers that a forward pass changes get their values back."""
    with torch_bounded(), buffers_kept(module):
        yield


def _interpret(module: Any, tensors: Sequence[Any], look: Any) -> Any:
    """Run an exported program's module on flat inputs, node by node; gives flat outputs."""
    import torch

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            result = super().run_node(n)
            if look is not None:
                look(n, result)
            return result

    return Recorder(module).run(*tensors, enable_io_processing=False)


def _array(leaf: Any) -> np.ndarray:
    return leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else np.asarray(leaf)


def _dtypes(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return [part.dtype for part in parts if hasattr(part, "is_floating_point")]


def _described(node: Any, result: Any, seen: dict[str, list[Any]]) -> Node:
    results = result if isinstance(result, tuple | list) else (result,)
    tensors = [r for r in results if hasattr(r, "is_floating_point")]
    values: tuple[Sketch, ...] = tuple(
        sketch(_array(t)) for t in tensors if t.is_floating_point() and t.numel()
    )
    inputs = tuple(n.name for n in node.all_input_nodes)
    takes_float = any(d.is_floating_point for name in inputs for d in seen.get(name, ()))
    name = str(node.target)
    # Quantised values are steps too, of the size that is allowed.
    steps = any(not t.is_floating_point() for t in tensors) and "quantize" not in name
    base = name.split(".")[1] if name.startswith("aten.") else name
    picks = base in _PICKS and len(tensors) > 1
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    described = Node(
        name=node.name,
        op=name,
        layer=stack[-1][0].replace("L['self'].", "") if stack else "",
        inputs=inputs,
        values=values,
        discrete=takes_float and (steps or picks or base in _STEPS),
        source=_source(node.meta.get("stack_trace")),
    )
    is_part = "getitem" in name
    return replace(described, discrete=False) if is_part else described


def _source(stack_trace: str | None) -> str:
    """Innermost line of the model's code: ``model.py, line 12``."""
    lines = [
        line.strip()
        for line in (stack_trace or "").splitlines()
        if line.strip().startswith("File ") and "/torch/" not in line
    ]
    if not lines:
        return ""
    path, line = lines[-1].split(",")[:2]
    return f"{path.removeprefix('File ').strip().strip(chr(34)).rsplit('/', 1)[-1]},{line}"
