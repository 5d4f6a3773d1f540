"""Level 0 takes the cheapest configuration, though most are left out by a bound."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import pattern_weights

from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.schedules import search_space
from topi_kernels.schedules.cost import estimate_cost, least_cost

PLAIN = PlaneLayout.make(10, 14, 1, 16)
HALF = PlaneLayout.make(5, 7, 1, 8)
LANES = PlaneLayout.interleave(14, 14, 1, 8, 2, 1)


def _task(family, weight, stride, layouts):
    kh, kw = weight.shape[2:]
    geometry = ConvGeometry((kh, kw), (stride, stride), (kh // 2, kw // 2))
    return ConvTask.from_weight(weight, geometry, *layouts, family=family)


TASKS = {
    "rows": ("x86-avx512", 3, 1, (PLAIN, PLAIN)),
    "shared": ("x86-avx512-zen4", 3, 4, (PLAIN, PLAIN)),
    "stride": ("x86-avx2", 3, 1, (PLAIN, HALF)),
    "lanes": ("x86-avx2", 3, 1, (LANES, LANES)),
    "1x1": ("x86-avx2", 1, 4, (PLAIN, PLAIN)),
    "neon": ("arm-neon", 3, 4, (PLAIN, PLAIN)),
    "in order": ("arm-neon-in-order", 3, 1, (PLAIN, PLAIN)),
}


@pytest.mark.parametrize(("family", "kernel", "group", "layouts"), TASKS.values(), ids=TASKS)
def test_a_bound_leaves_out_no_best(family, kernel, group, layouts):
    masks = np.ones((1, 1, 1), bool) if kernel == 1 else None
    weight = pattern_weights(8, 16, group=group, masks=masks)
    task = _task(family, weight, 2 if layouts[1] is HALF else 1, layouts)
    shape, facts = task.shape, task.machine
    configs = list(search_space._default_space(shape, facts))
    costs = [estimate_cost(shape, config, facts) for config in configs]
    bounds = [least_cost(shape, config, facts) for config in configs]
    assert all(bound <= cost for bound, cost in zip(bounds, costs, strict=True))
    assert sum(bound > min(costs) for bound in bounds) > len(configs) // 4
    best = configs[int(np.argmin(costs))]
    assert search_space.default_config.__wrapped__(shape, facts) == best
