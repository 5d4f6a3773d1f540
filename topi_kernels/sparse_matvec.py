"""Product of a few rows with a pruned matrix: linear layers whose inputs were removed by blocks.

A linear layer is one whose kernels are 1x1, and it is packed as such (:mod:`topi_kernels.fkw`): the
outputs of a filter_group read the same inputs, so that a vector of their weights meets one input in
every lane, and an index is stored per vector. At batch 1 every weight is used once: the time is
that of reading them, and what is not stored is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from .devices import DEVICES
from .fkw import FKW, pack
from .matvec import MatvecConfig
from .plane_ops import PlaneTarget, load, store
from .primfunc import primfunc_builder
from .schedules.choose import vector_facts
from .schedules.family import Family
from .structure import Structure
from .vector_math import broadcast

GROUPS = (16, 8, 4)
"""Outputs of a filter_group, a vector of weights or two."""
MAX_ROWS = 4
MAX_CHAINS = 4
FREE_SUMS = 8
"""Independent sums that hide the latency of a multiply-add."""

# Fitted to a Zen 4 core (26 GB/s, caches of 16 MB and more); only ratios of the results matter.
NEAR_BYTES = 16 * 1024 * 1024
NEAR_BYTES_PER_CYCLE = 24.0
FAR_BYTES_PER_CYCLE = 6.0
GROUP_CYCLES = 30.0
ENTRY_CYCLES = 0.6
"""Address and the loop's end, for each vector of weights."""
DENSE_OVERHEAD = 1.5
"""What the dense product of several rows reaches less than its multiply-adds allow."""
MIN_GAIN = 1.1
"""Expected gain below which a layer is as well left dense."""


