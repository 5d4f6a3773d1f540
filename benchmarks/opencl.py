"""GPU targets without a GPU: the kernels' source, a roofline model, and executed instructions.

``python -m benchmarks.opencl [--quick] [--only REGEX] [--pocl] --json FILE``

Three kinds of figures, none of which is a time of a GPU. *Static* ones are counted in the emitted
OpenCL C. *Executed* ones are counted by oclgrind in a launch of the first filters of a layer, with
the configuration that the whole layer gets. *Model* times come from public rates of a class of
devices (``topi_kernels/schedules/mali.py`` and ``adreno.py`` name the sources). ``--pocl`` also
prints what the kernels take on this computer's processor; those times say nothing about phones and
are not stored.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvm_pattern import models
from tvm_pattern.opencl.bundle import RUNNER

from .arm_static import Layer, is_pruned
from .opencl_layers import Case, layers_of
from .opencl_ranking import ranking

KIND = "static: counted in the source; executed: counted by oclgrind; ms: a roofline model"
DEVICES = ("mali", "adreno")
DTYPES = ("float32", "float16")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": models.vgg16,
    "ResNet-50": models.resnet50,
}
#: Layers that are run in the simulator.
COUNTED = (Layer(56, 256, 256), Layer(28, 512, 512), Layer(14, 512, 512))
#: The layer whose configurations are ranked by what they execute.
RANKED = Layer(14, 128, 512)
QUICK = (Layer(28, 64, 64), Layer(14, 64, 64))


def cases(layer: Layer, device: str, dtype: str) -> list[Case]:
    """Pruned and dense; the dense one is the last, and all there is of unpruned layers."""
    groups = (1, 4, 0) if is_pruned(layer) else (0,)
    return [Case(layer, group, device, dtype) for group in groups]


def row(case: Case, folder: Path | None) -> dict[str, Any]:
    """One line of the table; executed instructions only where there is a folder to work in."""
    model = case.model
    result: dict[str, Any] = {
        "workload": case.layer.name,
        "device": case.device,
        "dtype": case.dtype,
        "engine": "tvm-pattern" if case.group else "tvm-pattern dense",
        "group": case.group,
        "sparsity": 1 - case.task.density,
        "config": case.config.as_dict(),
        "static": case.static(),
        "model_ms": model.total / 1e3,
        "bound_by": model.bound,
        "model_us": asdict(model),
        "note": KIND,
    }
    if folder is not None:
        result["executed"] = executed(case, folder)
    return result


def executed(case: Case, folder: Path) -> dict[str, Any]:
    """What the first filters execute, pruned and with all of their weights by the same tile."""
    name = f"{case.device}-{case.group}-{case.layer.size}"
    pruned, dense = case.executed(folder / name), case.executed_dense(folder / f"{name}-dense")
    return {
        **asdict(pruned),
        "over_kept": pruned.multiply_adds / case.kept_multiply_adds(),
        "dense_total": dense.total,
        "dense_over_pruned": dense.total / pruned.total,
    }


def rows(
    layers: Sequence[Layer], counted: Sequence[Layer], dtypes: Sequence[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """All lines; what is counted is float32, which the simulator has."""
    for layer in layers:
        for device in DEVICES:
            for dtype in dtypes:
                for case in cases(layer, device, dtype):
                    counts = dtype == "float32" and layer in counted and case.group > 0
                    yield row(case, folder if counts else None)


def network_rows(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Model milliseconds of the convolutions of whole networks, where all their layers are there.

    An unpruned layer counts as dense in the pruned networks too.
    """
    found = {(r["workload"], r["device"], r["dtype"], r["group"]): r["model_ms"] for r in table}
    result = []
    for name, build in NETWORKS.items():
        times = layers_of(build().eval(), torch.zeros(1, 3, 224, 224))
        for device in DEVICES:
            for dtype in DTYPES:
                for group in (1, 4, 0):
                    keys = [
                        ((la.name, device, dtype, group if is_pruned(la) else 0), n)
                        for la, n in times.items()
                    ]
                    if all(key in found for key, _ in keys):
                        ms = sum(found[key] * n for key, n in keys)
                        line = {"network": name, "device": device, "dtype": dtype, "group": group}
                        result.append({**line, "model_ms": ms})
    return result


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "---|" * len(head)
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(x) + " |" for x in lines)]


