"""The torch half of the operator table: one line per operator and option.

A line is Python: an expression of the inputs ``x``, ``y``, ``z``, or a module that takes them. The
shapes behind it are those of the inputs; a shape may carry a kind (see ``inputs.py``).
"""

from __future__ import annotations

from .case import Case, cases_of

IMAGE = "2,4,9,11"

_ACTIVATIONS = """
F.relu(x); F.relu6(x); F.leaky_relu(x); F.leaky_relu(x, 0.3); F.elu(x); F.elu(x, 0.5)
F.selu(x); F.celu(x); F.celu(x, 0.5); F.gelu(x); F.gelu(x, approximate="tanh"); F.silu(x)
F.mish(x); F.hardswish(x); F.hardsigmoid(x); F.hardtanh(x); F.hardtanh(x, -2.0, 0.5)
F.softplus(x); F.softplus(x, 2.0, 3.0); F.softsign(x); F.tanhshrink(x); F.hardshrink(x)
F.hardshrink(x, 1.0); F.softshrink(x); F.softshrink(x, 1.0); F.threshold(x, 0.5, -3.0)
F.logsigmoid(x); torch.sigmoid(x); torch.tanh(x); F.glu(x, 1); F.rrelu(x)
F.rrelu(x, 0.2, 0.6); nn.PReLU(); nn.PReLU(4, 0.1); nn.ReLU6(); nn.Hardtanh(-1, 2)
nn.Threshold(0.1, 20.0); nn.SELU(); nn.CELU(0.7); nn.RReLU(); nn.GLU(1); nn.Softmin(1)
nn.SELU(inplace=True); F.relu_(x * 1); F.leaky_relu_(x * 1, 0.2); F.elu_(x * 1)
F.hardtanh_(x * 1); F.threshold_(x * 1, 0.5, 2.0); F.selu_(x * 1); F.celu_(x * 1, 2.0)
F.hardswish(x * 1, inplace=True); F.silu(x * 1, inplace=True); F.relu6(x * 1, inplace=True)
F.mish(x * 1, inplace=True); F.hardsigmoid(x * 1, inplace=True)
"""

_SOFTMAX = """
F.softmax(x, 1); F.softmax(x, -1); F.softmax(x, 0); F.log_softmax(x, 1); F.softmin(x, 1)
F.softmax(x, 2, dtype=torch.float64); nn.Softmax2d(); torch.logsumexp(x, 1)
torch.logsumexp(x, (2, 3), keepdim=True); torch.logcumsumexp(x, 1); nn.LogSoftmax(1)
F.gumbel_softmax(x, dim=1)
"""

_POOLS = """
F.max_pool2d(x, 2); F.max_pool2d(x, 3, 2, 1); F.max_pool2d(x, 2, ceil_mode=True)
F.max_pool2d(x, 3, 2, 1, ceil_mode=True); F.max_pool2d(x, 3, 1, 1, dilation=2)
F.max_pool2d(x, (2, 3), (3, 1), (1, 0)); F.max_pool2d(x, 3, 2, 0, 2, ceil_mode=True)
F.max_pool2d(x, 3, stride=3, padding=1, ceil_mode=True)
F.max_pool2d(x, 2, return_indices=True)[0]; F.max_pool2d(x, 2, return_indices=True)
F.avg_pool2d(x, 3); F.avg_pool2d(x, 3, 2, 1); F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
F.avg_pool2d(x, 2, ceil_mode=True); F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
F.avg_pool2d(x, 3, divisor_override=4)
F.avg_pool2d(x, 3, 2, 1, True, False, divisor_override=5); F.avg_pool2d(x, (2, 3), (1, 2), (1, 0))
F.avg_pool2d(x, 4, 3, 2, ceil_mode=True); F.avg_pool2d(x, 3, 2, 1, divisor_override=7)
F.lp_pool2d(x.abs() + 0.1, 2, 3); F.lp_pool2d(x.abs() + 0.1, 3, 2, 1, ceil_mode=True)
F.lp_pool2d(x, 2.0, 2)
F.adaptive_avg_pool2d(x, 1); F.adaptive_avg_pool2d(x, (3, 11)); F.adaptive_avg_pool2d(x, (4, 3))
F.adaptive_avg_pool2d(x, (None, 5)); F.adaptive_avg_pool2d(x, (13, 17))
F.adaptive_max_pool2d(x, 1); F.adaptive_max_pool2d(x, (3, 11)); F.adaptive_max_pool2d(x, (4, 3))
F.adaptive_max_pool2d(x, (4, 3), return_indices=True); F.adaptive_max_pool2d(x, (13, 17))
F.fractional_max_pool2d(x, 2, output_size=(4, 5)); nn.AdaptiveAvgPool2d(7); nn.MaxPool2d(3, 2)
F.max_unpool2d(*F.max_pool2d(x[..., :8, :10], 2, return_indices=True), 2)
nn.LPPool2d(1.2, 3, 2)(x.abs() + 0.1)
"""