@dataclass(frozen=True)
class SparseMatvecConfig:
    """Register tile of a sparse product.

    Parameters
    ----------
    group : int
        Outputs of a filter_group, a power of two.
    rows : int
        Rows of the input that share a loaded vector of weights.
    chains : int
        Sums of a row that successive weights go to in turn, so that no multiply-add waits for the
        one before.
    """

    group: int
    rows: int = 1
    chains: int = MAX_CHAINS

    def __post_init__(self) -> None:
        if self.group not in GROUPS or not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(f"group must be one of {GROUPS} and rows in 1..{MAX_ROWS}, got {self}")
        if not 1 <= self.chains <= MAX_CHAINS:
            raise ValueError(f"chains must be in 1..{MAX_CHAINS}, got {self}")

    @classmethod
    def fitting(
        cls, group: int, rows: int, lanes: int, registers: int = 2 * FREE_SUMS
    ) -> SparseMatvecConfig:
        """The tile for ``rows`` rows on vectors of ``lanes``.

        In which order a row is summed, its ``chains``, does not depend on how many rows there are:
        a batch gives what its images give.
        """
        vectors = -(-group // lanes)
        chains = max(1, min(MAX_CHAINS, FREE_SUMS // vectors))
        return cls(group, max(1, min(rows, MAX_ROWS, registers // 2 // (chains * vectors))), chains)


@dataclass(frozen=True)
class MatvecChoice:
    """How the product with one matrix is computed.

    Parameters
    ----------
    config : SparseMatvecConfig or None
        None for the dense product.
    gain : float
        Estimated time of the dense product over that of what was chosen.
    cost : float
        Estimate in the unit of a convolution's cost, which is an FMA slot.
    reason : str
        Why a pruned matrix is multiplied densely; empty otherwise.
    """

    config: SparseMatvecConfig | None
    gain: float = 1.0
    cost: float = 0.0
    reason: str = ""


def _memory_cycles(nbytes: float) -> float:
    return nbytes / (NEAR_BYTES_PER_CYCLE if nbytes <= NEAR_BYTES else FAR_BYTES_PER_CYCLE)


def dense_cycles(rows: int, k: int, n: int, family: Family, itemsize: int = 4) -> float:
    """Estimated cycles of :func:`topi_kernels.matvec.matvec`."""
    config = MatvecConfig.fitting(rows, family.vector_registers)
    tile, block = min(rows, config.rows), config.vectors * family.vector_width
    steps = -(-n // block) * k * -(-rows // tile)
    fmas = tile * config.vectors / family.fma_ports
    loads = (tile + config.vectors) / family.load_ports
    compute = steps * max(fmas, loads) * DENSE_OVERHEAD
    return max(_memory_cycles(-(-n // block) * k * block * itemsize), compute)


def sparse_cycles(
    structure: Structure, rows: int, group: int, family: Family, itemsize: int = 4
) -> float:
    """Estimated cycles of :func:`sparse_matvec` with filter_groups of ``group``."""
    config = SparseMatvecConfig.fitting(group, rows, family.vector_width, family.vector_registers)
    lengths = [int(structure.kept[c[0]].sum()) for c in structure.classes]
    counts = [-(-len(c) // group) for c in structure.classes]
    entries = sum(length * count for length, count in zip(lengths, counts, strict=True))
    vectors = -(-group // family.vector_width)
    fmas = config.rows * vectors / family.fma_ports
    loads = (config.rows + vectors + 1) / family.load_ports
    latency = family.fma_latency / config.chains
    turns = -(-rows // config.rows)
    step = max(fmas, loads, latency) + ENTRY_CYCLES
    compute = turns * (entries * step + sum(counts) * GROUP_CYCLES * config.rows)
    index = 1 if structure.shape[1] <= 256 or entries * 16 > sum(counts) * structure.shape[1] else 2
    return max(_memory_cycles(entries * (group * itemsize + index)), compute)


def choose(structure: Structure, rows: int, target: PlaneTarget) -> MatvecChoice:
    """The cheapest product with a matrix of this structure.

    Parameters
    ----------
    structure : Structure
        ``[n, k, 1, 1]``.
    rows : int
        Rows of the input.
    target : PlaneTarget
    """
    n, k = structure.shape[:2]
    facts = vector_facts(DEVICES.named(target.family).facts)
    if structure.kept_weights == structure.kept.size:
        return MatvecChoice(None)
    if facts is None:
        reason = f"no sparse product for the device {target.family!r}; multiplied densely"
        return MatvecChoice(None, reason=reason)
    itemsize = np.dtype(target.dtype).itemsize
    dense = dense_cycles(rows, k, n, facts, itemsize)
    cycles = {g: sparse_cycles(structure, rows, g, facts, itemsize) for g in GROUPS}
    group = min(GROUPS, key=lambda g: cycles[g])
    gain = dense / cycles[group]
    if gain < MIN_GAIN:
        reason = (
            f"expected {gain:.2f}x of the dense product: at least {GROUPS[-1]} neighbouring outputs"
            " have to share their inputs; multiplied densely"
        )
        return MatvecChoice(None, cost=dense * facts.fma_ports, reason=reason)
    cost = cycles[group] * facts.fma_ports
    config = SparseMatvecConfig.fitting(group, rows, target.lanes, facts.vector_registers)
    return MatvecChoice(config, gain, cost)


def pack_matrix(weight: np.ndarray, structure: Structure, config: SparseMatvecConfig) -> FKW:
    """Pack ``[n, k]`` for :func:`sparse_matvec`.

    Raises
    ------
    ValueError
        If the weights are not finite, or not zero where the structure has removed them.
    """
    return pack(weight[:, :, None, None], config.group, kept=structure.kept)


def packed_arrays(packed: FKW) -> list[np.ndarray]:
    """What the operator takes between its input and its output."""
    return [packed.filter_order, packed.group_start, packed.in_channel, packed.weights]


class _Product:
    """Emits the product of one filter_group with one tile of rows."""

    def __init__(
        self, buffers: Sequence[tirx.Buffer], config: SparseMatvecConfig, lanes: int, *, delta: bool
    ) -> None:
        self.x, self.order, self.start, self.in_channel, self.weights, self.out = buffers
        self.config, self.delta = config, delta
        self.lanes = min(lanes, config.group)
        self.vectors = config.group // self.lanes

    def _sums(self) -> list[list[tirx.Buffer]]:
        """``[chain][row]``, each as wide as the group, all zero."""
        sums = []
        for _ in range(self.config.chains):
            row = []
            for _ in range(self.config.rows):
                total = T.alloc_buffer((self.config.group,), "float32", scope="global")
                for v in range(self.vectors):
                    store(total, broadcast(0.0, self.lanes), [v * self.lanes], self.lanes)
                row.append(total)
            sums.append(row)
        return sums

    def _entry(self, k: Any, channel: Any, first_row: Any, sums: list[tirx.Buffer]) -> None:
        code = T.Bind(T.Cast("int32", self.in_channel[k]))
        if self.delta:
            T.buffer_store(channel, channel[0] + code, [0])
            code = T.Bind(channel[0])
        inputs = [
            T.Bind(broadcast(load(self.x, [first_row + r, code], 1), self.lanes))
            for r in range(self.config.rows)
        ]
        for v in range(self.vectors):
            at = k * self.config.group + v * self.lanes
            weights = T.Bind(load(self.weights, [at], self.lanes))
            for total, value in zip(sums, inputs, strict=True):
                added = load(total, [v * self.lanes], self.lanes) + weights * value
                store(total, added, [v * self.lanes], self.lanes)

    def emit(self, group: Any, first_row: Any) -> None:
        begin, end = T.Bind(self.start[group]), T.Bind(self.start[group + 1])
        chains = self.config.chains
        sums = self._sums()
        channel: Any = None
        if self.delta:
            channel = T.alloc_buffer((1,), "int32", scope="global")
            T.buffer_store(channel, tirx.const(0, "int32"), [0])
        turns = T.Bind((end - begin) // chains)
        with T.serial(0, turns) as turn:
            for chain, row in enumerate(sums):
                self._entry(T.Bind(begin + turn * chains + chain), channel, first_row, row)
        with T.serial(begin + turns * chains, end) as k:
            self._entry(k, channel, first_row, sums[0])
        for row in sums[1:]:
            for total, part in zip(sums[0], row, strict=True):
                for v in range(self.vectors):
                    at = [v * self.lanes]
                    store(
                        total,
                        load(total, at, self.lanes) + load(part, at, self.lanes),
                        at,
                        self.lanes,
                    )
        self._store(group, first_row, sums[0])

    def _store(self, group: Any, first_row: Any, sums: list[tirx.Buffer]) -> None:
        with T.serial(0, self.config.group) as slot:
            column = T.Bind(T.Cast("int32", self.order[group * self.config.group + slot]))
            with T.If(column < int(self.out.shape[1])), T.Then():
                for r, total in enumerate(sums):
                    store(self.out, total[slot], [first_row + r, column], 1)


def sparse_matvec(
    rows: int, packed: FKW, target: PlaneTarget, config: SparseMatvecConfig
) -> tirx.PrimFunc:
    """``(x[rows, k], *packed_arrays, out[rows, n])`` with ``out = x @ weight.T``.

    Parallel over filter_groups. Sums are float32 whatever the tensors hold.

    Raises
    ------
    ValueError
        If the weights were packed for another group, or are not those of 1x1 kernels.
    """
    if packed.group != config.group or packed.kernel_size != (1, 1) or len(packed.patterns) != 1:
        raise ValueError(
            f"packed {packed.kernel_size} kernels in groups of {packed.group}; expected 1x1 kernels"
            f" in groups of {config.group}: pack them by pack_matrix"
        )
    tile = min(config.rows, rows)
    config = SparseMatvecConfig(config.group, tile, config.chains)
    arrays = packed_arrays(packed)
    names = ("filter_order", "group_start", "in_channel", "weights")
    with primfunc_builder("sparse_matvec") as ib:
        x = T.arg("x", T.Buffer((rows, packed.in_channels), target.dtype))
        data = [
            T.arg(name, T.Buffer(array.shape, str(array.dtype)))
            for name, array in zip(names, arrays, strict=True)
        ]
        out = T.arg("out", T.Buffer((rows, packed.out_channels), target.dtype))
        delta = packed.index_encoding == "delta8"
        product = _Product([x, *data, out], config, target.lanes, delta=delta)
        loop = T.parallel if target.num_threads > 1 else T.serial
        with loop(0, packed.num_groups) as group, T.serial(0, -(-rows // tile)) as t:
            product.emit(group, T.Bind(T.min(t * tile, rows - tile)))
    return ib.get()
