"""The study: ``python -m benchmarks.cifar --data PATH --json FILE.jsonl``.

PATH is a folder or a tar file of CIFAR-10. Needs torch, numpy and pillow, and on a CUDA GPU triton;
never TVM. Finished rows of FILE are skipped, an interrupted batch goes on from its checkpoint in
``FILE.work`` (``--work``). ``python -m benchmarks.cifar.summary FILE`` makes table and plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from . import data
from .networks import NETWORKS
from .operators import FusedOperators, ModuleOperators, Operators
from .probe import probe, verify
from .rows import all_rows
from .study import Results, ResultsError, Study
from .training import Settings, Trainer

QUICK = Settings(pretrain_epochs=2, epochs=3, prune_epochs=2, batch_size=32, warmup_epochs=0.5)


def arguments() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.cifar", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder or tar file of CIFAR-10")
    parser.add_argument("--json", type=Path, required=True, help="results, resumed if present")
    parser.add_argument("--work", type=Path, help="checkpoints (default: FILE.work)")
    parser.add_argument("--cache", type=Path, help="where decoded images are kept (.npz)")
    parser.add_argument("--latency", type=Path, help="table of benchmarks.cifar.latency")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="default: all")
    parser.add_argument(
        "--only", action="append", help="rows whose label contains this, or one of these"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, help="rows at once (default: 12 on CUDA, 1 on CPU)")
    parser.add_argument("--epochs", type=int, help="epochs of every row")
    parser.add_argument("--pretrain-epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, help="highest learning rate, of SGD")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of activations")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"))
    parser.add_argument(
        "--reserve-seconds", type=float, default=10.0, help="of the budget, against slow batches"
    )
    parser.add_argument("--checkpoint-seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, help="processes for decoding and compiling")
    parser.add_argument("--operators", choices=["fused", "plain"], help="default: fused on CUDA")
    parser.add_argument("--quick", action="store_true", help="synthetic images, a few steps")
    parser.add_argument("--probe", action="store_true", help="check the device and its speed only")
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings with what the command line changes."""
    settings = QUICK if options.quick else Settings()
    if options.epochs is not None:
        settings = replace(
            settings, epochs=options.epochs, prune_epochs=max(1, options.epochs // 2)
        )
    names = ("pretrain_epochs", "batch_size", "lr")
    given = {name: getattr(options, name) for name in names}
    return replace(settings, **{n: value for n, value in given.items() if value is not None})


def operators_of(
    device: torch.device, dtype: torch.dtype, workers: int | None, wanted: str | None
) -> Operators:
    """Fused kernels on CUDA, plain torch elsewhere, unless one is asked for."""
    if wanted == "plain" or device.type != "cuda":
        return ModuleOperators()
    from .precompile import precompile

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    operators = FusedOperators()
    for note in precompile(operators, dtype, workers):
        print(f"note: {note}", flush=True)
    return operators


def main(values: list[str] | None = None) -> int:
    """Run the study; 0 also when the budget ended it."""
    began = time.monotonic()
    parser = arguments()
    options = parser.parse_args(values)
    if options.data is None and not options.quick:
        parser.error("--data is needed: a folder or a tar file of CIFAR-10 (or --quick)")
    if options.seeds < 1 or (options.members or 1) < 1:
        parser.error(f"--seeds and --members: at least 1, got {options.seeds}, {options.members}")
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rows = all_rows(tuple(options.network or NETWORKS))
    wanted = options.only or [""]
    rows = [row for row in rows if any(part in row.label for part in wanted)]
    latency = json.loads(options.latency.read_text()) if options.latency else None
    if latency is None:
        left_out = [row for row in rows if row.method == "filter-latency"]
        rows = [row for row in rows if row not in left_out]
        if left_out:
            print(f"{len(left_out)} filter-latency rows left out: no --latency table", flush=True)
    if not rows:
        parser.error(f"--only {wanted} matches no row")
    try:
        if options.quick:
            arrays = data.synthetic(64, 40)
        else:
            arrays = data.load(options.data, options.cache, options.workers)
        print(f"images after {time.monotonic() - began:.1f} s", flush=True)
        operators = operators_of(device, dtype, options.workers, options.operators)
        print(f"operators after {time.monotonic() - began:.1f} s", flush=True)
        images = data.DeviceData(arrays, device, dtype, operators.image_channels)
        trainer = Trainer(
            images,
            settings_of(options),
            operators,
            began + options.budget_seconds,
            options.checkpoint_seconds,
        )
        if options.probe:
            probe(trainer, options.json)
            return 0
        if isinstance(operators, FusedOperators):
            verify(trainer, dict.fromkeys(row.network for row in rows))
            print(f"kernels verified after {time.monotonic() - began:.1f} s", flush=True)
        members = options.members or (12 if device.type == "cuda" else 1)
        study = Study(trainer, Results.read(options.json), rows, options.seeds, members, latency)
        study.say = lambda text: print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)
        study.folder, study.reserve = options.work, options.reserve_seconds
        finished = study.run()
    except (data.DataError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in getattr(getattr(operators, "engine", None), "notes", []):
        print(f"note: {note}", flush=True)
    print("finished" if finished else "out of time; the same command goes on", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
