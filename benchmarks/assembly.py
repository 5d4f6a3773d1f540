"""Innermost loops of generated x86 assembly: what they load, multiply and shuffle."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"(\.L\w+):")
_JUMP = re.compile(r"\s+j\w+\s+(\.L\w+)")
_VECTOR = re.compile(r"%[xyz]mm")
_READ = re.compile(r"\(%\w+.*\).*,\s*%[xyz]mm")
_WRITE = re.compile(r"%[xyz]mm\d+,\s*[^,]*\(%[^)]*\)$")
_SHUFFLES = ("vperm", "vshuf", "valign", "vunpck", "vpshuf", "vblend")


@dataclass(frozen=True)
class InnerLoop:
    """Instruction counts of one innermost loop with multiply-adds.

    ``loads`` are vector registers or operands read from memory, broadcasts included; ``stack`` are
    vector instructions that touch the stack, that is spills.
    """

    fma: int
    loads: int
    stores: int
    shuffles: int
    stack: int

    @property
    def loads_per_fma(self) -> float:
        return self.loads / self.fma


def _has_loop(lines: list[str], labels: dict[str, int], start: int, end: int) -> bool:
    """Whether a jump between the lines goes back, but not out: an early exit is not a loop."""
    jumps = [(n, m.group(1)) for n in range(start, end) if (m := _JUMP.match(lines[n]))]
    return any(start <= labels.get(label, -1) <= n for n, label in jumps)


def inner_loops(assembly: str, multiply: str = "vfmadd") -> list[InnerLoop]:
    """Innermost loops that contain multiply-adds, in the order of the text.

    Parameters
    ----------
    assembly : str
        x86 assembly in AT&T syntax, as ``module.inspect_source("asm")`` gives it.
    multiply : str
        What the names of multiply-adds begin with.
    """
    lines = assembly.splitlines()
    labels = {m.group(1): n for n, line in enumerate(lines) if (m := _LABEL.match(line))}
    loops = []
    for end, line in enumerate(lines):
        jump = _JUMP.match(line)
        start = labels.get(jump.group(1)) if jump else None
        if start is None or start >= end:
            continue
        body = [t for t in lines[start:end] if t.startswith("\t") and not t.startswith("\t.")]
        fma = sum(multiply in t for t in body)
        if not fma or _has_loop(lines, labels, start, end):
            continue
        vector = [t for t in body if _VECTOR.search(t)]
        loops.append(
            InnerLoop(
                fma=fma,
                loads=sum(bool(_READ.search(t)) for t in vector),
                stores=sum(bool(_WRITE.search(t)) for t in vector),
                shuffles=sum(t.strip().startswith(_SHUFFLES) for t in vector),
                stack=sum("(%rsp" in t or "(%rbp)" in t for t in vector),
            )
        )
    return loops
