"""Golden pins: what level 0 chooses and emits, for named layers and named machine facts.

A pin holds the default configuration of one operator and the structural hash of its PrimFunc.
Weights are random with a fixed seed, machine facts come from the family's name and nothing is
built, so the computer that runs this does not matter; the hash is TVM's, so its version does.

    python tests/golden.py --renew          write tests/golden.json anew; review its diff
    python tests/golden.py --script NAME    print the PrimFunc of a pin
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx
from tvm_ffi import structural_hash

from topi_kernels import plane_operators as operators
from topi_kernels.backend import default_layout
from topi_kernels.channelwise import ChannelTerms
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.layout_choice import ConvNeed, choose_lane_order
from topi_kernels.matvec import MatvecConfig
from topi_kernels.operator import plan_conv
from topi_kernels.pattern import fixed8_patterns
from topi_kernels.plane_ops import PlaneTarget
from topi_kernels.plane_windows import DepthwiseConfig
from topi_kernels.schedules.cpu_int8.byte_layout import byte_layout
from topi_kernels.schedules.cpu_int8.plan import (
    Int8DepthwisePlan,
    Int8Layer,
    Int8Plan,
    plan_int8_conv,
    plan_int8_depthwise,
)
from topi_kernels.schedules.cpu_int8.quantisation import Quantisation
from topi_kernels.schedules.family import Family
from topi_kernels.structure import Structure, determine
from topi_kernels.workload import Epilogue

PATH = Path(__file__).with_suffix(".json")
RENEW = "python tests/golden.py --renew"


@dataclass(frozen=True)
class Layer:
    """A convolution of a known network.

    ``connectivity`` is the rate by which kernels are removed; ``dense`` keeps every tap of those
    that stay, otherwise they follow the set ``fixed8``.
    """

    in_channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    connectivity: float = 3.6
    dense: bool = False
    residual: bool = False
    activation: str = "relu"

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    @property
    def out_size(self) -> int:
        reach = self.dilation * (self.kernel - 1)
        return (self.size + 2 * self.padding - reach - 1) // self.stride + 1

    def weight(self, group: int, dtype: str) -> np.ndarray:
        """Seeded weights whose neighbouring ``group`` filters share kernels and patterns."""
        seed = zlib.crc32(repr((self, group)).encode())
        rng = np.random.default_rng(seed)
        leaders, k = -(-self.out_channels // group), self.kernel
        mask = np.ones((leaders, self.in_channels, k, k), bool)
        if not self.dense and k == 3:
            masks = fixed8_patterns().masks.astype(bool)
            mask = masks[rng.integers(len(masks), size=(leaders, self.in_channels))]
        kept = max(1, round(self.in_channels / self.connectivity))
        rank = rng.random((leaders, self.in_channels)).argsort(axis=1).argsort(axis=1)
        mask = mask & (rank < kept)[:, :, None, None]
        mask = np.repeat(mask, group, axis=0)[: self.out_channels]
        return np.where(mask, rng.uniform(0.5, 1.5, mask.shape), 0).astype(dtype)


LAYERS = {
    "vgg-first": Layer(3, 64, 224, connectivity=1),
    "vgg-224": Layer(64, 64, 224),
    "vgg-112": Layer(128, 128, 112),
    "vgg-112-dense": Layer(128, 128, 112, connectivity=1, dense=True),
    "vgg-56": Layer(256, 256, 56),
    "vgg-28": Layer(512, 512, 28),
    "vgg-14": Layer(512, 512, 14),
    "vgg-14-dense": Layer(512, 512, 14, connectivity=1, dense=True),
    "res-first": Layer(3, 64, 224, 7, 2, connectivity=1, dense=True),
    "res-56": Layer(64, 64, 56),
    "res-28": Layer(128, 128, 28),
    "res-14": Layer(256, 256, 14),
    "res-7": Layer(512, 512, 7),
    "res-7-dilated": Layer(512, 512, 7, dilation=2),
    "res-56-s2": Layer(128, 128, 56, stride=2),
    "res-14-s2": Layer(512, 512, 14, stride=2),
    "res-1x1-56": Layer(64, 256, 56, 1, residual=True),
    "res-1x1-56-narrow": Layer(256, 64, 56, 1),
    "res-1x1-14": Layer(1024, 256, 14, 1),
    "res-1x1-7": Layer(512, 2048, 7, 1, residual=True),
    "res-1x1-28-s2": Layer(512, 1024, 28, 1, 2, activation="none"),
    "narrow-32-s2": Layer(16, 16, 32, stride=2),
    "mobile-first": Layer(3, 32, 224, 3, 2, connectivity=1, dense=True, activation="relu6"),
    "mobile-1x1-112": Layer(32, 16, 112, 1, connectivity=1, dense=True, activation="none"),
    "mobile-1x1-14": Layer(384, 64, 14, 1, activation="none"),
    "mobile-1x1-7": Layer(320, 1280, 7, 1, activation="relu6"),
}

#: What stands before a layer whose planes have the interleaved lanes that it would choose itself.
LANES = "lanes-"

#: Family -> dtype -> ``layer/group[/threads]``.
CONVOLUTIONS = {
    "x86-avx512": {
        "float32": "vgg-first/1 vgg-224/1 vgg-112/2 vgg-56/1 vgg-56/4 vgg-28/8 vgg-14/1 vgg-14/16"
        " vgg-14-dense/1 res-first/1 res-56/1 res-28/2/4 res-7/4 res-7-dilated/1 res-56-s2/1"
        " res-14-s2/4 res-1x1-56/1 res-1x1-14/4 res-1x1-28-s2/1 narrow-32-s2/1 mobile-first/1"
        " mobile-1x1-7/1 lanes-vgg-56/1 lanes-vgg-28/2 lanes-vgg-14/1"
    },
    "x86-avx512-zen4": {
        "float32": "vgg-56/1 vgg-112-dense/1 vgg-14-dense/1 res-7/1 res-7/2 res-1x1-14/1"
        " res-1x1-7/4 lanes-vgg-28/1 lanes-res-7/1"
    },
    "x86-avx512-client": {"float32": "vgg-14-dense/1 lanes-vgg-56/1 lanes-res-7/1"},
    "x86-avx2": {
        "float32": "vgg-first/1 vgg-112/1 vgg-56/4 vgg-28/1 vgg-14/2 res-first/1 res-56/8 res-7/1"
        " res-14-s2/1 narrow-32-s2/1 res-1x1-56-narrow/1 res-1x1-14/2 res-1x1-7/16 mobile-first/1"
        " mobile-1x1-112/1 mobile-1x1-14/1/4 lanes-vgg-224/1 lanes-vgg-56/2 lanes-vgg-28/1"
        " lanes-vgg-28/2"
    },
    "arm-neon": {
        "float32": "vgg-first/1 vgg-56/1 vgg-28/2 vgg-14/4 vgg-14-dense/1 res-56/1 res-14/8"
        " res-56-s2/1 res-1x1-56/1 res-1x1-7/16 mobile-first/1 mobile-1x1-14/1 lanes-vgg-14/1",
        "float16": "vgg-56/1 lanes-vgg-28/1 res-28/2 res-7/4 res-14-s2/1 res-1x1-14/1"
        " mobile-first/1",
    },
    "arm-neon-wide": {
        "float32": "vgg-112/1 lanes-res-56/1 res-14/1 res-7/16 res-56-s2/2 res-1x1-14/4",
        "float16": "vgg-28/4 res-56/1 mobile-1x1-7/8",
    },
    "arm-neon-in-order": {
        "float32": "vgg-56/1 res-28/2 res-14/4 res-14-s2/1 res-1x1-56-narrow/1 mobile-1x1-14/8"
        " lanes-vgg-56/1 lanes-res-7/1",
        "float16": "lanes-vgg-56/1 res-14/1 res-1x1-14/2",
    },
    "armv7-neon": {
        "float32": "vgg-28/1 res-56/4 res-7/2 res-56-s2/1 res-1x1-14/1 mobile-first/1",
    },
    "generic": {"float32": "res-28/1 res-1x1-14/4"},
    "mali": {
        "float32": "vgg-56/1 vgg-28/4 res-14/1 res-7/4 res-14-s2/1 res-1x1-56-narrow/1",
        "float16": "vgg-56/4 vgg-14/1 mobile-first/1",
    },
    "adreno": {
        "float32": "vgg-56/4 vgg-28/1 vgg-14-dense/1 res-7-dilated/1 res-1x1-14/4",
        "float16": "vgg-28/1 vgg-14/4 res-56-s2/1 mobile-1x1-14/1",
    },
}

#: What stands before a layer whose channels are convolved one by one.
DEPTHWISE = "depthwise-"

#: Instructions -> ``layer/group[/threads]``.
INT8_CONVOLUTIONS = {
    "avx512-vnni": "vgg-56/1 vgg-56/2 vgg-28/4/4 vgg-14/1 res-first/1 res-56/2 res-14/1 res-7/2"
    " res-56-s2/1 res-14-s2/2 res-1x1-56/2 res-1x1-14/1 res-1x1-28-s2/1 mobile-first/1"
    " mobile-1x1-112/1 depthwise-res-14/1 depthwise-narrow-32-s2/1",
    "avx-vnni": "vgg-28/1 res-56-s2/2 res-1x1-56/1 depthwise-res-7/1",
    "avx2": "vgg-56/2 res-14/1 res-1x1-14/1 mobile-first/1",
    "neon-dotprod": "vgg-28/2 res-14-s2/1 res-1x1-7/1 depthwise-res-14/1 mobile-first/1",
}

#: Operators without weights to analyse: ``name[/threads]`` for every one of these families.
PLANE_TARGETS = {
    "x86-avx512": "float32",
    "x86-avx2": "float32",
    "arm-neon": "float16",
    "armv7-neon": "float32",
    "mali": "float32",
    "adreno": "float16",
}

Pin = dict[str, Any]


def _depthwise(channels: int, size: int, stride: int, target: PlaneTarget) -> tirx.PrimFunc:
    layouts = [
        default_layout(n, n, 1, target.family, target.dtype) for n in (size, -(-size // stride))
    ]
    window = ConvGeometry((3, 3), (stride, stride), (1, 1))
    epilogue = Epilogue(bias=True, activation="relu6")
    return operators.depthwise_conv(1, channels, *layouts, window, target, epilogue)


def _pool(maker: Callable[..., tirx.PrimFunc], target: PlaneTarget, **extra: Any) -> tirx.PrimFunc:
    layouts = [default_layout(n, n, 1, target.family, target.dtype) for n in (112, 56)]
    return maker(1, 64, *layouts, ConvGeometry((3, 3), (2, 2), (1, 1)), target, **extra)


def _plane(maker: Callable[..., tirx.PrimFunc], target: PlaneTarget) -> tirx.PrimFunc:
    layout = default_layout(28, 28, 1, target.family, target.dtype)
    return maker(1, 128, layout, target)


def _add(target: PlaneTarget) -> tirx.PrimFunc:
    layout = default_layout(28, 28, 1, target.family, target.dtype)
    return operators.elementwise(1, 128, (layout,) * 2, layout, target, "add", "relu")


def _channelwise(target: PlaneTarget) -> tirx.PrimFunc:
    layout, gate = (default_layout(n, n, 1, target.family, target.dtype) for n in (28, 1))
    terms = ChannelTerms(gate, scale=True, shift=True, slope=True)
    return operators.channelwise(1, 128, layout, layout, terms, target)


#: Name -> (maker, default config of the operator).
PLANE_OPERATORS: dict[str, tuple[Callable[[PlaneTarget], tirx.PrimFunc], Any]] = {
    "depthwise-112-s2": (partial(_depthwise, 96, 112, 2), DepthwiseConfig.default(56)),
    "depthwise-56": (partial(_depthwise, 144, 56, 1), DepthwiseConfig.default(56)),
    "depthwise-14": (partial(_depthwise, 384, 14, 1), DepthwiseConfig.default(14)),
    "depthwise-7": (partial(_depthwise, 960, 7, 1), DepthwiseConfig.default(7)),
    "max-pool": (lambda target: _pool(operators.max_pool, target=target), None),
    "avg-pool": (
        lambda target: _pool(operators.avg_pool, target=target, count_include_pad=False),
        None,
    ),
    "global-pool": (partial(_plane, operators.global_avg_pool), None),
    "pack": (partial(_plane, operators.pack), None),
    "unpack": (partial(_plane, operators.unpack), None),
    "add-relu": (_add, None),
    "channelwise": (_channelwise, None),
    "fully-connected-2048": (
        lambda target: operators.matvec(1, 2048, 1000, target),
        MatvecConfig(),
    ),
    "fully-connected-25088": (
        lambda target: operators.matvec(4, 25088, 4096, target),
        MatvecConfig(),
    ),
}


def conv_names() -> Iterator[str]:
    """Names of the convolutions' pins: ``family/dtype/layer/group[/threads]``."""
    for family, dtypes in CONVOLUTIONS.items():
        for dtype, cases in dtypes.items():
            yield from (f"{family}/{dtype}/{case}" for case in cases.split())