_POOLS_1D = """
F.max_pool1d(x, 2); F.max_pool1d(x, 3, 2, 1, ceil_mode=True); F.max_pool1d(x, 3, 1, 1, 2)
F.avg_pool1d(x, 3); F.avg_pool1d(x, 3, 2, 1, ceil_mode=True); F.lp_pool1d(x.abs() + 0.1, 2, 3)
F.avg_pool1d(x, 3, 2, 1, count_include_pad=False); F.adaptive_avg_pool1d(x, 4)
F.adaptive_max_pool1d(x, 4); F.adaptive_avg_pool1d(x, 1); F.max_pool1d(x, 2, ceil_mode=True)
"""

_POOLS_3D = """
F.max_pool3d(x, 2); F.max_pool3d(x, 3, 2, 1, ceil_mode=True); F.avg_pool3d(x, 2)
F.avg_pool3d(x, 3, 2, 1, count_include_pad=False); F.avg_pool3d(x, 2, divisor_override=3)
F.avg_pool3d(x, 2, ceil_mode=True); F.adaptive_avg_pool3d(x, 1); F.adaptive_avg_pool3d(x, (2, 3, 4))
F.adaptive_max_pool3d(x, (2, 3, 4)); F.lp_pool3d(x.abs() + 0.1, 2, 2); F.max_pool3d(x, 2, 1, 0, 2)
"""

_NORMS = """
nn.BatchNorm2d(4); nn.BatchNorm2d(4, affine=False); nn.BatchNorm2d(4, eps=0.1)
nn.BatchNorm2d(4, track_running_stats=False); nn.BatchNorm2d(4, momentum=None)
nn.InstanceNorm2d(4); nn.InstanceNorm2d(4, affine=True)
nn.InstanceNorm2d(4, affine=True, track_running_stats=True); nn.InstanceNorm2d(4, eps=0.1)
nn.GroupNorm(2, 4); nn.GroupNorm(4, 4); nn.GroupNorm(1, 4, affine=False); F.group_norm(x, 2)
nn.GroupNorm(2, 4, eps=0.1); nn.LayerNorm(11); nn.LayerNorm((9, 11)); nn.LayerNorm((4, 9, 11))
nn.LayerNorm(11, elementwise_affine=False); nn.LayerNorm(11, bias=False); F.layer_norm(x, (11,))
nn.LayerNorm(11, eps=0.1); nn.LocalResponseNorm(3); nn.LocalResponseNorm(2, 0.1, 0.5, 2.0)
nn.LocalResponseNorm(5, 1.0); nn.RMSNorm(11); nn.RMSNorm((9, 11), eps=1e-3); F.rms_norm(x, (11,))
nn.RMSNorm(11, elementwise_affine=False); F.normalize(x); F.normalize(x, p=1.0, dim=2)
F.normalize(x, p=3.0, dim=(2, 3)); F.normalize(x, eps=10.0); F.normalize(x, p=float("inf"))
F.cosine_similarity(x, x.flip(1), dim=1); F.pairwise_distance(x, x.flip(1)); torch.norm(x)
torch.norm(x, dim=1); torch.norm(x, p=1, dim=(2, 3), keepdim=True); torch.linalg.vector_norm(x, 3)
torch.linalg.vector_norm(x, float("inf"), dim=1); torch.linalg.vector_norm(x, -float("inf"), dim=1)
torch.linalg.vector_norm(x, 0, dim=1); torch.linalg.norm(x, dim=(2, 3)); torch.norm(x, p="fro")
torch.linalg.vector_norm(x, 0.5, dim=1); F.instance_norm(x); F.instance_norm(x, eps=0.5)
F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3))); nn.LayerNorm([9, 11], bias=False)
"""

