"""The OpenCL C in a library's file, without running or loading anything of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from topi_kernels.schedules.opencl.static_facts import static_facts

from ..manifest import ArtifactError

_BEGIN = b"// Function: "
_HEAD = re.compile(r"^// Function: (\w+)$", re.MULTILINE)
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class InspectedKernel:
    """One kernel of a library.

    Parameters
    ----------
    name : str
    launch : str
        Work_groups and work_items, or who decides them.
    described : tuple of str
        Lines about its buffers, memory and loops.
    source : str
        OpenCL C.
    """

    name: str
    launch: str
    described: tuple[str, ...]
    source: str


def kernels_of(
    library: Path, launches: Mapping[str, Sequence[Sequence[int]]]
) -> list[InspectedKernel]:
    """The kernels of a library for a GPU.

    Parameters
    ----------
    library : Path
        A shared library; its code may be of any processor.
    launches : mapping
        Of its manifest.

    Raises
    ------
    ArtifactError
        If it holds no OpenCL C.
    """
    text = _program(library)
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _kernel(head[1], text[head.start() : end], launches)
        for head, end in zip(heads, ends, strict=True)
    ]


def _program(library: Path) -> str:
    """The text, which stands in the file after its length."""
    data = library.read_bytes()
    at = data.find(_BEGIN)
    while at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data, at - _LENGTH.size)
        if length <= len(data) - at:
            return data[at : at + length].decode("utf-8", "replace")
        at = data.find(_BEGIN, at + 1)
    raise ArtifactError(
        f"{library} holds no OpenCL C; expected a .so that was compiled for a GPU, such as"
        " pattern/mali"
    )


def _kernel(
    name: str, source: str, launches: Mapping[str, Sequence[Sequence[int]]]
) -> InspectedKernel:
    facts = static_facts(source)
    found = re.findall(rf"__kernel void {name}\((.*?)\) ?\{{", source, re.DOTALL)
    buffers = found[-1].replace("__global ", "").replace(" restrict", "") if found else ""
    buffers = re.sub(r"texture_of\((\w+)\)", r"texture of \1", buffers)
    lines = [f"buffers: {buffers}", f"private arrays: {facts.private_bytes} bytes"]
    if facts.dynamic:
        lines.append(f"indexed by variables: {', '.join(facts.dynamic)}")
    if facts.local_bytes:
        lines.append(f"local memory: {facts.local_bytes} bytes, {facts.barriers} barriers")
    if facts.image_reads:
        lines.append(f"textures: {facts.image_reads} reads, of buffers where there are no images")
    for loop in facts.loops:
        lines.append(
            f"loop: {loop.multiply_adds} multiply-adds of vectors, {loop.vector_loads} vector and"
            f" {loop.scalar_loads} scalar loads: {loop.loads_per_multiply_add:.2f} for each"
        )
    launch = "launched as TVM's own schedule decides"
    if name in launches:
        groups, items = launches[name]
        launch = f"{'x'.join(map(str, groups))} work_groups of {'x'.join(map(str, items))}"
    return InspectedKernel(name, launch, tuple(lines), source)
