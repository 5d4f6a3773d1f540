"""A roofline model of the convolution: which of arithmetic, loads and memory bounds a config.

It ranks configurations without a device. Its times come from public rates, and are no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ...geometry import ConvGeometry
from ..search_space import ConvShape
from .config import GLOBAL, TEXTURE, GpuConfig, GpuFacts
from .local_tile import BARRIERS, LocalTile, local_tile
from .reuse import Chunks, KernelCounts, Taps, chunks_of, kernel_counts

#: Operations on integers for each kernel: its index, its addresses, the loop.
KERNEL_OVERHEAD = 12.0
#: Operations of the epilogue and the store for each output.
OUTPUT_OVERHEAD = 4.0
#: Registers for addresses, loop and counters.
ADDRESS_REGISTERS = 10
#: A load takes the time of one of 128 bits, however few it brings.
MIN_LOAD_BYTES = 16
#: A load that begins anywhere lies in two lines of 64 bytes, and is two, for 3 of 16 places.
ANYWHERE_LOADS = 1.0 + 3.0 / 16.0
#: Clocks that a wave waits at a barrier, about the latency of local memory.
BARRIER_CLOCKS = 32.0
#: By how many standard deviations the longest of so many lists exceeds their mean, of 1 to 8.
LONGEST_OF = (0.0, 0.56, 0.85, 1.03, 1.16, 1.27, 1.35, 1.42)
#: Waves of a core that hide the latency of a load.
WAVES_IN_FLIGHT = 8


@dataclass(frozen=True)
class Roofline:
    """Estimated microseconds of a launch by what bounds them.

    Parameters
    ----------
    arithmetic, loads, memory : float
    launch : float
    """

    arithmetic: float
    loads: float
    memory: float
    launch: float

    @property
    def total(self) -> float:
        """Microseconds of the launch."""
        return max(self.arithmetic, self.loads, self.memory) + self.launch

    @property
    def bound(self) -> str:
        """``arithmetic``, ``loads`` or ``memory``."""
        rates = {"arithmetic": self.arithmetic, "loads": self.loads, "memory": self.memory}
        return max(rates, key=lambda name: rates[name])


@lru_cache(maxsize=65536)
def _counts(geometry: ConvGeometry, config: GpuConfig, taps: Taps, chunks: Chunks) -> KernelCounts:
    return kernel_counts(geometry, config, taps, chunks)


def loads_of(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> Chunks:
    """The loads of a convolution's inputs."""
    layouts = (shape.in_layout, shape.out_layout)
    return chunks_of(config, shape.geometry, *layouts, facts.vector_width)


