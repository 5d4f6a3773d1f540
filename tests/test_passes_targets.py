"""Target tags, resolution and families."""

import pytest
from tvm.target import Target

from relay_passes import targets
from topi_kernels import target_family as tf

EXPECTED = {
    "pattern/x86-avx2": tf.X86_AVX2,
    "pattern/x86-avx512": tf.X86_AVX512,
    "pattern/cortex-a53": tf.ARM_NEON_IN_ORDER,
    "pattern/cortex-a55": tf.ARM_NEON_IN_ORDER,
    "pattern/cortex-a72": tf.ARM_NEON,
    "pattern/cortex-a76": tf.ARM_NEON,
    "pattern/cortex-a78": tf.ARM_NEON,
    "pattern/cortex-x1": tf.ARM_NEON_WIDE,
    "pattern/neoverse-n1": tf.ARM_NEON,
    "pattern/armv7": tf.ARMV7_NEON,
    "pattern/mali": tf.MALI,
    "pattern/adreno": tf.ADRENO,
}


@pytest.mark.parametrize(("tag", "family"), EXPECTED.items())
def test_tags(tag, family):
    target = targets.resolve(tag)
    assert "pattern" in target.keys
    assert tf.target_family(target) == family


def test_list_of_tags():
    assert targets.targets() == sorted([*EXPECTED, "pattern/native"])
    native = targets.resolve("pattern/native")
    assert tf.target_family(native) in tf.CPU_FAMILIES
    assert tf.num_cores(native) >= 1


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"kind": "llvm", "mcpu": "znver4"}, tf.X86_AVX512),
        ({"kind": "llvm", "mcpu": "znver4", "mattr": ["-avx512f"]}, tf.X86_AVX2),
        ({"kind": "llvm", "mcpu": "x86-64", "mattr": ["+avx2", "+fma"]}, tf.X86_AVX2),
        ({"kind": "llvm", "mcpu": "x86-64"}, tf.GENERIC),
        ({"kind": "llvm", "mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a9"}, tf.ARMV7_NEON),
        ({"kind": "llvm", "mtriple": "armv6-linux-gnueabihf"}, tf.GENERIC),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-x1"}, tf.ARM_NEON_WIDE),
        ({"kind": "opencl"}, tf.OTHER),
        ({"kind": "c"}, tf.OTHER),
    ],
)
def test_families(config, family):
    if config["kind"] == "llvm":
        config = {"mtriple": "x86_64-linux-gnu", **config}
    assert tf.target_family(Target(config)) == family


def test_num_cores_is_read_from_the_target():
    assert tf.num_cores(Target({"kind": "llvm", "num-cores": 3})) == 3


def test_resolve_takes_targets_and_dicts():
    config = {"kind": "llvm", "keys": ["pattern", "cpu"]}
    assert "pattern" in targets.resolve(config).keys
    target = Target(config)
    assert targets.resolve(target).same_as(target)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("pattern/pentium", ValueError, "unknown target 'pattern/pentium'; expected one of"),
        ("llvm", ValueError, r"has the keys \['cpu'\] without 'pattern'"),
        ("gibberish", ValueError, "TVM cannot read the target 'gibberish'"),
        ({"kind": "gibberish"}, ValueError, "TVM cannot read the target"),
        (7, TypeError, "a target is a tag, a dict or a tvm.target.Target, got int"),
    ],
)
def test_resolve_errors(target, error, message):
    with pytest.raises(error, match=message):
        targets.resolve(target)


def test_features_follow_the_machine():
    """LLVM's idea of a processor is corrected both ways by what the machine reports."""
    flags = targets.parse_cpu_flags("processor : 0\nflags\t\t: fpu avx2 fma f16c\nflags : other\n")
    assert flags == {"fpu", "avx2", "fma", "f16c"}
    hidden = targets.feature_attributes("skylake-avx512", flags)
    assert "-avx512f" in hidden
    assert "+avx2" not in hidden
    assert "+avx2" in targets.feature_attributes("x86-64", flags)
    assert targets.feature_attributes("x86-64", None) == []
    assert targets.parse_cpu_flags("Features : asimd\n") is None