def plane_names() -> Iterator[str]:
    """Names of the other operators' pins: ``family/dtype/operator``."""
    for family, dtype in PLANE_TARGETS.items():
        yield from (f"{family}/{dtype}/{operator}" for operator in PLANE_OPERATORS)


def int8_names() -> Iterator[str]:
    """Names of the pins of operators on bytes: ``instructions/int8/layer/group[/threads]``."""
    for isa, cases in INT8_CONVOLUTIONS.items():
        yield from (f"{isa}/int8/{case}" for case in cases.split())


def names() -> list[str]:
    """Names of all pins."""
    return [*conv_names(), *int8_names(), *plane_names()]


def int8_plan_of(isa: str, what: str, group: int, threads: int) -> tuple[dict, tirx.PrimFunc]:
    """Level-0 config and PrimFunc of a convolution of bytes."""
    layer = LAYERS[what.removeprefix(DEPTHWISE)]
    kept = layer.weight(group, "float32") != 0
    if what.startswith(DEPTHWISE):
        kept = np.ones((layer.out_channels, 1, layer.kernel, layer.kernel), bool)
    filters = len(kept)
    weight = np.random.default_rng(0).integers(-127, 128, kept.shape).astype(np.int8) * kept
    moves = (layer.kernel, layer.stride, layer.padding, layer.dilation)
    source, result, residual = (Quantisation(0.01 * n, n) for n in (1, 2, 3))
    described = Int8Layer(
        weight=weight,
        weight_scale=np.full(filters, 1e-3, np.float32),
        bias=np.ones(filters, np.float32),
        geometry=ConvGeometry(*((n, n) for n in moves)),
        source=source,
        result=result,
        structure=Structure(kept),
        low=0.0,
        residual=residual if layer.residual else None,
    )
    layouts = (
        byte_layout(layer.size, layer.size, layer.padding),
        byte_layout(layer.out_size, layer.out_size, 1),
    )
    plan: Int8Plan | Int8DepthwisePlan
    if what.startswith(DEPTHWISE):
        dims = (1, layer.in_channels)
        plan = plan_int8_depthwise(described, dims, layouts, isa, num_threads=threads)
    else:
        plan = plan_int8_conv(described, 1, layouts, isa, num_threads=threads)
    return plan.config.as_dict(), plan.primfunc()


