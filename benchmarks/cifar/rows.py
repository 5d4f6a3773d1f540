"""What the study compares, in the order of its worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .networks import NETWORKS, VGG_WIDTHS, Network, resnet20, vgg

PATTERN_RATE = 2.25
SHARE_OF_TAPS = 4 / 9
UNTRAINED = ("projection", "posttrain", "posttrain-blocks")
"""Methods that prune the finished dense network by some images and do not train it again."""
PATTERN_METHODS = ("gradual", "oneshot", "admm", *UNTRAINED)


@dataclass(frozen=True)
class Row:
    """One trained network apart from its seed.

    ``method``: dense; gradual, oneshot, admm (patterns and connectivity); unstructured (magnitude,
    gradual); filter-weights and filter-latency (whole filters, as many weights or as much measured
    time as the gradual row of the rate). Of the finished dense network: projection (batch norms
    recalibrated), posttrain, posttrain-blocks (blocks tuned afterwards).
    """

    network: str
    method: str
    rate: float = 1.0
    library: str = "fixed8"
    group: int = 1
    similar: bool = False

    @property
    def label(self) -> str:
        """Short name without the network."""
        parts = [self.method]
        if self.method != "dense":
            parts.append(f"{self.rate:g}x")
        if self.method in PATTERN_METHODS:
            if self.library != "fixed8":
                parts.append(self.library)
            if self.group != 1:
                parts.append(f"F={self.group} {'similar' if self.similar else 'neighbours'}")
        return " ".join(parts)


def _of_network(network: str) -> list[Row]:
    def row(method: str, rate: float = 8.0, **more: Any) -> Row:
        return Row(network, method, rate, **more)

    return [
        Row(network, "dense"),
        row("gradual"),
        row("filter-latency"),
        row("gradual", PATTERN_RATE),
        row("filter-weights"),
        row("gradual", 4.0),
        row("gradual", 12.0),
        row("gradual", group=4),
        row("gradual", group=4, similar=True),
        row("admm"),
        row("oneshot"),
        row("filter-latency", 4.0),
        # So far the core: see CORE.
        row("gradual", library="pconv4"),
        row("gradual", library="natural8"),
        row("gradual", group=2),
        row("gradual", group=2, similar=True),
        row("gradual", group=8),
        row("gradual", group=8, similar=True),
        row("unstructured"),
        row("filter-latency", 12.0),
        row("filter-weights", 4.0),
        row("filter-weights", 12.0),
        row("oneshot", PATTERN_RATE),
        row("gradual", PATTERN_RATE, library="pconv4"),
        *(row(method, rate) for rate in (PATTERN_RATE, 4.0, 8.0) for method in UNTRAINED),
    ]


CORE = 12
"""So many first rows of a network get their further seeds before the rest does."""


def all_rows(networks: tuple[str, ...] = tuple(NETWORKS)) -> list[Row]:
    """Rows of the networks, the most telling ones of all networks first."""
    tables = [_of_network(network) for network in networks]
    return [row for rows in zip(*tables, strict=True) for row in rows]


def is_core(row: Row) -> bool:
    """Whether the row is one of the first of its network."""
    return row in _of_network(row.network)[:CORE]


def stages(rows: list[Row], seeds: int) -> list[tuple[int, list[Row]]]:
    """Seeds and their rows in the order of their worth: one seed of every row first, then all seeds
    of the core, then those of the rest."""
    core = [row for row in rows if is_core(row)]
    rest = [row for row in rows if not is_core(row)]
    further = [(seed, part) for part in (core, rest) for seed in range(1, seeds)]
    return [(0, rows), *((seed, part) for seed, part in further if part)]


def as_fields(row: Row) -> dict[str, Any]:
    """Fields as saved."""
    return asdict(row)


def from_fields(fields: dict[str, Any]) -> Row:
    """Row of saved fields; others are ignored."""
    return Row(**{key: fields[key] for key in Row.__dataclass_fields__})


# Equal rates ------------------------------------------------------------------------------------


def prunable_share(network: Network, rate: float) -> float:
    """Share of the prunable weights that stays at a rate over all convolution weights."""
    total = network.conv_weights()
    prunable = sum(c.out_channels * c.in_channels * 9 for c in network.prunable)
    share = (total / rate - (total - prunable)) / prunable
    if not share > 0:
        raise ValueError(
            f"{network.name} at {rate}x would keep less than its unpruned layers hold; lower the"
            " rate"
        )
    return min(1.0, share)


def connectivity(network: Network, rate: float) -> float:
    """Kernels before / after in every prunable layer, with 4 of 9 taps in what stays."""
    return max(1.0, SHARE_OF_TAPS / prunable_share(network, rate))


def kept_kernels(shape: tuple[int, ...], rate: float, group: int) -> int:
    """Kernels that a layer keeps, as the pruner counts them."""
    units = shape[0] // group * shape[1]
    return group * max(1, round(units / rate))


def thin(network: str, fraction: float) -> Network:
    """The network with every width scaled."""

    def scaled(width: int) -> int:
        return max(1, round(width * fraction))

    if network == "resnet20":
        return resnet20([scaled(w) for w in (16, 32, 64)])
    return vgg([scaled(w) for w in VGG_WIDTHS])


def fraction_by_weights(network: str, rate: float) -> float:
    """Widest thin network that is at least ``rate`` times smaller, in hundredths."""
    budget = NETWORKS[network]().conv_weights() / rate
    steps = [f / 200 for f in range(10, 201)]
    return max(f for f in steps if thin(network, f).conv_weights() <= budget)


def fraction_by_latency(table: dict[str, Any], network: str, rate: float) -> float:
    """Widest measured thin network that is no slower than the pattern network of ``rate``.

    Parameters
    ----------
    table : dict
        As written by :mod:`benchmarks.cifar.latency`.
    """
    entry = table["networks"][network]
    limit = next(r["ratio"] for r in entry["pattern"] if r["rate"] == rate and r["group"] == 1)
    fitting = [r["fraction"] for r in entry["thin"] if r["ratio"] <= limit]
    if not fitting:
        raise ValueError(
            f"no thin {network} of the latency table is as fast as {limit:.3f} of the dense one;"
            " measure narrower ones"
        )
    return max(fitting)
