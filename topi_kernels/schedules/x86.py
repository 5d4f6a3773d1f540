"""x86 families: AVX-512 and AVX2 with FMA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tvm.target import Target, codegen

from ..device import Device, Registry, architecture
from .family import Family

LINE_BYTES = 64
ARCHITECTURES = ("x86_64", "amd64", "i686", "i386")
#: Features that choose a kind of core or an instruction: flag in ``/proc/cpuinfo`` -> LLVM's name.
CPU_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512cd": "avx512cd",
    "avx512_vnni": "avx512vnni",
    "avx512vbmi": "avx512vbmi",
    "avx_vnni": "avxvnni",
}


@dataclass(frozen=True)
class Core:
    """What a kind of core with 512-bit vectors does in a cycle, and what its caches hold.

    Parameters
    ----------
    name : str
        Of the device.
    cpus : tuple of str
        LLVM's names of such processors.
    tags : mapping of str to str
        Tags, by the name after ``pattern/``, and the processors that they stand for.
    fma_ports, load_ports : (float, float)
        Multiply-adds and loads that start in a cycle, of 512 bits and of 256.
    l1_bytes, l2_bytes : int
    l2_bandwidth : float
        Bytes a cycle, as they are sustained.
    stream_cycles : float
        Cycles that a cache line costs which a dense product streams from beyond L2.
    pointwise_share : float
        See ``Family.pointwise_share``.
    """

    name: str
    cpus: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    fma_ports: tuple[float, float] = (2.0, 2.0)
    load_ports: tuple[float, float] = (2.0, 2.0)
    l1_bytes: int = 48 << 10
    l2_bytes: int = 2 << 20
    l2_bandwidth: float = 64.0
    stream_cycles: float = 1.043
    pointwise_share: float = 1.0

    @property
    def facts(self) -> Family:
        """What the schedules know: the cycles of any core, in slots of this one's multiply-adds."""
        full, half = self.fma_ports
        same = self.fma_ports[0] == self.fma_ports[1] and self.load_ports[0] == self.load_ports[1]
        facts = Family(
            name=self.name,
            vector_width=16,
            vector_registers=32,
            temporaries=8,
            prefetch=1,
            fetch_ahead=True,
            block_floats=min(MAX_BLOCK, self.l1_bytes // 4),
            near_cache_floats=round(NEAR_SHARE * self.l1_bytes / 4),
            l2_floats=self.l2_bytes // 4,
            fma_ports=full,
            load_ports=self.load_ports[0],
            half_fma_ports=0.0 if same else half,
            half_load_ports=0.0 if same else self.load_ports[1],
            row_line_share=0.4,
            interleaved_lanes=True,
            copied_tiles=True,
            gemm=True,
            far_line_cost=full * self.stream_cycles,
            pointwise_share=self.pointwise_share,
            line_bound=full * LINE_BYTES / self.l2_bandwidth,
        )
        costs: dict[str, Any] = {name: full * cycles for name, cycles in CYCLES.items()}
        return replace(facts, **costs)


#: Cycles of what is not a multiply-add: fitted to 552 measured configurations of 37 layers on a
#: server core with two 512-bit FMA ports; the pick was 1.4 % slower than the fastest of a layer's 8
#: to 16, on average (1x1 layers, with blocks of in_channels: 5 %).
CYCLES = {
    "load_cost": 0.043,
    "split_cost": 0.3635,
    "line_cost": 1.043,
    "weight_line_cost": 1.076,
    "shuffle_cost": 0.273,
    "deinterleave_cost": 0.6135,
    "tile_cost": 7.25,
    "store_cost": 2.06,
    "loop_cost": 2.0,
    "list_cost": 45.0,
    "page_cost": 2.0,
}
#: A block of in_channels may fill L1, and no more than this, however large that is.
MAX_BLOCK = 8_000
#: Share of L1 that a tile's input stays in: half of what a group touches is reused by the next, so
#: this is more than all of it.
NEAR_SHARE = 13_200 / 12_288

#: Two 512-bit multiply-adds a cycle: servers since Skylake, Zen 5, and whatever is not named below.
SERVER = Core("x86-avx512", tags={"x86-avx512": "x86-64-v4"})
#: Both halves of the units make one 512-bit multiply-add or load a cycle, or two of 256 bits each.
#: By forty layers and configurations its estimates are 1.1 to 1.2 times too high.
ZEN_4 = Core(
    "x86-avx512-zen4",
    ("znver4",),
    {"znver4": "znver4"},
    fma_ports=(1.0, 2.0),
    load_ports=(1.0, 2.0),
    l1_bytes=32 << 10,
    l2_bytes=1 << 20,
    l2_bandwidth=26.0,
    stream_cycles=2.086,
    pointwise_share=1.13,
)
#: One 512-bit multiply-add a cycle, or two of 256 bits; loads are as many of either.
CLIENT = Core(
    "x86-avx512-client",
    ("cannonlake", "icelake-client", "rocketlake", "tigerlake"),
    {"tigerlake": "tigerlake"},
    fma_ports=(1.0, 2.0),
    l2_bytes=512 << 10,
)
CORES = (SERVER, ZEN_4, CLIENT)
AVX512 = SERVER.facts

#: Zen 1 to 3 have 512 KiB of L2, Intels without AVX-512 256 until 2021.
AVX2 = Family(
    name="x86-avx2",
    vector_width=8,
    vector_registers=16,
    temporaries=6,
    prefetch=1,
    fetch_ahead=True,
    block_floats=8_000,
    copied_tiles=True,
    gemm=True,
    row_line_share=0.7,
    tap_filters=1,
    paired_taps=True,
    fetched_lists=True,
    interleaved_lanes=True,
    l2_floats=(512 << 10) // 4,
)


def _has(target: Target, *features: str) -> bool:
    if target.kind.name != "llvm" or architecture(target) not in ARCHITECTURES:
        return False
    return bool(codegen.llvm_cpu_has_features(list(features), target))


def is_avx512(target: Target) -> bool:
    """Whether the processor has AVX-512."""
    return _has(target, "avx512f")


def core_of(target: Target) -> Core:
    """The kind of core that a Target with AVX-512 names."""
    cpu = str(target.attrs.get("mcpu", ""))
    return next((core for core in CORES if cpu in core.cpus), SERVER)


def _is_core(core: Core, target: Target) -> bool:
    return is_avx512(target) and core_of(target) is core


def is_avx2(target: Target) -> bool:
    """Whether the processor has AVX2 and FMA, but no AVX-512."""
    return _has(target, "avx2", "fma") and not is_avx512(target)


def int8_instructions(target: Target) -> str:
    """How bytes are multiplied, see :mod:`topi_kernels.schedules.cpu_int8.isa`."""
    if _has(target, "avx512vnni", "avx512vbmi"):
        return "avx512-vnni"
    if _has(target, "avxvnni") or _has(target, "avx512vnni", "avx512vl"):
        return "avx-vnni"
    # With 512-bit float32 vectors the 256-bit products of pairs would lose.
    return "" if is_avx512(target) else "avx2"


def _config(mcpu: str) -> dict[str, Any]:
    return {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "keys": ["cpu"]}


def register(registry: Registry) -> None:
    """Add the kinds of cores with AVX-512, and AVX2."""
    for core in CORES:
        tags = {tag: _config(cpu) for tag, cpu in core.tags.items()}
        registry.add(
            Device(
                core.name,
                partial(_is_core, core),
                core.facts,
                tags=tags,
                int8=int8_instructions,
                cpu_flags=CPU_FLAGS,
                records_of="" if core is SERVER else SERVER.name,
            )
        )
    tags = {AVX2.name: _config("x86-64-v3")}
    registry.add(
        Device(
            AVX2.name,
            is_avx2,
            AVX2,
            tags=tags,
            int8=int8_instructions,
            cpu_flags=CPU_FLAGS,
        )
    )