_PADS = """
F.pad(x, (1, 2)); F.pad(x, (1, 2, 3, 0)); F.pad(x, (1, 2, 3, 0), value=1.5)
F.pad(x, (-1, 2, 0, -3)); F.pad(x, (-1, -1, -2, -2), value=2.0); F.pad(x, (1, 0, 0, 2, 1, 1))
F.pad(x, (1, 2, 3, 0), mode="reflect"); F.pad(x, (1, 2, 3, 0), mode="replicate")
F.pad(x, (1, 2, 3, 0), mode="circular"); nn.ReflectionPad2d(2); nn.ReplicationPad2d((0, 1, 2, 3))
nn.ZeroPad2d((1, 2, 0, 3)); nn.ConstantPad2d(2, -1.5); nn.CircularPad2d((1, 2, 3, 4))
F.pad(x, (0, 0, 0, 0, 2, 2), value=float("-inf")); F.pad(x, (9, 10, 8, 7), mode="reflect")
F.pad(x, (-1, 2, 1, -2), mode="replicate"); F.pad(x, (-1, 2, 1, -2), mode="reflect")
F.pad(x, (20, 1, 0, 12), mode="replicate")
"""

_UPSAMPLING = "; ".join(
    [
        f'F.interpolate(x, {size}, mode="{mode}"{option})'
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
        for size in (
            "scale_factor=2",
            "scale_factor=1.5",
            "scale_factor=(0.7, 1.3)",
            "size=(17, 22)",
            "size=(20, 7)",
            "scale_factor=3",
            "scale_factor=0.5",
        )
        for option in (
            ("", ", align_corners=True", ", antialias=True")
            if mode in ("bilinear", "bicubic")
            else ("",)
        )
    ]
    + [
        f'F.interpolate(x, scale_factor=1.7, mode="{mode}", recompute_scale_factor=True)'
        for mode in ("nearest", "bilinear", "bicubic")
    ]
    + [
        'F.interpolate(x, size=(25, 25), mode="nearest")',
        'F.interpolate(x, size=(20, 7), mode="bilinear", align_corners=True, antialias=True)',
        "nn.Upsample(scale_factor=2)",
        'nn.Upsample(scale_factor=1.5, mode="bilinear")',
        "nn.UpsamplingNearest2d(scale_factor=2)",
        "nn.UpsamplingBilinear2d(scale_factor=2)",
        "nn.UpsamplingNearest2d((13, 15))",
        'F.interpolate(x, size=(1, 1), mode="bilinear")',
        'F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=True)',
        'F.interpolate(x, size=(20, 7), mode="lanczos", antialias=True)',
    ]
)

_UPSAMPLING_1D = """
F.interpolate(x, scale_factor=2); F.interpolate(x, size=7); F.interpolate(x, scale_factor=1.5)
F.interpolate(x, scale_factor=1.5, mode="linear"); F.interpolate(x, size=25, mode="linear")
F.interpolate(x, size=25, mode="linear", align_corners=True); F.interpolate(x, 7, mode="area")
F.interpolate(x, size=25, mode="nearest-exact")
"""

_UPSAMPLING_3D = """
F.interpolate(x, scale_factor=2); F.interpolate(x, size=(3, 8, 11))
F.interpolate(x, 7, mode="area")
F.interpolate(x, scale_factor=1.5, mode="trilinear"); F.interpolate(x, size=7, mode="trilinear")
F.interpolate(x, size=7, mode="trilinear", align_corners=True)
F.interpolate(x, scale_factor=1.5, mode="nearest-exact")
"""

_SHUFFLES = """
F.pixel_shuffle(x, 2); F.pixel_unshuffle(x[:, :, :8, :10], 2); F.channel_shuffle(x, 2)
nn.ChannelShuffle(4); F.unfold(x, 3); F.unfold(x, (2, 3), dilation=2, padding=1, stride=2)
F.fold(F.unfold(x, 3), (9, 11), 3); F.fold(F.unfold(x, 2, stride=2), (9, 11), 2, stride=2)
x.unfold(2, 3, 2); x.unfold(3, 4, 1); nn.PixelShuffle(2); nn.Fold((9, 11), 3)(F.unfold(x, 3))
nn.PixelUnshuffle(3)(x[..., :9])
"""

_CONVS = """
nn.Conv2d(4, 6, 3); nn.Conv2d(4, 6, 3, 2, 1); nn.Conv2d(4, 6, 3, padding="same")
nn.Conv2d(4, 6, 4, padding="same"); nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1))
nn.Conv2d(4, 6, 3, padding="valid", bias=False); nn.Conv2d(4, 6, 3, dilation=2, padding=2)
nn.Conv2d(4, 6, 3, groups=2); nn.Conv2d(4, 8, 3, groups=4, padding=1)
nn.Conv2d(4, 6, (1, 5), (2, 1), (0, 2))
nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular")
nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"); nn.Conv2d(4, 6, 1, stride=3)
nn.Conv2d(4, 6, 3, padding=5); nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect")
nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1, dilation=2); F.conv2d(x, x[:1, :, :3, :3])
nn.ConvTranspose2d(4, 6, 3); nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1)
nn.ConvTranspose2d(4, 6, 2, 2, bias=False); nn.ConvTranspose2d(4, 6, 3, 2, dilation=2)
nn.ConvTranspose2d(4, 6, 3, 2, groups=2, padding=1); nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4)
nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2)); nn.ConvTranspose2d(4, 6, 1, 3)
nn.ConvTranspose2d(4, 6, 3, 3, 0, (2, 1), dilation=(1, 2)); nn.ConvTranspose2d(4, 6, 3, padding=2)
"""

