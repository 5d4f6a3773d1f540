"""A batched model: members trained side by side, each with its own weights, masks and method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .networks import Layout
from .operators import Norm, Operators


@dataclass
class Members:
    """State of ``S`` members; all tensors but the running statistics are ``[S, P]``.

    ``mask`` is 0 where a weight is pruned. ``penalty`` times the distance from ``target`` (ADMM's
    ``Z - U``) is added to the gradient where there are any.
    """

    layout: Layout
    parameters: torch.Tensor
    momentum: torch.Tensor
    mask: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    target: torch.Tensor | None = None
    penalty: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.parameters)

    @classmethod
    def start(cls, layout: Layout, parameters: torch.Tensor) -> Members:
        """Members at rest with these parameters."""
        count = len(parameters)
        mean = parameters.new_zeros(count, layout.statistics_size)
        return cls(
            layout,
            parameters.clone(),
            torch.zeros_like(parameters),
            torch.ones_like(parameters),
            mean,
            torch.ones_like(mean),
        )


def forward(
    members: Members,
    operators: Operators,
    values: dict[str, torch.Tensor],
    images: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """Logits ``[S, N, 10]`` (float32).

    Parameters
    ----------
    values : dict
        Parameter name to its ``[S, ...]`` tensor, see :func:`leaves`.
    images : Tensor ``[S or 1, N, H, W, C]``
    """
    layout = members.layout
    outputs = {"": images}
    for conv in layout.network.convs:
        norm = Norm(
            values[f"{conv.name}.gamma"],
            values[f"{conv.name}.beta"],
            layout.statistics[conv.name].of(members.mean),
            layout.statistics[conv.name].of(members.variance),
        )
        residual = outputs[conv.residual] if conv.residual else None
        x = operators.layer(
            outputs[conv.source],
            values[conv.name],
            norm,
            residual,
            conv.stride,
            conv.relu,
            training,
        )
        outputs[conv.name] = _max_pool(x) if conv.pool else x
    pooled = outputs[layout.network.convs[-1].name].float().mean((2, 3))
    classifier = values["classifier"].transpose(1, 2)
    return torch.baddbmm(values["classifier.bias"][:, None], pooled, classifier)


def _max_pool(x: torch.Tensor) -> torch.Tensor:
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(images, 2).permute(0, 2, 3, 1)
    return pooled.unflatten(0, x.shape[:2]).contiguous()


def leaves(members: Members, requires_grad: bool) -> dict[str, torch.Tensor]:
    """Parameters by name as views of the members' vectors."""
    flat = members.parameters.detach()
    return {
        name: slot.of(flat).detach().requires_grad_(requires_grad)
        for name, slot in members.layout.slots.items()
    }


def loss_of(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of each member ``[S]``; ``labels`` is ``[S or 1, N]``."""
    every = labels.expand(logits.shape[:2]).flatten()
    losses = F.cross_entropy(
        logits.flatten(0, 1), every, label_smoothing=smoothing, reduction="none"
    )
    return losses.view(logits.shape[:2]).mean(1)


@dataclass(frozen=True)
class Sgd:
    """Nesterov momentum, weight decay on weights alone."""

    momentum: float = 0.9
    weight_decay: float = 5e-4


def train_step(
    members: Members,
    operators: Operators,
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: float,
    decayed: torch.Tensor,
    smoothing: float,
    sgd: Sgd,
) -> torch.Tensor:
    """One step of every member; their losses ``[S]``."""
    values = leaves(members, True)
    losses = loss_of(forward(members, operators, values, images, True), labels, smoothing)
    gradients = torch.autograd.grad(losses.sum(), list(values.values()))
    update(members, torch.cat([g.flatten(1) for g in gradients], 1), lr, decayed, sgd)
    return losses.detach()


@torch.no_grad()
def update(
    members: Members, gradient: torch.Tensor, lr: float, decayed: torch.Tensor, sgd: Sgd
) -> None:
    """SGD on ``[S, P]``; pruned weights stay zero and have no momentum."""
    weights = members.parameters
    gradient.addcmul_(weights, decayed, value=sgd.weight_decay)
    if members.target is not None and members.penalty is not None:
        gradient.addcmul_(weights - members.target, members.penalty)
    gradient.mul_(members.mask)
    members.momentum.mul_(sgd.momentum).add_(gradient)
    weights.add_(gradient, alpha=-lr).add_(members.momentum, alpha=-lr * sgd.momentum)
    weights.mul_(members.mask)


@torch.no_grad()
def predict(members: Members, operators: Operators, images: torch.Tensor) -> torch.Tensor:
    """Logits in evaluation mode."""
    return forward(members, operators, leaves(members, False), images, False)
