"""Files: pruned weights as safetensors, training checkpoints that load without running code."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from topi_kernels.pattern import PatternSet

from ..atomic import new_file, sync_folder
from .assignment import Assignment, LayerAssignment
from .carried import carry_assignment
from .kernels import KernelView
from .modules import clean_name, layers_of, unwrap

FORMAT_VERSION = 1
METADATA_KEY = "tvm_pattern"
PATTERN_ID = "pattern_id"
# Bytes; with less than that free, a write that failed is put down to the disk.
_NO_SPACE = 1 << 16


class CheckpointError(ValueError):
    """A file that is damaged, of another program, or does not fit the model."""


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of the unwrapped model with clean names, every tensor with its own memory."""
    return {
        clean_name(name): tensor.detach().cpu().contiguous().clone()
        for name, tensor in unwrap(model).state_dict().items()
    }


def _replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside ``path`` and rename, so that no killed process and no full disk leaves a half.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as (file, partial):
            _write_in_words(write, partial)
            os.fsync(file.fileno())
            os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        was_there = "; the file that was there is unchanged" if path.exists() else ""
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}{was_there}; free space or choose"
            " another folder"
        ) from error


def _write_in_words(write: Callable[[Path], None], path: Path) -> None:
    """Call ``write``; torch speaks of positions in a stream where the disk is full."""
    try:
        write(path)
    except (RuntimeError, SafetensorError) as error:
        full = shutil.disk_usage(path.parent).free < _NO_SPACE or "os error 28" in str(error)
        reason = os.strerror(errno.ENOSPC) if full else str(error).strip().splitlines()[0]
        raise OSError(errno.ENOSPC if full else errno.EIO, reason) from error


def save_pruned(path: str | Path, model: nn.Module, assignment: Assignment) -> None:
    """Write weights, patterns and libraries as one safetensors file.

    The weights have their ordinary names: ``model.load_state_dict(load_file(path), strict=False)``
    works without this package. Beside them, ``<layer>.pattern_id`` is uint8 ``[O, I]`` with 255
    for a removed kernel; the pattern sets are in the metadata.

    Parameters
    ----------
    path : path-like
    model : nn.Module
        Wrapped or not.
    assignment : dict
        ``report.assignment`` or ``pruner.assignment``.

    Raises
    ------
    ValueError
        If a pruned weight is not zero: the file would not describe the model.
    CheckpointError
        If the file cannot be written; what was there is unchanged.
    """
    tensors = _weights(model)
    pattern_sets: list[PatternSet] = []
    layers = {}
    for name, layer in assignment.items():
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            raise ValueError(f"the model has no layer {name!r}; give the model that was pruned")
        _check_layer(name, weight, layer)
        if layer.pattern_set not in pattern_sets:
            pattern_sets.append(layer.pattern_set)
        tensors[f"{name}.{PATTERN_ID}"] = layer.pattern_id.cpu().contiguous().clone()
        layers[name] = {
            "pattern_set": pattern_sets.index(layer.pattern_set),
            "group": layer.group,
            "connectivity": layer.connectivity,
            **_view_facts(layer.view),
        }
    content = {
        "version": FORMAT_VERSION,
        "pattern_sets": [s.to_dict() for s in pattern_sets],
        "layers": layers,
    }
    metadata = {"format": "pt", METADATA_KEY: json.dumps(content)}
    _replace_file(Path(path), lambda part: save_file(tensors, part, metadata))


def _view_facts(view: KernelView) -> dict[str, Any]:
    """What is stored of a transposed convolution; nothing of other layers."""
    if view.stride is None:
        return {}
    return {"transposed_stride": list(view.stride), "groups": view.groups}


def _read_view(facts: dict[str, Any]) -> KernelView:
    if "transposed_stride" not in facts:
        return KernelView()
    rows, columns = map(int, facts["transposed_stride"])
    if min(rows, columns, int(facts["groups"])) < 1:
        raise ValueError(f"a transposed layer has {facts}")
    return KernelView((rows, columns), int(facts["groups"]))