def plan_of(name: str) -> tuple[dict[str, Any], tirx.PrimFunc]:
    """Level-0 config, as plain data, and PrimFunc of a pin."""
    family, dtype, what, *rest = name.split("/")
    if what in PLANE_OPERATORS:
        make, config = PLANE_OPERATORS[what]
        # GPUs have one schedule of each of these operators, without knobs.
        config = config if isinstance(DEVICES.facts(family), Family) else None
        return asdict(config) if config else {}, make(PlaneTarget(family, 1, dtype))
    group, threads, *_ = [*map(int, rest), 1]
    if dtype == "int8":
        return int8_plan_of(family, what, group, threads)
    layer = LAYERS[what.removeprefix(LANES)]
    sizes = [(layer.size, layer.padding), (layer.out_size, 1), (layer.out_size, 0)]
    layouts = [default_layout(n, n, pad, family, dtype) for n, pad in sizes]
    weight, moves = layer.weight(group, dtype), (layer.kernel, layer.stride, layer.padding)
    geometry = ConvGeometry(*((n, n) for n in (*moves, layer.dilation)))
    if what.startswith(LANES):
        layouts[:2] = [_interleaved(layer, weight, geometry, family)] * 2
    task = ConvTask.from_weight(
        weight,
        geometry,
        layouts[0],
        layouts[1],
        family=family,
        epilogue=Epilogue(True, layer.residual, layer.activation),
        residual_layout=layouts[2] if layer.residual else None,
    )
    plan = plan_conv(task, weight, num_threads=threads)
    return plan.config.as_dict(), plan.primfunc()


