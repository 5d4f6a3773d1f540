"""Whether a convolution computes with its own parameter, and how to make it so.

Pruning zeroes a parameter. That is worth nothing where the forward computes the weight from it:
a standardised convolution subtracts the mean, and the zeros are gone. Known ways of computing a
weight (weight_norm, spectral_norm, masks of ``torch.nn.utils.prune``) are *baked*: the computed
weight becomes the parameter. All others are found by running the layer and looking at the weight
that arrives at ``conv2d``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from .config import ConfigError
from .modules import (
    CONVOLUTIONS,
    Convolution,
    Layer,
    clean_name,
    convolutions,
    is_transposed,
    layers_of,
    unwrap,
)

# What a forward that was not written for a probe raises.
_FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
)


_OPERATORS = (
    *(F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d),
    *(torch.convolution, F.linear),
)


class _ConvCalls(TorchFunctionMode):
    """Records the weight and bias of every convolution and linear layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OPERATORS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.calls.append((weight, args[2] if len(args) > 2 else kwargs.get("bias")))
        return func(*args, **kwargs)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _same(weight: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a weight is the layer's own, or a view of all of it."""
    return weight is own or (
        weight.data_ptr() == own.data_ptr()
        and weight.shape == own.shape
        and weight.stride() == own.stride()
    )


def _probe_input(conv: Layer, seed: int) -> torch.Tensor:
    """Random rows, or a random image that every output of the layer's size exists for."""
    if isinstance(conv, nn.Linear):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn((2, conv.in_features), generator=generator)
        return rows.to(next(conv.parameters()))
    weight = next(p for p in conv.parameters() if p.ndim == 2 + len(conv.kernel_size))
    size = [
        max(8, d * (k - 1) + 1 + 2 * s)
        for d, k, s in zip(conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    image = torch.randn((2, conv.in_channels, *size), generator=torch.Generator().manual_seed(seed))
    return image.to(weight.device, weight.dtype)


def _run(conv: Layer, seed: int) -> tuple[torch.Tensor, list[Any]]:
    with torch.no_grad(), _evaluating(conv), _ConvCalls() as seen:
        output = conv(_probe_input(conv, seed))
    return output, seen.calls


def recipe_of(conv: Layer) -> str:
    """How torch itself computes the weight: the name of what can be baked, or empty."""
    if parametrize.is_parametrized(conv, "weight"):
        names = {_WeightNorm: "weight_norm", _SpectralNorm: "spectral_norm"}
        kinds = [names.get(type(p), "") for p in conv.parametrizations["weight"]]
        return " and ".join(kinds) if all(kinds) else ""
    for hook in conv._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return "weight_norm"
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            return "spectral_norm"
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight":
            return "torch.nn.utils.prune"
    return ""


def plain_type(layer: Layer) -> type[nn.Module]:
    """torch's own class of a layer."""
    return next(kind for kind in (*CONVOLUTIONS, nn.Linear) if isinstance(layer, kind))


def _is_ordinary(conv: Layer) -> bool:
    """A layer as torch wrote it, without anything that runs before its forward."""
    plain: Any = plain_type(conv)
    own = type(conv).forward is plain.forward
    if hasattr(plain, "_conv_forward"):
        own = own and type(conv)._conv_forward is plain._conv_forward
    return (
        own
        and not {"forward", "_conv_forward"} & set(vars(conv))
        and not conv._forward_pre_hooks
        and isinstance(conv._parameters.get("weight"), nn.Parameter)
    )


def why_not_own(conv: Layer) -> str:
    """Why zeros in the layer's parameter would not reach its convolution; empty if they do."""
    if _is_ordinary(conv):
        return ""
    kind = type(conv).__name__
    if parametrize.is_parametrized(conv, "weight"):
        parts = ", ".join(type(p).__name__ for p in conv.parametrizations["weight"])
        return f"its weight is parametrized ({parts})"
    if not isinstance(conv._parameters.get("weight"), nn.Parameter):
        return f"its weight is no parameter of {kind}, something computes it"
    try:
        _, calls = _run(conv, seed=0)
    except _FORWARD_ERRORS as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"the forward of {kind} could not be followed ({reason})"
    if not calls:
        called = plain_type(conv).__name__.lower().replace("convt", "conv_t")
        return f"the forward of {kind} calls no {called}"
    if not any(_same(weight, conv.weight) for weight, _ in calls):
        return f"the forward of {kind} computes the weight"
    return ""


def refuse_computed(problems: dict[str, str]) -> None:
    """Raise for the layers that :func:`why_not_own` names.

    Raises
    ------
    ConfigError
        If there are any.
    """
    if problems:
        shown = "; ".join(f"{name}: {why}" for name, why in list(problems.items())[:8])
        raise ConfigError(
            f"zeros in these {len(problems)} weights would not reach the convolution: {shown}. Put"
            " the computed weights into plain convolutions first, by"
            " tvm_pattern.pruning.bake_weights(model), or leave the layers dense by a rule with"
            " skip: true"
        )


def bake_layer(conv: Layer) -> None:
    """Make the computed weight of :func:`recipe_of` an ordinary parameter; same outputs."""
    training = conv.training
    conv.eval()  # spectral_norm moves its estimate in training mode
    try:
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
        for hook in list(conv._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm) and hook.name == "weight":
                remove_weight_norm(conv)
            elif isinstance(hook, SpectralNorm) and hook.name == "weight":
                remove_spectral_norm(conv)
            elif isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight":
                prune.remove(conv, "weight")
    finally:
        conv.train(training)


def bake_weights(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, str]:
    """Replace computed weights by their values, in place; the outputs stay the same.

    weight_norm, spectral_norm and the masks of ``torch.nn.utils.prune`` are removed and their
    result is kept; a convolution whose own forward computes the weight (weight standardisation)
    becomes a plain one of torch with that weight. What trains afterwards is the plain weight, so
    build the optimizer after this call.

    Parameters
    ----------
    model : nn.Module
    layers : iterable of str, optional
        Names of convolutions; by default every one whose weight is computed.

    Returns
    -------
    dict
        Layer name to what was baked.

    Raises
    ------
    ConfigError
        If a name is no convolution, or a layer does more than a convolution with a weight that is
        the same for every input.
    """
    convs = convolutions(model)
    names = list(convs) if layers is None else list(layers)
    unknown = [name for name in names if name not in convs]
    if unknown:
        raise ConfigError(
            f"no convolutions {unknown[:5]}; the model has {', '.join(list(convs)[:8])}"
        )
    baked = {}
    for name in names:
        conv = convs[name]
        recipe = recipe_of(conv)
        if recipe:
            bake_layer(conv)
            baked[name] = recipe
        elif parametrize.is_parametrized(conv, "weight"):
            baked[name] = why_not_own(conv)
            bake_layer(conv)
    for name in names:
        why = why_not_own(convs[name])
        if why:
            _replace(model, name, _plain_copy(name, convs[name], why))
            baked[name] = why
    return baked


def _plain_copy(name: str, conv: Convolution, why: str) -> Convolution:
    """torch's own convolution with the weight that a layer computes, checked by its outputs."""

    def refuse(reason: str) -> ConfigError:
        return ConfigError(
            f"{name} cannot be baked: {reason}; leave it dense by a rule with skip: true"
        )

    try:
        want, calls = _run(conv, seed=0)
        other, again = _run(conv, seed=1)
    except _FORWARD_ERRORS as error:
        raise refuse(why) from error
    if len(calls) != 1 or len(again) != 1:
        raise refuse(f"its forward calls {len(calls)} convolutions, expected 1")
    weight, bias = calls[0]
    if weight.shape != conv.weight.shape or not torch.equal(weight, again[0][0]):
        raise refuse("its weight depends on the input")
    kind: Any = plain_type(conv)
    plain = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
        **({"output_padding": conv.output_padding} if is_transposed(conv) else {}),
    )
    with torch.no_grad():
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
    for result, seed in ((want, 0), (other, 1)):
        got, _ = _run(plain, seed)
        if got.shape != result.shape or not torch.allclose(got, result, rtol=1e-4, atol=1e-5):
            raise refuse("its forward does more than one convolution")
    return plain.train(conv.training)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    inner = unwrap(model)
    raw = next(n for n, _ in inner.named_modules() if clean_name(n) == name)
    parent, _, leaf = raw.rpartition(".")
    setattr(inner.get_submodule(parent), leaf, new)


def check_by_examples(model: nn.Module, examples: Any, names: Iterable[str]) -> None:
    """Run the model once: each of these layers must convolve with its parameter itself.

    Raises
    ------
    ConfigError
        Naming the layers whose parameter no convolution took: computed outside of the layer, or
        not used by this forward.
    """
    inner = unwrap(model)
    inputs = examples if isinstance(examples, tuple | list) else (examples,)
    with torch.no_grad(), _evaluating(inner), _ConvCalls() as seen:
        inner(*inputs)
    layers = layers_of(inner)
    used = {weight.data_ptr() for weight, _ in seen.calls}
    refuse_computed(
        {
            name: "no convolution of the model's forward takes its parameter itself"
            for name in names
            if layers[name].weight.data_ptr() not in used
        }
    )
