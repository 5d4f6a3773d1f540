"""Code of PrimFuncs, each for itself: the same library from the cache, from anew, without one."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import ir as I
from tvm.script import tirx as T

import tvm_pattern as tp
from relay_passes.targets import resolve
from tvm_pattern import building
from tvm_pattern.code_cache import CodeCache
from tvm_pattern.linking import object_code

IMAGE = torch.randn(1, 3, 9, 11, generator=torch.Generator().manual_seed(1))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    return model


def compiled(seed: int = 0, **options):
    return tp.compile(network(seed), IMAGE, num_threads=1, **options)


def exported(folder, **options) -> bytes:
    return compiled(**options).export(folder / "net.so").read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of this test's own, switched on."""
    monkeypatch.setenv("TVM_PATTERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def generated(monkeypatch) -> list[str]:
    """Names of the PrimFuncs whose code is generated from now on."""
    names: list[str] = []
    generate = building._object

    def recorded(unit, target):
        names.extend(str(g.name_hint) for g, _ in unit.functions)
        return generate(unit, target)

    monkeypatch.setattr(building, "_object", recorded)
    return names


def test_the_same_library_with_and_without(tmp_path, folder, generated, monkeypatch):
    first = exported(tmp_path)
    kept = sorted(path.name.split("-")[0] for path in folder.iterdir())
    assert kept.count("choices") == 1  # the level-0 configurations; the others are object files
    assert len(set(generated)) == len(generated) == len(kept) - 1 > 2
    generated.clear()
    assert exported(tmp_path) == first
    assert generated == []
    monkeypatch.setenv("TVM_PATTERN_CACHE", "0")
    assert exported(tmp_path) == first
    assert generated


def test_a_retrained_network_of_equal_structure_hits(tmp_path, folder, generated):
    compiled(0)
    generated.clear()
    model = network(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + torch.rand_like(parameter)  # What is pruned stays so.
    library = tp.compile(model, IMAGE, num_threads=1)
    assert generated == []
    path = library.export(tmp_path / "net.tar")
    with torch.no_grad():
        expected = model(IMAGE).numpy()
    # 72 products at most are added to a value of order 1.
    np.testing.assert_allclose(tp.load(path)(IMAGE.numpy()), expected, rtol=1e-5, atol=1e-5)


def test_only_a_damaged_entry_is_built_anew(tmp_path, folder, generated):
    first = exported(tmp_path)
    for number, path in enumerate(sorted(folder.iterdir())):
        generated.clear()
        content = path.read_bytes()
        path.write_bytes(content[:-100] if number % 2 else content[:-100] + b"\0" * 100)
        assert exported(tmp_path) == first
        assert len(generated) == (0 if path.name.startswith("choices-") else 1)
        assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, generated):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVM_PATTERN_CACHE", str(tmp_path / "file" / "cache"))
    first = exported(tmp_path)
    generated.clear()
    assert exported(tmp_path) == first
    assert generated


def test_targets_are_never_mixed(tmp_path, folder, generated):
    targets = ["pattern/x86-avx2", "pattern/x86-avx512", "pattern/cortex-a76", "pattern/cortex-a53"]

    def objects(target) -> tuple[bytes, ...]:
        mod = tvm.IRModule({"main": _plus_one()})
        cache = CodeCache(folder, 1 << 20)
        return tuple(building._objects(building._units(mod), resolve(target), cache))

    first = [objects(target) for target in targets]
    assert generated == ["main"] * len(targets)
    assert [objects(target) for target in targets] == first
    assert generated == ["main"] * len(targets)
    machines = [code[0][18] for code in first]  # e_machine of ELF
    assert machines == [62, 62, 183, 183]
    # What a processor is tuned for decides too, and so does each of its features.
    plain = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "keys": ["pattern", "cpu"]}
    for changed in ({}, {"mcpu": "skylake"}, {"mcpu": "skylake", "mattr": ["-avx2"]}):
        objects({**plain, **changed})
    assert generated == ["main"] * (len(targets) + 3)


def test_options_of_the_passes_are_part_of_the_key(folder, generated):
    cache = CodeCache(folder, 1 << 20)
    units = building._units(tvm.IRModule({"main": _plus_one()}))
    contexts = [
        {},
        {"opt_level": 3},
        {"config": {"tirx.disable_vectorize": True}},
        {"disabled_pass": ["tirx.UnrollLoop"]},
    ]
    for _ in range(2):
        for options in contexts:
            with tvm.transform.PassContext(**options):
                building._objects(units, resolve("pattern/native"), cache)
    assert generated == ["main"] * len(contexts)


