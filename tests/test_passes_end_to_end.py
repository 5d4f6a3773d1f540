"""Small networks through every pass, built and compared with torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from families import UNSCHEDULED
from relax_oracle import check_against_torch, execute, import_torch
from torch import nn
from tvm import relax
from tvm.target import Target

from relay_passes import pipeline
from relay_passes.fold_constants import FoldConstants
from relay_passes.markers import layout_from_list
from relay_passes.pattern_rewrite import PatternRewrite
from relay_passes.report import ReportBuilder
from relay_passes.schedule import Schedule
from relay_passes.targets import resolve
from topi_kernels.backend import Backend
from topi_kernels.devices import DEVICES
from topi_kernels.report import RewriteReport


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def shake(model):
    """Batch norms with statistics that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model


def prune(model, keep=0.3):
    """Patterns of 4 taps on some of the kernels of each 3x3 convolution."""
    generator = np.random.default_rng(0)
    taps = np.array([[0, 1, 3, 4], [1, 2, 4, 5], [1, 3, 4, 5], [4, 5, 7, 8]])
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups == 1:
            out_channels, in_channels = module.weight.shape[:2]
            mask = np.zeros((out_channels * in_channels, 9), "float32")
            chosen = taps[generator.integers(0, 4, len(mask))]
            np.put_along_axis(mask, chosen, 1, axis=1)
            mask *= (generator.random(len(mask)) < keep)[:, None]
            module.weight.data *= torch.tensor(mask).reshape(module.weight.shape)
    return model


class Residual(nn.Module):
    """Residual blocks with the addition in both orders and a convolution on the shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16))
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = F.relu(self.a(x) + x)
        x = F.relu(x + self.a(x))
        x = F.relu(self.short(x) + self.b(x))
        return self.fc(x.mean((2, 3)))


class Inverted(nn.Module):
    """Inverted residuals: relu6, depthwise with both strides."""

    def __init__(self):
        super().__init__()

        def block(i, o, stride):
            return nn.Sequential(
                nn.Conv2d(i, 4 * i, 1, bias=False),
                nn.BatchNorm2d(4 * i),
                nn.ReLU6(),
                nn.Conv2d(4 * i, 4 * i, 3, stride, 1, groups=4 * i, bias=False),
                nn.BatchNorm2d(4 * i),
                nn.ReLU6(),
                nn.Conv2d(4 * i, o, 1, bias=False),
                nn.BatchNorm2d(o),
            )

        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6())
        self.one, self.two = block(8, 8, 1), block(8, 12, 2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.two(x + self.one(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Plain(nn.Module):
    """Convolutions with bias and batch norm, pools, a flattened classifier of two layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 10, 3, padding=1),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d((3, 3)),
        )
        self.classifier = nn.Sequential(
            nn.Linear(90, 70), nn.ReLU(), nn.Dropout(), nn.Linear(70, 11)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


@pytest.mark.parametrize("network", [Residual, Inverted, Plain])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 29, 41)])
def test_networks(network, shape):
    report = check_against_torch(prune(shake(network())), torch.randn(shape))
    assert len(report) > 0
    assert not report.skipped


@pytest.mark.parametrize("target", ["pattern/x86-avx2", "pattern/native"])
def test_targets_and_threads(target):
    check_against_torch(
        prune(shake(Residual())), torch.randn(1, 3, 23, 31), target=target, num_threads=2
    )


class Activations(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 5, 3, padding=1), act

    def forward(self, x):
        y = self.conv(x)
        z = self.act(y)
        return z, self.act(z + x.mean(1, keepdim=True).expand(-1, 5, -1, -1))


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardswish(),
        nn.SiLU(),
        nn.Hardsigmoid(),
        nn.Sigmoid(),
        nn.Hardtanh(-0.5, 0.25),
        nn.Hardtanh(0, 3),
        nn.GELU(),
        nn.LeakyReLU(),
    ],
    ids=lambda a: type(a).__name__ + str(getattr(a, "max_val", "")),
)
def test_activations(act):
    check_against_torch(Activations(act), 3 * torch.randn(1, 3, 9, 11))


