"""Whole libraries on an OpenCL device of this computer, against torch."""

from __future__ import annotations

import ctypes
import math
import struct

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import tirx as T
from tvm.target import Target

import tvm_pattern as tp
from relay_passes.targets import resolve
from tvm_pattern import devices, opencl
from tvm_pattern.manifest import ArtifactError
from tvm_pattern.opencl.errors import explain, message_of

GPUS = ["mali", "adreno"]


class Net(nn.Module):
    """Strides, padding, a residual, pooling and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        return self.head(torch.flatten(nn.functional.max_pool2d(x, 2, ceil_mode=True), 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 11, 11, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def libraries(device, model, image):
    """GPU -> library that runs here."""
    return {g: tp.compile(model, image, target=f"pattern/{g}", host="native") for g in GPUS}


@pytest.mark.parametrize("gpu", GPUS)
def test_equal_to_torch(libraries, model, image, gpu):
    library = libraries[gpu]
    assert library.manifest.verification["status"] == "checked"
    other = torch.randn(1, 3, 11, 11, generator=torch.Generator().manual_seed(2))
    for x in (image, other):
        expected = model(x).detach().numpy()
        np.testing.assert_allclose(library(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_exported_and_loaded(libraries, model, image, tmp_path, suffix):
    path = libraries["mali"].export(tmp_path / f"m{suffix}")
    loaded = tp.load(path)
    assert loaded.target.kind.name == "opencl"
    expected = model(image).detach().numpy()
    np.testing.assert_allclose(loaded(image), expected, rtol=1e-4, atol=1e-5)


def test_timed_whole_and_by_layer(libraries, image):
    library = libraries["adreno"]
    result = library.benchmark(image, repeat=3)
    assert len(result.results) == 3
    assert min(result.results) > 0
    profile = library.profile(repeat=1, min_repeat_ms=0)
    assert all(step.ms > 0 for step in profile.steps)
    assert [step.op for step in profile.steps if "conv2d" in step.op]


def test_any_number_of_threads(libraries, model, image):
    """Kernels keep their arguments between two calls: threads must not mix them."""
    from concurrent.futures import ThreadPoolExecutor

    images = [torch.full((1, 3, 11, 11), float(n)) for n in range(8)]
    expected = [model(x).detach().numpy() for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, want in zip(pool.map(libraries["mali"], images), expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_phones_library_is_not_run_here(model, image):
    library = tp.compile(model, image, target="pattern/mali")
    assert library.manifest.architecture == "aarch64"
    assert library.manifest.verification["status"] == "not checked"
    with pytest.raises(ArtifactError, match="built for aarch64"):
        library(image)


def test_a_library_for_another_gpu(libraries, image, tmp_path, monkeypatch):
    path = libraries["mali"].export(tmp_path / "m.so")
    loaded = tp.load(path)
    monkeypatch.setattr(
        devices, "device_of", lambda target: type("Gpu", (), {"exist": 1, "device_name": ADRENO})
    )
    with pytest.raises(ArtifactError, match=r"compiled for mali and .*Adreno.*pattern/adreno"):
        loaded(image)


ADRENO = "QUALCOMM Adreno(TM) 640"


@pytest.mark.parametrize(
    ("wanted", "name", "told"),
    [
        ("mali", ADRENO, "pattern/adreno"),
        ("adreno", "Mali-G78 r0p1", "pattern/mali"),
        ("adreno", "Immortalis-G715", "pattern/mali"),
        ("adreno", ADRENO, None),
        ("mali", "Mali-G78 r0p1", None),
        ("mali", "pthread-skylake", None),
        ("adreno", "NVIDIA H100", None),
    ],
)
def test_which_gpu_runs_which_library(wanted, name, told):
    reason = devices.why_wrong_gpu(Target(f"pattern/{wanted}"), name)
    assert (reason is None) == (told is None)
    assert told is None or told in reason


@pytest.mark.parametrize(
    ("target", "host", "message"),
    [
        ("pattern/mali", "pixel", "the host: unknown target 'pattern/pixel'"),
        ("pattern/mali", "adreno", "of the kind opencl, expected a CPU"),
        ("pattern/native", "native", "is a CPU itself; a host belongs to a GPU"),
    ],
)
def test_bad_hosts(model, image, target, host, message):
    with pytest.raises(ValueError, match=message):
        tp.compile(model, image, target=target, host=host)


def test_a_host_by_name(model, image):
    from relay_passes.targets import resolve

    target = resolve("pattern/adreno", "cortex-a76")
    assert str(target.host.attrs["mcpu"]) == "cortex-a76"
    assert target.kind.name == "opencl"
    assert "pattern" in target.keys


def test_float16_where_the_device_has_none(device, image):
    if opencl.devices()[0].float16:
        pytest.skip("this device computes in float16")
    half = nn.Sequential(nn.Conv2d(3, 4, 3)).eval().half()
    library = tp.compile(half, image.half(), target="pattern/mali", host="native", verify=False)
    with pytest.raises(opencl.OpenCLError, match=r"in layer \w+: .*float16, which .* lacks"):
        library(image.half())


def test_without_a_runtime(libraries, image, tmp_path, monkeypatch):
    path = libraries["mali"].export(tmp_path / "m.so")

    def fail() -> None:
        raise opencl.OpenCLError("no C++ compiler")

    monkeypatch.setattr(devices, "load_runtime", fail)
    with pytest.raises(ArtifactError, match=r"cannot load .*m\.so: no C\+\+ compiler"):
        tp.load(path)
    assert devices.why_no_device(Target("pattern/mali")) == "no C++ compiler"


def test_without_a_device(libraries, image, tmp_path, monkeypatch):
    loaded = tp.load(libraries["mali"].export(tmp_path / "m.so"))
    monkeypatch.setattr(devices, "device_of", lambda target: tvm.opencl(99))
    with pytest.raises(ArtifactError, match="the library cannot run here: no OpenCL device"):
        loaded(image)


def test_out_of_device_memory(device):
    with pytest.raises(RuntimeError, match=r"no buffer of 17592186044416 bytes.*smaller batch"):
        tvm.runtime.empty((1 << 42,), "float32", device)


def test_textures_are_refused(device):
    with pytest.raises(RuntimeError, match=r"global\.texture is not supported"):
        tvm.runtime.empty((4, 4, 4), "float32", device, mem_scope="global.texture")


def blob(source: str, name: str = "k_kernel") -> bytes:
    """A module as TVM writes it: one kernel of one pointer on a one-dimensional grid."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    count = struct.pack("<Q", 1)
    pointer = struct.pack("<QBBH", 1, 3, 64, 1)
    tags = struct.pack("<Q", 2) + text("blockIdx.x") + text("threadIdx.x")
    kernel = text(name) + text(name) + pointer + tags + struct.pack("<Q", 0)
    return text("cl") + count + kernel + text(source)


