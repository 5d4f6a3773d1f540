"""What a convolution gains by its sparsity, by the cost model of its device: before any timing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .conv_task import ConvTask
from .pattern import dense_pattern
from .reorder import GROUP_SIZES
from .schedules.choose import Config

DENSE = "dense"

CLEARLY = 1.2
"""How many times faster dense has to be expected for a pruned layer to be compiled dense.

Measured on a Zen 4 over its estimates, dense bodies came out 1.14 to 1.39, pruned ones up to 1.36.
"""


@dataclass(frozen=True)
class Expectation:
    """Estimates of one layer.

    Parameters
    ----------
    cost : float
        Of the layer as it is compiled, in the unit of its device's model; only ratios count.
    gain : float
        Cost of the layer compiled dense over ``cost``.
    """

    cost: float
    gain: float


def dense_task(task: ConvTask, weights: int | None = None) -> ConvTask:
    """The convolution with all of its weights.

    Parameters
    ----------
    task : ConvTask
    weights : int, optional
        Weights of the layer where that is not every kernel of the task: those of a grouped
        convolution, or of a transposed one that stands as its phases. Default: all.
    """
    out_channels, in_channels, kh, kw = task.weight_shape
    every = out_channels * in_channels * kh * kw
    own = every if weights is None else weights
    together = max(1, out_channels * own // every)
    return replace(
        task,
        structure=DENSE if own == every else "pattern",
        patterns=(dense_pattern((kh, kw)),),
        max_group=max(g for g in GROUP_SIZES if g <= together),
        kept_kernels=own // (kh * kw),
        kept_weights=own,
    )


def expected(task: ConvTask, config: Config, weights: int | None = None) -> Expectation | None:
    """Estimates of a convolution with a configuration; None where there is no dense one.

    Parameters
    ----------
    task : ConvTask
    config : ConvConfig or GpuConfig
    weights : int, optional
        See :func:`dense_task`.
    """
    cost = task.cost(config)
    whole = dense_task(task, weights)
    if next(whole.configs(), None) is None:
        return None
    return Expectation(cost, whole.cost(whole.default_config()) / cost)


def better_dense(task: ConvTask, weights: int | None = None) -> ConvTask | None:
    """The task to compile instead of a sparse one that is expected to lose clearly, else None.

    Estimates of two bodies err apart, and where they tie the layer stays as it was pruned.
    Grouped convolutions and phases have no dense form of their own, so there it is None.
    """
    whole = dense_task(task, weights)
    if task.structure == DENSE or whole.structure != DENSE or next(whole.configs(), None) is None:
        return None
    sparse, dense = task.cost(task.default_config()), whole.cost(whole.default_config())
    return whole if dense * CLEARLY < sparse else None