class Branches(nn.Module):
    """Concatenation (no island operator), several consumers, an output that is a convolution."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 5, padding=2)
        self.d = nn.Conv2d(8, 4, 3, padding=2, dilation=2)

    def forward(self, x):
        x = F.relu(self.a(x))
        b, c = self.b(x), self.c(x)
        joined = torch.cat([F.relu(b), c * b], 1)
        d = self.d(joined)
        return d, b, F.max_pool2d(c, 3, 1, 1), c + c, d.mean((2, 3), keepdim=True)


def test_branches():
    check_against_torch(Branches(), torch.randn(1, 3, 13, 18))


class Asymmetric(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding=(1, 0))
        self.b = nn.Conv2d(4, 4, (1, 5), stride=(1, 2), padding=(0, 2))
        self.c = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        y = self.b(F.relu(self.a(F.pad(x, (1, 2, 0, 3)))))
        return F.avg_pool2d(self.c(y), 3, 2, 1, count_include_pad=False), F.max_pool2d(
            y, (3, 2), (2, 1), (1, 0), ceil_mode=True
        )


def test_asymmetric_kernels_and_padding():
    check_against_torch(Asymmetric(), torch.randn(2, 3, 15, 22))


class Rest(nn.Module):
    """Convolutions of which some are left to TVM."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2, dilation=3)
        self.line = nn.Conv1d(4, 4, 3)
        self.volume = nn.Conv3d(1, 2, 3)
        self.wide_step = nn.Conv2d(4, 4, 3, 5, groups=2)
        self.taken = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        y = self.up(F.relu(self.grouped(x)))
        z = self.volume(y[:, None])
        return self.line(y[:, :, 0]), z, self.wide_step(y), self.taken(y)


def test_what_is_left_dense_has_a_reason():
    report = check_against_torch(Rest(), torch.randn(1, 4, 8, 9))
    reasons = {row.op: row.reason for row in report.skipped}
    assert len(report) == 6
    assert len(report.taken) == 3  # the grouped one, the one of a line and the plain one
    assert "transposed" in reasons["nn.conv2d_transpose"]
    assert "3-D" in reasons["nn.conv3d"]
    assert "stride (5, 5)" in reasons["nn.conv2d"]


def test_onnx():
    """Spellings of the ONNX importer: relu6 as maximum and minimum, a reshaped bias, Gemm."""
    helper = pytest.importorskip("onnx.helper")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    from tvm.relax.frontend.onnx import from_onnx

    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "g": (8,), "t": (8,), "m": (8,), "f": (5, 8), "h": (5,)}
    values = {k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()}
    values |= {"v": rng.uniform(0.5, 2, 8).astype("float32")}
    values |= {"lo": np.float32(0), "hi": np.float32(6)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "g", "t", "m", "v"], ["n"]),
        helper.make_node("Clip", ["n", "lo", "hi"], ["r"]),
        helper.make_node("HardSwish", ["r"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["q"]),
        helper.make_node("Gemm", ["q", "f", "h"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 3, 9, 10])],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()],
    )
    mod = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    lowered, report = pipeline.lower(mod, "pattern/native", num_threads=1)
    functions = [str(gv.name_hint) for gv, _ in lowered.functions_items()]
    assert not [name for name in functions if "maximum" in name or "minimum" in name]
    x = rng.standard_normal((1, 3, 9, 10)).astype("float32")
    got = execute(tvm.compile(lowered, resolve("pattern/native")), x)[0]
    w, b, g, t, m, v, f, h = (torch.tensor(values[k]) for k in "wbgtmvfh")
    y = F.conv2d(torch.tensor(x), w, b, padding=1)
    y = F.hardswish(F.relu6(F.batch_norm(y, m, v, g, t)))
    want = F.linear(y.mean((2, 3)), f, h)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    assert len(report.taken) == 1