_CONVS_1D = """
nn.Conv1d(4, 6, 3); nn.Conv1d(4, 6, 3, 2, 1, 2); nn.Conv1d(4, 6, 4, padding="same")
nn.Conv1d(4, 6, 3, groups=2); nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular")
nn.ConvTranspose1d(4, 6, 3, 2, 1, 1); nn.ConvTranspose1d(4, 6, 3, 2, groups=2)
nn.ConvTranspose1d(4, 6, 3, dilation=2); nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect")
"""

_CONVS_3D = """
nn.Conv3d(2, 4, 3); nn.Conv3d(2, 4, 3, 2, 1); nn.Conv3d(2, 4, 2, padding="same")
nn.Conv3d(2, 4, (1, 3, 3), groups=2, dilation=(1, 2, 1)); nn.ConvTranspose3d(2, 4, 2, 2)
nn.ConvTranspose3d(2, 4, 3, 2, 1, 1); nn.ConvTranspose3d(2, 4, 3, groups=2)
nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular")
"""

_REDUCTIONS = "; ".join(
    [
        f"torch.{name}({call})"
        for name in ("sum", "mean", "amax", "amin", "std", "var", "logsumexp", "any", "all")
        for call in ("x, 1", "x, (2, 3)", "x, (-1, 0), keepdim=True")
    ]
    + [
        f"torch.{name}(x)"
        for name in ("sum", "mean", "max", "min", "amax", "amin", "std", "var", "prod", "median")
    ]
    + """
x.sum(1, dtype=torch.float64); x.mean((2, 3), keepdim=True); torch.var(x, 1, correction=0)
torch.std(x, (2, 3), correction=2); torch.var(x, unbiased=False); torch.var_mean(x, 1)
torch.std_mean(x, (2, 3), keepdim=True); torch.max(x, 1); torch.max(x, 1, keepdim=True)[0]
torch.min(x, -1); torch.min(x, 2)[1]; torch.median(x, 1); torch.prod(x, 1)
torch.prod(x, 2, keepdim=True); torch.mode(x, 1)[0]; torch.aminmax(x); torch.aminmax(x, dim=1)
torch.nansum(x, 1); torch.nanmean(x, 1); torch.count_nonzero(x); torch.count_nonzero(x, 1)
torch.quantile(x, 0.3, 1); torch.cumsum(x, 1); torch.cumsum(x, -1); torch.cumprod(x, 1)
torch.cummax(x, 1)[0]; torch.cummin(x, 1)[0]; torch.argmax(x, 1); torch.argmax(x)
torch.argmin(x, 2, keepdim=True); torch.argmin(x); torch.trace(x[0, 0]); torch.all(x > 0)
torch.any(x > 4); torch.sum(x > 0); torch.sum(x > 0, 1); torch.mean((x > 0).float(), 1)
torch.diff(x); torch.diff(x, dim=1); torch.kthvalue(x, 2, 1)[0]; torch.sum(x, ())
torch.any(x, 1, keepdim=True); torch.max(x, x.flip(1)); torch.dist(x, x.flip(1))
""".strip().split("; ")
)

