"""Manifests with every field damaged: an ``ArtifactError``, or the right answer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import tvm_pattern as tp
from tvm_pattern.manifest import ArtifactError, Manifest, manifest_path
from tvm_pattern.memory import NotEnoughMemoryError

from . import mutate
from .conftest import amount

X = np.random.default_rng(0).standard_normal((1, 3, 9, 8), "f4")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    tp.pruning.oneshot(model, connectivity=2.0)
    library = tp.compile(model, X, num_threads=1)
    path = library.export(tmp_path_factory.mktemp("manifest") / "net.so")
    return path, library(X)


def test_every_field_mutated(exported, tmp_path):
    """Loaded and run: what is not refused answers as before."""
    path, expected = exported
    for file in (path, manifest_path(path)):
        shutil.copy(file, tmp_path)
    target = tmp_path / path.name
    original = json.loads(manifest_path(path).read_text())

    def small(shape):
        return np.prod(np.float64(shape)) < 1e6

    def read():
        library = tp.load(target)
        if any(spec.shape != X.shape for spec in library.inputs) or len(library.inputs) != 1:
            with pytest.raises(ValueError, match=r"expected|take them"):
                library(*(np.zeros(s.shape, s.dtype) for s in library.inputs if small(s.shape)))
            return "refused at the call"
        if library.inputs[0].dtype != "float32":
            with pytest.raises(ValueError, match="expected"):
                library(X)
            return "refused at the call"
        library.num_threads = 1
        answer = library(X)
        np.testing.assert_array_equal(answer, expected)
        repr(library), str(library.report)
        return "the right answer"

    mutants = mutate.sample(mutate.json_mutants(original), amount(150, 4000))
    readable = mutate.survey(
        mutants,
        lambda content: mutate.write_json(manifest_path(target), content),
        read,
        (ArtifactError, NotEnoughMemoryError),  # a manifest may ask for more than there is
    )
    assert len(readable) < len(mutants)


def test_damaged_bytes(exported, tmp_path):
    path, _ = exported
    original = manifest_path(path).read_bytes()
    copy = tmp_path / "m.json"
    mutate.survey(
        mutate.bytes_mutants(original, amount(200, 1000)),
        copy.write_bytes,
        lambda: Manifest.read(copy),
        ArtifactError,
    )


@pytest.mark.parametrize("suffix", [".so", ".tar"])
def test_damaged_libraries(exported, tmp_path, suffix):
    """The digest is checked before a byte of the file is used."""
    path, _ = exported
    original = path.read_bytes()
    target = tmp_path / f"net{suffix}"
    shutil.copy(manifest_path(path), manifest_path(target))
    mutants = [
        (name, data)
        for name, data in mutate.bytes_mutants(original, amount(20, 1000))
        if data != original
    ]
    readable = mutate.survey(mutants, target.write_bytes, lambda: tp.load(target), ArtifactError)
    assert not readable
