"""Relax's convolutions and matrix products by torch: independent of TVM's kernels, and fast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from relay_passes.dataflow import op_name, static_shape

from ..threads import available_cpus

_PLAIN_LAYOUTS = {
    "relax.nn.conv2d": ("NCHW", "OIHW"),
}


@contextlib.contextmanager
def torch_bounded() -> Iterator[None]:
    """No gradients, no more threads than cores, and torch's random state as before."""
    import torch

    threads = torch.get_num_threads()
    bounded = min(threads, len(available_cpus()))
    try:
        if bounded != threads:
            torch.set_num_threads(bounded)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def as_torch(value: Any) -> Callable[..., np.ndarray] | None:
    """The call as a function of numpy arrays, None where it is left to TVM."""
    if not isinstance(value, relax.Call):
        return None
    if not all(
        isinstance(a, relax.Var | GenericConst) and static_shape(a) is not None for a in value.args
    ):
        return None
    name = op_name(value)
    dtypes = {str(a.ty.dtype) for a in value.args} | {str(getattr(value.ty, "dtype", ""))}
    if len(dtypes) != 1 or not dtypes <= {"float16", "float32", "float64"}:
        return None
    if name == "relax.matmul":
        return _matmul
    attributes = value.attrs
    layouts = _PLAIN_LAYOUTS.get(name)
    if layouts is None or layouts != (str(attributes.data_layout), str(attributes.kernel_layout)):
        return None
    if str(attributes.out_layout) not in ("", layouts[0]):
        return None
    return partial(
        _conv2d,
        strides=[int(v) for v in attributes.strides],
        padding=[int(v) for v in attributes.padding],
        dilation=[int(v) for v in attributes.dilation],
        groups=int(attributes.groups),
    )


def _conv2d(
    image: np.ndarray,
    weight: np.ndarray,
    *,
    strides: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> np.ndarray:
    import torch

    top, left, bottom, right = padding
    padded = torch.nn.functional.pad(_tensor(image), (left, right, top, bottom))
    with torch_bounded():
        result = torch.nn.functional.conv2d(
            padded, _tensor(weight), None, strides, 0, dilation, groups
        )
    return np.ascontiguousarray(result.numpy())


def _matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import torch

    with torch_bounded():
        return np.ascontiguousarray(torch.matmul(_tensor(left), _tensor(right)).numpy())


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())
