"""ARM figures without an ARM machine: llvm-mca on the emitted assembly, exact instruction counts.

``python -m benchmarks.arm_static [--quick] [--only REGEX] --json FILE``

Every figure is a model or a count. llvm-mca assumes that all data is in L1 and branches are
predicted; milliseconds multiply its cycles of the inner loops by how often they run, at a stated
clock. Counts come from running the whole layer under emulation and are exact. Neither is a latency.
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

from relay_passes import targets
from topi_kernels.operator import ConvPlan, default_layout, plan_conv
from topi_kernels.pattern import fixed8_patterns
from topi_kernels.target_family import target_family
from topi_kernels.workload import Epilogue

from . import arm_assembly, arm_emulation

CONNECTIVITY = 3.6
KIND = "model: llvm-mca, all data in L1; counts: executed under emulation"


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with padding 1."""

    size: int
    in_channels: int
    out_channels: int

    @property
    def name(self) -> str:
        return f"3x3 {self.size} {self.in_channels}->{self.out_channels}"


LAYERS = [
    Layer(224, 64, 64),
    Layer(112, 128, 128),
    Layer(56, 256, 256),
    Layer(28, 512, 512),
    Layer(14, 512, 512),
    Layer(56, 64, 64),
    Layer(28, 128, 128),
    Layer(14, 256, 256),
    Layer(7, 512, 512),
]
QUICK = [Layer(56, 64, 64), Layer(14, 256, 256)]


def weights(layer: Layer, group: int) -> np.ndarray:
    """Pruned weights (``group`` > 0: filters that share kernels) or dense ones (0)."""
    rng = np.random.default_rng(0)
    shape = (layer.out_channels, layer.in_channels, 3, 3)
    dense = rng.standard_normal(shape).astype(np.float32)
    if group == 0:
        return dense
    masks, keep = fixed8_patterns().masks, round(layer.in_channels / CONNECTIVITY)
    mask = np.zeros(shape, np.float32)
    for first in range(0, layer.out_channels, group):
        kept = rng.permutation(layer.in_channels)[:keep]
        mask[first : first + group, kept] = masks[rng.integers(len(masks), size=keep)]
    return dense * mask


def plan(layer: Layer, weight: np.ndarray, core: str) -> ConvPlan:
    """The layer as the compiler would run it on ``core``, on one thread."""
    family = target_family(targets.resolve(f"pattern/{core}"))
    layout = default_layout(layer.size, layer.size, 1, family)
    return plan_conv(
        weight,
        batch=1,
        in_layout=layout,
        out_layout=layout,
        padding=(1, 1),
        epilogue=Epilogue(True, False, "relu"),
        family=family,
    )


def bound_by(loop: arm_assembly.InnerLoop, share: float) -> str:
    """What keeps a loop from the multiply-add bound, in a word."""
    if share >= 0.95:
        return "multiply-adds"
    if loop.stack:
        return "spills"
    return "loads" if loop.loads > 0.4 * loop.fmla else "latency"


def row(layer: Layer, group: int, core: str, *, count: bool) -> dict:
    """One line of the table: a layer, pruned or dense, on a core."""
    target, facts = targets.resolve(f"pattern/{core}"), arm_assembly.CORES[core]
    weight = weights(layer, group)
    conv = plan(layer, weight, core)
    loops = list(arm_assembly.inner_loops(arm_emulation.assembly(conv.primfunc(), target)))
    cycles = sum(loop.cycles(facts.model) for loop in loops)
    fmla = sum(loop.fmla for loop in loops)
    # A model that allows more than the hardware does cannot be believed beyond the bound.
    per_cycle = min(fmla / cycles, facts.fmla_per_cycle)
    share = per_cycle / facts.fmla_per_cycle
    w, c = conv.workload, conv.config
    columns = -(-w.out_layout.width // c.pixel_lanes)
    tiles = -(-w.out_layout.height // c.tile_rows) * -(-columns // c.tile_cols)
    stored = w.num_weights // c.filter_lanes
    executed = stored * tiles * c.tile_rows * c.tile_cols
    ideal = np.count_nonzero(weight) * layer.size**2 / c.vector_width
    result = {
        "workload": layer.name,
        "core": core,
        "mca_model": facts.model,
        "engine": "tvm-pattern" if group else "tvm-pattern dense",
        "group": group,
        "cycles_per_iteration": cycles / len(loops),
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
    target, w = targets.resolve(f"pattern/{core}"), conv.workload
    steps = arm_emulation.Plan()
    steps.empty((1, w.in_channels, w.in_layout.size), "float32")
    for array in conv.arrays:
        steps.constant(array)
    steps.empty((w.out_channels,), "float32")
    steps.empty((1, w.out_channels, w.out_layout.size), "float32")
    steps.call("pattern_conv2d", range(len(steps.tensors)))
    with tempfile.TemporaryDirectory() as folder:
        library = arm_emulation.export(conv.primfunc(), target, Path(folder, "conv.so"))
        _, counts = arm_emulation.run(library, steps, target, count=True)
    if counts is None:
        raise arm_emulation.EmulationError("nothing was counted")
    return counts


def rows(layers: list[Layer], cores: list[str], only: str) -> Iterator[dict]:
    """All lines; dense is the last of each layer and core."""
    for layer in layers:
        if not re.search(only, layer.name):
            continue
        for core in cores:
            for group in (1, 4, 0):
                # Counts do not depend on the core but for its tiles: one core is enough.
                yield row(layer, group, core, count=core == "cortex-a76")


def markdown(table: list[dict]) -> str:
    """The table as Markdown."""
    head = (
        "layer", "core", "group", "FMLA/cycle", "of bound", "bound by", "model ms",
        "speed-up over dense", "FMLA / ideal", "spills",
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
            str(r["spills"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"All figures: {KIND}.", "", *lines, ""])


def plot(table: list[dict], path: Path) -> None:
    """Predicted milliseconds per core, pruned and dense."""
    from matplotlib import pyplot

    cores = list(dict.fromkeys(r["core"] for r in table))
    names = list(dict.fromkeys(r["workload"] for r in table))
    figure, axes = pyplot.subplots(len(cores), 1, figsize=(10, 2.6 * len(cores)), squeeze=False)
    for axis, core in zip(axes[:, 0], cores, strict=True):
        for shift, group in ((-0.27, 0), (0.0, 1), (0.27, 4)):
            values = [r["predicted_ms"] for r in table if r["core"] == core and r["group"] == group]
            label = f"pruned 8.1x, group {group}" if group else "dense"
            axis.bar(np.arange(len(names)) + shift, values, 0.26, label=label)
        axis.set_xticks(range(len(names)), names, fontsize=7)
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
    options = parser.parse_args(arguments)
    layers = QUICK if options.quick else LAYERS
    cores = ["cortex-a55", "cortex-a76", "cortex-x1"]
    if not options.quick:
        cores = ["cortex-a53", *cores]
    table = []
    for line in rows(layers, cores, options.only):
        table.append(line)
        print(f"{line['workload']} {line['core']} group {line['group']}: done", file=sys.stderr)
    if not table:
        parser.error(f"--only {options.only!r} matches none of {[x.name for x in layers]}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"kind": KIND, "rows": table}, indent=1) + "\n")
    options.json.with_suffix(".md").write_text(markdown(table))
    plot(table, options.json.with_suffix(".png"))
    print(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
