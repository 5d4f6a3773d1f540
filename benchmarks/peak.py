"""FMA peak of one core, measured in the same run as the workloads.

The figure reported is the median of samples taken between the workloads' own timings, so that both
see the same clock frequency and the same neighbours. One sample is the fastest of the machine's
vector widths, over about a millisecond each.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("fma_peak.c")
WIDTHS = (512, 256, 128)
SAMPLE_SECONDS = 1e-3
_CALIBRATION_ROUNDS = 20_000


class PeakMeter:
    """Compiles the peak loop for this machine and collects samples.

    Raises
    ------
    RuntimeError
        If there is no C compiler, it fails, or the machine has no vector FMA this file knows.
    """

    def __init__(self) -> None:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise RuntimeError("no C compiler found to measure the FMA peak: install gcc or set CC")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "fma_peak.so"
            native = "-mcpu=native" if os.uname().machine == "aarch64" else "-march=native"
            command = [compiler, "-O2", native, "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            self._gflops = ctypes.CDLL(str(library)).fma_gflops
        self._gflops.restype = ctypes.c_double
        self._gflops.argtypes = [ctypes.c_int, ctypes.c_long]
        self._rounds: dict[int, int] = {}
        for bits in WIDTHS:
            self._gflops(bits, _CALIBRATION_ROUNDS)  # wakes the wide units
            rate = self._gflops(bits, _CALIBRATION_ROUNDS)
            if rate > 0:
                flops_per_round = 12 * 2 * bits / 32
                self._rounds[bits] = max(1, int(rate * 1e9 * SAMPLE_SECONDS / flops_per_round))
        if not self._rounds:
            raise RuntimeError(
                "no FMA loop for this machine: expected x86-64 with FMA3 or AArch64;"
                " add one to fma_peak.c"
            )
        self.samples: list[float] = []
        self._by_width: dict[int, list[float]] = {bits: [] for bits in self._rounds}

    @property
    def widths(self) -> tuple[int, ...]:
        """Vector widths in bits that this machine runs."""
        return tuple(self._rounds)

    def sample(self) -> float:
        """Take one sample, GFLOP/s, and keep it."""
        rates = {bits: self._gflops(bits, rounds) for bits, rounds in self._rounds.items()}
        for bits, rate in rates.items():
            self._by_width[bits].append(rate)
        self.samples.append(max(rates.values()))
        return self.samples[-1]

    def at_width(self, bits: int) -> float:
        """Median of the samples with vectors of ``bits`` bits; takes one if there is none yet.

        Raises
        ------
        ValueError
            If the machine has no such vectors.
        """
        if bits not in self._by_width:
            raise ValueError(
                f"vectors of {bits} bits: this machine has those of {list(self.widths)}"
            )
        if not self._by_width[bits]:
            self.sample()
        return statistics.median(self._by_width[bits])

    @property
    def gflops(self) -> float:
        """Median of the samples; takes one if there is none yet."""
        return statistics.median(self.samples or [self.sample()])