_ARITHMETIC = """
x + y; x - y; x * y; x / y; x + 1; 2 - x; x * 2.5; 1 / x; x ** 2; x ** 3; x ** 0.5
x ** -1; 2 ** x; x.abs() ** y; torch.pow(x, 2.0); torch.pow(x.abs(), 1.7); -x; torch.abs(x)
torch.add(x, y, alpha=2); torch.sub(x, y, alpha=3); torch.rsub(x, y, alpha=2); torch.rsub(x, 2.0)
torch.add(x, 3, alpha=2); torch.sub(x, 3, alpha=0.5); torch.rsub(x, 3, alpha=2)
torch.addcmul(x, x, y, value=0.5); torch.addcdiv(x, x, y.abs() + 1, value=2)
torch.lerp(x, y, 0.3); torch.lerp(x, y, y.sigmoid()); torch.fmod(x, 2); torch.fmod(x, y)
torch.remainder(x, 2); torch.remainder(x, y); torch.remainder(x, -1.5); torch.fmod(x, -1.5)
torch.div(x, y, rounding_mode="floor"); torch.div(x, y, rounding_mode="trunc")
torch.div(x, 3, rounding_mode="trunc"); x // 2; torch.floor_divide(x, y); x % 3
torch.maximum(x, y); torch.minimum(x, y); torch.fmax(x, y); torch.fmin(x, y)
torch.atan2(x, y); torch.hypot(x, y); torch.copysign(x, y); torch.sign(x); torch.sgn(x)
torch.square(x); torch.floor(x); torch.ceil(x); torch.round(x); torch.round(x, decimals=1)
torch.round(x, decimals=-1); torch.trunc(x); torch.frac(x); torch.exp(x * 0.5); torch.exp2(x)
torch.expm1(x); torch.sin(x); torch.cos(x); torch.tan(x); torch.sinh(x); torch.cosh(x)
torch.asinh(x); torch.atan(x); torch.erf(x); torch.erfc(x); torch.sinc(x); torch.deg2rad(x)
torch.rad2deg(x); torch.reciprocal(x); torch.nan_to_num(x / 0); torch.positive(x)
torch.nan_to_num(x / 0, 1.0, 2.0, -3.0); torch.logaddexp(x, y); torch.logaddexp2(x, y)
torch.xlogy(x, y.abs() + 0.1); torch.heaviside(x, y); torch.float_power(x.abs(), 1.5)
torch.signbit(x); torch.ldexp(x, y.round()); torch.true_divide(x, y); x.exp().log()
torch.isnan(x / x); torch.isinf(x / 0); torch.isfinite(x / 0); x.neg().relu(); torch.lgamma(x)
torch.special.expit(x); torch.special.log1p(x.abs()); torch.gcd(x.long(), y.long())
x.add_(1) * 2; (x * 1).mul_(y); (x * 1).sub_(y).div_(3); torch.mul(x, y[:, :1]); x + y[0, 0, 0]
x.square().mean().sqrt(); x.clone() + x.detach(); torch.isclose(x, y, atol=1.0)
"""

_POSITIVE = """
torch.log(x); torch.log2(x); torch.log10(x); torch.log1p(x); torch.sqrt(x); torch.rsqrt(x)
x ** 0.5; x ** -0.5; x ** 1.3; torch.acosh(x + 1); torch.digamma(x); torch.pow(x, -2)
"""

_UNIT = """
torch.asin(x); torch.acos(x); torch.atanh(x); torch.logit(x.abs()); torch.erfinv(x)
torch.logit(x.abs(), eps=0.1)
"""

_COMPARISONS = """
x > y; x >= y; x < y; x <= y; x == y; x != y; x > 0.5; x >= 0.5; x < 0; x == 1; x != 1
torch.logical_and(x > 0, y > 0); torch.logical_or(x > 0, y > 0); torch.logical_xor(x > 0, y > 0)
torch.logical_not(x > 0); ~(x > 0); (x > 0) & (y > 0); (x > 0) | (y > 0) ^ (x > 1)
torch.where(x > 0, x, y); torch.where(x > 0, x, 0.0); torch.where(x > 0, 1.0, y)
torch.where(x > y, 1, 0); x.masked_fill(x > 0.5, -1.0); x.masked_fill(y > 0, float("-inf"))
torch.clamp(x, -1, 1); torch.clamp(x, min=0.5); torch.clamp(x, max=-0.5); x.clamp_min(0.1)
x.clamp_max(0.1); torch.clamp(x, y, y + 1); torch.clamp(x, min=y); torch.clamp(x, max=y)
torch.clip(x, -0.5, 2); torch.clamp(x, 1, -1); (x > 0).float() * y; (x > 0).to(torch.int32)
torch.logical_not(x); torch.logical_and(x, y); x.masked_fill(x > 0, y[0, 0, 0, 0])
torch.masked_fill(x, x > 0, torch.tensor(2.0)); torch.eq(x, y).all(); torch.where(x > 0, x, y[0])
torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.5])); torch.isin(x.round(), torch.tensor([1.0, 2.0]))
torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.5]), right=True)
torch.clamp(x, min=y[:1], max=y[:1] + 1)
torch.searchsorted(torch.tensor([-1.0, 0.0, 1.5]), x)
"""

