"""One process of the two-process test: prints nothing, writes what it ended with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.pruning.small import CONFIG, make_net, run
from tvm_pattern.pruning import Admm, Gradual, PatternConfig, Pruner


def train_and_prune(method: Admm | Gradual, target: Path) -> None:
    rank = dist.get_rank()
    # Different weights on each process until DDP wraps the model: masks must still agree.
    model = make_net(seed=rank)
    config = PatternConfig.from_dict({**CONFIG.to_dict(), "library": 6})
    pruner = Pruner(model, config, method)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    pruner.attach(optimizer)
    start = 1000 * rank  # every process sees other images
    run(wrapped, optimizer, pruner, start, start + 20, freeze_at=start + 15)
    pruner.recalibrate_bn([torch.randn(4, 3, 6, 6)])
    report = pruner.finalize()
    layer = report.assignment["3"]
    state = {
        "pattern_id": layer.pattern_id,
        "library": layer.pattern_set.to_json(),
        "weight": model[3].weight.detach(),
        "running_mean": model[4].running_mean,
    }
    torch.save(state, target)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for method in (Gradual(steps=4), Admm(steps=4)):
        train_and_prune(method, Path(folder) / f"{method.name}{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