def load_blob(data: bytes) -> tvm.runtime.Module:
    return tvm.get_global_func("ffi.Module.load_from_bytes.opencl")(data)


COUNT = """// Function: broken_kernel
__kernel void broken_kernel(
// Function: k_kernel
__kernel void k_kernel(__global float* out) { out[get_global_id(0)] = get_local_size(0); }
"""


def test_a_kernel_is_launched_as_asked(device):
    """Blocks times threads work-items; what another kernel's text is does not matter."""
    kernel = load_blob(blob(COUNT)).get_function("k_kernel")
    out = tvm.runtime.tensor(np.zeros(12, "float32"), device)
    kernel(ctypes.c_void_p(out.data_ptr()), 2, 4)
    np.testing.assert_array_equal(out.numpy(), [4] * 8 + [0] * 4)


def test_a_kernel_that_does_not_build(device):
    kernel = load_blob(blob("__kernel void k_kernel(__global float* o) { o[0] = nothing; }"))
    with pytest.raises(RuntimeError, match=r"(?s)k_kernel does not build for .*nothing"):
        kernel.get_function("k_kernel")(None, 1, 1)


def test_work_groups_beyond_the_device(device):
    limit = opencl.devices()[0].max_work_group
    kernel = load_blob(blob(COUNT)).get_function("k_kernel")
    with pytest.raises(RuntimeError, match=rf"of {limit + 1} work-items .* allows \d+ of it"):
        kernel(None, 1, limit + 1)


