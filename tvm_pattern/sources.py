"""What the command line means by a model, and by the shapes of its inputs."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BUILTIN = ("mobilenet_v2", "resnet50", "vgg16", "vgg16_bn")


def open_model(source: str, weights: Path | None = None, *, trust: bool = False) -> Any:
    """The model that ``source`` names.

    Parameters
    ----------
    source : str
        Path of an ``.onnx`` or ``.pt2`` file, one of :data:`BUILTIN`, or ``package.module:factory``
        where ``factory()`` returns a ``torch.nn.Module``.
    weights : pathlib.Path, optional
        Pruned weights saved by :mod:`tvm_pattern.pruning`, for a built-in network or a factory.
    trust : bool
        Whether code that a ``.pt2`` file holds may run while it is read; see ``SECURITY.md``.

    Returns
    -------
    pathlib.Path, torch.export.ExportedProgram, QuantizedModel or torch.nn.Module

    Raises
    ------
    ValueError
        If it names nothing, or cannot be read.
    """
    path = Path(source)
    if path.suffix in (".onnx", ".pt2"):
        if weights is not None:
            raise ValueError(f"{source} holds its own weights; leave out --weights")
        if path.suffix == ".onnx":
            return path
        from .exported_program import extra_file, load_exported_program
        from .quantization.model import EXTRA_FILE, QuantizedModel

        program = load_exported_program(path, trust=trust)
        facts = extra_file(path, EXTRA_FILE)
        return program if facts is None else QuantizedModel.from_program(program, facts)
    if source in BUILTIN:
        from . import models

        model = getattr(models, source)()
    elif ":" in source:
        model = _call_factory(source)
    else:
        raise ValueError(
            f"model {source!r}: expected a file ending in .onnx or .pt2, one of"
            f" {', '.join(BUILTIN)}, or package.module:factory"
        )
    if weights is not None:
        from .pruning import load_pruned

        load_pruned(weights, model)
    return model


def pruned_at_once(
    model: Any, connectivity: float | None, connectivity_1x1: float | None, group: int | None
) -> Any:
    """The model pruned by ``--connectivity`` and the options beside it; itself without them.

    Raises
    ------
    ValueError
        If options are given that need a rate, or as :func:`.imported_weights.prune_at_once`.
    """
    if connectivity is None:
        given = {"--connectivity-1x1": connectivity_1x1, "--group": group}
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise ValueError(
                f"got {' and '.join(alone)} without --connectivity; nothing is pruned without it"
                " (--connectivity 1 prunes to patterns and keeps every kernel)"
            )
        return model
    from .imported_weights import prune_at_once

    rate_1x1 = 1.0 if connectivity_1x1 is None else connectivity_1x1
    return prune_at_once(model, connectivity, rate_1x1, 1 if group is None else group)[0]


def examples_of(shapes: Sequence[str] | None, model: Any = None) -> tuple[np.ndarray, ...] | None:
    """Example inputs of ``--shape`` options, such as ``1x3x224x224``; None without any.

    Parameters
    ----------
    shapes : sequence of str, optional
    model
        As :func:`open_model` gives it; files know their shapes, networks do not.

    Raises
    ------
    ValueError
        If one is no list of positive sizes, or a network has none.
    NotEnoughMemoryError
        If such an input fits no memory of this computer.
    """
    if not shapes:
        if hasattr(model, "forward"):
            raise ValueError(
                f"{type(model).__name__} does not say the shapes of its inputs; name them by"
                " --shape, such as --shape 1x3x224x224, once per input"
            )
        return None
    from .memory import Footprint, check_fits

    examples = []
    for text in shapes:
        dims = text.lower().split("x")
        if not all(d.isdigit() and int(d) > 0 for d in dims):
            raise ValueError(f"--shape {text!r}: expected sizes joined by x, such as 1x3x224x224")
        size = tuple(map(int, dims))
        # Drawn in 64 bits, kept in 32.
        check_fits(Footprint(0, 12 * math.prod(size)), f"an input of --shape {text}")
        examples.append(np.random.default_rng(0).standard_normal(size).astype("float32"))
    return tuple(examples)


def sizes_of(shapes: Sequence[str] | None, model: Any) -> list[tuple[np.ndarray, ...]] | None:
    """Example inputs of each size that ``--shape`` options name: one option per input and size.

    Parameters
    ----------
    shapes : sequence of str, optional
        All inputs of the first size, then those of the next.
    model
        As :func:`open_model` gives it; it tells how many inputs there are.

    Raises
    ------
    ValueError
        If one is no list of positive sizes, a network has none, or the last size lacks inputs.
    """
    examples = examples_of(shapes, model)
    if examples is None:
        return None
    count = number_of_inputs(model) or len(examples)
    if len(examples) % count and len(examples) > count:
        raise ValueError(
            f"got {len(examples)} times --shape for a model of {count} inputs; expected {count} for"
            " each size, all inputs of the first size first"
        )
    if len(examples) <= count:
        return [examples]
    return [examples[start : start + count] for start in range(0, len(examples), count)]


def number_of_inputs(model: Any) -> int | None:
    """How many inputs a model of :func:`open_model` has; None where it does not say."""
    if isinstance(model, Path):
        from .frontend.onnx_sizes import model_inputs
        from .onnx_files import read_onnx

        return len(model_inputs(read_onnx(model)))
    signature = inspect.signature(model.forward) if hasattr(model, "forward") else None
    if signature is None:
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(needed) or None


def import_factory(source: str) -> Any:
    """What ``package.module:factory`` names; modules in the current folder are found too.

    Raises
    ------
    ValueError
        If it cannot be imported.
    """
    module_name, _, name = source.partition(":")
    folder = os.getcwd()
    is_new = folder not in sys.path
    if is_new:
        sys.path.append(folder)
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model {source!r}: {error}; expected package.module:factory, installed or in the"
            " current folder"
        ) from error
    finally:
        if is_new:
            sys.path.remove(folder)


def _call_factory(source: str) -> Any:
    import torch

    model = import_factory(source)()
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{source} returned a {type(model).__name__}, expected a torch.nn.Module")
    return model.eval()