_SHAPES = """
torch.cat([x, x * 2], 1); torch.cat([x, x * 2, x], -1); torch.stack([x, x * 2]); x[:, :, None]
torch.stack([x, x * 2], -1); torch.cat([x, x[:, :2]], 1); torch.split(x, 2, 1); torch.split(x, 4, 3)
torch.split(x, [1, 3], 1); torch.chunk(x, 2, 1); torch.chunk(x, 3, 3); torch.chunk(x, 4, 2)
torch.tensor_split(x, 4, 3); torch.tensor_split(x, (2, 5), 3); torch.unbind(x, 1)
torch.unbind(x, -1)[3]; x[:, 1:3]; x[..., ::2]; x[:, :, 1:-1, 2:-2]; x[:, :, ::3, 1::2]
x[:, -1]; x[..., -3:]; x[0]; x[:, :, 2:100]; x[:, [2, 0, 1]]; x[:, [0, -1]]; x[..., -4:-1:2]
x[torch.tensor([1, 0]), torch.tensor([3, 1])]; x[:, torch.tensor([1, 3]), :, torch.tensor([0, 2])]
x[:, :, None, ::2]; x[..., 0]; x[:, torch.tensor([True, False, True, True])]; x[-1:, ..., 1]
torch.index_select(x, 1, torch.tensor([3, 0, 0])); torch.narrow(x, 2, 3, 4); x.narrow(3, -4, 2)
torch.gather(x, 1, torch.argsort(x, 1)); torch.take_along_dim(x, torch.argsort(x, 2), 2)
torch.take(x, torch.tensor([0, 5, -1])); torch.select(x, 1, -2); torch.roll(x, 1, 2)
torch.roll(x, (1, -2), (2, 3)); torch.roll(x, 5); torch.roll(x, -13, 3); torch.flip(x, (2,))
torch.flip(x, (-1, 1)); torch.fliplr(x); torch.flipud(x); torch.rot90(x, 1, (2, 3))
torch.rot90(x, -1, (2, 3)); torch.rot90(x, 2, (1, 2)); x.permute(0, 2, 3, 1); x.transpose(1, -1)
x.permute(0, -1, 1, 2).contiguous(); torch.movedim(x, 1, -1); torch.swapaxes(x, 1, 2); x.mT
x.reshape(2, -1); x.view(8, 99); x.flatten(1); x.flatten(1, 2); x.flatten(-2); nn.Flatten()
nn.Flatten(2, 3); nn.Unflatten(1, (2, 2)); x.unflatten(1, (2, -1)); x.squeeze(); x[:, :1].squeeze(1)
x[:, :1].squeeze(-3); x.unsqueeze(-1); x.unsqueeze(1); x.expand(3, 2, 4, 9, 11)
x[:, :1].expand(-1, 5, -1, -1)
x.repeat(1, 2, 1, 3); x.repeat(2, 1, 1, 1, 1); torch.tile(x, (2, 1))
torch.repeat_interleave(x, 2, 1)
torch.repeat_interleave(x, 3); torch.broadcast_to(x[:, :1], (2, 4, 9, 11)); x.expand_as(x)
torch.hstack([x, x]); torch.vstack([x, x]); torch.dstack([x, x]); torch.tril(x); torch.triu(x, 2)
torch.tril(x, -1); torch.diagonal(x, 0, 2, 3); torch.diagonal(x, 1, 2, 3); torch.diag_embed(x[:, 0])
x.to(torch.float64); x.to(torch.int32); x.double().float(); x.long(); x.half().float()
x.int() + 1; x.long() * 0.5; x.long() + 0.5; 1.5 - x.long(); x.long() / 4; x.long() * x
x.bool(); torch.zeros_like(x) + x; torch.ones_like(x) * x; torch.full_like(x, 3) + x
x.new_zeros(3) + x[..., :3]; x.new_ones((11,)) + x; x.new_full((11,), 2.5) + x; torch.arange(11) + x
torch.arange(0, 22, 2) * x; torch.linspace(-1, 1, 11) * x; torch.eye(9) @ x; torch.tensor([1.5]) * x
torch.meshgrid(x[0, 0, 0], x[0, 0, :, 0], indexing="ij")
torch.meshgrid(x[0, 0, 0], x[0, 0, :, 0], indexing="xy")
F.one_hot(x.argmax(1), 4); F.one_hot(x.argmax(1)); torch.select_scatter(x, x[:, 0] * 2, 1, 2)
torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 3); torch.slice_scatter(x, x[:, :2] * 2, 1, 0, 4, 2)
torch.scatter(x, 1, x.argsort(1), x * 2); torch.scatter(x, 1, x.argsort(1)[:, :1], 5.0)
x.index_put((torch.tensor([0, 1]), torch.tensor([2, 3])), torch.tensor(1.0))
x.index_put((torch.tensor([0, 1]),), x * 2, accumulate=True)
x.index_fill(1, torch.tensor([0, 2]), 3.0)
x.index_add(1, torch.tensor([0, 0]), x[:, :2]); torch.scatter_add(x, 1, x.argsort(1) // 2, x * 2)
x.scatter_reduce(1, x.argsort(1) // 2, x, "amax"); x.as_strided((2, 3), (4, 1)); x.ravel()
torch.nonzero(x); torch.masked_select(x, x > 0); torch.unique(x.round())
x.contiguous(memory_format=torch.channels_last)
x.size(1) * x; x.shape[-1] + x; x.numel() + x; torch.atleast_3d(x)
torch.block_diag(x[0, 0], x[0, 1])
torch.cartesian_prod(x[0, 0, 0], x[0, 0, 0]); torch.t(x[0, 0]); torch.narrow_copy(x, 1, 1, 2)
torch.stack(torch.unbind(x, 1)[::-1], 1); torch.cat(torch.split(x, [1, 3], 1)[::-1], 1)
torch.empty_like(x).fill_(2.0) + x; torch.unsqueeze(x, 0).squeeze(0); x.swapdims(-1, -2)
torch.combinations(x[0, 0, 0]); torch.argwhere(x > 0)
"""

