"""Which bound holds: the operator's instruction mix, and its speed with and without cache misses.

Run as ``python -m benchmarks.bounds --json FILE``. For every 3x3 layer and group the generated
assembly is read (multiply-adds, loads and shuffles of the innermost loops; lanes of padding), and
the operator is timed twice, interleaved: as it is, and with every kernel reading one of the
first in_channels, so that the input stays in the nearest cache. The second figure is what the
instruction mix allows on this core; the distance to the first is the price of L2.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

from relay_passes.targets import resolve
from topi_kernels.fkw import FKW
from topi_kernels.gemm_weights import GemmWeights
from topi_kernels.operator import wasted_share

from . import device as device_info
from .assembly import InnerLoop, inner_loops
from .harness import OURS, Selection
from .ours import TARGET, LayerEngine
from .peak import PeakMeter
from .session import JsonOption, OnlyOption, run_main
from .workloads import LayerSpec, dense_weights, load_workloads, sparse_weights

NEAR_CHANNELS = 4
ROUNDS = 41


@dataclass(frozen=True)
class BoundRow:
    """One layer and group; shares are fractions of the FMA peak measured in the same run.

    ``peak_share`` comes from the median time, ``best_share`` from the tenth percentile: code that
    waits for loads falls by a quarter in slow phases of shared machines, and the peak does not.
    """

    workload: str
    group: int | str
    config: str
    fma: float
    loads_per_fma: float
    shuffles_per_fma: float
    padding_share: float
    median_ms: float
    peak_share: float
    near_ms: float
    near_peak_share: float
    p10_ms: float
    best_share: float
    near_best_share: float


def _near(engine: LayerEngine) -> LayerEngine:
    """The same work on the first in_channels only; the answer is meaningless."""
    plan, packed = engine.plan, engine.plan.packed
    if isinstance(packed, FKW):
        codes = packed.in_channel
        delta = packed.index_encoding == "delta8"
        near = np.zeros_like(codes) if delta else codes % NEAR_CHANNELS
    elif isinstance(packed, GemmWeights):  # inputs are brought in order: no index to change
        return engine
    else:
        codes, step = packed.offset, packed.code.plane_size // packed.code.unit
        near = (codes % (NEAR_CHANNELS * step)).astype(codes.dtype)
    arguments = list(engine.arguments)
    position = 1 + next(i for i, a in enumerate(plan.arrays) if a is codes)
    arguments[position] = tvm.runtime.tensor(near)
    return LayerEngine(plan, engine.function, arguments, engine.num_threads)


def _loops(engine: LayerEngine, target: tvm.target.Target) -> list[InnerLoop]:
    library = tvm.compile(engine.plan.primfunc(), target=target)
    return inner_loops(library.mod.inspect_source("asm"))


def measure_layer(spec: LayerSpec, group: int | None, peak: PeakMeter) -> BoundRow:
    """Read and time one layer on one thread."""
    weight, bias = dense_weights(spec) if group is None else sparse_weights(spec, group)
    engine = LayerEngine.build(weight, bias, spec.example().numpy(), spec, 1)
    loops = _loops(engine, resolve(TARGET))
    near = _near(engine)
    times: dict[str, list[float]] = {"real": [], "near": []}
    for round_number in range(ROUNDS + 2):
        for name, runner in (("real", engine), ("near", near)):
            start = time.thread_time()
            runner.run()
            if round_number >= 2:
                times[name].append(time.thread_time() - start)
        peak.sample()
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = {name: float(np.percentile(values, 10)) for name, values in times.items()}
    flops = engine.plan.workload.effective_flops * 1e-9
    total = sum(loop.fma for loop in loops) or 1
    return BoundRow(
        workload=spec.name,
        group="dense" if group is None else group,
        config=engine.describe(),
        fma=total / max(1, len(loops)),
        loads_per_fma=sum(loop.loads for loop in loops) / total,
        shuffles_per_fma=sum(loop.shuffles for loop in loops) / total,
        padding_share=wasted_share(engine.plan),
        median_ms=medians["real"] * 1e3,
        peak_share=flops / medians["real"] / peak.gflops,
        near_ms=medians["near"] * 1e3,
        near_peak_share=flops / medians["near"] / peak.gflops,
        p10_ms=best["real"] * 1e3,
        best_share=flops / best["real"] / peak.gflops,
        near_best_share=flops / best["near"] / peak.gflops,
    )


def table(rows: list[BoundRow]) -> Table:
    """The rows for a terminal."""
    out = Table(title="What bounds the operator (one thread)")
    heads = [
        "layer",
        "F",
        "loads / FMA",
        "shuffles / FMA",
        "padding",
        "ms",
        "of peak (p10)",
        "L1-hot (p10)",
    ]
    for head in heads:
        out.add_column(head, justify="left" if head == "layer" else "right")
    for r in rows:
        out.add_row(
            r.workload,
            str(r.group),
            f"{r.loads_per_fma:.2f}",
            f"{r.shuffles_per_fma:.2f}",
            f"{r.padding_share:.1%}",
            f"{r.median_ms:.3f}",
            f"{r.peak_share:.1%} ({r.best_share:.1%})",
            f"{r.near_peak_share:.1%} ({r.near_best_share:.1%})",
        )
    return out


def main(
    json_path: JsonOption = Path("benchmarks/results/bounds.json"), only: OnlyOption = None
) -> None:
    """Instruction mix, speed, and speed with the input in L1, layer by layer."""
    select = Selection(only)
    cores = device_info.pin(1)
    peak = PeakMeter()
    layers, _ = load_workloads()
    rows = []
    console = Console()
    for spec in layers:
        if spec.kernel != 3:
            continue
        for group in (*spec.groups, None):
            if select(spec.name, OURS, group):
                rows.append(measure_layer(spec, group, peak))
                console.print(f"{spec.name} F={rows[-1].group}: {rows[-1].peak_share:.1%} of peak")
    console.print(table(rows))
    document = {
        "device": device_info.describe(1, cores, {}),
        "fma_peak_gflops": peak.gflops,
        "rows": [asdict(r) for r in rows],
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
