"""One library for several sizes of the inputs: an entry for each, weights shared.

Each size is imported and lowered by itself, since layouts and loops depend on it; then all are
functions of one module. How a weight is packed depends on how many filters share a list, and for
lists of taps on the blocks of in_channels, so all sizes use one packing for a layer, and constants
of equal content are stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GlobalVar
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.target import Target

from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.expected_gain import better_dense
from topi_kernels.task import Task

from .frontend import ImportedModel
from .profiling import MAIN
from .tuning.tasks import extract_tasks

ConfigFor = Callable[[Any], Any]


def examples_of_sizes(example_inputs: Any, sizes: Any) -> list[Any]:
    """The example inputs of each size; one entry for a library of one size.

    Parameters
    ----------
    example_inputs : tensor, array or sequence of them, optional
    sizes : sequence, optional
        Example inputs of each size, see :func:`tvm_pattern.compile`.

    Raises
    ------
    ValueError
        If both are given, or there is no size.
    TypeError
        If ``sizes`` is no list or tuple.
    """
    if sizes is None:
        return [example_inputs]
    if example_inputs is not None:
        raise ValueError(
            "got example_inputs and sizes, expected one of them; sizes holds the example inputs of"
            " each size: sizes=[(x1,), (x2,)]"
        )
    if not isinstance(sizes, list | tuple):
        raise TypeError(
            f"sizes is a {type(sizes).__name__}, expected a list with the example inputs of each"
            " size: sizes=[(x1,), (x2,)]"
        )
    if not sizes:
        raise ValueError("sizes is empty; expected the example inputs of one size at least")
    return list(sizes)


def check_alike(models: Sequence[ImportedModel]) -> None:
    """Refuse sizes among which a call could not choose.

    Raises
    ------
    ValueError
        If two are the same, or differ in more than the sizes of axes.
    """
    first = models[0]
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    for number, model in enumerate(models):
        shapes = tuple(spec.shape for spec in model.inputs)
        if shapes in seen:
            raise ValueError(
                f"sizes[{seen[shapes]}] and sizes[{number}] are the same: {_shown(model)}; leave"
                " one out"
            )
        seen[shapes] = number
        kinds = [[(len(s.shape), s.dtype) for s in m.inputs] for m in (first, model)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"sizes[{number}] is {_shown(model)}, sizes[0] is {_shown(first)}; expected inputs"
                " that differ in the sizes of their axes alone"
            )
        if len(model.outputs) != len(first.outputs):
            raise ValueError(
                f"the model has {len(model.outputs)} outputs for sizes[{number}] and"
                f" {len(first.outputs)} for sizes[0]; compile them apart"
            )


def _shown(model: ImportedModel) -> str:
    return ", ".join(map(str, model.inputs))


def function_names(number: int) -> tuple[str, str]:
    """Name of the function of a size, and what the names of its steps begin with."""
    return (MAIN, "step_") if number == 0 else (f"{MAIN}_{number}", f"size{number}_step_")


def shared_configs(
    models: Sequence[ImportedModel],
    target: Target,
    num_threads: int,
    records: ConfigFor,
    *,
    interleaved_lanes: bool | None = None,
    winograd: bool = True,
) -> list[ConfigFor]:
    """A lookup of configurations for each size under which all sizes pack a layer alike.

    Parameters
    ----------
    models : sequence of ImportedModel
        One per size.
    target : tvm.target.Target
    num_threads : int
    records : callable
        Tuned configuration of a task, or None.
    interleaved_lanes : bool, optional
    winograd : bool
        See :func:`tvm_pattern.compile`.

    Returns
    -------
    list of callable
        ``Task -> config or None``. Where no packing is legal at all sizes, each has its own
        choice.
    """
    if len(models) == 1 or Backend.of(target, num_threads).why_not():
        return [records] * len(models)
    found = [
        extract_tasks(
            m.mod,
            target,
            num_threads,
            m.structures,
            interleaved_lanes=interleaved_lanes,
            winograd=winograd,
        )
        for m in models
    ]
    tasks = [{layer: w.task for w in size for layer in w.layers} for size in found]
    chosen: list[dict[str, Any]] = [{} for _ in models]
    for layer, first in tasks[0].items():
        same = [first, *(size[layer] for size in tasks[1:] if layer in size)]
        if len(same) < len(tasks) or all(t.key in c for t, c in zip(same, chosen, strict=True)):
            continue
        for task, config, configs in zip(same, _alike(same, records), chosen, strict=True):
            configs.setdefault(task.key, config)

    def lookup(configs: dict[str, Any]) -> ConfigFor:
        return lambda task: configs[task.key] if task.key in configs else records(task)

    return [lookup(configs) for configs in chosen]


def _alike(tasks: Sequence[Task], records: ConfigFor) -> list[Any]:
    """Configurations of one layer at several sizes, of the cheapest packing that all have."""
    known = [records(task) for task in tasks]
    own = [config or task.default_config() for task, config in zip(tasks, known, strict=True)]
    # Layers that are expected to lose by their sparsity are computed whole where no configuration
    # is given: at all sizes, or at none.
    whole = [None if config else _better_dense(t) for t, config in zip(tasks, known, strict=True)]
    if all(whole):
        dense = {task.default_config().packing for task in whole if task is not None}
        if len(dense) == 1:
            return known
    if len({config.packing for config in own}) == 1:
        return own if any(whole) else known
    by_packing: list[dict[Any, Any]] = []
    for task, config in zip(tasks, own, strict=True):
        cheapest: dict[Any, Any] = {}
        for other in task.configs():
            best = cheapest.get(other.packing)
            if best is None or task.cost(other) < task.cost(best):
                cheapest[other.packing] = other
        by_packing.append({**cheapest, config.packing: config})

    def loss(packing: Any) -> float:
        return sum(
            task.cost(configs[packing]) / task.cost(config)
            for task, configs, config in zip(tasks, by_packing, own, strict=True)
        )

    common = set.intersection(*(set(configs) for configs in by_packing))
    if not common:
        return own if any(whole) else known
    packing = min(sorted(common), key=loss)
    return [configs[packing] for configs in by_packing]


def _better_dense(task: Task) -> ConvTask | None:
    """See :func:`better_dense`; of bytes there is none."""
    return better_dense(task) if isinstance(task, ConvTask) else None


@mutator
class _Renamer(PyExprMutator):
    """Replaces the functions that a Relax function calls."""

    def __init__(self, mod: tvm.IRModule, functions: dict[str, GlobalVar]) -> None:
        super().__init__(mod)
        self._functions = functions

    def visit_global_var_(self, op: GlobalVar) -> GlobalVar:
        return self._functions.get(str(op.name_hint), op)


def merged(modules: Sequence[tvm.IRModule]) -> tvm.IRModule:
    """All sizes in one module; the functions of the first keep their names.

    Parameters
    ----------
    modules : sequence of tvm.IRModule
        Lowered; their Relax functions have names of their own but for ``main``, which becomes that
        of :func:`function_names`. PrimFuncs that are equal are there once.
    """
    if len(modules) == 1:
        return modules[0]
    builder = relax.BlockBuilder(modules[0])
    for number, mod in enumerate(modules[1:], 1):
        functions, whole = {}, []
        for gv, function in mod.functions_items():
            if isinstance(function, relax.Function):
                whole.append((str(gv.name_hint), function))
            else:
                name = str(gv.name_hint)
                plain = function.without_attr("global_symbol")
                functions[name] = builder.add_func(plain, name)
        for name, function in whole:
            new = function_names(number)[0] if name == MAIN else name
            renamed = _Renamer(builder.get(), functions).visit_expr(function)
            builder.add_func(renamed.with_attr("global_symbol", new), new)
    return builder.get()