def test_dynamic_batch_is_left_dense():
    batch = torch.export.Dim("batch", min=1, max=8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    mod = import_torch(model, x, dynamic_shapes=({0: batch},))
    lowered, report = pipeline.lower(mod, "pattern/native")
    assert [row.reason for row in report] == ["dynamic shape; compile with fixed shapes"]
    got = execute(tvm.compile(lowered, resolve("pattern/native")), x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got[0], model(x).numpy(), atol=1e-5)


def test_registered_pipeline_for_plain_tvm():
    model, x = prune(shake(Residual())).eval(), torch.randn(1, 3, 32, 32)
    target = Target({"kind": "llvm", "mcpu": "x86-64-v3", "keys": ["pattern", "cpu"]})
    mod = import_torch(model, x)
    executable = tvm.compile(mod, target, relax_pipeline="pattern_sparse")
    with torch.no_grad():
        np.testing.assert_allclose(execute(executable, x.numpy())[0], model(x), atol=1e-5)
    with target:
        lowered = relax.get_pipeline("pattern_sparse")(mod)
    report = RewriteReport.from_json(lowered.attrs[pipeline.REPORT_ATTRIBUTE])
    assert len(report.taken) == 5


PLAIN_TVM = """
import numpy as np
import tvm
from tvm import relax

import relay_passes
x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))
weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype("float32")
weight[:, :, 0] = weight[:, :, :, 0] = 0
builder = relax.BlockBuilder()
with builder.function("main", [x]):
    with builder.dataflow():
        y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight)))
        z = builder.emit_output(y)
    builder.emit_func_output(z)
mod = builder.get()
image = tvm.runtime.tensor(np.random.default_rng(1).standard_normal((1, 3, 6, 6), "float32"))

def output(target, pipeline):
    built = tvm.compile(mod, target, relax_pipeline=pipeline)
    return relax.VirtualMachine(built, tvm.cpu())["main"](image).numpy()

want = output(tvm.target.Target("llvm"), "default_build")
for target in (tvm.target.Target("llvm"), tvm.target.Target("pattern/native"), "llvm"):
    np.testing.assert_allclose(output(target, "pattern_sparse"), want, atol=1e-5)
"""


def test_plain_tvm_in_a_fresh_process():
    """One import registers tags and pipeline; plain targets do."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TVM],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_pipeline_needs_a_target_of_a_device():
    mod = import_torch(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2))
    with pytest.raises(ValueError, match="needs a target"):
        pipeline.current_target()
    with pytest.raises(Exception, match="no device matches the target"):
        tvm.compile(mod, Target("cuda", host="llvm"), relax_pipeline="pattern_sparse")


def test_a_device_without_schedules_is_reported_and_left_to_tvm():
    mod = import_torch(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2))
    DEVICES.add(UNSCHEDULED)
    try:
        keys = ["pattern", UNSCHEDULED.name, "cpu"]
        _, report = pipeline.lower(mod, {"kind": "llvm", "keys": keys})
    finally:
        DEVICES.remove(UNSCHEDULED.name)
    (row,) = report
    assert not row.taken
    assert "no schedules for the device 'toy-npu'" in row.reason


def test_lower_rejects_bad_arguments():
    mod = import_torch(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2))
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        pipeline.lower(mod, "pattern/native", num_threads=0)
    with pytest.raises(ValueError, match="unknown target"):
        pipeline.lower(mod, "pattern/pentium")


def test_threads_change_no_bit():
    model, x = prune(shake(Inverted())).eval(), torch.randn(1, 3, 40, 40)
    results = []
    for threads in (1, 2):
        lowered, _ = pipeline.lower(import_torch(model, x), "pattern/native", num_threads=threads)
        executable = tvm.compile(lowered, resolve("pattern/native"))
        results.append(execute(executable, x.numpy())[0])
    np.testing.assert_array_equal(*results)


def test_markers_without_layout_are_refused():
    """Schedule says which pass is missing."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4))
    mod = import_torch(model, torch.randn(1, 4, 5, 5))
    report, target = ReportBuilder(), Backend.named("generic")
    marked = tvm.transform.Sequential([FoldConstants(), PatternRewrite(report)])(mod)
    with pytest.raises(Exception, match="'conv2d' cannot be scheduled; expected one of"):
        Schedule(target, report)(marked)
    with pytest.raises(ValueError, match="run PlaneLayout before"):
        layout_from_list(None)


def test_repeated_layers_share_a_primfunc():
    """Three equal layers, and a last one whose output needs no padding."""
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
    mod = import_torch(nn.Sequential(*layers), torch.randn(1, 8, 12, 12))
    lowered, _ = pipeline.lower(mod, "pattern/native", num_threads=1)
    names = [str(gv.name_hint) for gv, _ in lowered.functions_items()]
    assert len([n for n in names if "conv" in n]) == 2


def test_tuned_configs_are_looked_up_by_task():
    seen = []
    mod = import_torch(nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 12, 12))
    _, report = pipeline.lower(mod, "pattern/native", config_for=seen.append)
    assert [task.weight_shape[0] for task in seen] == [8]
    assert report.rows[0].config