def _check_layer(name: str, weight: torch.Tensor, layer: LayerAssignment) -> None:
    try:
        removed = layer.removed_from(weight)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    alive = int(torch.count_nonzero(weight[removed]))
    if alive:
        raise CheckpointError(
            f"{name}: {alive} pruned weights are not zero; apply the masks before saving"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        # Only now: the length of a good header may happen to spell the start of a pickle.
        if _is_pickle(path):
            raise CheckpointError(
                f"{path} is a pickle, which could run code when read; expected safetensors."
                " Convert it once where you trust it:"
                " safetensors.torch.save_file(state_dict, 'w.safetensors')"
            ) from error
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as ``torch.save`` or ``pickle.dump`` start theirs."""
    with path.open("rb") as handle:
        start = handle.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, or of what ``torch.save(model.state_dict())`` wrote."""
    if path.suffix not in (".pt", ".pth") or not path.is_file() or not _is_pickle(path):
        return _read_safetensors(path)[0]
    state = load_training(path)
    tensors = state.get("state_dict", state)
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise CheckpointError(
            f"{path}: expected a state dict of tensors, got the keys {sorted(map(str, state))[:5]};"
            " save model.state_dict()"
        )
    return tensors


def _read_content(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} holds no patterns: metadata {METADATA_KEY!r} is missing. It was not written by"
            " save_pruned; load it as ordinary weights"
        )
    try:
        content = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: damaged metadata ({error})") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
        got = content.get("version") if isinstance(content, dict) else content
        raise CheckpointError(f"{path}: format {got!r}, this release reads {FORMAT_VERSION}")
    return content


def _read_assignment(
    path: Path, content: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> Assignment:
    assignment: Assignment = {}
    try:
        sets = [PatternSet.from_dict(s) for s in content["pattern_sets"]]
        for name, facts in content["layers"].items():
            ids = tensors.pop(f"{name}.{PATTERN_ID}")
            if ids.dtype != torch.uint8 or ids.ndim != 2:
                raise ValueError(f"pattern_id of {name} is {ids.dtype} {tuple(ids.shape)}")
            assignment[name] = LayerAssignment(
                ids,
                sets[facts["pattern_set"]],
                int(facts["group"]),
                float(facts["connectivity"]),
                _read_view(facts),
            )
            _check_layer(name, tensors[f"{name}.weight"], assignment[name])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged or inconsistent content: {error}") from error
    return assignment


def load_pruned(path: str | Path, model: nn.Module | None = None) -> Assignment:
    """Read a file of :func:`save_pruned`, and its weights into ``model`` when one is given.

    Returns
    -------
    dict
        Layer name to :class:`LayerAssignment`, exactly as saved.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, a pickle, of another program or version, inconsistent, or
        does not fit the model.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    assignment = _read_assignment(path, _read_content(path, metadata), tensors)
    if model is not None:
        _load_into(path, model, tensors)
        missing = set(assignment) - set(layers_of(model))
        if missing:
            raise CheckpointError(f"{path}: no convolutions in the model: {sorted(missing)}")
        carry_assignment(model, assignment)
    return assignment


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Read ordinary or pruned weights into ``model``, strictly.

    Parameters
    ----------
    path : path-like
        safetensors, or a ``.pt`` / ``.pth`` state dict of tensors alone: no code of it is run.
    model : nn.Module

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, holds other objects than tensors, or names or shapes
        differ.
    """
    path = Path(path)
    tensors = _read_weights(path)
    _load_into(path, model, {k: v for k, v in tensors.items() if not k.endswith(f".{PATTERN_ID}")})


def _load_into(path: Path, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    inner = unwrap(model)
    state = inner.state_dict()
    own = {clean_name(name): name for name in state}
    given = {clean_name(k.removeprefix("module.")): v for k, v in tensors.items()}
    # A weight that layers share may have been saved under the name of one of them only.
    loaded = {state[own[name]].data_ptr(): v for name, v in given.items() if name in own}
    for name, key in own.items():
        if name not in given and state[key].numel() and state[key].data_ptr() in loaded:
            given[name] = loaded[state[key].data_ptr()]
    missing, surplus = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or surplus:
        raise CheckpointError(
            f"{path} does not fit {type(inner).__name__}: missing {missing[:5]}, unexpected"
            f" {surplus[:5]}; give the architecture it was saved from"
        )
    try:
        inner.load_state_dict({own[name]: tensor for name, tensor in given.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(inner).__name__}: {error}") from error


def save_training(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training checkpoint atomically: tensors, numbers, strings and containers only.

    Raises
    ------
    CheckpointError
        If the file cannot be written; what was there is unchanged.
    """
    _replace_file(Path(path), lambda part: torch.save(state, part))


def load_training(path: str | Path, keys: set[str] | None = None) -> dict[str, Any]:
    """Read a training checkpoint without running any code from it.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, needs arbitrary pickles, or lacks one of ``keys``.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no readable checkpoint (damaged, or a pickle of other objects):"
            f" {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    if not isinstance(state, dict) or not (keys or set()) <= set(state):
        got = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: expected the keys {sorted(keys or ())}, got {got}")
    return state
