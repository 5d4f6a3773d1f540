"""ARM figures without an ARM machine: llvm-mca on the emitted assembly, exact instruction counts.

``python -m benchmarks.arm_static [--quick] [--only REGEX] --json FILE``

Every figure is a model or a count. llvm-mca assumes that all data is in L1 and branches are
predicted; milliseconds multiply its cycles of the inner loops by how often they run, at a stated
clock, and leave out what surrounds these loops (stores, and the separation of columns at stride
2). Counts come from running the whole layer under emulation and are exact. Neither is a latency.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tvm.target import Target

from relay_passes import targets
from topi_kernels.backend import Backend
from topi_kernels.conv_task import ConvTask
from topi_kernels.devices import DEVICES
from topi_kernels.geometry import ConvGeometry
from topi_kernels.layout import PlaneLayout
from topi_kernels.layout_choice import ConvNeed, choose_lane_order, default_layout
from topi_kernels.operator import ConvPlan, plan_conv
from topi_kernels.pattern import fixed8_patterns
from topi_kernels.schedules.tile import tile_grid
from topi_kernels.structure import Structure
from topi_kernels.workload import Epilogue

from . import arm_assembly, arm_emulation

CONNECTIVITY = 3.6
CONNECTIVITY_1X1 = 4.0
# Below this, connectivity pruning would remove whole colours; such layers keep all kernels.
FEW_CHANNELS = 4
# Counts depend on the core by its tiles only, so one is enough.
COUNTED_CORE = "cortex-a76"
FEW_NAMES = 6
KIND = "model: llvm-mca, all data in L1; counts: executed under emulation"


@dataclass(frozen=True)
class Layer:
    """A square convolution on an image of ``size`` x ``size`` with padding ``kernel // 2``."""

    size: int
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"{kernel}{stride} {self.size} {self.in_channels}->{self.out_channels}"

    @property
    def out_size(self) -> int:
        return -(-self.size // self.stride)


VGG16 = [
    Layer(224, 3, 64),
    Layer(224, 64, 64),
    Layer(112, 64, 128),
    Layer(112, 128, 128),
    Layer(56, 128, 256),
    Layer(56, 256, 256),
    Layer(28, 256, 512),
    Layer(28, 512, 512),
    Layer(14, 512, 512),
]


def _resnet50() -> list[Layer]:
    layers = [Layer(224, 3, 64, 7, 2), Layer(56, 64, 64, 1)]
    for size, width in ((56, 64), (28, 128), (14, 256), (7, 512)):
        if width > 64:
            layers += [
                Layer(2 * size, 2 * width, width, 1),
                Layer(2 * size, width, width, 3, 2),
                Layer(2 * size, 2 * width, 4 * width, 1, 2),
            ]
        layers += [
            Layer(size, width, width),
            Layer(size, width, 4 * width, 1),
            Layer(size, 4 * width, width, 1),
        ]
    return layers


LAYERS = [*VGG16, *_resnet50()]
QUICK = [Layer(56, 64, 64), Layer(14, 256, 256)]


def weights(layer: Layer, group: int) -> np.ndarray:
    """Pruned weights (``group`` > 0: filters that share kernels) or dense ones (0).

    3x3 kernels keep 4 taps; 1x1 and 7x7 layers are pruned by connectivity alone.
    """
    rng = np.random.default_rng(0)
    k, channels = layer.kernel, layer.in_channels
    shape = (layer.out_channels, channels, k, k)
    dense = rng.standard_normal(shape).astype(np.float32)
    if group == 0:
        return dense
    masks = fixed8_patterns().masks if k == 3 else np.ones((1, k, k))
    keep = round(channels / (CONNECTIVITY_1X1 if k == 1 else CONNECTIVITY))
    keep = channels if channels <= FEW_CHANNELS else keep
    mask = np.zeros(shape, np.float32)
    for first in range(0, layer.out_channels, group):
        kept = rng.permutation(channels)[:keep]
        mask[first : first + group, kept] = masks[rng.integers(len(masks), size=keep)]
    return dense * mask


def is_pruned(layer: Layer) -> bool:
    """Whether :func:`weights` removes anything of the layer."""
    return layer.kernel == 3 or layer.in_channels > FEW_CHANNELS


def layouts(layer: Layer, weight: np.ndarray, family: str) -> tuple[PlaneLayout, PlaneLayout]:
    """Layouts of input and output that the compiler would choose for the layer alone."""
    pad, dtype = layer.kernel // 2, str(weight.dtype)
    geometry = ConvGeometry((layer.kernel,) * 2, (layer.stride,) * 2, (pad, pad))
    if layer.stride == 1:
        structure = Structure.from_zeros(weight)
        need = ConvNeed(geometry, (layer.out_channels, layer.in_channels), structure, pad)
        size = (layer.size, layer.size)
        order = choose_lane_order([need], size, pad, 0, family, dtype)
        if order is not None:
            return (order.layout(*size, pad, need.reach),) * 2
    return (
        default_layout(layer.size, layer.size, pad, family, dtype),
        default_layout(layer.out_size, layer.out_size, 1, family, dtype),
    )


def plan(layer: Layer, weight: np.ndarray, core: str) -> ConvPlan:
    """The layer as the compiler would run it on ``core``, on one thread."""
    family = DEVICES.of(target_of(core)).name
    pad = layer.kernel // 2
    task = ConvTask.from_weight(
        weight,
        ConvGeometry((layer.kernel,) * 2, (layer.stride,) * 2, (pad, pad)),
        *layouts(layer, weight, family),
        family=family,
        epilogue=Epilogue(True, False, "relu"),
    )
    return plan_conv(task, weight)


def target_of(core: str) -> Target:
    """The target of a core; cores without a tag are described like the tagged ones."""
    if f"pattern/{core}" in targets.targets():
        return targets.resolve(f"pattern/{core}")
    return Target({**targets.resolve("pattern/cortex-a55").export(), "tag": "", "mcpu": core})


def bound_by(loop: arm_assembly.InnerLoop, share: float) -> str:
    """What keeps a loop from the multiply-add bound, in a word."""
    if share >= 0.95:
        return "multiply-adds"
    if loop.stack:
        return "spills"
    return "loads" if loop.loads > 0.4 * loop.fmla else "latency"


def loop_shares(conv: ConvPlan, loops: int) -> list[float]:
    """How often each inner loop runs beside the others.

    Tiles of two heights have loops of their own; patterns are taken to be equally frequent.
    """
    heights = [n for _, n in conv.config.row_tiles(conv.workload.out_layout.band_height)]
    each, rest = divmod(loops, len(heights))
    if rest:
        return [1.0] * loops
    return [float(n) for n in heights for _ in range(each)]


def row(layer: Layer, group: int, core: str, *, count: bool, dtype: str = "float32") -> dict:
    """One line of the table: a layer, pruned or dense, on a core."""
    target, facts = target_of(core), arm_assembly.CORES[core]
    weight = weights(layer, group).astype(dtype)
    conv = plan(layer, weight, core)
    loops = list(arm_assembly.inner_loops(arm_emulation.assembly(conv.primfunc(), target)))
    if not loops:
        raise arm_emulation.EmulationError(
            f"no inner loop with multiply-adds was found in the code of {layer.name} for {core};"
            " benchmarks/arm_assembly.py does not know its form"
        )
    times = [loop.cycles(facts.model) for loop in loops]
    shares = loop_shares(conv, len(loops))
    cycles = sum(share * time for share, time in zip(shares, times, strict=True))
    fmla = sum(share * loop.fmla for share, loop in zip(shares, loops, strict=True))
    loads = sum(share * loop.loaded for share, loop in zip(shares, loops, strict=True))
    # A model that allows more than the hardware does cannot be believed beyond the bound.
    per_cycle = min(fmla / cycles, facts.fmla_per_cycle)
    share = per_cycle / facts.fmla_per_cycle
    w, c = conv.workload, conv.config
    _, across = tile_grid(w, c)
    stored = w.num_weights // c.filter_lanes
    executed_rows = c.computed_rows(w.out_layout.band_height)
    executed = stored * executed_rows * across * c.tile_cols
    ideal = np.count_nonzero(weight) * layer.out_size**2 / c.vector_width
    result = {
        "workload": layer.name,
        "core": core,
        "mca_model": facts.model,
        "dtype": dtype,
        "engine": "tvm-pattern" if group else "tvm-pattern dense",
        "group": group,
        "cycles_per_iteration": cycles / sum(shares),
        "loads_per_fmla": loads / fmla,
        "interleaved": w.out_layout.is_interleaved,
        "fmla_per_cycle": per_cycle,
        "fmla_bound_share": share,
        "bound_by": bound_by(loops[0], share),
        "spills": sum(loop.stack for loop in loops),
        "predicted_ms": executed / per_cycle / facts.ghz / 1e6,
        "clock_ghz": facts.ghz,
        "fmla_over_ideal": executed / ideal,
        "config": asdict(c),
        "note": KIND,
    }
    if count:
        result["counts"] = asdict(measure_counts(conv, core))
    return result


def measure_counts(conv: ConvPlan, core: str) -> arm_emulation.Counts:
    """Instructions of one run of the layer, the process's own start included (about 1e5)."""
    target, w = target_of(core), conv.workload
    steps = arm_emulation.Plan()
    steps.empty((1, w.in_channels, w.in_layout.size), w.dtype)
    for array in conv.arrays:
        steps.constant(array)
    steps.empty((w.out_channels,), w.dtype)
    steps.empty((1, w.out_channels, w.out_layout.size), w.dtype)
    steps.call("pattern_conv2d", range(len(steps.tensors)))
    with tempfile.TemporaryDirectory() as folder:
        library = arm_emulation.export(conv.primfunc(), target, Path(folder, "conv.so"))
        _, counts = arm_emulation.run(library, steps, target, count=True)
    if counts is None:
        raise arm_emulation.EmulationError("nothing was counted")
    return counts


def rows(
    layers: list[Layer], cores: list[str], only: str, dtype: str = "float32"
) -> Iterator[dict]:
    """All lines; dense is the last of each layer and core, and all there is of unpruned ones."""
    for layer in layers:
        if not re.search(only, layer.name):
            continue
        for core in cores:
            for group in (1, 4, 0) if is_pruned(layer) else (0,):
                yield row(layer, group, core, count=core == COUNTED_CORE, dtype=dtype)


def markdown(table: list[dict]) -> str:
    """The table as Markdown."""
    head = (
        "layer", "core", "group", "FMLA/cycle", "of bound", "bound by", "model ms",
        "speed-up over dense", "FMLA / ideal", "loads / FMLA", "spills",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    dense = {(r["workload"], r["core"]): r["predicted_ms"] for r in table if not r["group"]}
    for r in table:
        gain = dense[r["workload"], r["core"]] / r["predicted_ms"]
        cells = (
            r["workload"],
            r["core"],
            str(r["group"] or "dense"),
            f"{r['fmla_per_cycle']:.2f}",
            f"{r['fmla_bound_share']:.0%}",
            r["bound_by"],
            f"{r['predicted_ms']:.2f}",
            f"{gain:.1f}",
            f"{r['fmla_over_ideal']:.2f}",
            f"{r['loads_per_fmla']:.2f}",
            str(r["spills"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    parts = [_summary(table), lines, _counts_table(table)]
    text = "\n\n".join("\n".join(part) for part in parts)
    return f"All figures: {KIND}.\n\n{text}\n"


def _summary(table: list[dict]) -> list[str]:
    """Per core, group and kind of layer: share of the bound, gain over the same dense layers."""
    head = (
        "core", "layers", "group", "of bound: median", "least", "model ms", "gain over dense",
        "loads / FMLA",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    dense = {(r["workload"], r["core"]): r["predicted_ms"] for r in table if not r["group"]}
    kinds: dict[tuple, list[dict]] = {}
    for r in table:
        kind = r["workload"].rsplit(" ", 2)[0]
        if r["group"]:
            kinds.setdefault((r["core"], kind, r["group"]), []).append(r)
    for (core, kind, group), found in sorted(kinds.items()):
        shares = [r["fmla_bound_share"] for r in found]
        ms = sum(r["predicted_ms"] for r in found)
        gain = sum(dense[r["workload"], core] for r in found) / ms
        cells = [core, f"{len(found)} of {kind}", str(group), f"{np.median(shares):.0%}"]
        most = max(r["loads_per_fmla"] for r in found)
        cells += [f"{min(shares):.0%}", f"{ms:.1f}", f"{gain:.1f}", f"{most:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _counts_table(table: list[dict]) -> list[str]:
    """Executed instructions of the layers that were counted, pruned against dense."""
    counted = [r for r in table if "counts" in r]
    head = ("layer", "group", "million instructions", "FMLA", "loads", "stores", "dense / this")
    dense = {r["workload"]: r["counts"]["total"] for r in counted if not r["group"]}
    lines = [
        f"Executed under emulation, code for {COUNTED_CORE}:",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for r in counted:
        counts = r["counts"]
        millions = [f"{counts[key] / 1e6:.2f}" for key in ("total", "fmla", "loads", "stores")]
        gain = f"{dense[r['workload']] / counts['total']:.1f}"
        cells = (r["workload"], str(r["group"] or "dense"), *millions, gain)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(table: list[dict], path: Path) -> None:
    """Predicted milliseconds per core, pruned and dense."""
    from matplotlib import pyplot

    cores = list(dict.fromkeys(r["core"] for r in table))
    names = list(dict.fromkeys(r["workload"] for r in table))
    found = {(r["core"], r["group"], r["workload"]): r["predicted_ms"] for r in table}
    size = (max(10, 0.6 * len(names)), 3.2 * len(cores))
    figure, axes = pyplot.subplots(len(cores), 1, figsize=size, squeeze=False)
    for axis, core in zip(axes[:, 0], cores, strict=True):
        for shift, group in ((-0.27, 0), (0.0, 1), (0.27, 4)):
            values = [found.get((core, group, name), np.nan) for name in names]
            label = f"pruned, group {group}" if group else "dense"
            axis.bar(np.arange(len(names)) + shift, values, 0.26, label=label)
        turned = {"rotation": 30, "ha": "right"} if len(names) > FEW_NAMES else {}
        axis.set_xticks(range(len(names)), names, fontsize=7, **turned)
        axis.set_yscale("log")
        axis.set_ylabel("ms (model)")
        axis.set_title(f"{core}, llvm-mca model, data in L1", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="two layers, three cores")
    parser.add_argument("--only", default="", help="regular expression over layers")
    parser.add_argument("--cores", default="", help="names, with commas between")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    options = parser.parse_args(arguments)
    layers = QUICK if options.quick else LAYERS
    cores = ["cortex-a55", "cortex-a76", "cortex-x1"]
    if not options.quick:
        cores = ["cortex-a53", "cortex-a55", "cortex-a510", "cortex-a76", "cortex-x1"]
    if options.dtype == "float16":
        cores = [core for core in cores if not Backend.of(target_of(core)).no_float16]
    cores = options.cores.split(",") if options.cores else cores
    table = []
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for line in rows(layers, cores, options.only, options.dtype):
        table.append(line)
        # A long run that is stopped leaves what it has.
        options.json.write_text(json.dumps({"kind": KIND, "rows": table}, indent=1) + "\n")
        print(f"{line['workload']} {line['core']} group {line['group']}: done", file=sys.stderr)
    if not table:
        parser.error(f"--only {options.only!r} matches none of {[x.name for x in layers]}")
    options.json.with_suffix(".md").write_text(markdown(table))
    plot(table, options.json.with_suffix(".png"))
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