def _name(group: int) -> str:
    return f"F = {group}" if group else "dense"


def rankings(cases: Sequence[Case], folder: Path, most: int) -> list[dict[str, Any]]:
    """How the model's order of configurations compares with that of what they execute."""
    return [ranking(case, folder / f"{case.device}-{case.group}", most) for case in cases]


def markdown(
    table: Sequence[dict[str, Any]],
    networks: Sequence[dict[str, Any]],
    ranked: Sequence[dict[str, Any]] = (),
) -> str:
    """The tables as Markdown."""
    parts = [[f"No figure here is a time of a GPU. {KIND}."]]
    if networks:
        parts.append(["Convolutions of whole networks, milliseconds by the model:"])
        parts.append(_network_table(networks))
    counted = [r for r in table if "executed" in r]
    if counted:
        parts.append(["Executed by the first filters of a layer, float32, counted by oclgrind:"])
        parts.append(_executed_table(counted))
    if ranked:
        parts.append(
            [
                "Configurations from the model's first to its last, against the time of the"
                " multiply-adds and loads that oclgrind counted at the same rates:"
            ]
        )
        parts.append(_ranking_table(ranked))
    parts.append(["Layers, by the model and by their source:"])
    parts.append(_layer_table(table))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _network_table(networks: Sequence[dict[str, Any]]) -> list[str]:
    head = ("network", "device", "type", "F = 1", "F = 4", "dense", "dense / F = 1")
    found = {(r["network"], r["device"], r["dtype"], r["group"]): r["model_ms"] for r in networks}
    lines = []
    for name, device, dtype in dict.fromkeys(key[:3] for key in found):
        alone, shared, dense = (found[name, device, dtype, group] for group in (1, 4, 0))
        figures = [f"{v:.1f}" for v in (alone, shared, dense, dense / alone)]
        lines.append([name, device, dtype, *figures])
    return _table(head, lines)


def _ranking_table(ranked: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "layer", "device", "weights", "configurations", "Spearman's rank correlation",
        "model's first / best by execution",
    )  # fmt: skip
    lines = []
    for r in ranked:
        figures = (
            str(len(r["rows"])),
            f"{r['rank_correlation']:.2f}",
            f"{r['first_over_best']:.2f}",
        )
        lines.append([r["workload"], r["device"], _name(r["group"]), *figures])
    return _table(head, lines)


def _executed_table(counted: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "layer", "device", "weights", "million instructions", "multiply-adds / kept",
        "loads / 4 multiply-adds", "dense with this tile, million", "dense / this",
    )  # fmt: skip
    lines = []
    for r in counted:
        x = r["executed"]
        figures = (
            f"{x['total'] / 1e6:.2f}",
            f"{x['over_kept']:.2f}",
            f"{4 * x['global_loads'] / x['multiply_adds']:.2f}",
            f"{x['dense_total'] / 1e6:.2f}",
            f"{x['dense_over_pruned']:.1f}",
        )
        lines.append([r["workload"], r["device"], _name(r["group"]), *figures])
    return _table(head, lines)


def _layer_table(table: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "layer", "device", "type", "weights", "model ms", "bound by", "dense / this",
        "loads / 4 multiply-adds", "computed / wanted", "registers", "tile",
    )  # fmt: skip
    found = {(r["workload"], r["device"], r["dtype"], r["group"]): r["model_ms"] for r in table}
    lines = []
    for r in table:
        c, facts = r["config"], r["static"]
        key = (r["workload"], r["device"], r["dtype"])
        dense = found[key[0], key[1], key[2], 0]
        lines.append(
            [
                *key,
                _name(r["group"]),
                f"{r['model_ms']:.3f}",
                r["bound_by"],
                f"{dense / r['model_ms']:.1f}",
                f"{facts['loads_per_four_multiply_adds']:.2f}",
                f"{facts['computed_over_wanted']:.2f}",
                str(facts["registers"]),
                f"{c['filters']} x {c['tile_rows']} x {c['tile_cols']} x {c['vector_width']} px",
            ]
        )
    return _table(head, lines)