def _interleaved(
    layer: Layer, weight: np.ndarray, geometry: ConvGeometry, family: str
) -> PlaneLayout:
    """The order of pixels that a network of such layers would get."""
    need = ConvNeed(geometry, weight.shape[:2], determine(weight), layer.padding)
    size = (layer.size, layer.size)
    order = choose_lane_order([need], size, layer.padding, 0, family, str(weight.dtype))
    if order is None:
        raise ValueError(f"{layer} keeps plain rows on {family}; pin it without {LANES!r}")
    return order.layout(*size, layer.padding, need.reach)


def pin(name: str) -> Pin:
    """Config and hash of one pin as they come out today."""
    config, primfunc = plan_of(name)
    return {"config": config, "primfunc": f"{structural_hash(primfunc) % 2**64:016x}"}


def stored() -> dict[str, Pin]:
    """The pins of the file."""
    return json.loads(PATH.read_text())


def difference(name: str, pinned: Pin | None, got: Pin) -> str:
    """What differs, with both configs and how to renew; empty if nothing does."""
    if pinned == got:
        return ""
    pinned = pinned or {"config": None, "primfunc": None}
    what = "configuration" if pinned["config"] != got["config"] else "PrimFunc of one configuration"
    return (
        f"{name}: the {what} of level 0 differs from its pin\n"
        f"  pinned {pinned['config']} primfunc {pinned['primfunc']}\n"
        f"  got    {got['config']} primfunc {got['primfunc']}\n"
        f"If the change is wanted, run `{RENEW}` and review the diff of {PATH.name};"
        f" `python tests/golden.py --script {name}` prints the code"
    )


def renew() -> list[str]:
    """Write the file anew; returns what changed, in words."""
    before = stored() if PATH.exists() else {}
    after = {name: pin(name) for name in names()}
    lines = [f"  {json.dumps(n)}: {json.dumps(after[n])}" for n in sorted(after)]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    changes = [difference(n, before.get(n), after[n]).split("\n")[0] for n in sorted(after)]
    return [c for c in changes if c] + [f"{n}: gone" for n in sorted(set(before) - set(after))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--renew", action="store_true", help=f"write {PATH.name} anew")
    what.add_argument("--script", metavar="NAME", choices=names(), help="print a pin's PrimFunc")
    arguments = parser.parse_args()
    if arguments.script:
        print(plan_of(arguments.script)[1].script())
        return
    changes = renew()
    print("\n".join([*changes, f"{len(names())} pins in {PATH}, {len(changes)} changed"]))


if __name__ == "__main__":
    main()
