"""Features by the kernel's names."""

from __future__ import annotations

import pytest

from tvm_pattern.cpu_flags import machine_architecture, surely_has
from tvm_pattern.machine import machine_features

X86 = "processor\t: 0\nflags\t\t: fpu pni avx2 fma sse4_1 avx512_vnni abm bmi1\n"
ARM = "processor : 0\nFeatures : fp asimd atomics asimddp\n"


@pytest.mark.parametrize(
    ("features", "cpuinfo", "sure"),
    [
        ([], X86, True),
        (["avx2", "fma", "sse4.1", "avx512vnni", "sse3", "lzcnt", "bmi"], X86, True),
        (["avx2", "avx512f"], X86, False),
        (["neon", "fp-armv8", "lse"], ARM, True),
        (["neon", "dotprod"], ARM, False),
        (["avx2"], "", False),
        (["avx"], "flags : avx2", False),
    ],
)
def test_features(features, cpuinfo, sure):
    assert surely_has(features, cpuinfo) is sure


def test_it_never_says_more_than_llvm():
    present = machine_features()
    assert machine_architecture()
    for feature in ("avx2", "fma", "avx512f", "avx512vnni", "amx-tile", "neon", "sse4a", "xop"):
        if surely_has([feature]):
            assert feature in present
