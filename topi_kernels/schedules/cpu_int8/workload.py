"""One convolution of bytes as it is packed, and the choices of its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...geometry import ConvGeometry
from ...layout import PlaneLayout
from ...vector_math import largest_power_of_two
from ..choices import CHOICES
from .isa import DotIsa, isa_named
from .lines import ROW_LOAD, LineShape, line_shapes
from .packing import GROUP_SIZES, WORD, Chunk

#: Forms whose vectors are neighbouring bytes of a plane.
WINDOW = "window"
RUNS = ("run", WINDOW)
#: Forms whose vectors are blocks of pixels, from lines.
LINES = ("square", "rows")
FORMS = (*LINES, *RUNS)
FREE_REGISTERS = {32: {1: 4, 2: 4, 4: 8}, 16: {1: 6, 2: 6, 4: 8}}
"""Registers that are no accumulators (bytes, weights), of how many there are and by filters of a
group; with fewer, LLVM spills."""
FREE_FOR_LINES = {32: {1: 6, 2: 6, 4: 8}, 16: {1: 6, 2: 6, 4: 8}}
"""The same where lines are shuffled: their positions take some too."""


def pieces(count: int, largest: int = ROW_LOAD) -> Iterator[tuple[int, int]]:
    """``(start, width)`` of powers of two that make up ``count``."""
    start = 0
    while start < count:
        width = min(largest, largest_power_of_two(count - start))
        yield start, width
        start += width


@dataclass(frozen=True)
class Int8Workload:
    """What the operator's code depends on; scales and zero points are data.

    Parameters
    ----------
    batch, in_channels, out_channels : int
    geometry : ConvGeometry
    in_layout, out_layout : PlaneLayout
        Of bytes, see :func:`~topi_kernels.schedules.cpu_int8.byte_layout.byte_layout`.
    chunks : tuple of Chunk
    group, groups, entries : int
        As packed.
    unit_dtype, count_dtype : str
    residual : bool
        Whether a tensor of bytes, which lies as the output, is added to the sums.
    by_rows : bool
        Whether chunks are neighbours of a row, read from the planes themselves.
    far : bool
        Whether results may be so far below zero that they have to be limited as float32.
    """

    batch: int
    in_channels: int
    out_channels: int
    geometry: ConvGeometry
    in_layout: PlaneLayout
    out_layout: PlaneLayout
    chunks: tuple[Chunk, ...]
    group: int
    groups: int
    entries: int
    unit_dtype: str
    count_dtype: str
    isa: str
    residual: bool = False
    by_rows: bool = False
    far: bool = False

    @property
    def in_runs(self) -> bool:
        """Whether neighbouring outputs lie as their inputs do, from row to row."""
        return (
            self.geometry.stride == (1, 1)
            and self.in_layout.row_stride == self.out_layout.row_stride
        )

    @property
    def pointwise(self) -> bool:
        """Whether a word holds four in_channels."""
        return self.geometry.kernel_size == (1, 1)

    @property
    def units(self) -> int:
        """What entries are numbered by: in_channels, or quads of them."""
        return -(-self.in_channels // WORD) if self.pointwise else self.in_channels


@dataclass(frozen=True)
class Int8Config:
    """How a tile is made; its accumulators are ``group * vectors * strips``.

    Parameters
    ----------
    form : str
        ``square``: lines of square vectors; ``rows``: lines of vectors of one row; ``run``: vectors
        of neighbouring bytes of a plane, for 1x1 convolutions; ``window``: the same, with bytes
        read from the planes themselves, for kernels that no line holds.
    strips : int
        Lines below each other.
    vectors : int
        Vectors beside each other.
    group : int
        Filters that share entries, as packed.
    """

    form: str
    strips: int
    vectors: int
    group: int

    @property
    def packing(self) -> tuple[int, bool]:
        """Equal for configs under which weights are stored alike."""
        return self.group, self.form == WINDOW

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Int8Config:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown or missing knobs, or values of another type.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"config has the knobs {sorted(data)}, expected {sorted(names)}")
        for name, value in data.items():
            known = value in FORMS if name == "form" else type(value) is int and value > 0
            if not known:
                raise ValueError(f"knob {name!r} has no value {str(value)[:40]!r}")
        return cls(**data)


def shape_of_form(form: str, geometry: ConvGeometry, isa: DotIsa) -> LineShape | None:
    """The lines of a form, or None where the kernel reaches too far for it."""
    for line in line_shapes(geometry, isa):
        if (line.vector[0] > 1) == (form == "square"):
            return line
    return None


def has_lines(geometry: ConvGeometry, isa: DotIsa) -> bool:
    """Whether a convolution of this geometry has lines; a 1x1 convolution needs none."""
    return geometry.kernel_size == (1, 1) or next(line_shapes(geometry, isa), None) is not None


def has_windows(geometry: ConvGeometry, isa: DotIsa) -> bool:
    """Whether one shuffle reaches four neighbouring taps of a row for all pixels of a vector."""
    pixels = 4 if isa.by_lane else isa.pixels
    taps = min(WORD, geometry.kernel_size[1])
    reach = (pixels - 1) * geometry.stride[1] + (taps - 1) * geometry.dilation[1] + 1
    return reach <= isa.table_bytes[0]


def configs(workload: Int8Workload) -> Iterator[Int8Config]:
    """All choices of a workload, in a fixed order."""
    isa = isa_named(workload.isa)
    in_lines = not (workload.pointwise or workload.by_rows)
    free = (FREE_FOR_LINES if in_lines else FREE_REGISTERS)[isa.registers][workload.group]
    most = (isa.registers - free) // workload.group
    if workload.pointwise or workload.by_rows:
        form = "run" if workload.pointwise else WINDOW
        if workload.pointwise or has_windows(workload.geometry, isa):
            # A tile of more than there is would write beyond the planes.
            most = min(most, vectors_of_run(workload, isa))
            yield from (Int8Config(form, 1, v, workload.group) for v in range(1, most + 1))
        return
    height, width = workload.out_layout.height, workload.out_layout.width
    for form in LINES:
        line = shape_of_form(form, workload.geometry, isa)
        if line is None:
            continue
        strips = -(-height // line.block[0])
        beside = -(-width // min(line.vector[1], line.block[1]))
        per_line = line.vectors // line.across
        for vectors in range(1, beside + 1):
            for rows in range(1, strips + 1):
                if vectors * rows * per_line <= most:
                    yield Int8Config(form, rows, vectors, workload.group)


def rows_of_vector(workload: Int8Workload, isa: DotIsa) -> int:
    """Short rows of the output that share a vector of a strided 1x1 convolution."""
    out = workload.out_layout
    if not workload.pointwise or workload.in_runs:
        return 1
    rows = largest_power_of_two(max(1, isa.pixels // out.width))
    return rows if rows <= out.height else 1


def vectors_of_run(workload: Int8Workload, isa: DotIsa) -> int:
    """Vectors that the outputs of a plane fill, as runs of them are cut."""
    out = workload.out_layout
    if workload.in_runs:
        return -(-((out.height - 1) * out.row_stride + out.width) // isa.pixels)
    return -(-out.height // rows_of_vector(workload, isa)) * -(-out.width // isa.pixels)


def tiles_of(workload: Int8Workload, config: Int8Config) -> tuple[int, int]:
    """Tiles below each other and beside each other."""
    isa = isa_named(workload.isa)
    out = workload.out_layout
    if config.form in RUNS:
        return 1, -(-vectors_of_run(workload, isa) // config.vectors)
    line = shape_of_form(config.form, workload.geometry, isa)
    if line is None:
        raise ValueError(f"no lines of the form {config.form!r} for {workload.geometry}")
    rows = config.strips * line.block[0]
    cols = config.vectors * min(line.vector[1], line.block[1])
    return -(-out.height // rows), -(-out.width // cols)


@dataclass(frozen=True)
class Costs:
    """Cycles of the parts of a tile, fitted to a Zen 4 core; only the order of sums counts."""

    dot: float = 1.0
    shuffle: float = 0.5
    load: float = 0.25
    #: Of a load that lies across two cache lines.
    crossing: float = 0.5
    entry: float = 1.5
    #: A sum waits for its last one.
    latency: float = 6.0
    gathered_line: float = 14.0
    finished_vector: float = 5.0
    store: float = 2.0
    group: float = 10.0
    #: Of 1x1 convolutions, whose bytes are in order: load, entry, finished vector with its store,
    #: and what four filters together add to the last.
    run_load: float = 0.25
    run_entry: float = 1.5
    run_finished: float = 7.0
    crowded: float = 0.0


COSTS = Costs()
#: Where it was measured that loads and loops of 1x1 convolutions hide behind dot products.
RUN_COSTS = {"avx512-vnni": Costs(run_load=0.17, run_entry=0.5, run_finished=5.0, crowded=1.0)}


def _run_cycles(workload: Int8Workload, config: Int8Config, costs: Costs) -> float:
    """Expected cycles of a tile of a 1x1 convolution."""
    dots = config.group * config.vectors
    entry = costs.dot * dots + costs.run_load * config.vectors + costs.run_entry
    finished = costs.run_finished + (costs.crowded if config.group == max(GROUP_SIZES) else 0.0)
    tile = workload.units * config.vectors * costs.gathered_line
    tile += workload.entries * max(entry, costs.latency)
    return tile + workload.groups * (dots * finished + costs.group)


def estimate(workload: Int8Workload, config: Int8Config) -> float:
    """Expected cycles of a config."""
    costs = RUN_COSTS.get(workload.isa, COSTS)
    down, beside = tiles_of(workload, config)
    if config.form == "run":
        return _run_cycles(workload, config, costs) * down * beside
    line = None
    if config.form not in RUNS:
        line = shape_of_form(config.form, workload.geometry, isa_named(workload.isa))
    if line is None:
        vectors = lines = stores = config.vectors
    else:
        vectors = config.strips * config.vectors * (line.vectors // line.across)
        lines = config.strips * -(-config.vectors // line.across)
        width = config.vectors * min(line.vector[1], line.block[1])
        stores = config.strips * line.block[0] * sum(1 for _ in pieces(width))
    dots = config.group * vectors
    entry = costs.dot * dots + costs.load * lines + costs.entry
    entry += costs.shuffle * vectors
    if config.form == WINDOW:
        entry += costs.crossing * vectors
        lines = 0
    finish = config.group * (costs.finished_vector * vectors + costs.store * stores) + costs.group
    tile = workload.units * lines * costs.gathered_line
    tile += workload.entries * max(entry, costs.latency) + workload.groups * finish
    return tile * down * beside


@CHOICES.remembered(Int8Config)
def default_config(workload: Int8Workload) -> Int8Config:
    """The choice without tuning: the one with the least expected cycles.

    Raises
    ------
    ValueError
        If there is none.
    """
    best = min(configs(workload), key=lambda config: estimate(workload, config), default=None)
    if best is None:
        raise ValueError(
            f"no choice for a convolution of {workload.geometry} with {workload.isa}; compile it in"
            " float32"
        )
    return best
