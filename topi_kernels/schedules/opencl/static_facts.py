"""What OpenCL C does, counted in its text: loads, multiply-adds, private and local memory.

It reads what TVM's code generator writes, one statement a line, and holds schedules to what they
promise. The counts are of the source; compilers may still do better or worse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARAMETER = re.compile(r"__global \w+\* restrict (\w+)")
_DECLARATION = re.compile(r"^\s*(__local )?(\w+?)(\d*) (\w+)\[(\d+)\];")
_VECTOR_LOAD = re.compile(r"\bvload(\d+)\(|\*\(const __global \w+?(\d+)\*\)|\btexel_[a-z]+(\d+)\(")
_TEXEL = re.compile(r"\btexel_\w+\(")
#: TVM's simplifier puts either operand of the sum first.
_MULTIPLY_ADD = re.compile(
    r"^\s*(\w+)\[0\] = \((?:\1\[0\] \+ \(.* \* .*\)|\(.* \* .*\) \+ \1\[0\])\);"
)
_BYTES = {"float": 4, "int": 4, "half": 2, "uchar": 1, "ushort": 2, "char": 1, "double": 8}


@dataclass(frozen=True)
class LoopFacts:
    """The body of an innermost loop.

    Parameters
    ----------
    multiply_adds : int
        Statements that add a product to a private variable, whole vectors.
    vector_loads, scalar_loads : int
        Reads of global memory, textures included.
    widths : tuple of int
        Lanes of the vector loads, sorted.
    local_loads, texels : int
        Reads of local memory; those of the vector loads that are texels.
    """

    multiply_adds: int
    vector_loads: int
    scalar_loads: int
    widths: tuple[int, ...]
    local_loads: int = 0
    texels: int = 0

    @property
    def loads_per_multiply_add(self) -> float:
        """Loads of either kind for each multiply-add of a vector."""
        return (self.vector_loads + self.scalar_loads) / max(1, self.multiply_adds)


@dataclass(frozen=True)
class SourceFacts:
    """One OpenCL program of one kernel.

    Parameters
    ----------
    loops : tuple of LoopFacts
        Innermost loops that multiply and add, in order.
    private_bytes : int
        Of arrays in private memory; those of one element count too.
    dynamic : tuple of str
        Private arrays that are indexed by more than a constant: no compiler keeps them in
        registers.
    local_bytes : int
    barriers, image_reads : int
        Statements; reads of an image where the program is built for them.
    """

    loops: tuple[LoopFacts, ...]
    private_bytes: int
    dynamic: tuple[str, ...]
    local_bytes: int
    barriers: int
    image_reads: int


def _bodies(lines: list[str]) -> list[list[str]]:
    """Lines of each innermost loop."""
    result: list[list[str]] = []
    stack: list[tuple[int, bool, bool]] = []
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("}") and stack:
            start, is_loop, inner = stack.pop()
            if is_loop and not inner:
                result.append(lines[start + 1 : number])
        if text.endswith("{"):
            is_loop = text.startswith(("for (", "while ("))
            if is_loop:
                stack = [(s, loop, True) for s, loop, _ in stack]
            stack.append((number, is_loop, False))
    return result


def _loop(body: list[str], parameters: set[str], local: set[str]) -> LoopFacts:
    widths: list[int] = []
    scalars = fmas = copies = texels = 0
    for line in body:
        widths += [int(a or b or c) for a, b, c in _VECTOR_LOAD.findall(line)]
        value = line.split(" = ", 1)[-1]
        indexed = re.findall(r"\b(\w+)\[", value)
        scalars += sum(name in parameters for name in indexed)
        copies += sum(name in local for name in indexed)
        texels += len(_TEXEL.findall(line))
        fmas += _MULTIPLY_ADD.match(line) is not None
    return LoopFacts(fmas, len(widths), scalars, tuple(sorted(widths)), copies, texels)


def static_facts(source: str) -> SourceFacts:
    """Count what a program of one kernel does.

    Parameters
    ----------
    source : str
        As of :attr:`~topi_kernels.schedules.opencl.source.KernelSource.source`.
    """
    lines = [line for line in source.splitlines() if not line.startswith("#")]
    parameters = set(_PARAMETER.findall(source))
    private: dict[str, int] = {}
    local: dict[str, int] = {}
    for line in lines:
        found = _DECLARATION.match(line)
        if found:
            is_local, kind, lanes, name, count = found.groups()
            size = _BYTES[kind] * int(lanes or 1) * int(count)
            (local if is_local else private)[name] = size
    code = "\n".join(line for line in lines if not _DECLARATION.match(line))
    dynamic = sorted(
        name
        for name in private
        if any(not i.isdigit() for i in re.findall(rf"\b{name}\[([^\]]*)\]", code))
    )
    loops = (_loop(body, parameters, set(local)) for body in _bodies(lines))
    return SourceFacts(
        loops=tuple(loop for loop in loops if loop.multiply_adds),
        private_bytes=sum(private.values()),
        dynamic=tuple(dynamic),
        local_bytes=sum(local.values()),
        barriers=code.count("barrier("),
        image_reads=len(_TEXEL.findall(code)),
    )