def test_a_target_of_small_work_groups(device, model, image):
    """All kernels keep to what the target allows, and the library is right."""
    small = dict(resolve("pattern/mali", "native").export(), tag="", max_num_threads=12)
    library = tp.compile(model, image, target=Target(small))
    assert library.manifest.verification["status"] == "checked"
    items = [math.prod(items) for _, items in library.manifest.launches.values()]
    assert len(items) >= 5
    assert max(items) <= 12


def test_damaged_modules_are_refused(device):
    whole = blob(COUNT)
    load_blob(whole)
    for size in range(len(whole)):
        with pytest.raises(RuntimeError, match=r"damaged|format"):
            load_blob(whole[:size])
    with pytest.raises(RuntimeError, match="damaged"):
        load_blob(whole + b"x")
    with pytest.raises(RuntimeError, match="format xl, expected source"):
        load_blob(whole.replace(b"cl", b"xl", 1))


def test_an_error_names_the_layer():
    steps = [
        {"function": "step_0", "layer": "stem", "op": "fused_conv2d_relu", "inputs": []},
        {"function": "step_1", "layer": "body", "op": "fused_conv2d_relu", "inputs": []},
    ]
    text = "RPCError: OpenCL: the kernel fused_conv2d_relu_kernel does not build for G: nope\n"
    error = explain(text, steps)
    assert str(error).startswith("in layer stem, body: OpenCL: the kernel fused_conv2d_relu_kernel")
    assert explain("ValueError: something else", steps) is None
    assert message_of("a OpenCL: b") == "OpenCL: b"


@T.prim_func(s_tir=True)
def scaled(x: T.handle, y: T.handle, factor: T.float32, shift: T.int32):
    n = T.int32()
    X = T.match_buffer(x, (n,), "float32")
    Y = T.match_buffer(y, (n,), "float32")
    for block in T.thread_binding((n + 3) // 4, thread="blockIdx.x"):
        for item in T.thread_binding(4, thread="threadIdx.x"):
            with T.sblock("y"):
                i = T.axis.spatial(n, block * 4 + item)
                T.where(block * 4 + item < n)
                Y[i] = X[i] * factor + T.Cast("float32", shift)


def test_scalars_and_shapes_reach_the_kernel(device, tmp_path):
    target = Target({"kind": "opencl", "host": {"kind": "llvm"}})
    tvm.compile(scaled, target).export_library(str(tmp_path / "s.so"))
    function = tvm.runtime.load_module(str(tmp_path / "s.so"))["scaled"]
    for size in (1, 7, 64):
        x = np.arange(size, dtype="float32")
        y = tvm.runtime.tensor(np.zeros(size, "float32"), device)
        function(tvm.runtime.tensor(x, device), y, 0.5, -3)
        np.testing.assert_array_equal(y.numpy(), x * 0.5 - 3)


SEVERAL = """
import numpy as np, tvm
from tvm_pattern import opencl
print(len(opencl.devices()))
x = np.arange(5, dtype="float32")
first = tvm.runtime.tensor(x, tvm.opencl(0))
second = tvm.runtime.empty((5,), "float32", tvm.opencl(1))
first.copyto(second)
again = tvm.runtime.empty((5,), "float32", tvm.opencl(1))
second.copyto(again)
print(again.numpy().tolist(), again.device)
lib = tvm.runtime.load_module(PATH)
y = tvm.runtime.empty((5,), "float32", tvm.opencl(1))
lib["scaled"](again, y, 2.0, 1)
print(y.numpy().tolist())
"""


def test_several_devices(device, in_process, tmp_path):
    """Copies between contexts, and a kernel on the device that holds its tensors."""
    if opencl.devices()[0].platform != "Portable Computing Language":
        pytest.skip("only PoCL lets one ask for two devices")
    target = Target({"kind": "opencl", "host": {"kind": "llvm"}})
    tvm.compile(scaled, target).export_library(str(tmp_path / "s.so"))
    code = SEVERAL.replace("PATH", repr(str(tmp_path / "s.so")))
    done = in_process(code, POCL_DEVICES="pthread basic")
    assert done.returncode == 0, done.stderr
    count, copied, computed = done.stdout.splitlines()
    assert count == "2"
    assert copied == "[0.0, 1.0, 2.0, 3.0, 4.0] opencl:1"
    assert computed == "[1.0, 3.0, 5.0, 7.0, 9.0]"
