"""Accuracy of pruning methods on digits: ``python -m benchmarks.accuracy --json FILE``.

Every method starts from the same trained network of a seed, gets the same number of epochs, and is
counted at the same real compression rate over all convolution weights. Settings were chosen by
validation images of other seeds (``TUNING_SEEDS``), which hold no test image.

The run is resumable: finished rows of FILE are skipped. Beside FILE, the same name with ``.md`` and
``.png`` hold the table and the plot.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import nn

from benchmarks import digits
from benchmarks.accuracy_summary import write_summary
from tvm_pattern.posttrain import posttrain
from tvm_pattern.pruning import (
    Admm,
    Gradual,
    LibrarySpec,
    OneShot,
    PatternConfig,
    Pruner,
    Rule,
    apply_assignment,
    recalibrate_bn,
)
from tvm_pattern.pruning.sharing import Sharing

RATES = (8, 12, 16)
GROUPS = (2, 4, 8, 16)
LIBRARIES = ("natural4", "natural12", "natural56", "fixed8", "phased8")
DEFAULT_LIBRARY = "natural8"
SWEEP_RATE = 12
POSTTRAIN_RATES = (4, 8, 12, 16)
BLOCK_STEPS = 400
"""Steps for each block of ``posttrain-blocks``."""
TUNING_SEEDS = (100, 101, 102)
RATE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Settings:
    """Training settings, the same for all methods unless a field names one.

    ``epochs``: what every method gets after the common pre-training; gradual and ADMM spend
    ``gradual_epochs`` and ``admm_epochs`` of them at a constant rate before the freeze.

    ``allocation``: a layer of n weights keeps a share proportional to ``n ** -allocation`` of them;
    0 prunes all layers alike. All methods but filter pruning follow it.
    """

    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4
    pretrain_epochs: int = 30
    pretrain_lr: float = 0.05
    epochs: int = 50
    lr: float = 0.1
    allocation: float = 0.5
    gradual_epochs: int = 12
    ramp_epochs: int = 10
    admm_epochs: int = 24
    admm_rho: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    admm_dual_step: float = 0.2
    filter_shaped_allocation: float = 0.5


@dataclass(frozen=True)
class Trial:
    """One row of the study, apart from its seed."""

    method: str
    rate: int = 1
    group: int = 1
    library: str = DEFAULT_LIBRARY
    sharing: Sharing = "neighbours"

    @property
    def label(self) -> str:
        extra = "" if self.group == 1 else f" group {self.group} {self.sharing}"
        extra += "" if self.library == DEFAULT_LIBRARY else f" {self.library}"
        return f"{self.method}{extra}"


def main_trials() -> list[Trial]:
    """Methods against each other. ``filter`` narrows all layers alike, ``filter-shaped`` the wide
    ones more, as the other methods' allocation does."""
    methods = ("unstructured", "oneshot", "gradual", "admm", "filter", "filter-shaped")
    return [Trial("dense"), *(Trial(method, rate) for rate in RATES for method in methods)]


def sweep_trials() -> list[Trial]:
    """One thing changed at a time, at one rate."""
    kinds: tuple[Sharing, ...] = ("neighbours", "similar")
    rows = [Trial("gradual", SWEEP_RATE, group=g, sharing=s) for g in GROUPS for s in kinds]
    rows += [Trial("gradual", SWEEP_RATE, library=name) for name in LIBRARIES]
    rows += [Trial("posttrain", rate) for rate in POSTTRAIN_RATES]
    rows += [Trial("posttrain", 8, group=4, sharing=s) for s in kinds]
    rows += [Trial("posttrain-blocks", rate) for rate in POSTTRAIN_RATES]
    return [*rows, Trial("admm-separate", SWEEP_RATE)]


# Training -------------------------------------------------------------------------------------


def make_sgd(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def cosine(lr: float, epochs: int) -> Callable[[float], float]:
    return lambda epoch: max(1e-5, lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))


