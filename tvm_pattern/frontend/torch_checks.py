"""Tensors that cannot be compiled, refused before anything else looks at them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def check_module(model: Any) -> None:
    """Refuse modules without weights yet, quantised ones and tensors of other kinds.

    Raises
    ------
    ValueError
        Names the module or the tensor, and the way out.
    """
    import torch
    from torch.nn.parameter import is_lazy

    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ValueError(
                f"module {name!r} is a {kind.__module__}.{kind.__name__}, quantised to int8 in"
                " torch; expected float weights: compile the model before"
                " torch.ao.quantization.convert"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"weights {name!r} of a lazy module have no shape yet; run the model once on an"
                " example before compiling"
            )
        check_tensor(f"weights {name!r}", tensor)
    if torch.is_inference_mode_enabled():
        return
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"weights {name!r} were made in torch.inference_mode, which torch.export cannot"
                " trace outside of it; give copy.deepcopy(model), or compile inside of it too"
            )


def check_tensors(what: str, tensors: Iterable[tuple[str, Any]]) -> None:
    """:func:`check_tensor` for several."""
    for name, tensor in tensors:
        check_tensor(f"{what} {name!r}", tensor)


def check_tensor(what: str, tensor: Any) -> None:
    """Refuse a tensor without values, that is not dense, or of a dtype that is not compiled.

    Parameters
    ----------
    what : str
        How the message calls it, as ``weights 'stem.weight'``.
    tensor : torch.Tensor
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise ValueError(
            f"{what}: got a tensor on the meta device, expected one with values; load a checkpoint"
            " (load_state_dict(..., assign=True)) before compiling"
        )
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise ValueError(
            f"{what}: got the layout {layout}, expected a dense tensor; call .to_dense() (zeros are"
            " found by themselves)"
        )
    if dtype == "bfloat16":
        raise ValueError(
            f"{what}: got bfloat16, expected float32 or float16; call .float() on model and inputs"
            " (no value changes) or .half()"
        )
    if dtype not in _DTYPES:
        raise ValueError(
            f"{what}: got {dtype}, expected one of {', '.join(_DTYPES)}; convert it with .to(...)"
        )
