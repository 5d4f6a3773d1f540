"""Inner loops of generated ARM assembly: what they hold, and llvm-mca's model of their cycles."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from .arm_emulation import EmulationError

MCA = "llvm-mca-19"
ITERATIONS = 200
_LABEL = re.compile(r"(\.L\w+):")
_BLOCK = re.compile(r"\.LBB\w+:")
_BRANCH = re.compile(r"\s+(?:b\.?\w\w|b\.\w+|cbn?z\s+\w+,|tbn?z\s.*,)\s+(\.L\w+)")
_FMLA = re.compile(r"\s+(fmla|vfma\.f\d+|vmla\.f\d+)\s")
_LOAD = re.compile(r"\s+(ldr|ldp|ldur|ld1r?|vld1\.\d+|vldr|vldmia)\s+[{]?\s*[qdsvh]\d")
_VECTOR = re.compile(r"\b[qdsvh]\d+\b(?!\])")
_STORE = re.compile(r"\s+(str|stp|stur|st1|vst1\.\d+|vstr|vstmia|vpush)\s")
_INTEGER = re.compile(
    r"\s+(add|adds|sub|subs|[us]?madd|[us]maddl|mul|mla|mov|movk|[us]bfiz|lsl|[us]xtw)\s+[wxr]\d"
)


@dataclass(frozen=True)
class Core:
    """A core, llvm-mca's name of the model to use for it, and its peak.

    Parameters
    ----------
    model : str
        LLVM has real models only for some cores: Neoverse N1 is a Cortex-A76, V1 an X1.
    fmla_per_cycle : float
        128-bit multiply-adds that the core starts per cycle.
    ghz : float
        A usual clock, for milliseconds.
    """

    model: str
    fmla_per_cycle: float
    ghz: float


CORES = {
    "cortex-a53": Core("cortex-a53", 1.0, 1.4),
    "cortex-a55": Core("cortex-a55", 1.0, 1.8),
    "cortex-a510": Core("cortex-a510", 2.0, 1.8),
    "cortex-a76": Core("neoverse-n1", 2.0, 2.4),
    "cortex-a78": Core("neoverse-n1", 2.0, 2.4),
    "cortex-x1": Core("neoverse-v1", 4.0, 2.8),
    "neoverse-n1": Core("neoverse-n1", 2.0, 2.5),
}


@dataclass(frozen=True)
class InnerLoop:
    """One innermost loop with multiply-adds; counts are per iteration of the machine's loop."""

    lines: tuple[str, ...]

    def _count(self, what: re.Pattern[str]) -> int:
        return sum(1 for line in self.lines if what.match(line))

    @property
    def fmla(self) -> int:
        return self._count(_FMLA)

    @property
    def loads(self) -> int:
        """Vector loads; a pair counts as one."""
        return self._count(_LOAD)

    @property
    def loaded(self) -> int:
        """Vectors loaded; a pair counts as two."""
        return sum(len(_VECTOR.findall(line)) for line in self.lines if _LOAD.match(line))

    @property
    def stores(self) -> int:
        return self._count(_STORE)

    @property
    def stack(self) -> int:
        """Instructions that touch the stack: spilled registers."""
        return sum(1 for line in self.lines if "[sp" in line)

    @property
    def integer(self) -> int:
        """Integer arithmetic: addresses, and the loop's counter."""
        return self._count(_INTEGER)

    @property
    def by_element(self) -> int:
        """Multiply-adds that take an element of a vector."""
        return sum(1 for line in self.lines if re.match(r"\s+fmla\s.*\.[sh]\[\d\]", line))

    @property
    def instructions(self) -> int:
        return sum(1 for line in self.lines if line.startswith(("\t", " ")))

    def cycles(self, model: str) -> float:
        """Modelled cycles of one iteration, all data in L1.

        Raises
        ------
        EmulationError
            If llvm-mca is missing or rejects the code.
        """
        if shutil.which(MCA) is None:
            raise EmulationError(
                f"{MCA} is needed for static figures; on Debian and Ubuntu: apt-get install llvm-19"
                " (or `make arm-tools`)"
            )
        command = [MCA, "-mtriple=aarch64-linux-gnu", f"-mcpu={model}", f"-iterations={ITERATIONS}"]
        done = subprocess.run(
            command, input="\n".join(self.lines) + "\n", capture_output=True, text=True
        )
        found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
        if found is None:
            raise EmulationError(f"llvm-mca rejects the loop: {done.stderr.strip()[-300:]}")
        return int(found.group(1)) / ITERATIONS


def inner_loops(assembly: str) -> Iterator[InnerLoop]:
    """Innermost loops with multiply-adds, in order."""
    lines = assembly.splitlines()
    labels: dict[str, int] = {}
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = number
        branch = _BRANCH.match(line)
        start = labels.get(branch.group(1)) if branch else None
        if start is None:
            continue
        body = [
            text
            for text in lines[start : number + 1]
            if _BLOCK.match(text) or not re.match(r"\s*(//|@|\.)", text)
        ]
        loop = InnerLoop(tuple(body))
        if loop.fmla and sum(1 for text in body if _BLOCK.match(text)) == 1:
            yield loop
