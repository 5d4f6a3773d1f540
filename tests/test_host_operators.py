"""Operators of torch that nobody translates: taken apart here, or left to torch by name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tvm_pattern as tp
from tvm_pattern.artifact import ArtifactError, manifest_path

IMAGE = torch.randn(1, 3, 9, 11, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


def deformed(x, weight, offset, mask, bias, stride, padding, dilation, groups):
    """A deformable convolution by its definition, output by output."""
    filters, per_group, kernel_h, kernel_w = weight.shape
    batch, channels, height, width = x.shape
    rows, columns = offset.shape[-2:]
    taps = kernel_h * kernel_w
    share = channels // (offset.shape[1] // (2 * taps))

    def pixel(b, c, y, x_):
        return x[b, c, y, x_] if 0 <= y < height and 0 <= x_ < width else 0.0

    out = np.empty((batch, filters, rows, columns))
    for b, f, i, j in np.ndindex(out.shape):
        total = bias[f]
        for q, t in np.ndindex(per_group, taps):
            c = f // (filters // groups) * per_group + q
            at = (c // share) * taps + t
            y = i * stride[0] - padding[0] + t // kernel_w * dilation[0] + offset[b, 2 * at, i, j]
            x_ = j * stride[1] - padding[1] + t % kernel_w * dilation[1]
            x_ += offset[b, 2 * at + 1, i, j]
            top, left = int(np.floor(y)), int(np.floor(x_))
            down, right = y - top, x_ - left
            value = (1 - down) * (1 - right) * pixel(b, c, top, left)
            value += (1 - down) * right * pixel(b, c, top, left + 1)
            value += down * (1 - right) * pixel(b, c, top + 1, left)
            value += down * right * pixel(b, c, top + 1, left + 1)
            total += weight[f, q, t // kernel_w, t % kernel_w] * value * mask[b, at, i, j]
        out[b, f, i, j] = total
    return out.astype("float32")


def pooled_regions(x, rois, scale, high, wide, samples, aligned):
    """``roi_align`` by its definition; without a number of samples there are as many as pixels."""
    _, channels, height, width = x.shape
    out = np.zeros((len(rois), channels, high, wide))
    for k, (b, *corners) in enumerate(rois):
        left, top, right, bottom = (c * scale - (0.5 if aligned else 0) for c in corners)
        size = [bottom - top, right - left]
        size = size if aligned else [max(s, 1) for s in size]
        bins = size[0] / high, size[1] / wide
        grid = [samples if samples > 0 else max(math.ceil(b), 0) for b in bins]
        for i, j, u, v in np.ndindex(high, wide, *grid):
            y = top + bins[0] * (i + (u + 0.5) / grid[0])
            x_ = left + bins[1] * (j + (v + 0.5) / grid[1])
            if not (-1 <= y <= height and -1 <= x_ <= width):
                continue
            y, x_ = min(max(y, 0), height - 1), min(max(x_, 0), width - 1)
            y0, x0 = int(y), int(x_)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            image, down, side = x[int(b)], y - y0, x_ - x0
            upper = image[:, y0, x0] * (1 - side) + image[:, y0, x1] * side
            lower = image[:, y1, x0] * (1 - side) + image[:, y1, x1] * side
            out[k, :, i, j] += (upper * (1 - down) + lower * down) / math.prod(grid)
    return out.astype("float32")


@pytest.fixture(scope="module")
def torchvision_operators():
    """torchvision's schemas with the definitions above, where torchvision is not loaded."""
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        yield
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias,"
        " SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h,"
        " SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor"
    )
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
        " SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )

    def convolved(x, w, offset, mask, bias, sh, sw, ph, pw, dh, dw, groups, _, use_mask):
        arrays = [t.detach().numpy() for t in (x, w, offset, mask, bias)]
        if not use_mask:
            taps = w.shape[2] * w.shape[3]
            arrays[3] = np.ones((len(x), offset.shape[1] // 2 // taps * taps, *offset.shape[2:]))
        return torch.from_numpy(deformed(*arrays, (sh, sw), (ph, pw), (dh, dw), groups))

    def regions(x, rois, *rest):
        return torch.from_numpy(pooled_regions(x.detach().numpy(), rois.numpy(), *rest))

    library.impl("deform_conv2d", convolved, "CPU")
    library.impl(
        "deform_conv2d",
        lambda x, w, offset, *_: x.new_empty(x.shape[0], w.shape[0], *offset.shape[2:]),
        "Meta",
    )
    library.impl("roi_align", regions, "CPU")
    library.impl(
        "roi_align",
        lambda x, rois, scale, high, wide, *_: x.new_empty(rois.shape[0], x.shape[1], high, wide),
        "Meta",
    )
    yield
    library._destroy()


class Deformable(nn.Module):
    """Offsets and a mask by a convolution, as networks have them."""

    def __init__(self, geometry, groups, offset_groups, *, use_mask):
        super().__init__()
        torch.manual_seed(1)
        kernel, self.geometry = geometry[:2], geometry[2:]
        self.groups, self.offset_groups, self.use_mask = groups, offset_groups, use_mask
        taps = kernel[0] * kernel[1] * offset_groups
        self.stem = nn.Conv2d(3, 4, 1)
        self.places = nn.Conv2d(4, 3 * taps, kernel, *zip_pairs(self.geometry))
        self.layer = nn.Conv2d(4, 6, kernel, groups=groups)  # holds weight and bias
        nn.init.normal_(self.places.weight)

    def forward(self, x):
        x = self.stem(x)
        places = self.places(x)
        split = places.shape[1] // 3 * 2
        return torch.ops.torchvision.deform_conv2d(
            x,
            self.layer.weight,
            places[:, :split],
            torch.sigmoid(places[:, split:]),
            self.layer.bias,
            *self.geometry,
            self.groups,
            self.offset_groups,
            self.use_mask,
        )


def zip_pairs(geometry):
    """Stride, padding and dilation as pairs."""
    return geometry[:2], geometry[2:4], geometry[4:]


@pytest.mark.parametrize(
    ("geometry", "groups", "offset_groups", "use_mask"),
    [
        ((3, 3, 1, 1, 1, 1, 1, 1), 1, 1, True),
        ((2, 3, 2, 1, 0, 1, 1, 2), 2, 2, False),
    ],
)
@pytest.mark.usefixtures("torchvision_operators")
def test_deformable_convolutions(geometry, groups, offset_groups, use_mask):
    """``compile`` itself holds the library against the operator, on two inputs."""
    model = Deformable(geometry, groups, offset_groups, use_mask=use_mask).eval()
    lib = tp.compile(model, IMAGE, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert {row.layer: row.taken for row in lib.report.rows}["layer"]
    assert lib.manifest.host_operators == []


class Regions(nn.Module):
    def __init__(self, *options):
        super().__init__()
        self.options = options
        boxes = [[0, 1, 1, 9, 9], [0, -3, 2.3, 20, 7.7], [0, 5, 5, 5.2, 5.1], [0, -30, 0, -9, 4]]
        self.register_buffer("rois", torch.tensor(boxes))

    def forward(self, x):
        return torch.ops.torchvision.roi_align(x, self.rois, *self.options)


@pytest.mark.parametrize(
    "options", [(0.5, 3, 2, 2, True), (1.0, 2, 3, 1, False), (1.0, 2, 3, -1, False)]
)
@pytest.mark.usefixtures("torchvision_operators")
def test_regions_of_interest(options):
    lib = tp.compile(Regions(*options).eval(), IMAGE, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert lib.manifest.host_operators == []


class Pool(nn.Module):
    def __init__(self, *options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.max_pool2d(x, *self.options, return_indices=True)


@pytest.mark.parametrize(
    "options",
    [(2, 2), (3, 2, 1, 1, True), (3, 1, 1, 2), ((2, 3), (3, 1), (1, 0))],
    ids=str,
)
def test_positions_of_maxima(options):
    lib = tp.compile(Pool(*options).eval(), IMAGE, num_threads=1)
    nan = IMAGE.clone()
    nan[0, 0, 3:5, 4:6] = float("nan")
    for x in (IMAGE, IMAGE.round(), nan, torch.full_like(IMAGE, -float("inf"))):
        values, places = Pool(*options)(x)
        got_values, got_places = lib(x.numpy())
        np.testing.assert_array_equal(got_values, values.numpy())
        np.testing.assert_array_equal(got_places, places.numpy())
        assert got_places.dtype == np.int64


def test_unpooling():
    def there_and_back(y):
        maxima, places = F.max_pool2d(y[..., :8, :10], 2, return_indices=True)
        return F.max_unpool2d(maxima, places, 2)

    lib = tp.compile(Between(there_and_back).eval(), IMAGE, num_threads=1)
    assert lib.manifest.verification["status"] == "checked"
    assert [row.taken for row in lib.report.rows] == [True, True]


def running_maximum(y):
    """An operator with two results that nobody translates, and one whose options are refused."""
    values, places = torch.cummax(y, 3)
    return values.index_add(1, torch.tensor([0, 0]), places[:, :2] * 0.01)


def test_what_nobody_translates_may_be_left_to_torch(tmp_path):
    model = Between(running_maximum).eval()
    with pytest.raises(ValueError, match=r"'cummax'.*host_operators=True"):
        tp.compile(model, IMAGE)
    lib = tp.compile(model, IMAGE, num_threads=1, host_operators=True)
    assert lib.manifest.verification["status"] == "checked"
    assert "aten.cummax.default" in lib.manifest.host_operators
    assert any(
        note.startswith("left to torch on the host: aten.cummax") for note in lib.report.notes
    )
    assert [row.taken for row in lib.report.rows] == [True, True]
    loaded = tp.load(lib.export(tmp_path / "net.so"))
    x = torch.randn(IMAGE.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = model(x).numpy()
    for library in (lib, loaded):
        np.testing.assert_allclose(library(x.numpy()), want, rtol=1e-4, atol=1e-5)


def test_a_library_names_what_this_python_does_not_have(tmp_path):
    path = tp.compile(Between(torch.erfc).eval(), IMAGE, num_threads=1, host_operators=True).export(
        tmp_path / "net.so"
    )
    data = json.loads(manifest_path(path).read_text())
    assert data["host_operators"] == ["aten.erfc.default"]
    data["host_operators"] = ["nobodys.operator.default"]
    manifest_path(path).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"nobodys.operator.default.*import the package"):
        tp.load(path)


def test_nothing_is_left_to_torch_elsewhere():
    model = Between(torch.erfc).eval()
    with pytest.raises(ValueError, match=r"aten.erfc.default to torch.*the target is another one"):
        tp.compile(model, IMAGE, target="pattern/cortex-a53", host_operators=True)


def test_random_numbers_are_not_left_to_torch_either():
    model = Between(lambda y: y + torch.rand_like(y)).eval()
    with pytest.raises(ValueError, match="draws random numbers"):
        tp.compile(model, IMAGE, host_operators=True)


def test_a_library_that_leaves_nothing_does_not_say_so(tmp_path):
    path = tp.compile(Between(torch.relu).eval(), IMAGE, num_threads=1).export(tmp_path / "net.so")
    assert "host_operators" not in json.loads(manifest_path(path).read_text())


def test_integers_times_a_fraction_are_floats():
    class Fractions(nn.Module):
        def forward(self, x):
            places = x.argmax(1)
            return places * 0.5, 1.5 - places, places / 4, places + x[:, 0]

    lib = tp.compile(Fractions().eval(), IMAGE, num_threads=1, verify=False)
    for got, want in zip(lib(IMAGE.numpy()), Fractions()(IMAGE), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)
