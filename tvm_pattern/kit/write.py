"""``write_kit``: a network as one folder that a phone or board runs and times by itself."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from relay_passes import pipeline
from relay_passes import targets as target_tags
from relay_passes.dataflow import bindings_of, constant, op_name
from topi_kernels.report import RewriteReport
from topi_kernels.structure import ASSIGNMENT, Structure

from .. import __version__, code_cache
from ..building import build as build_code
from ..frontend import ImportedModel, TensorSpec, import_model, is_instance_of
from ..frontend.shared import as_input_tuple
from ..random_inputs import random_array
from ..threads import check_num_threads, stay_alone
from ..tuning.lookup import config_lookup
from ..verification.compare import tolerance_of
from ..verification.oracles import oracle_for
from .errors import KitError
from .gpu import gpu_part
from .native import Tools, builds_source, copy_sources, link_objects, link_runner, tools_for
from .plan import plan_of, plan_text
from .texts import kit_text, readme_text, run_text

SPARSE, DENSE = "sparse", "dense"
MARK = "kit.txt"


@dataclass(frozen=True)
class Kit:
    """What was written.

    Parameters
    ----------
    folder : Path
    files : tuple of Path
    report : RewriteReport
        Of the sparse build.
    """

    folder: Path
    files: tuple[Path, ...]
    report: RewriteReport

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class _Job:
    """What the builds of a kit share."""

    imported: ImportedModel
    target: Target
    tools: Tools
    num_threads: int
    tuning_log: str | os.PathLike | None
    interleaved_lanes: bool | None

    @property
    def is_gpu(self) -> bool:
        return self.target.kind.name == "opencl"


def write_kit(
    folder: str | os.PathLike,
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | dict | Target,
    host: str | dict | Target | None = None,
    tuning_log: str | os.PathLike | None = None,
    num_threads: int = 1,
    interleaved_lanes: bool | None = None,
    name: str = "network",
) -> Kit:
    """Write a pruned network, its dense build, an input, the expected output and a runner.

    The folder needs nothing but a kernel of Linux or Android, and for a GPU its OpenCL driver: see
    ``README.txt`` in it. The dense build is of the same weights with every tap of every kernel
    computed, zeros included, by the same operator.

    Parameters
    ----------
    folder : str or os.PathLike
        Made; a kit that is there is replaced, any other folder that is not empty is refused.
    model, example_inputs, target, host, tuning_log, interleaved_lanes
        As :func:`tvm_pattern.compile` takes them.
    num_threads : int
        Most threads of a run.
    name : str
        Of the network, for the results.

    Returns
    -------
    Kit

    Raises
    ------
    KitError
        If a compiler is missing, the network needs TVM's runtime, or nothing says what it should
        compute.
    ValueError, TypeError
        As :func:`tvm_pattern.compile`.
    """
    destination = _free_folder(Path(folder))
    resolved = target_tags.resolve(target, host)
    if resolved.kind.name not in ("llvm", "opencl"):
        raise KitError(f"no kit for targets of kind {resolved.kind.name}; expected llvm or opencl")
    if is_instance_of(model, "tvm_pattern.pruning", "OnnxNetwork"):
        model = model.to_onnx()
    imported = import_model(model, example_inputs)
    threads = check_num_threads(num_threads)
    job = _Job(imported, resolved, tools_for(resolved), threads, tuning_log, interleaved_lanes)
    arrays = _arrays(imported.inputs, example_inputs)
    expected = _expected(model, imported, arrays)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kit-", dir=destination.parent) as scratch:
        content = Path(scratch) / "kit"
        content.mkdir()
        report, growth = _write_builds(job, content)
        _write_tensors(content, arrays, expected)
        tolerances = [_tolerance(imported.mod, value, growth) for value in expected]
        tag = target if isinstance(target, str) else resolved.kind.name
        _write_texts(content, job, _word(name), _word(tag), tolerances)
        if destination.exists():
            shutil.rmtree(destination)
        content.rename(destination)
    files = tuple(sorted(path for path in destination.rglob("*") if path.is_file()))
    return Kit(destination, files, report)


def _free_folder(folder: Path) -> Path:
    """The folder, if a kit may be written there."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise KitError(f"{folder} is not empty and no kit; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise KitError(f"{folder} is a file; name a new folder")
    return folder


def _write_builds(job: _Job, content: Path) -> tuple[RewriteReport, float]:
    """Both builds and the runner; the report of the sparse one, and how errors of either grow."""
    stay_alone()
    copy_sources(content / "src", gpu=job.is_gpu)
    text = builds_source((SPARSE, DENSE), gpu=job.is_gpu)
    (content / "src" / "builds.c").write_text(text, encoding="utf-8")
    report, sparse = _write_build(job, content, SPARSE, job.imported.structures)
    whole, dense = _write_build(job, content, DENSE, _all_kept(job.imported.mod))
    objects = [path for path in (sparse, dense) if path is not None]
    link_runner(job.tools, content, objects, gpu=job.is_gpu)
    return report, max(report.error_growth, whole.error_growth)