def train(
    model: nn.Module,
    data: digits.Split,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    lr_at: Callable[[float], float],
    generator: torch.Generator,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train for ``epochs``; ``lr_at`` takes the epoch with its fraction."""
    model.train()
    for epoch in range(epochs):
        images = data.bank[epoch % len(data.bank)]
        order = torch.randperm(len(images), generator=generator)
        batches = order[: len(order) // settings.batch_size * settings.batch_size].split(
            settings.batch_size
        )
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(epoch + step / len(batches))
            loss = F.cross_entropy(model(images[batch]), data.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after_epoch()


def pretrain(seed: int, data: digits.Digits, settings: Settings) -> nn.Sequential:
    """The trained dense network that every method of a seed starts from."""
    torch.manual_seed(seed)
    model = digits.network()
    lr = cosine(settings.pretrain_lr, settings.pretrain_epochs)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_sgd(model, settings)
    train(model, data, settings, optimizer, settings.pretrain_epochs, lr, generator)
    return model


# Equal rates ------------------------------------------------------------------------------------


def conv_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def compression_rate(model: nn.Module) -> float:
    """Convolution weights of the dense network / non-zero convolution weights of ``model``."""
    dense = sum(w.numel() for w in conv_weights(digits.network()).values())
    return dense / sum(int(torch.count_nonzero(w)) for w in conv_weights(model).values())


def layer_densities(rate: float, allocation: float, ceiling: float) -> dict[str, float]:
    """Share of weights that each layer keeps so that the whole network has ``rate``.

    The first layer stays dense and is counted. ``ceiling`` bounds a layer's share.
    """
    sizes = {name: w.numel() for name, w in conv_weights(digits.network()).items()}
    total = sum(sizes.values())
    first = next(iter(sizes))
    budget = total / rate - sizes.pop(first)
    low, high = 0.0, float(total)
    for _ in range(100):
        scale = (low + high) / 2
        shares = {n: min(ceiling, scale * s**-allocation) for n, s in sizes.items()}
        low, high = (
            (low, scale) if sum(shares[n] * s for n, s in sizes.items()) > budget else (scale, high)
        )
    return shares


def pattern_config(trial: Trial, settings: Settings) -> PatternConfig:
    """Per-layer connectivity for the trial's rate with 4-of-9 patterns."""
    shares = layer_densities(trial.rate, settings.allocation, 4 / 9)
    name = trial.library
    library: Any = name
    if name.startswith("natural") and name != "natural56":
        library = int(name.removeprefix("natural"))
    if name == "phased8":
        library = LibrarySpec(source="phased", size=8)
    return PatternConfig(
        library=library,
        group=trial.group,
        sharing=trial.sharing,
        first="skip",
        rules=tuple(Rule(name=n, connectivity=4 / 9 / s) for n, s in shares.items()),
    )


# Methods ----------------------------------------------------------------------------------------


def run_dense(
    model: nn.Sequential, data: digits.Digits, trial: Trial, s: Settings, g: torch.Generator
) -> tuple[nn.Module, dict[str, float]]:
    train(model, data, s, make_sgd(model, s), s.epochs, cosine(s.lr, s.epochs), g)
    return model, {}


def run_unstructured(
    model: nn.Sequential, data: digits.Digits, trial: Trial, s: Settings, g: torch.Generator
) -> tuple[nn.Module, dict[str, float]]:
    """Magnitude pruning at once, per layer, then retraining with fixed masks."""
    shares = layer_densities(trial.rate, s.allocation, 1.0)
    weights = conv_weights(model)
    removed = {}
    for name, share in shares.items():
        flat = weights[name].detach().abs().flatten()
        order = torch.sort(flat, stable=True).indices
        gone = torch.zeros_like(flat, dtype=torch.bool)
        gone[order[: len(flat) - round(share * len(flat))]] = True
        removed[name] = gone.view(weights[name].shape)

    def mask(*_: Any) -> None:
        with torch.no_grad():
            for name, gone in removed.items():
                weights[name].masked_fill_(gone, 0)

    mask()
    optimizer = make_sgd(model, s)
    optimizer.register_step_post_hook(mask)
    train(model, data, s, optimizer, s.epochs, cosine(s.lr, s.epochs), g)
    return model, {}


def filter_widths(rate: float, allocation: float) -> tuple[int, ...]:
    """Widest network at least ``rate`` times smaller; narrow layers keep more if allocation > 0."""
    dense = sum(w.numel() for w in conv_weights(digits.network()).values())
    best: tuple[int, ...] = ()
    for scale in np.linspace(0.02, 1, 2000):
        widths = tuple(
            0 if c == 0 else min(c, max(1, round(c * scale * (16 / c) ** allocation)))
            for c in digits.CHANNELS
        )
        size, before = 0, 1
        for width in (w for w in widths if w):
            size += 9 * before * width
            before = width
        if size * rate <= dense:
            best = widths
    return best


def run_filter(
    model: nn.Sequential, data: digits.Digits, trial: Trial, s: Settings, g: torch.Generator
) -> tuple[nn.Module, dict[str, float]]:
    """Whole filters of largest norm kept, the smaller network retrained."""
    allocation = s.filter_shaped_allocation if trial.method == "filter-shaped" else 0.0
    small = digits.network(filter_widths(trial.rate, allocation))
    kept = torch.arange(1)
    with torch.no_grad():
        for big, little in zip(model, small, strict=True):
            if isinstance(big, nn.Conv2d):
                norms = big.weight.flatten(1).norm(dim=1)
                chosen = norms.topk(little.weight.shape[0]).indices.sort().values
                little.weight.copy_(big.weight[chosen][:, kept])
                kept = chosen
            elif isinstance(big, nn.BatchNorm2d):
                for key in ("weight", "bias", "running_mean", "running_var"):
                    getattr(little, key).copy_(getattr(big, key)[kept])
            elif isinstance(big, nn.Linear):
                little.weight.copy_(big.weight[:, kept])
                little.bias.copy_(big.bias)
    train(small, data, s, make_sgd(small, s), s.epochs, cosine(s.lr, s.epochs), g)
    return small, {}


def hard_accuracy(
    model: nn.Module, pruner: Pruner, data: digits.Digits, s: Settings
) -> dict[str, float]:
    """Accuracy before any retraining: as projected, and after batch norm recalibration."""
    hard = copy.deepcopy(model)
    apply_assignment(hard, pruner.projected())
    figures = {"hard_test": digits.accuracy(hard, data.test)}
    figures["hard_validation"] = digits.accuracy(hard, data.validation)
    recalibrate_bn(hard, data.bank[0].split(s.batch_size), batches=len(data.labels) // s.batch_size)
    figures["hard_bn_test"] = digits.accuracy(hard, data.test)
    return figures


def run_pattern(
    model: nn.Sequential, data: digits.Digits, trial: Trial, s: Settings, g: torch.Generator
) -> tuple[nn.Module, dict[str, float]]:
    """Patterns and connectivity by one-shot, gradual or ADMM pruning, then masked retraining."""
    methods: dict[str, tuple[OneShot | Gradual | Admm, int]] = {
        "oneshot": (OneShot(), 0),
        "gradual": (Gradual(steps=s.ramp_epochs), s.gradual_epochs),
    }
    for name, separate in (("admm", False), ("admm-separate", True)):
        admm = Admm(
            steps=s.admm_epochs,
            rho=s.admm_rho,
            dual_step=s.admm_dual_step,
            separate=separate,
        )
        methods[name] = (admm, s.admm_epochs)
    method, before = methods[trial.method]
    optimizer = make_sgd(model, s)
    pruner = Pruner(model, pattern_config(trial, s), method).attach(optimizer)
    train(model, data, s, optimizer, before, lambda _: s.lr, g, pruner.step)
    figures = hard_accuracy(model, pruner, data, s)
    if pruner.history and "residual" in pruner.history[-1]:
        figures["residual"] = pruner.history[-1]["residual"]
    pruner.freeze()
    if trial.method != "gradual":
        pruner.recalibrate_bn(data.bank[0].split(s.batch_size), len(data.labels) // s.batch_size)
    after = s.epochs - before
    train(model, data, s, optimizer, after, cosine(s.lr, after), g)
    pruner.finalize()
    return model, figures


def run_posttrain(
    model: nn.Sequential, data: digits.Digits, trial: Trial, s: Settings, g: torch.Generator
) -> tuple[nn.Module, dict[str, float]]:
    """Pruned by the training images without their labels; ``posttrain-blocks`` tunes blocks too."""
    config = pattern_config(trial, s)
    figures = hard_accuracy(model, Pruner(model, config, OneShot()), data, s)
    posttrain(
        model,
        list(data.bank[0].split(s.batch_size)),
        group=config.group,
        library=config.library,
        sharing=config.sharing,
        first=config.first,
        rules=config.rules,
        reconstruct=BLOCK_STEPS if trial.method == "posttrain-blocks" else 0,
        progress=False,
    )
    return model, figures


RUNNERS = {
    "dense": run_dense,
    "posttrain": run_posttrain,
    "posttrain-blocks": run_posttrain,
    "unstructured": run_unstructured,
    "filter": run_filter,
    "filter-shaped": run_filter,
}


def run_trial(
    trial: Trial, seed: int, data: digits.Digits, dense: nn.Sequential, settings: Settings
) -> dict[str, Any]:
    """One finished row."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(7 + seed)
    torch.manual_seed(7 + seed)
    runner = RUNNERS.get(trial.method, run_pattern)
    model, figures = runner(copy.deepcopy(dense), data, trial, settings, generator)
    rate = compression_rate(model)
    # Whole filters come in steps, so filter pruning may be smaller (never larger) than asked.
    if rate < trial.rate * (1 - RATE_TOLERANCE):
        raise RuntimeError(f"{trial}: the real rate is {rate:.2f}, asked {trial.rate}")
    return {
        **asdict(trial),
        "seed": seed,
        "compression_rate": rate,
        "validation": digits.accuracy(model, data.validation),
        "test": digits.accuracy(model, data.test),
        **figures,
        "seconds": time.perf_counter() - start,
    }


# The study --------------------------------------------------------------------------------------


def quick_settings(settings: Settings) -> Settings:
    """A few epochs, to see that everything runs; the figures mean nothing."""
    return replace(
        settings,
        pretrain_epochs=2,
        epochs=3,
        gradual_epochs=2,
        ramp_epochs=1,
        admm_epochs=2,
    )


def device_facts() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def read_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same settings."""
    if not path.is_file():
        return []
    known = json.loads(path.read_text())
    if known["settings"] != settings:
        raise SystemExit(
            f"{path} was measured with other settings; remove it or give another --json file"
        )
    return known["rows"]


def trial_of(row: dict[str, Any]) -> Trial:
    """Trial of a finished row; those of before filters alike could share name no sharing."""
    sharing = row.get("sharing", "neighbours")
    return Trial(row["method"], row["rate"], row["group"], row["library"], sharing)


def run_study(
    path: Path, wanted: list[Trial], seeds: int, settings: Settings, console: Console
) -> dict[str, Any]:
    """Measure what is missing in ``path`` and save after every row."""
    facts = json.loads(json.dumps(asdict(settings)))
    rows = read_rows(path, facts)
    done = {(trial_of(row), row["seed"]) for row in rows}
    study = {"device": device_facts(), "settings": facts, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    main = set(main_trials())
    with Progress(console=console) as progress:
        task = progress.add_task("study", total=len(wanted) * seeds)
        # All seeds of the main comparison first: an interrupted run is then still of use.
        for part, seed in itertools.product((True, False), range(seeds)):
            trials = [t for t in wanted if (t in main) == part]
            missing = [t for t in trials if (t, seed) not in done]
            progress.advance(task, len(trials) - len(missing))
            if not missing:
                continue
            data = digits.load(seed)
            dense = pretrain(seed, data, settings)
            for trial in missing:
                row = run_trial(trial, seed, data, dense, settings)
                rows.append(row)
                partial = path.with_suffix(".part")
                partial.write_text(json.dumps(study, indent=1))
                os.replace(partial, path)
                progress.advance(task)
                progress.console.print(
                    f"seed {seed} {trial.rate:>2}x {trial.label:<22} test {row['test']:.2f}"
                )
    return study


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results, resumed if present")
    parser.add_argument("--quick", action="store_true", help="few epochs and trials, 1 seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="trials whose method and rate contain this")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    torch.set_num_threads(1)
    settings, seeds = Settings(), options.seeds
    wanted = [*main_trials(), *sweep_trials()]
    if options.quick:
        settings, seeds = quick_settings(settings), 1
        wanted = [t for t in wanted if t.rate in (1, SWEEP_RATE)]
    wanted = [t for t in wanted if options.only in f"{t.label} {t.rate}x"]
    if not wanted:
        parser.error(f"--only {options.only!r} matches no trial")
    console = Console(stderr=True)
    study = run_study(options.json, wanted, seeds, settings, console)
    write_summary(study, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
