"""Peak of the dot products of bytes of one core, measured in the same run as the workloads."""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
from pathlib import Path

ROUNDS = 200_000


class DotPeak:
    """Compiles the loop of dot products for this machine and collects samples.

    Raises
    ------
    RuntimeError
        If the compiler fails.
    """

    def __init__(self) -> None:
        source = Path(__file__).with_name("dot_peak.c")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "dot_peak.so"
            command = ["gcc", "-O2", "-march=native", "-shared", "-fPIC", str(source)]
            command += ["-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"gcc failed on {source.name}: {done.stderr}")
            self._gops = ctypes.CDLL(str(library)).dot_gops
        self._gops.restype, self._gops.argtypes = ctypes.c_double, [ctypes.c_long]
        self.samples: list[float] = []

    def sample(self) -> float:
        """Take one sample, 10^9 operations a second, and keep it."""
        self.samples.append(self._gops(ROUNDS))
        return self.samples[-1]

    @property
    def gflops(self) -> float:
        """Median of the samples, 10^9 operations a second; takes one if there is none yet."""
        return statistics.median(self.samples or [self.sample()])