def plot(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Model milliseconds of the layers, pruned and dense."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["workload"] for r in table))
    panels = list(dict.fromkeys((r["device"], r["dtype"]) for r in table))
    found = {(r["device"], r["dtype"], r["group"], r["workload"]): r["model_ms"] for r in table}
    size = (max(10, 0.6 * len(names)), 3.2 * len(panels))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=size, squeeze=False, sharex=True)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for shift, group in ((-0.27, 0), (0.0, 1), (0.27, 4)):
            values = [found.get((*panel, group, name), float("nan")) for name in names]
            axis.bar([i + shift for i in range(len(names))], values, 0.26, label=_name(group))
        axis.set_yscale("log")
        axis.set_ylabel("ms (model)")
        axis.set_title(f"{' '.join(panel)}: roofline model, no measurement", fontsize=9)
    axes[-1, 0].set_xticks(range(len(names)), names, fontsize=7, rotation=30, ha="right")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def print_pocl(layers: Sequence[Layer]) -> None:
    """Times on this computer's OpenCL device, for whoever is curious; they are not kept."""
    print("The next times are of this computer's OpenCL device; they say nothing about phones:")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layer in layers:
            for case in cases(layer, "mali", "float32"):
                bundle = case.bundle(folder / f"{layer.size}-{case.group}")
                command = [sys.executable, str(RUNNER), str(bundle), "--runs", "10"]
                print(f"{layer.name} {_name(case.group)}:", flush=True)
                subprocess.run(command, check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="two small layers, float32")
    parser.add_argument("--only", default="", help="regular expression over layers")
    parser.add_argument("--pocl", action="store_true", help="print times of this computer too")
    options = parser.parse_args(arguments)
    layers: Sequence[Layer] = QUICK
    if not options.quick:
        example = torch.zeros(1, 3, 224, 224)
        found = [layers_of(build().eval(), example) for build in NETWORKS.values()]
        layers = list(dict.fromkeys(layer for times in found for layer in times))
    layers = [layer for layer in layers if re.search(options.only, layer.name)]
    if not layers:
        parser.error(f"--only {options.only!r} matches no layer")
    counted = QUICK[1:] if options.quick else COUNTED
    dtypes = DTYPES[:1] if options.quick else DTYPES
    table: list[dict[str, Any]] = []
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for line in rows(layers, counted, dtypes, Path(folder)):
            table.append(line)
            # A long run that is stopped leaves what it has.
            _write(options.json, table)
            done = f"{line['workload']} {line['device']} {line['dtype']} {_name(line['group'])}"
            print(f"{done}: done", file=sys.stderr)
        ranked_cases = [Case(RANKED, group, device) for device in DEVICES for group in (1, 4)]
        if options.quick:
            ranked_cases = [Case(QUICK[1], 1, DEVICES[0])]
        most = 2 if options.quick else 7
        ranked = [] if options.only else rankings(ranked_cases, Path(folder), most)
    networks = [] if options.quick else network_rows(table)
    _write(options.json, table, networks, ranked)
    text = markdown(table, networks, ranked)
    options.json.with_suffix(".md").write_text(text)
    plot(table, options.json.with_suffix(".png"))
    print(text)
    if options.pocl:
        print_pocl([layer for layer in layers if layer in counted])
    return 0


def _write(
    path: Path,
    table: list[dict[str, Any]],
    networks: Sequence[dict[str, Any]] = (),
    ranked: Sequence[dict[str, Any]] = (),
) -> None:
    data = {"kind": KIND, "networks": [*networks], "ranking": [*ranked], "rows": table}
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
