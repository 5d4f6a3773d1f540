"""Share of the FMA peak that layers reach, for each width of vectors that this machine has.

Run as ``python -m benchmarks.peak_shares --json FILE``. Every layer is pruned to 8.1x (1x1 layers
to 3.6x) at several sharings, and dense; the operator runs alone, at level 0, on one thread, in the
order of pixels that a network of such layers would get. The peak is that of the same width of
vectors, measured in turns with the layers. Times are the thread's own processor time, which leaves
out what other programs took of the core, though not what they did to its caches. ``share`` comes
from the median; ``best`` from the tenth percentile, because code that waits for loads falls by a
quarter in slow phases of shared machines and the peak does not.

Rows of an earlier run on the same processor stay in the file unless they are measured anew, so that
``--only`` can go through the table piece by piece, and with ``--keep-best`` every row is of the
quietest window that it was measured in; ``--objects`` keeps what was compiled.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from relay_passes.targets import resolve
from topi_kernels.devices import DEVICES
from topi_kernels.schedules import x86
from tvm_pattern.atomic import write_file

from . import device as device_info
from .harness import OUR_WORST, OURS, Selection
from .ours import LayerEngine
from .peak import PeakMeter
from .session import JsonOption, OnlyOption, run_main
from .workloads import LayerSpec, dense_weights, load_workloads, sparse_weights

LAYERS = (
    "56x56x64",
    "56x56x256",
    "112x112x128",
    "28x28x512",
    "28x28x128",
    "14x14x256",
    "14x14x512",
    "7x7x512",
    "224x224x64",
    "56x56x128-s2",
    "1x1-14x14x1024-256",
    "1x1-14x14x256-1024",
    "1x1-28x28x512-128",
    "1x1-56x56x64-256",
    "1x1-56x56x256-64",
    "1x1-7x7x2048-512",
)
GROUPS = (1, 2, 4, 8, None)


def _widest() -> str:
    """The tag of this machine's kind of core if it has 512-bit vectors, else that of servers."""
    here = DEVICES.of(resolve("pattern/native")).name
    own = (tag for core in x86.CORES if core.name == here for tag in core.tags)
    return f"pattern/{next(own, x86.SERVER.name)}"


#: Target, and bits of its vectors.
TARGETS = {_widest(): 512, "pattern/x86-avx2": 256}
CALLS_PER_TURN = 3
NOT_MEASURED = "not measured: this machine has no vectors of {} bits"


@dataclass(frozen=True)
class ShareRow:
    """One layer, sharing and target; shares are fractions of the FMA peak of ``bits``-bit vectors.

    Figures are None where nothing was measured; ``note`` says why.
    """

    workload: str
    target: str
    group: int | str
    config: str = ""
    median_ms: float | None = None
    p10_ms: float | None = None
    share: float | None = None
    best: float | None = None
    runs: int = 0
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int | str]:
        return self.workload, self.target, self.group


@dataclass
class Case:
    """A layer built for a target."""

    spec: LayerSpec
    target: str
    group: int | str
    engine: LayerEngine
    samples: list[float]

    def turn(self) -> None:
        """An untimed call and some timed ones."""
        self.engine.run()
        for _ in range(CALLS_PER_TURN):
            start = time.thread_time()
            self.engine.run()
            self.samples.append(time.thread_time() - start)

    def row(self, peak: float) -> ShareRow:
        """The figures; ``peak`` in GFLOP/s."""
        flops = self.engine.plan.workload.effective_flops * 1e-9
        median, p10 = statistics.median(self.samples), float(np.percentile(self.samples, 10))
        return ShareRow(
            self.spec.name,
            self.target,
            self.group,
            self.engine.describe(),
            median * 1e3,
            p10 * 1e3,
            flops / median / peak,
            flops / p10 / peak,
            len(self.samples),
        )


def build_case(spec: LayerSpec, group: int | None, target: str, objects: Path | None) -> Case:
    """Build one layer and hold its output against torch.

    Raises
    ------
    ValueError
        If the output is wrong.
    """
    weight, bias = dense_weights(spec) if group is None else sparse_weights(spec, group)
    example = spec.example()
    # The peak bounds what plain sums reach; Winograd's filtering has fewer products.
    engine = LayerEngine.build(
        weight, bias, example.numpy(), spec, 1, target, objects, winograd=False
    )
    engine.run()
    with torch.inference_mode():
        expected = spec.model(weight, bias)(example).numpy()
    error = float(np.abs(engine.output() - expected).max() / np.abs(expected).max())
    if not error <= OUR_WORST:
        raise ValueError(
            f"{spec.name} at F = {group} on {target} differs from torch by {error:.1e}"
        )
    return Case(spec, target, "dense" if group is None else group, engine, [])