_SORTS = """
torch.sort(x, 1)[0]; torch.sort(x, -1, descending=True)[0]; torch.sort(x, dim=1, stable=True)
torch.sort(x, dim=1, descending=True, stable=True); torch.msort(x)
torch.gather(x, 1, torch.argsort(x, 1)); torch.gather(x, 3, torch.argsort(x, -1, descending=True))
torch.topk(x, 3, 1)[0]; torch.topk(x, 3, -1)[0]; torch.topk(x, 2, 2, largest=False)[0]
torch.gather(x, 1, torch.topk(x, 3, 1)[1])
torch.gather(x, 2, torch.topk(x, 2, 2, largest=False)[1]); torch.topk(x, 2, 1, sorted=False)[0]
torch.gather(x, 1, torch.topk(x, 1, 1)[1])
"""

_PRODUCTS = """
x @ y; torch.matmul(x, y); torch.bmm(x, y); torch.einsum("bij,bjk->bik", x, y)
torch.einsum("bij,bjk->bk", x, y); torch.einsum("bij,cjk->bcik", x, y); torch.einsum("bij->bji", x)
torch.einsum("bij->b", x); torch.einsum("bii->bi", x[:, :, :5])
torch.einsum("...ij,...jk->...ki", x, y)
torch.baddbmm(x @ y, x, y, beta=0.5, alpha=2); torch.tensordot(x, y, ([2], [1])); x[0] @ y[0]
torch.addmm(x[0] @ y[0], x[0], y[0], beta=0.5, alpha=2); torch.mm(x[0], y[0]); x[0] @ y[0][:, 0]
torch.addmm(y[0][0], x[0], y[0]); torch.mv(x[0], y[0][:, 0]); torch.dot(x[0, 0], y[0, :, 0])
x @ y[0]; x[0] @ y; torch.outer(x[0, 0], y[0, 0]); torch.inner(x, y.transpose(1, 2))
torch.kron(x[0], y[0])
nn.Linear(6, 4)(x); nn.Linear(6, 4, bias=False)(x); F.linear(x, y[0].t(), y[0][0]); nn.Identity()(x)
torch.cdist(x, y.transpose(1, 2)); torch.chain_matmul(x[0], y[0])
torch.cross(x[..., :3], x[..., 3:], dim=-1)
F.bilinear(x, x, torch.ones(2, 6, 6), torch.ones(2)); torch.addbmm(x[0] @ y[0], x, y)
torch.linalg.multi_dot([x[0], y[0]])
"""

_ATTENTION = """
F.scaled_dot_product_attention(x, y, z); F.scaled_dot_product_attention(x, y, z, is_causal=True)
F.scaled_dot_product_attention(x, y, z, scale=0.3)
F.scaled_dot_product_attention(x, y, z, attn_mask=torch.linspace(-2, 2, 35).view(5, 7))
F.scaled_dot_product_attention(x, y, z, attn_mask=torch.linspace(-2, 2, 35).view(5, 7) > -1)
F.scaled_dot_product_attention(x, y[:, :1], z[:, :1], enable_gqa=True)
"""

