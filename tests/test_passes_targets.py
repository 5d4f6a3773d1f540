"""Target tags, resolution and devices."""

import pytest
from tvm.target import Target

from relay_passes import targets
from topi_kernels.device import num_cores
from topi_kernels.devices import DEVICES

EXPECTED = {
    "pattern/x86-avx2": "x86-avx2",
    "pattern/x86-avx512": "x86-avx512",
    "pattern/znver4": "x86-avx512-zen4",
    "pattern/tigerlake": "x86-avx512-client",
    "pattern/cortex-a53": "arm-neon-in-order",
    "pattern/cortex-a55": "arm-neon-in-order",
    "pattern/cortex-a72": "arm-neon",
    "pattern/cortex-a76": "arm-neon",
    "pattern/cortex-a78": "arm-neon",
    "pattern/cortex-a510": "arm-neon-in-order",
    "pattern/cortex-a520": "arm-neon-in-order",
    "pattern/cortex-a720": "arm-neon",
    "pattern/cortex-x1": "arm-neon-wide",
    "pattern/cortex-x4": "arm-neon-wide",
    "pattern/neoverse-n1": "arm-neon",
    "pattern/neoverse-v2": "arm-neon-wide",
    "pattern/armv7": "armv7-neon",
    "pattern/mali": "mali",
    "pattern/adreno": "adreno",
}


@pytest.mark.parametrize(("tag", "device"), EXPECTED.items())
def test_tags(tag, device):
    target = targets.resolve(tag)
    assert "pattern" in target.keys
    assert DEVICES.of(target).name == device


def test_list_of_tags():
    assert targets.targets() == sorted([*EXPECTED, "pattern/native"])
    native = targets.resolve("pattern/native")
    assert DEVICES.of(native).facts is not None
    assert num_cores(native) >= 1


@pytest.mark.parametrize(
    ("config", "device"),
    [
        ({"kind": "llvm", "mcpu": "znver4"}, "x86-avx512-zen4"),
        ({"kind": "llvm", "mcpu": "znver5"}, "x86-avx512"),
        ({"kind": "llvm", "mcpu": "skylake-avx512"}, "x86-avx512"),
        ({"kind": "llvm", "mcpu": "icelake-server"}, "x86-avx512"),
        ({"kind": "llvm", "mcpu": "icelake-client"}, "x86-avx512-client"),
        ({"kind": "llvm", "mcpu": "sapphirerapids"}, "x86-avx512"),
        ({"kind": "llvm", "mcpu": "x86-64", "mattr": ["+avx512f"]}, "x86-avx512"),
        ({"kind": "llvm", "mcpu": "znver4", "mattr": ["-avx512f"]}, "x86-avx2"),
        ({"kind": "llvm", "mcpu": "x86-64", "mattr": ["+avx2", "+fma"]}, "x86-avx2"),
        ({"kind": "llvm", "mcpu": "x86-64"}, "generic"),
        ({"kind": "llvm", "mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a9"}, "armv7-neon"),
        ({"kind": "llvm", "mtriple": "armv6-linux-gnueabihf"}, "generic"),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-x1"}, "arm-neon-wide"),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a77"}, "arm-neon"),
        ({"kind": "llvm", "mtriple": "riscv64-linux-gnu"}, "generic"),
        ({"kind": "opencl", "device": "mali"}, "mali"),
        ({"kind": "llvm", "mcpu": "znver4", "keys": ["cpu", "x86-avx2"]}, "x86-avx2"),
    ],
)
def test_devices(config, device):
    if config["kind"] == "llvm":
        config = {"mtriple": "x86_64-linux-gnu", **config}
    assert DEVICES.of(Target(config)).name == device


def test_num_cores_is_read_from_the_target():
    assert num_cores(Target({"kind": "llvm", "num-cores": 3})) == 3


def test_resolve_takes_targets_and_dicts():
    config = {"kind": "llvm", "keys": ["pattern", "cpu"]}
    assert "pattern" in targets.resolve(config).keys
    target = Target(config)
    assert targets.resolve(target).same_as(target)


@pytest.mark.parametrize("plain", ["llvm", {"kind": "llvm", "mcpu": "znver4", "num-cores": 3}])
def test_a_plain_target_gets_the_key_and_keeps_the_rest(plain):
    resolved, want = targets.resolve(plain), Target(plain)
    assert list(resolved.keys) == ["pattern", *want.keys]
    assert {**resolved.export(), "keys": None} == {**want.export(), "keys": None}
    assert targets.resolve(resolved).same_as(resolved)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("pattern/pentium", ValueError, "unknown target 'pattern/pentium'; expected one of"),
        ("cuda", ValueError, "no device matches the target"),
        ("gibberish", ValueError, "TVM cannot read the target 'gibberish'"),
        ({"kind": "gibberish"}, ValueError, "TVM cannot read the target"),
        ({"kind": "llvm", "mcpu": "znver44"}, ValueError, "no processor 'znver44' of .*znver4,"),
        (
            {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "znver4"},
            ValueError,
            "no processor 'znver4' of aarch64.*cortex-a53",
        ),
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
