"""Try one line of the table: compile it through the public door and hold it against torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

from relay_passes import pipeline
from relay_passes import targets as target_tags
from tvm_pattern.frontend import ImportedModel, import_model

from .case import SAMPLES, Case, sample_arrays

RIGHT, REFUSED, WRONG, CRASHED = "right", "refused", "wrong", "crashed"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: right, refused (``detail`` is the message) or wrong (where)."""

    status: str
    detail: str = ""


class Expression(nn.Module):
    """A torch expression as a module; the modules that it names are made once, with a seed."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._names = list(case.inputs)
        tree = _Hoist(self).visit(ast.parse(case.code, mode="eval"))
        free = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not free & set(self._names):
            tree.body = ast.Call(
                tree.body, [ast.Name(name, ast.Load()) for name in self._names], []
            )
        self._code = compile(ast.fix_missing_locations(tree), case.code, "eval")
        self.eval()
        _randomize(self)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Evaluate the expression."""
        names = dict(zip(self._names, inputs, strict=True))
        return eval(self._code, {"torch": torch, "nn": nn, "F": nn.functional, "self": self}, names)


class _Hoist(ast.NodeTransformer):
    """Makes the modules of an expression and replaces them by attributes."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _root(node.func) == "nn" and "x" not in {
            n.id for n in ast.walk(node) if isinstance(n, ast.Name)
        }:
            source = ast.unparse(node)
            name = f"module{len(list(self._owner.children()))}"
            self._owner.add_module(name, eval(source, {"torch": torch, "nn": nn}))
            return ast.Attribute(ast.Name("self", ast.Load()), name, ast.Load())
        return self.generic_visit(node)


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Give parameters and statistics that start as ones or zeros values that count."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.dim() <= 1:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))


class Together(nn.Module):
    """Several cases of the same inputs in one network: most of the time goes into building."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Expression(case) for case in cases)
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        """The results of every case."""
        return [part(*(value.clone() for value in inputs)) for part in self.parts]


def try_torch(cases: Sequence[Case]) -> list[Outcome]:
    """Compile torch cases that have the same inputs and compare them on every sample."""
    model = Together(cases)
    try:
        imported = import_model(model, tuple(map(torch.from_numpy, _arrays(cases[0], "ordinary"))))
        run = build(imported)
    except (TypeError, ValueError, tvm.error.InternalError, RuntimeError) as error:
        if len(cases) > 1:
            half = len(cases) // 2
            return try_torch(cases[:half]) + try_torch(cases[half:])
        refused = isinstance(error, TypeError | ValueError)
        return [Outcome(REFUSED if refused else CRASHED, str(error))]
    outcomes = [Outcome(RIGHT)] * len(cases)
    for sample in SAMPLES:
        arrays = _arrays(cases[0], sample)
        got = iter(run(arrays))
        for i, part in enumerate(model.parts):
            expected = _torch_results(part, arrays)
            detail = difference([next(got) for _ in expected], expected)
            if detail and outcomes[i].status == RIGHT:
                outcomes[i] = Outcome(WRONG, f"{sample} inputs: {detail}")
    return outcomes


def _arrays(case: Case, sample: str) -> list[np.ndarray]:
    return list(sample_arrays(case, sample).values())


def _torch_results(model: nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(*(torch.from_numpy(a.copy()) for a in arrays))
    return [np.asarray(leaf) for leaf in torch.utils._pytree.tree_leaves(result)]


def build(imported: ImportedModel) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """The imported model as a function, compiled by the passes that every model goes through."""
    target = target_tags.resolve("pattern/native")
    lowered, _ = pipeline.lower(imported.mod, target, num_threads=1)
    vm = tvm.relax.VirtualMachine(tvm.compile(lowered, target), tvm.cpu())

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = vm["main"](*(tvm.runtime.tensor(a) for a in arrays))
        values = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return [value.numpy() for value in values]

    return run


def difference(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str:
    """How the results differ, or nothing.

    The tolerance is that of float32 sums of some hundred terms: 1e-4 of the value, or 1e-5 of the
    largest one, since terms may cancel.
    """
    if len(got) != len(expected):
        return f"{len(got)} results, expected {len(expected)}"
    for value, want in zip(got, expected, strict=True):
        want = np.asarray(want)
        if value.shape != want.shape or value.dtype != want.dtype:
            return f"{value.dtype}{list(value.shape)}, expected {want.dtype}{list(want.shape)}"
        if want.dtype.kind in "biu":
            wrong = value != want
        else:
            finite = np.abs(want[np.isfinite(want)])
            largest = float(finite.max()) if finite.size else 0.0
            wrong = ~np.isclose(
                value, want, rtol=1e-4, atol=1e-5 * min(largest, 1e30) + 1e-7, equal_nan=True
            )
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            return f"{int(wrong.sum())} of {wrong.size} values, {value[at]} instead of {want[at]}"
    return ""