_SEQUENCES = """
nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x)[0]; nn.MultiheadAttention(8, 2)(x, x, x)
nn.MultiheadAttention(8, 2)(x, x, x, need_weights=False)[0]
nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
nn.TransformerEncoderLayer(8, 2, 16, norm_first=True); nn.LSTM(8, 5)(x)[0]
nn.LSTM(8, 5, batch_first=True, bidirectional=True)(x)[0]; nn.LSTM(8, 5); nn.GRU(8, 5)(x)[0]
nn.GRU(8, 5)(x); nn.RNN(8, 5)(x)[0]; nn.RNN(8, 5, nonlinearity="relu")(x)[0]
"""

_SAMPLING = """
F.grid_sample(x, y)
"""

_EVAL = """
nn.Dropout(0.5); nn.Dropout2d(); nn.AlphaDropout(); nn.FeatureAlphaDropout(); nn.Identity()
F.dropout(x, 0.5, training=False); F.dropout2d(x, 0.5, training=False)
nn.Dropout3d()
F.dropout(x, 0.5, training=True); torch.rand_like(x) + x; torch.randn(11) + x
torch.bernoulli(x.sigmoid())
torch.dropout(x, 0.5, True)
nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))
nn.utils.fuse_conv_bn_eval(nn.Conv2d(4, 6, 3).eval(), nn.BatchNorm2d(6).eval())
"""

_EMBEDDINGS = """
nn.Embedding(10, 4); nn.Embedding(10, 4, padding_idx=0); nn.EmbeddingBag(10, 4)
F.embedding(x, torch.ones(10, 3)); nn.EmbeddingBag(10, 4, mode="sum")
nn.EmbeddingBag(10, 4, mode="max"); F.one_hot(x, 10); nn.Embedding(10, 4, max_norm=0.5); x * 2 + 1
x // 3; x % 3; x - 5
"""


def torch_cases() -> list[Case]:
    """Every line of the table, in its order."""
    image = {"x": IMAGE}
    pair = {"x": IMAGE, "y": IMAGE}
    return [
        *cases_of("activations", _ACTIVATIONS, image),
        *cases_of("softmax", _SOFTMAX, image),
        *cases_of("pooling", _POOLS, image),
        *cases_of("pooling, 1d", _POOLS_1D, {"x": "2,3,13"}),
        *cases_of("pooling, 3d", _POOLS_3D, {"x": "1,2,5,6,7"}),
        *cases_of("norms", _NORMS, image),
        *cases_of("pads", _PADS, image),
        *cases_of(
            "pads, 1d", "F.pad(x, (2, 3), mode='reflect'); nn.CircularPad1d(2)", {"x": "2,3,13"}
        ),
        *cases_of(
            "pads, 3d",
            "F.pad(x, (1, 2, 1, 0, 2, 1), mode='replicate'); nn.ReflectionPad3d(1)"
            "; nn.CircularPad3d(1); nn.ConstantPad3d(1, 2.0)",
            {"x": "1,2,5,6,7"},
        ),
        *cases_of("upsampling", _UPSAMPLING, image),
        *cases_of("upsampling, 1d", _UPSAMPLING_1D, {"x": "2,3,13"}),
        *cases_of("upsampling, 3d", _UPSAMPLING_3D, {"x": "1,2,5,6,7"}),
        *cases_of("shuffles, unfold, fold", _SHUFFLES, image),
        *cases_of("convolutions", _CONVS, image),
        *cases_of("convolutions, 1d", _CONVS_1D, {"x": "2,4,13"}),
        *cases_of("convolutions, 3d", _CONVS_3D, {"x": "1,2,5,6,7"}),
        *cases_of("reductions", _REDUCTIONS, image),
        *cases_of("arithmetic", _ARITHMETIC, pair),
        *cases_of("arithmetic of positive numbers", _POSITIVE, {"x": f"positive {IMAGE}"}),
        *cases_of("arithmetic within -1 and 1", _UNIT, {"x": f"unit {IMAGE}"}),
        *cases_of("comparisons and choices", _COMPARISONS, pair),
        *cases_of("shapes, indices, constants", _SHAPES, image),
        *cases_of("sorting", _SORTS, image),
        *cases_of("products", _PRODUCTS, {"x": "3,5,6", "y": "3,6,4"}),
        *cases_of("attention", _ATTENTION, {"x": "2,2,5,8", "y": "2,2,7,8", "z": "2,2,7,8"}),
        *cases_of("sequences", _SEQUENCES, {"x": "3,4,8"}),
        *cases_of("sampling", _SAMPLING, {"x": "2,3,6,5", "y": "grid 2,4,7,2"}),
        *cases_of("evaluation mode and randomness", _EVAL, image),
        *cases_of("embeddings and integers", _EMBEDDINGS, {"x": "index 3,5"}),
    ]
