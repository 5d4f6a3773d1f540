"""Which weights to keep by the error that their loss causes, and their best values.

The error of one filter w' is ``w' H w'^T - 2 b w'^T + const`` with H the second moments of its
patches. Its patterns are chosen as Optimal Brain Surgeon chooses weights (Hassibi and Stork,
NIPS'92), with what the kept taps of the same kernel can make up for; the kept weights of the whole
filter are then solved for, as SparseGPT (Frantar and Alistarh, ICML'23) solves for those of a row.
"""

from __future__ import annotations

import torch


def blocks_of(gram: torch.Tensor, taps: int) -> torch.Tensor:
    """Second moments within each in_channel's kernel: ``[I, taps, taps]`` of ``[K, K]``."""
    channels = gram.shape[-1] // taps
    square = gram.reshape(channels, taps, channels, taps)
    return torch.diagonal(square, dim1=0, dim2=2).permute(2, 0, 1)


def removal_errors(weight: torch.Tensor, blocks: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Error of each kernel under each pattern, when its kept taps take the best values.

    Parameters
    ----------
    weight : Tensor ``[O, I, taps]``
    blocks : Tensor ``[I, taps, taps]``
        Positive definite.
    masks : Tensor of bool ``[num_patterns, taps]``

    Returns
    -------
    Tensor
        ``[num_patterns, O, I]``: ``w_S (H_SS - H_SP H_PP^-1 H_PS) w_S`` for the removed taps S and
        the kept taps P.
    """
    errors = weight.new_zeros(masks.shape[0], *weight.shape[:2])
    for number, mask in enumerate(masks):
        kept, gone = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        if not gone.numel():
            continue
        within = blocks[:, gone][:, :, gone]
        if kept.numel():
            between = blocks[:, kept][:, :, gone]
            within = within - between.transpose(1, 2) @ torch.linalg.solve(
                blocks[:, kept][:, :, kept], between
            )
        removed = weight[:, :, gone]
        errors[number] = torch.einsum("ois,ist,oit->oi", removed, within, removed)
    return errors


def kernel_energy(weight: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Error that each kernel's removal causes by itself: ``w H w``, ``[O, I]``."""
    return torch.einsum("ois,ist,oit->oi", weight, blocks, weight)


def solve_masked(
    gram: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    start: torch.Tensor,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> torch.Tensor:
    """Weights on ``mask`` that minimise ``w gram w^T - 2 target w^T`` for each filter.

    Conjugate gradients with a diagonal preconditioner, all filters at once: one product with
    ``gram`` per iteration, whatever the masks are.

    Parameters
    ----------
    gram : Tensor ``[K, K]``
        Symmetric, positive definite.
    target, start : Tensor ``[O, K]``
    mask : Tensor of bool ``[O, K]``
        True where a weight may differ from zero.
    iterations : int
    tolerance : float
        Norm of the residual against the target's at which to stop.

    Returns
    -------
    Tensor ``[O, K]``
        Zero where ``mask`` is False.
    """
    keep = mask.to(gram.dtype)
    scale = keep / gram.diagonal()
    weight = start * keep
    residual = (target - weight @ gram) * keep
    limit = tolerance * (target * keep).norm()
    preconditioned = residual * scale
    direction = preconditioned.clone()
    before = (residual * preconditioned).sum(1, keepdim=True)
    for _ in range(iterations):
        if not residual.norm() > limit:
            break
        product = (direction @ gram) * keep
        curvature = (direction * product).sum(1, keepdim=True)
        step = torch.where(curvature > 0, before / curvature.clamp_min(1e-38), 0.0)
        weight += step * direction
        residual -= step * product
        preconditioned = residual * scale
        after = (residual * preconditioned).sum(1, keepdim=True)
        direction *= torch.where(before > 0, after / before.clamp_min(1e-38), 0.0)
        direction += preconditioned
        before = after
    return weight


def relative_error(
    weight: torch.Tensor, gram: torch.Tensor, target: torch.Tensor, power: torch.Tensor
) -> float:
    """Mean squared change of the layer's outputs against their power."""
    changed = ((weight @ gram) * weight).sum(1) - 2 * (target * weight).sum(1) + power
    return float(changed.sum() / power.sum().clamp_min(1e-38))
