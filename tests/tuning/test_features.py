"""Features keep their values: what a cost model learned from older records stays true."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import numpy as np
import pytest

from topi_kernels.backend import default_layout
from topi_kernels.conv_task import ConvTask
from topi_kernels.geometry import ConvGeometry
from topi_kernels.schedules.config import ConvConfig
from tvm_pattern.tuning.features import FEATURES, config_features

#: Feature vectors as they once were, by name: to be changed only with what the features mean.
RECORDED = json.loads((Path(__file__).parent / "features.json").read_text())

#: ``family/dtype/layer/group`` as in :mod:`golden`, and a configuration of its space.
CASES = {
    "load": ("x86-avx512/float32/vgg-28/4", ConvConfig(16, 1, 4, 4, 1)),
    "rotate": ("x86-avx512/float32/vgg-28/4", ConvConfig(16, 1, 2, 3, 2, shift="rotate")),
    "mixed": ("x86-avx512/float32/vgg-28/4", ConvConfig(16, 4, 1, 2, 6, 2, prefetch=0)),
    "stride-2": ("arm-neon/float16/res-14-s2/2", ConvConfig(8, 1, 2, 4, 1, isa="neon")),
    "split": ("arm-neon/float16/res-14-s2/2", ConvConfig(8, 1, 2, 4, 1, shift="split")),
    "block": ("x86-avx2/float32/res-1x1-14/2", ConvConfig(8, 1, 2, 3, 2, 1, channel_block=256)),
    "dilated": ("arm-neon-wide/float32/res-7-dilated/4", ConvConfig(4, 1, 4, 2, 2, shift="rotate")),
    "lanes": ("x86-avx512/float32/vgg-28/4", ConvConfig(16, 1, 2, 4, 2, shift="lanes")),
}


def features_of(name: str) -> np.ndarray:
    pin, config = CASES[name]
    family, dtype, what, group = pin.split("/")
    layer = golden.LAYERS[what]
    sizes = ((layer.size, layer.padding), (layer.out_size, 1))
    moves = (layer.kernel, layer.stride, layer.padding, layer.dilation)
    task = ConvTask.from_weight(
        layer.weight(int(group), dtype),
        ConvGeometry(*((n, n) for n in moves)),
        *(default_layout(n, n, pad, family, dtype) for n, pad in sizes),
        family=family,
    )
    return config_features(task, config, 1e6)


@pytest.mark.parametrize("name", CASES)
def test_features_have_their_recorded_values(name: str) -> None:
    assert list(RECORDED[name]) == list(FEATURES)
    np.testing.assert_allclose(features_of(name), list(RECORDED[name].values()), 1e-6, 1e-7)


def test_a_config_of_another_kind_of_device_is_refused() -> None:
    layout = default_layout(8, 8, 0, "mali", "float32")
    weight = np.ones((4, 4, 1, 1), np.float32)
    task = ConvTask.from_weight(weight, ConvGeometry((1, 1)), layout, layout, family="mali")
    expected = "configs of 'mali' are of the class GpuConfig, got a ConvConfig"
    with pytest.raises(TypeError, match=expected):
        config_features(task, ConvConfig(4, 1, 1, 1, 1), 1e6)


def test_the_recorded_vectors_tell_their_loads_apart() -> None:
    assert len({RECORDED[name]["loads_per_fma"] for name in CASES}) == len(CASES)