@pytest.mark.parametrize("case", ["instruments", "option", "pipeline"])
def test_what_cannot_be_put_into_a_key_is_built(folder, generated, monkeypatch, case):
    cache = CodeCache(folder, 1 << 20)
    units = building._units(tvm.IRModule({"main": _plus_one()}))
    options = {}
    if case == "instruments":
        options = {"instruments": [tvm.ir.instrument.PassTimingInstrument()]}
    elif case == "option":
        options = {"config": {"tirx.UnrollLoop": {"auto_max_step": 3}}}
    else:
        from tvm.tirx import compilation_pipeline

        pipeline = compilation_pipeline.PIPELINE_MAP["s_tir"]
        monkeypatch.setitem(compilation_pipeline.PIPELINE_MAP, "s_tir", lambda: pipeline())
    with tvm.transform.PassContext(**options):
        for _ in range(2):
            building._objects(units, resolve("pattern/native"), cache)
    assert generated == ["main", "main"]
    assert not folder.exists()


def test_primfuncs_that_call_each_other_are_built_together():
    @I.ir_module
    class Calling:
        @T.prim_func(private=True, s_tir=True)
        def twice(x: T.float32) -> T.float32:
            return x * T.float32(2)

        @T.prim_func(s_tir=True)
        def doubled(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
            for i in range(4):
                with T.sblock("b"):
                    j = T.axis.spatial(4, i)
                    b[j] = Calling.twice(a[j])

    (unit,) = building._units(Calling)
    assert sorted(str(g.name_hint) for g, _ in unit.functions) == ["doubled", "twice"]
    apart = building._units(tvm.IRModule({"one": _plus_one(), "other": _plus_one()}))
    assert [len(unit.functions) for unit in apart] == [1, 1]


class Stopped(Exception):
    """Ends a compilation where machine code would be generated."""


def test_passes_for_other_devices_change_nothing(monkeypatch):
    units: list[building._Unit] = []

    def stop(found, *_):
        units.extend(found)
        raise Stopped

    monkeypatch.setattr(building, "_objects", stop)
    with pytest.raises(Stopped):
        compiled(verify=False)
    plain = [unit for unit in units if not building._OF_DEVICES.search(unit.text)]
    assert len(plain) > 2
    target = resolve("pattern/native")
    fast = [building._object(unit, target) for unit in plain]
    monkeypatch.setattr(building, "_FOR_DEVICES", ())
    assert [building._object(unit, target) for unit in plain] == fast


@pytest.mark.parametrize(
    ("pin", "target"),
    [
        ("x86-avx512/float32/lanes-vgg-14/1", "pattern/x86-avx512"),
        ("x86-avx512/float32/mobile-1x1-7/1", "pattern/x86-avx512"),
        ("x86-avx2/float32/res-14-s2/1", "pattern/x86-avx2"),
        ("x86-avx2/float32/depthwise-7", "pattern/x86-avx2"),
        ("arm-neon-in-order/float16/res-14/1", "pattern/cortex-a55"),
        ("armv7-neon/float32/max-pool", "pattern/armv7"),
    ],
)
def test_passes_that_tidy_up_change_nothing_of_ours(monkeypatch, pin, target):
    (unit,) = building._units(tvm.IRModule({"main": golden.plan_of(pin)[1]}))
    code = building._object(unit, resolve(target))
    monkeypatch.setattr(building, "_FOR_OTHERS", ())
    assert building._object(unit, resolve(target)) == code


def test_primfuncs_of_others_are_tidied_up(monkeypatch):
    passes: list[str] = []
    monkeypatch.setattr(building, "object_code", lambda _: b"")
    monkeypatch.setattr(
        tvm.tirx,
        "build",
        lambda *_, **__: passes.extend(tvm.ir.transform.PassContext.current().disabled_pass),
    )
    for func in (_plus_one(), _plus_one().with_attr("tirx.is_scheduled", True)):
        passes.clear()
        (unit,) = building._units(tvm.IRModule({"main": func}))
        building._object(unit, resolve("pattern/native"))
        assert ("tirx.RemoveNoOp" in passes) == ("tirx.is_scheduled" in func.attrs)


def test_virtual_threads_keep_their_passes():
    @T.prim_func(s_tir=True)
    def main(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32")):
        for v in T.thread_binding(4, thread="vthread.x"):
            for i in range(16):
                with T.sblock("b"):
                    j = T.axis.spatial(64, v * 16 + i)
                    b[j] = a[j] + T.float32(1)

    mod = tvm.IRModule({"main": main.with_attr("global_symbol", "main")})
    (unit,) = building._units(mod)
    target = resolve("pattern/native")
    assert building._OF_DEVICES.search(unit.text)
    assert building._object(unit, target) == object_code(tvm.tirx.build(mod, target=target))


def _plus_one() -> tvm.tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def main(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32")):
        T.func_attr({"tirx.noalias": True})
        for i in T.vectorized(64):
            with T.sblock("b"):
                j = T.axis.spatial(64, i)
                b[j] = a[j] + T.float32(1)

    return main.with_attr("global_symbol", "main")