def local_tile_of(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> LocalTile:
    """The local copy of a work_group whose ``input_tile`` is local."""
    layouts = (shape.in_layout, shape.out_layout)
    chunks = loads_of(shape, config, facts)
    return local_tile(shape.geometry, config, shape.patterns, *layouts, chunks)


def counts_of(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> list[KernelCounts]:
    """Counts of a kernel of each pattern."""
    chunks = loads_of(shape, config, facts)
    tile = GpuConfig(
        config.vector_width,
        config.filters,
        config.tile_rows,
        config.tile_cols,
        config.taps_per_step,
    )
    return [_counts(shape.geometry, tile, pattern.taps, chunks) for pattern in shape.patterns]


def tile_grid(shape: ConvShape, config: GpuConfig) -> tuple[int, int]:
    """Register_tiles of an image, down and along."""
    vectors = -(-shape.out_layout.width // config.vector_width)
    return -(-shape.out_layout.height // config.tile_rows), -(-vectors // config.tile_cols)


def waste(shape: ConvShape, config: GpuConfig) -> float:
    """Outputs that the tiles of an image compute to those that it has."""
    rows, cols = tile_grid(shape, config)
    computed = rows * config.tile_rows * cols * config.tile_cols * config.vector_width
    return computed / (shape.out_layout.height * shape.out_layout.width)


def sum_bytes(config: GpuConfig, facts: GpuFacts) -> int:
    """Bytes of a sum."""
    return 2 if facts.dtype == "float16" and config.accumulator == "float16" else 4


def sum_registers(config: GpuConfig, facts: GpuFacts) -> int:
    """The least that a work_item needs: 32-bit registers of its sums and addresses."""
    elements = config.accumulators * config.vector_width
    return -(-elements * sum_bytes(config, facts) // 4) + ADDRESS_REGISTERS


def register_need(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> int:
    """32-bit registers of a work_item: sums, inputs and weights of a step, addresses."""
    size = sum_bytes(config, facts)
    live = max(count.live_elements for count in counts_of(shape, config, facts))
    elements = config.accumulators * config.vector_width + live
    return -(-elements * size // 4) + ADDRESS_REGISTERS


@dataclass(frozen=True)
class _InputTraffic:
    """Of one work_item: bytes of a load, the rate of its memory, chunks copied for a kernel."""

    load_bytes: float
    rate: float
    copied: float | None

    @classmethod
    def of(cls, shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> _InputTraffic:
        chunks = loads_of(shape, config, facts)
        places = 1.0 if chunks.is_aligned else ANYWHERE_LOADS
        size = places * max(chunks.width * facts.itemsize, MIN_LOAD_BYTES)
        rate = facts.texture_bytes if config.reads == TEXTURE else facts.load_bytes
        if config.input_tile == GLOBAL:
            return cls(size, rate, None)
        return cls(size, rate, local_tile_of(shape, config, facts).chunks / config.tiles_per_group)

    def bytes_as_loads(self, count: KernelCounts, facts: GpuFacts) -> float:
        """Bytes that loads from buffers would bring in the time of a kernel's inputs."""
        per_byte = facts.load_bytes / self.rate
        if self.copied is None:
            return count.input_loads * self.load_bytes * per_byte
        moved = (count.input_loads + self.copied) * self.load_bytes
        waits = BARRIERS * BARRIER_CLOCKS / facts.wave
        copies = self.copied * self.load_bytes * per_byte
        return copies + moved * facts.load_bytes / facts.local_bytes + waits * facts.load_bytes


@dataclass(frozen=True)
class Work:
    """What a launch does, before anything is said of time.

    Parameters
    ----------
    items : int
        Work_items, those of whole waves that have nothing to do among them.
    operations : float
        On elements, of one work_item.
    load_bytes : float
        That loads bring one work_item, or that loads from buffers would bring in their time.
    """

    items: int
    operations: float
    load_bytes: float


def divergence(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> float:
    """Time of a wave's loops to that of the mean filter_group in it.

    Filter_groups of one wave are about equally long, but each has its own number of kernels of a
    pattern, and all wait for the longest. 1 where a wave computes one filter_group.
    """
    spanned = min(config.filter_groups_per_group, -(-facts.wave // config.tiles_per_group))
    share = 1.0 / len(shape.patterns)
    mean = shape.kernels_per_group * share
    if spanned == 1 or not mean:
        return 1.0
    deviation = (mean * (1.0 - share)) ** 0.5
    return 1.0 + LONGEST_OF[min(spanned, len(LONGEST_OF)) - 1] * deviation / mean


def work_of(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> Work:
    """Counts of one image by the model."""
    counts = counts_of(shape, config, facts)
    share = shape.kernels_per_group / len(counts) * divergence(shape, config, facts)
    rows, cols = tile_grid(shape, config)
    groups = -(-shape.out_channels // config.filters)
    along = -(-rows * cols // config.tiles_per_group)
    across = -(-groups // config.filter_groups_per_group)
    # A work_group occupies whole waves, also where its last work_items have nothing to do.
    items = along * across * -(-config.work_items // facts.wave) * facts.wave
    outputs = config.accumulators * config.vector_width
    operations = outputs * OUTPUT_OVERHEAD
    inputs = _InputTraffic.of(shape, config, facts)
    loaded = 0.0
    for count in counts:
        operations += share * (count.multiply_adds * config.vector_width + KERNEL_OVERHEAD)
        # Weights are the same for all work_items of a wave.
        per_wave = count.weight_loads * 16 / facts.wave
        loaded += share * (inputs.bytes_as_loads(count, facts) + per_wave)
    return Work(items, operations, loaded)


def roofline(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> Roofline:
    """The estimate of one image.

    Parameters
    ----------
    shape : ConvShape
    config : GpuConfig
    facts : GpuFacts
    """
    work = work_of(shape, config, facts)
    speed = 2.0 if sum_bytes(config, facts) == 2 else 1.0
    idle = max(1.0, facts.cores * facts.wave * WAVES_IN_FLIGHT / work.items)
    crowded = max(1.0, register_need(shape, config, facts) / facts.registers)
    clock = facts.clock_mhz * facts.cores
    weights = sum(len(p) for p in shape.patterns) / len(shape.patterns) * shape.kernels_per_group
    size = shape.in_channels * shape.in_layout.size + shape.out_channels * shape.out_layout.size
    size = size + int(weights * shape.out_channels)
    rate = clock * facts.multiply_adds * speed
    return Roofline(
        arithmetic=work.items * work.operations * idle * crowded / rate,
        loads=work.items * work.load_bytes * idle / (clock * facts.load_bytes),
        memory=size * facts.itemsize / facts.memory_gb_s / 1e3,
        launch=facts.launch_us,
    )


def estimate_cost(shape: ConvShape, config: GpuConfig, facts: GpuFacts) -> float:
    """Microseconds of one image by the model; only their order is meant."""
    return roofline(shape, config, facts).total
