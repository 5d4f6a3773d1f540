"""Triton kernels on activations ``[S, N, H, W, C]``: members, images, rows, columns, channels.

Small convolutions are bound by memory, so each kernel serves all members at once and the batch
norm's sums are taken while the convolution's output is still in registers. ``TRITON_INTERPRET=1``
runs them on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

SUM_SLOTS = 32
# What a tile may end in on a device: more registers or shared memory than there is, code that its
# compiler refuses, no memory left.
TILE_ERRORS = (triton.TritonError, RuntimeError)


@dataclass(frozen=True)
class Tile:
    """Tile of a kernel: output rows, output columns, reduction, warps, pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3


@triton.jit
def _gather_kernel(
    x, w, y, sums, member_stride, H, W, OH, OW, rows,
    CIN: tl.constexpr, COUT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr, SUMS: tl.constexpr, SLOTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of a convolution (or of its input gradient, ``TRANSPOSED``) of one member.

    ``w`` is ``[S, K * K, CIN, COUT]``; a row is one output position.
    """
    tile = tl.program_id(0)
    member = tl.program_id(2).to(tl.int64)
    row = tile * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = row < rows
    ow = row % OW
    oh = (row // OW) % OH
    image = row // (OW * OH)
    depth = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    x_member = x + member * member_stride
    w_member = w + member * (K * K * CIN * COUT)
    # One loop, so that loads of the next tap overlap with the product of this one.
    for index in range(K * K * (CIN // BK)):
        tap = index // (CIN // BK)
        start = (index % (CIN // BK)) * BK
        kh = tap // K
        kw = tap % K
        if TRANSPOSED:
            th = oh + K // 2 - kh
            tw = ow + K // 2 - kw
            ih = th // STRIDE
            iw = tw // STRIDE
            ok = (th >= 0) & (tw >= 0) & (th % STRIDE == 0) & (tw % STRIDE == 0)
            ok = ok & (ih < H) & (iw < W) & inside
        else:
            ih = oh * STRIDE + kh - K // 2
            iw = ow * STRIDE + kw - K // 2
            ok = (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W) & inside
        place = ((image * H + ih) * W + iw) * CIN
        a = tl.load(
            x_member + place[:, None] + (start + depth)[None, :], mask=ok[:, None], other=0.0
        )
        b = tl.load(w_member + (tap * CIN + start + depth)[:, None] * COUT + column[None, :])
        acc = tl.dot(a, b, acc, input_precision="ieee")
    target = y + member * rows * COUT + row[:, None] * COUT + column[None, :]
    tl.store(target, acc.to(y.dtype.element_ty), mask=inside[:, None])
    if SUMS:  # rows beyond the end are zero in acc
        place = sums + ((member * SLOTS + tile % SLOTS) * 2) * COUT + column
        tl.atomic_add(place, tl.sum(acc, axis=0), sem="relaxed")
        tl.atomic_add(place + COUT, tl.sum(acc * acc, axis=0), sem="relaxed")


@triton.jit
def _weight_kernel(
    x, dy, dw, member_stride, H, W, OH, OW, rows, chunk,
    CIN: tl.constexpr, COUT: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
    TAPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradient of ``w[K * K * CIN, COUT]`` over ``chunk`` output positions, added to ``dw``.

    ``BM`` rows of ``w`` (``TAPS`` taps of some in_channels), ``BN`` out_channels, ``BK`` positions.
    """
    chunks = tl.program_id(0)
    column_tiles: tl.constexpr = COUT // BN
    depth_tiles: tl.constexpr = CIN // (BM // TAPS)
    tile = tl.program_id(1) // column_tiles
    column = (tl.program_id(1) % column_tiles) * BN + tl.arange(0, BN)
    member = tl.program_id(2).to(tl.int64)
    tap = (tile // depth_tiles) * TAPS + tl.arange(0, TAPS)
    ci = (tile % depth_tiles) * (BM // TAPS) + tl.arange(0, BM // TAPS)
    kh = (tap // K - K // 2)[None, :, None]
    kw = (tap % K - K // 2)[None, :, None]
    known = (tap < K * K)[None, :, None]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    x_member = x + member * member_stride
    dy_member = dy + member * rows * COUT
    for start in range(0, chunk, BK):
        row = chunks * chunk + start + tl.arange(0, BK)
        inside = row < rows
        ow = row % OW
        oh = (row // OW) % OH
        image = row // (OW * OH)
        # Per position and tap, before the channels join: a vector of channels shares it.
        ih = (oh * STRIDE)[:, None, None] + kh
        iw = (ow * STRIDE)[:, None, None] + kw
        ok = (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W) & inside[:, None, None] & known
        place = ((image[:, None, None] * H + ih) * W + iw) * CIN + ci[None, None, :]
        a = tl.reshape(tl.load(x_member + place, mask=ok, other=0.0), (BK, BM))
        b = tl.load(
            dy_member + row[:, None] * COUT + column[None, :], mask=inside[:, None], other=0.0
        )
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    weight = tl.reshape(tap[:, None] * CIN + ci[None, :], (BM,))
    target = dw + member * (K * K * CIN * COUT) + weight[:, None] * COUT + column[None, :]
    tl.atomic_add(target, acc, mask=(weight < K * K * CIN)[:, None], sem="relaxed")


@triton.jit
def _affine_kernel(
    y, residual, out, scale, shift, size,
    C: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = relu(y * scale + shift + residual)`` of one member, channel by channel."""
    member = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    channel = index % C
    value = tl.load(y + member * size + index, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.load(scale + member * C + channel) + tl.load(shift + member * C + channel)
    if RESIDUAL:
        value += tl.load(residual + member * size + index, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out + member * size + index, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_sums_kernel(
    grad, out, y, sums, rows,
    C: tl.constexpr, RELU: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Sums over positions of g and g * y, where g is ``grad`` behind the ReLU."""
    tile = tl.program_id(0)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    member = tl.program_id(2).to(tl.int64)
    first = tl.zeros((BN,), dtype=tl.float32)
    second = tl.zeros((BN,), dtype=tl.float32)
    for step in range(STEPS):
        row = (tile * STEPS + step) * BM + tl.arange(0, BM)
        inside = (row < rows)[:, None]
        place = member * rows * C + row[:, None] * C + column[None, :]
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(tl.load(out + place, mask=inside, other=0.0).to(tl.float32) > 0, g, 0.0)
        first += tl.sum(g, axis=0)
        second += tl.sum(g * tl.load(y + place, mask=inside, other=0.0).to(tl.float32), axis=0)
    target = sums + ((member * SLOTS + tile % SLOTS) * 2) * C + column
    tl.atomic_add(target, first, sem="relaxed")
    tl.atomic_add(target + C, second, sem="relaxed")


@triton.jit
def _norm_gradient_kernel(
    grad, out, y, dy, dresidual, factor, slope, offset, size,
    C: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``dy = factor * g + slope * y + offset`` per channel, and g itself for the residual."""
    member = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    place = member * size + index
    c = member * C + index % C
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(tl.load(out + place, mask=inside, other=0.0).to(tl.float32) > 0, g, 0.0)
    value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    value = g * tl.load(factor + c) + value * tl.load(slope + c) + tl.load(offset + c)
    tl.store(dy + place, value.to(dy.dtype.element_ty), mask=inside)
    if RESIDUAL:
        tl.store(dresidual + place, g.to(dresidual.dtype.element_ty), mask=inside)


# Launchers -------------------------------------------------------------------------------------


def member_stride(x: torch.Tensor) -> int:
    """0 if all members share ``x``."""
    return 0 if x.shape[0] == 1 else x[0].numel()


def gather(
    x: torch.Tensor,
    w: torch.Tensor,
    out_size: tuple[int, int],
    stride: int,
    tile: Tile,
    transposed: bool = False,
    sums: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convolution of ``x`` (``[S or 1, N, H, W, CIN]``) with ``w`` (``[S, K * K, CIN, COUT]``).

    Returns
    -------
    tuple
        ``[S, N, *out_size, COUT]`` and, on demand, its sums and sums of squares ``[S, 2, COUT]``.
    """
    members, taps, cin, cout = w.shape
    y = x.new_empty(members, x.shape[1], *out_size, cout)
    rows = x.shape[1] * out_size[0] * out_size[1]
    partial: Any = y
    if sums:
        partial = torch.zeros(members, SUM_SLOTS, 2, cout, dtype=torch.float32, device=x.device)
    columns, depth = min(tile.columns, cout), min(tile.depth, cin)
    grid = (triton.cdiv(rows, tile.rows), cout // columns, members)
    _gather_kernel[grid](
        x, w, y, partial, member_stride(x), x.shape[2], x.shape[3], *out_size, rows,
        CIN=cin, COUT=cout, K=1 if taps == 1 else 3, STRIDE=stride, TRANSPOSED=transposed,
        SUMS=sums, SLOTS=SUM_SLOTS, BM=tile.rows, BN=columns, BK=depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y, partial.sum(1) if sums else None


def weight_gradient(
    x: torch.Tensor, dy: torch.Tensor, kernel: int, stride: int, tile: Tile
) -> torch.Tensor:
    """Gradient ``[S, K * K, CIN, COUT]`` (float32) of the weight."""
    members, _, height, width, cout = dy.shape
    cin = x.shape[4]
    rows = dy.shape[1] * height * width
    dw = torch.zeros(members, kernel**2, cin, cout, dtype=torch.float32, device=x.device)
    columns = min(tile.columns, cout)
    weights = min(tile.rows, cin) if kernel == 1 else tile.rows
    taps = max(1, weights // cin)
    tiles = triton.cdiv(kernel**2, taps) * max(1, cin // weights) * (cout // columns)
    # Enough programs to fill the device, few enough that the sums of the chunks cost nothing.
    chunks = max(1, min(triton.cdiv(rows, 8 * tile.depth), triton.cdiv(4096, tiles * members)))
    chunk = triton.cdiv(triton.cdiv(rows, chunks), tile.depth) * tile.depth
    grid = (triton.cdiv(rows, chunk), tiles, members)
    _weight_kernel[grid](
        x, dy, dw, member_stride(x), x.shape[2], x.shape[3], height, width, rows, chunk,
        CIN=cin, COUT=cout, K=kernel, STRIDE=stride, TAPS=taps, BM=weights, BN=columns,
        BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dw


def affine(
    y: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    residual: torch.Tensor | None,
    relu: bool,
) -> torch.Tensor:
    """``relu(y * scale + shift + residual)``; scale and shift are float32 ``[S, C]``."""
    out = torch.empty_like(y)
    size, block = y[0].numel(), 2048
    _affine_kernel[(triton.cdiv(size, block), y.shape[0])](
        y, y if residual is None else residual, out, scale, shift, size,
        C=y.shape[-1], RESIDUAL=residual is not None, RELU=relu, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return out


def norm_sums(grad: torch.Tensor, out: torch.Tensor, y: torch.Tensor, relu: bool) -> torch.Tensor:
    """Sums ``[S, 2, C]`` of g and g * y."""
    members, channels = y.shape[0], y.shape[-1]
    rows = y[0].numel() // channels
    columns = min(channels, 64)
    tile, steps = 4096 // columns, 8
    sums = torch.zeros(members, SUM_SLOTS, 2, channels, dtype=torch.float32, device=y.device)
    _norm_sums_kernel[(triton.cdiv(rows, tile * steps), channels // columns, members)](
        grad, out, y, sums, rows,
        C=channels, RELU=relu, SLOTS=SUM_SLOTS, BM=tile, BN=columns, STEPS=steps, num_warps=8,
    )  # fmt: skip
    return sums.sum(1)


def norm_gradient(
    grad: torch.Tensor,
    out: torch.Tensor,
    y: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    relu: bool,
    residual: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of ``y`` and, on demand, of the residual."""
    dy = torch.empty_like(y)
    dresidual = torch.empty_like(y) if residual else None
    size, block = y[0].numel(), 2048
    _norm_gradient_kernel[(triton.cdiv(size, block), y.shape[0])](
        grad, out, y, dy, dy if dresidual is None else dresidual, *factors, size,
        C=y.shape[-1], RELU=relu, RESIDUAL=residual, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return dy, dresidual