def selected(select: Selection) -> Iterator[tuple[LayerSpec, int | None, str]]:
    """Layer, sharing and target of every row of the table, in its order."""
    layers = {spec.name: spec for spec in load_workloads()[0]}
    for name in LAYERS:
        for target in TARGETS:
            for group in GROUPS:
                if select(f"{name}/{target.removeprefix('pattern/')}", OURS, group):
                    yield layers[name], group, target


def measure(cases: Sequence[Case], peak: PeakMeter, seconds: float) -> list[ShareRow]:
    """Time the cases of one layer by turns for about ``seconds`` each."""
    deadline = time.perf_counter() + seconds * len(cases)
    while not cases[0].samples or time.perf_counter() < deadline:
        for case in cases:
            case.turn()
        peak.sample()
    return [case.row(peak.at_width(TARGETS[case.target])) for case in cases]


def table(rows: Sequence[ShareRow]) -> Table:
    """One line per layer and target: median share and best share at every sharing."""
    out = Table(title="Share of the FMA peak: median, tenth percentile (one thread, level 0)")
    for head in ("layer", "target", *(f"F = {g}" for g in GROUPS if g), "dense"):
        out.add_column(head, justify="left" if head in ("layer", "target") else "right")
    for line in _lines(rows):
        out.add_row(*line)
    return out


def markdown(rows: Sequence[ShareRow], device: dict[str, Any]) -> str:
    """The same as a page."""
    heads = ["layer", "target", *(f"F = {g}" for g in GROUPS if g), "dense"]
    text = [
        "# Share of the FMA peak, operator alone",
        "",
        f"{device['cpu']}, caches {device['caches']}, one thread, level 0, 8.1x (1x1: 3.6x). Each"
        " cell: median of the calls, and their tenth percentile in parentheses. Written by"
        " `python -m benchmarks.peak_shares`.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|---|" + "--:|" * (len(heads) - 2),
        *("| " + " | ".join(line) + " |" for line in _lines(rows)),
    ]
    return "\n".join(text) + "\n"


def _lines(rows: Sequence[ShareRow]) -> Iterator[list[str]]:
    by_key = {row.key: row for row in rows}
    targets = dict.fromkeys([*TARGETS, *(row.target for row in rows)])
    for name in LAYERS:
        for target in targets:
            found = [by_key.get((name, target, g or "dense")) for g in GROUPS]
            if any(found):
                yield [name, target, *(_cell(row) for row in found)]


def _cell(row: ShareRow | None) -> str:
    if row is None:
        return ""
    if row.share is None or row.best is None:
        return row.note
    return f"{row.share:.0%} ({row.best:.0%})"


def earlier_rows(path: Path, cpu: str) -> list[ShareRow]:
    """Rows of a result file if they were measured on the same processor."""
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["device"]["cpu"] != cpu:
        return []
    return [ShareRow(**row) for row in document["rows"]]


def write(path: Path, device: dict[str, Any], peak: PeakMeter, rows: Sequence[ShareRow]) -> None:
    """The JSON file and the page beside it."""
    document = {
        "device": device,
        "fma_peak_gflops": {str(bits): peak.at_width(bits) for bits in peak.widths},
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(document, indent=1) + "\n").encode())
    write_file(path.with_suffix(".md"), markdown(rows, device).encode())


def main(
    json_path: JsonOption = Path("benchmarks/results/peak_shares.json"),
    only: OnlyOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Seconds for each layer and sharing.")
    ] = 1.0,
    objects: Annotated[
        Path | None, typer.Option("--objects", help="Folder that keeps what was compiled.")
    ] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Fill --objects, and measure nothing.")
    ] = False,
    keep_best: Annotated[
        bool,
        typer.Option(
            "--keep-best",
            help="Keep rows of the same configuration that an earlier run had faster.",
        ),
    ] = False,
) -> None:
    """Measure the table of shares."""
    select = Selection(only)
    cores = device_info.pin(1)
    peak, console = PeakMeter(), Console()
    rows: dict[Any, ShareRow] = {}
    pending: dict[str, list[Case]] = {}
    for spec, group, target in selected(select):
        if TARGETS[target] not in peak.widths:
            note = NOT_MEASURED.format(TARGETS[target])
            row = ShareRow(spec.name, target, group or "dense", note=note)
            rows[row.key] = row
            continue
        pending.setdefault(spec.name, []).append(build_case(spec, group, target, objects))
        console.print(f"built {spec.name} {target} F = {group or 'dense'}", highlight=False)
    if build_only:
        return
    for cases in pending.values():
        rows.update({row.key: row for row in measure(cases, peak, seconds)})
    device = device_info.describe(1, cores, {})
    for row in earlier_rows(json_path, device["cpu"]):
        new = rows.setdefault(row.key, row)
        if keep_best and row.config == new.config and (row.best or 0.0) > (new.best or 0.0):
            rows[row.key] = row
    write(json_path, device, peak, list(rows.values()))
    console.print(table(list(rows.values())))


if __name__ == "__main__":
    run_main(main)
