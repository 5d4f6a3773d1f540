"""The knobs of the pattern-sparse convolution on OpenCL devices, and what is legal."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np

ORDERS = ("tiles", "filters")
ACCUMULATORS = ("float32", "float16")
ALIGNED, ANYWHERE = "aligned", "anywhere"
LOADS = (ALIGNED, ANYWHERE)
BUFFER, TEXTURE = "buffer", "texture"
READS = (BUFFER, TEXTURE)
GLOBAL, LOCAL = "global", "local"
INPUT_TILES = (GLOBAL, LOCAL)
VECTOR_WIDTHS = (1, 2, 4, 8)
MAX_FILTERS = 16


@dataclass(frozen=True)
class GpuFacts:
    """What schedules and their model know of a class of OpenCL devices.

    Rates are public figures, whose source stands beside each device; they rank configurations and
    promise no time.

    Parameters
    ----------
    name : str
    vector_width : int
        Lanes of the widest load that a work_item does at once; rows of planes begin at multiples.
    max_work_items : int
        Work_items of a work_group.
    registers : int
        32-bit registers of a work_item up to which the device keeps enough of them in flight.
    max_registers : int
        Registers beyond which private variables go to memory.
    wave : int
        Work_items that go in lock-step: the sub_group.
    cores : int
        Parts that take work_groups.
    clock_mhz : float
    multiply_adds : float
        float32 multiply-adds that a core starts per clock; twice as many of float16.
    load_bytes : float
        Bytes that loads of a core bring per clock from its nearest cache.
    memory_gb_s : float
        Bandwidth of the memory, GB/s.
    launch_us : float
        Time between two kernels, in microseconds.
    texture_bytes : float
        Bytes that reads of images bring a core per clock; 0: schedules read buffers only.
    local_bytes : float
        Bytes that reads of local memory bring a core per clock; 0: it is emulated, and no schedule
        copies to it.
    local_memory : int
        Bytes of local memory of a work_group.
    dtype : str
        Of the tensors, see :meth:`of_dtype`.
    nan_maximum : bool
        Asked for by operators that CPUs have too; OpenCL's ``fmax`` never gives NaN.
    """

    name: str
    vector_width: int
    max_work_items: int
    registers: int
    max_registers: int
    wave: int
    cores: int
    clock_mhz: float
    multiply_adds: float
    load_bytes: float
    memory_gb_s: float
    launch_us: float = 10.0
    texture_bytes: float = 0.0
    local_bytes: float = 0.0
    local_memory: int = 0
    dtype: str = "float32"
    nan_maximum: bool = False

    def of_dtype(self, dtype: str) -> GpuFacts:
        """The facts for tensors of that type."""
        scale = self.itemsize / np.dtype(dtype).itemsize
        return replace(self, dtype=dtype, vector_width=int(self.vector_width * scale))

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class GpuConfig:
    """One point of the search_space of a convolution.

    Parameters
    ----------
    vector_width : int
        Neighbouring pixels of a row in one vector.
    filters : int
        Filters of a filter_group, which share every loaded input.
    tile_rows, tile_cols : int
        Output rows, and vectors along a row, of a work_item's register_tile.
    taps_per_step : int
        Taps whose weights are held in registers at once.
    tiles_per_group : int
        Register_tiles of a work_group, in a row.
    filter_groups_per_group : int
        Filter_groups of a work_group: neighbours by filter kernel reorder, of about equal length.
    order : str
        What neighbouring work_groups differ in: ``tiles`` or ``filters``.
    accumulator : str
        Type of the sums of float16 layers; those of float32 are float32.
    loads : str
        Where wide loads of inputs begin: ``aligned`` at multiples of their width, ``anywhere`` with
        the first pixel that a tile wants, for tiles that do not begin at such multiples.
    reads : str
        By what inputs are read: from a ``buffer``, or from the same memory as a ``texture``.
    input_tile : str
        Where work_items read inputs: in ``global`` memory, or in a ``local`` copy of what their
        work_group wants of an in_channel.
    """

    vector_width: int
    filters: int
    tile_rows: int
    tile_cols: int
    taps_per_step: int = 4
    tiles_per_group: int = 64
    filter_groups_per_group: int = 1
    order: str = "tiles"
    accumulator: str = "float32"
    loads: str = ALIGNED
    reads: str = BUFFER
    input_tile: str = GLOBAL

    @property
    def group(self) -> int:
        """Filters of a filter_group."""
        return self.filters

    @property
    def packing(self) -> tuple[int]:
        """Equal for configs under which weights are stored alike."""
        return (self.group,)

    @property
    def pixel_lanes(self) -> int:
        """Neighbouring pixels of a vector."""
        return self.vector_width

    @property
    def accumulators(self) -> int:
        """Vectors of sums of a work_item."""
        return self.filters * self.tile_rows * self.tile_cols

    @property
    def work_items(self) -> int:
        """Work_items of a work_group."""
        return self.tiles_per_group * self.filter_groups_per_group

    def within(self, most: int) -> GpuConfig:
        """The same register_tiles in work_groups of at most ``most`` work_items."""
        if self.work_items <= most:
            return self
        across = min(self.filter_groups_per_group, most)
        tiles = min(self.tiles_per_group, most // across)
        return replace(self, tiles_per_group=tiles, filter_groups_per_group=across)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GpuConfig:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        ValueError
            On unknown knobs, missing ones without a default, or values of another type.
        """
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(data) - set(known))
        needed = [name for name, f in known.items() if f.default is MISSING]
        missing = sorted(set(needed) - set(data))
        if unknown or missing:
            raise ValueError(f"config has unknown knobs {unknown} and lacks {missing}")
        kinds = {"int": int, "str": str}
        wrong = sorted(n for n, v in data.items() if type(v) is not kinds[str(known[n].type)])
        if wrong:
            raise ValueError(f"config has knobs {wrong} of another type")
        return cls(**data)
