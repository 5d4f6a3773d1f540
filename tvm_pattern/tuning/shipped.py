"""The networks that shipped logs are for, and whether the logs serve them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tvm.target import Target

from relay_passes.targets import PREFIX
from topi_kernels.devices import DEVICES

from .. import models
from ..frontend import import_model
from ..pruning import oneshot
from .lookup import ConfigLookup, log_folder
from .tasks import WeightedTask, extract_tasks

#: Filters that share kernels and patterns.
GROUPS = (1, 4)
#: Targets that logs ship for: the first tag of each device that has a folder of its own.
TARGETS = tuple(
    PREFIX + next(iter(device.tags)) for device in DEVICES if (log_folder() / device.name).is_dir()
)


@dataclass(frozen=True)
class Network:
    """A network of :mod:`tvm_pattern.models`, pruned in one shot.

    Parameters
    ----------
    name : str
        Of the function in :mod:`tvm_pattern.models`.
    connectivity, connectivity_1x1 : float
        Rates, see :func:`tvm_pattern.pruning.oneshot`.
    input : tuple of int
    """

    name: str
    connectivity: float = 3.6
    connectivity_1x1: float = 1.0
    input: tuple[int, ...] = (1, 3, 224, 224)


NETWORKS = (
    Network("resnet50", connectivity_1x1=3.6),
    Network("vgg16"),
    Network("mobilenet_v2", connectivity_1x1=3.6),
)


def networks(names: Sequence[str] | None = None) -> list[Network]:
    """The networks of these names, all by default.

    Raises
    ------
    ValueError
        If there is none of a name.
    """
    known = {network.name: network for network in NETWORKS}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"no shipped logs are for {unknown}; expected some of {sorted(known)}")
    return [known[name] for name in names] if names else list(NETWORKS)


def network_tasks(
    network: Network, group: int, targets: Iterable[Target], num_threads: int = 1
) -> list[list[WeightedTask]]:
    """The tasks of a pruned network, one list per target.

    Parameters
    ----------
    network : Network
    group : int
        Filters that share kernels and patterns.
    targets : iterable of tvm.target.Target
    num_threads : int
    """
    model = getattr(models, network.name)().eval()
    oneshot(
        model,
        connectivity=network.connectivity,
        connectivity_1x1=network.connectivity_1x1,
        group=group,
    )
    imported = import_model(model, torch.zeros(network.input))
    structures = imported.structures
    # They were measured in plain rows.
    return [
        extract_tasks(imported.mod, target, num_threads, structures, interleaved_lanes=False)
        for target in targets
    ]


#: How a log serves a task: by a record of the task, by one from before there were as many knobs, by
#: one of a like task, by none that can still be used, by none at all.
EXACT, OLDER, SIMILAR, STALE, MISSING = "exact", "older", "similar", "stale", "missing"


@dataclass(frozen=True)
class Coverage:
    """How the records serve one task."""

    weighted: WeightedTask
    state: str
    reasons: tuple[str, ...] = ()

    @property
    def served(self) -> bool:
        return self.state in (EXACT, OLDER, SIMILAR)


def coverage(tasks: Iterable[WeightedTask], lookup: ConfigLookup) -> list[Coverage]:
    """How the records behind ``lookup`` serve each task."""
    rows = []
    for weighted in tasks:
        found = lookup.find(weighted.task)
        if found.config is None:
            state = STALE if found.skipped else MISSING
        elif not found.exact:
            state = SIMILAR
        else:
            state = OLDER if found.later_knobs else EXACT
        rows.append(Coverage(weighted, state, tuple(dict.fromkeys(found.skipped))))
    return rows