def _write_build(
    job: _Job, content: Path, build: str, structures: dict[str, Structure]
) -> tuple[RewriteReport, Path | None]:
    """One build in its folder: the report, and the object file of a CPU's."""
    lowered, report = pipeline.lower(
        job.imported.mod,
        job.target,
        num_threads=job.num_threads,
        config_for=config_lookup(job.tuning_log, job.target, job.num_threads),
        structures=structures,
        interleaved_lanes=job.interleaved_lanes,
    )
    plan = plan_of(lowered, job.target)
    folder = content / build
    folder.mkdir()
    code, gpu = None, None
    if job.is_gpu:
        gpu = gpu_part(plan, lowered, job.target)
        for name, source in gpu.programs.items():
            (folder / name).write_text(source, encoding="utf-8")
    else:
        built = build_code(lowered, job.target, code_cache.from_environment())
        headers = content / "src"
        code = link_objects(job.tools, build, built.objects, plan.functions, folder, headers)
    (folder / "plan.txt").write_text(plan_text(plan, gpu), encoding="utf-8")
    (folder / "weights.bin").write_bytes(plan.weights)
    return _with_names(report, job.imported.layer_names), code


def _with_names(report: RewriteReport, names: dict[str, str]) -> RewriteReport:
    rows = (replace(row, layer=names.get(row.layer, row.layer)) for row in report.rows)
    return RewriteReport(tuple(rows), report.notes)


def _all_kept(mod: tvm.IRModule) -> dict[str, Structure]:
    """Structures that keep every weight, by the variable of each convolution."""
    result = {}
    for block in bindings_of(mod["main"]):
        for binding in block:
            if op_name(binding.value) != "relax.nn.conv2d":
                continue
            weight = constant(binding.value.args[1])
            if weight is not None:
                kept = np.ones(weight.shape, bool)
                result[str(binding.var.name)] = Structure(kept, ASSIGNMENT)
    return result


def _arrays(specs: Sequence[TensorSpec], example_inputs: Any) -> list[np.ndarray]:
    """The examples; where there are none, random numbers."""
    if example_inputs is not None:
        values = as_input_tuple(example_inputs)
        arrays = [np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for v in values]
        if [(a.shape, str(a.dtype)) for a in arrays] == [(s.shape, s.dtype) for s in specs]:
            return arrays
    rng = np.random.default_rng(0)
    return [random_array(rng, spec.shape, spec.dtype) for spec in specs]


def _expected(
    model: Any, imported: ImportedModel, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """What the model's own framework computes, in the types of the library's outputs."""
    oracle = oracle_for(model, arrays)
    if isinstance(oracle, str):
        raise KitError(f"nothing says what the kit should compute: {oracle}")
    values = oracle.run(arrays)
    return [v.astype(s.dtype) for v, s in zip(values, imported.outputs, strict=True)]


def _tolerance(mod: tvm.IRModule, expected: np.ndarray, growth: float) -> float:
    """Largest difference that rounding explains; integers are equal."""
    if expected.dtype.kind != "f":
        return 0.0
    finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    return tolerance_of(mod, growth).value * max(float(finite.max(initial=0.0)), 1e-6)


def _write_tensors(
    content: Path, arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> None:
    for kind, values in (("input", arrays), ("expected", expected)):
        for number, value in enumerate(values):
            (content / f"{kind}{number}.bin").write_bytes(np.ascontiguousarray(value).tobytes())


def _write_texts(
    content: Path, job: _Job, name: str, tag: str, tolerances: Sequence[float]
) -> None:
    """What the runner and people read; last of all ``kit.txt``, which marks a kit."""
    outputs = [_word(spec.name) for spec in job.imported.outputs]
    text = kit_text(
        name=name,
        target=tag,
        version=__version__,
        digest=_digest(content),
        threads=job.num_threads,
        builds=(SPARSE, DENSE),
        inputs=len(job.imported.inputs),
        outputs=list(zip(outputs, tolerances, strict=True)),
    )
    readme = readme_text(name, tag, job.tools.abi, gpu=job.is_gpu, static=job.tools.is_static)
    (content / "README.txt").write_text(readme, encoding="utf-8")
    (content / "run.sh").write_text(run_text(), encoding="utf-8")
    (content / "run.sh").chmod(0o755)
    (content / MARK).write_text(text, encoding="utf-8")


def _digest(content: Path) -> str:
    """Of plans, weights and code: which network was timed."""
    digest = hashlib.sha256()
    for path in sorted(content.rglob("*")):
        if path.is_file() and path.parent.name in (SPARSE, DENSE):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _word(text: str) -> str:
    """Text without spaces, as the runner reads it."""
    return re.sub(r"[^\w.+/-]", "_", text)[:200] or "_"
