"""``compile``: a pruned model becomes a library with a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.target import Target

from relay_passes import pipeline
from relay_passes import targets as target_tags
from topi_kernels.report import RewriteReport
from topi_kernels.schedules.opencl.source import launches_of

from . import code_cache
from .assigned import warn_of_lost_pruning
from .building import build
from .choice_cache import kept_choices
from .compiled_graph import graph_of
from .description import describe, describe_size
from .devices import why_no_device
from .footprint import least_activations, planned_activations, weights_of
from .frontend import ImportedModel, import_model, is_instance_of, output_specs
from .frontend.bfloat16 import NOTE as BFLOAT16
from .frontend.bfloat16 import without_bfloat16
from .garbage import collector_paused
from .host_operators import host_notes, host_operators_of
from .layer_source import Sources, gpu_sources
from .library import Library
from .linking import CompiledCode
from .machine import required_features, target_architecture, triple_of, why_not_runnable
from .memory import Footprint, check_fits
from .profiling import MAIN, Step, with_steps
from .sizes import check_alike, examples_of_sizes, function_names, merged, shared_configs
from .stages import stage
from .threads import check_num_threads, stay_alone, warn_of_threads
from .tuning.lookup import ConfigLookup, config_lookup
from .verification import (
    GRAPH,
    Verification,
    check_verify,
    not_checked,
    verify_graph,
    verify_library,
)

# Passes written in Python run inside TVM, which hands on the errors that it knows by name and turns
# all others, Ctrl-C among them, into a RuntimeError without a word.
tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)


def targets() -> list[str]:
    """Names of the registered targets, for ``compile(..., target=...)``."""
    return target_tags.targets()


def compile(
    model: Any,
    example_inputs: Any = None,
    target: str | dict | Target = "pattern/native",
    tuning_log: str | os.PathLike | None = None,
    num_threads: int | None = None,
    *,
    verify: bool | str = True,
    interleaved_lanes: bool | None = None,
    host: str | dict | Target | None = None,
    sizes: Sequence[Any] | None = None,
    winograd: bool = True,
    host_operators: bool = False,
) -> Library:
    """Compile a pruned model, and check the result against it.

    Every convolution that the pattern-sparse operator takes is rewritten and packed; the others
    are compiled dense, and the report says why. Layers that a torch module says were pruned and
    that arrive dense are warned of (:class:`tvm_pattern.assigned.LostPruningWarning`).

    Parameters
    ----------
    model : torch.nn.Module | torch.export.ExportedProgram | QuantizedModel | str | os.PathLike | \
onnx.ModelProto | tvm.IRModule
        A module in evaluation mode, an exported program, what
        :func:`tvm_pattern.quantization.quantize` gives, an ONNX model or its path, or Relax.
    example_inputs : tensor, array or sequence of them
        Shapes and dtypes to compile for; may be omitted for an exported program, an ONNX model
        with fixed shapes and an IRModule.
    target : str, dict or tvm.target.Target
        A tag of :func:`targets`, or any TVM target of a device that the project knows.
    tuning_log : str or os.PathLike, optional
        Records whose configs to use; by default those that ship with the project.
    num_threads : int, optional
        Threads of a run; by default ``TVM_NUM_THREADS``, ``OMP_NUM_THREADS`` or the number of
        physical cores. Here no run uses more than this process has CPUs; a higher number is warned
        of, and holds on a machine that has them.
    verify : bool or "graph"
        True: run the library on the example inputs and on random ones, and hold it against the
        model run by its own framework; a target that does not run on this computer is reported as
        not checked. ``"graph"``: there, check the imported graph instead. False: no check. See
        ``docs/verification.md``; the result is in the manifest's ``verification``.
    interleaved_lanes : bool, optional
        Let neighbouring pixels lie in neighbouring vectors where the cost model expects a gain: 3x3
        layers at F = 1. Default: on AVX-512, where it was measured. Records hold the layouts that
        they were measured with, and the shipped ones are for plain rows (``False``).
    host : str, dict or tvm.target.Target, optional
        The CPU beside a GPU target: ``native`` for a library that runs on an OpenCL device of this
        computer, ``cortex-a76`` and so on for a phone's. Default: any 64-bit ARM.
    sizes : sequence, optional
        Instead of ``example_inputs``, those of each size that the library shall take, such as
        ``[(x1,), (x2,)]`` for two batch sizes. A call chooses by the shapes of its inputs; the
        weights are stored once. See :attr:`Library.sizes`.
    winograd : bool
        Let dense 3x3 layers of float32 be computed by Winograd's filtering where the cost model
        expects a gain, see ``docs/performance.md``: their weights take up to four times the memory
        and their rounding errors are up to twice those of plain sums, which the check allows for.
    host_operators : bool
        Leave operators of a torch model that nobody translates to torch, which the library calls
        while it runs. Such a library runs in Python beside this package and torch; the report and
        the manifest name the operators. Not for float16, GPUs or other computers.

    Returns
    -------
    Library
        Callable; see also its ``report``, ``export`` and ``benchmark``.

    Raises
    ------
    VerificationError
        If the library does not compute what the model computes.
    NotEnoughMemoryError
        If the activations fit no memory of this computer and the target is its CPU.
    ValueError, TypeError
        On a model, target, log or number of threads that cannot be used, or pruned weights that
        are not zero; see :func:`tvm_pattern.frontend.import_model`.
    """
    # No decorator: what is warned of below names the caller's line by its distance.
    with collector_paused():
        check_verify(verify)
        num_threads = check_num_threads(num_threads)
        resolved = target_tags.resolve(target, host)
        if is_instance_of(model, "tvm_pattern.pruning", "OnnxNetwork"):
            model = model.to_onnx()
        model, wanted, was_bfloat16 = without_bfloat16(
            model, examples_of_sizes(example_inputs, sizes)
        )
        with stage("import of the model"):
            models = [
                import_model(model, examples, host_operators=host_operators) for examples in wanted
            ]
        check_alike(models)
        runs_here = _runs_here(resolved)
        _check_host_operators(models[0].mod, runs_here=runs_here)
        if runs_here:
            least = max(least_activations(imported.mod) for imported in models)
            check_fits(Footprint(0, least), "the network")
            warn_of_threads(num_threads)
        if is_instance_of(model, "tvm_pattern.quantization.model", "QuantizedModel"):
            model = model.program

        def build_part(imported: ImportedModel, mod: tvm.IRModule) -> Library:
            part = replace(imported, mod=mod, outputs=output_specs(mod))
            return built([part])

        def built(parts: Sequence[ImportedModel]) -> Library:
            return _build(
                parts,
                resolved,
                num_threads,
                tuning_log,
                interleaved_lanes=interleaved_lanes,
                winograd=winograd,
            )

        library = built(models)
        if runs_here:
            check_fits(library.manifest.footprint, "the compiled network")
        if was_bfloat16:
            library.add_note(BFLOAT16)
        # Without names the importer changed the convolutions.
        if models[0].layer_names:
            warn_of_lost_pruning(library.report, models[0].assigned)
        for number, (size, imported) in enumerate(zip(library.sizes, models, strict=True)):
            build = partial(build_part, imported)
            with stage("verification"):
                result = _verified(size, model, imported, wanted[number], build, verify=verify)
            library.record_verification(result.as_dict(), number)
        return library


def _check_host_operators(mod: tvm.IRModule, *, runs_here: bool) -> None:
    left = host_operators_of(mod)
    if left and not runs_here:
        raise ValueError(
            f"the model leaves {', '.join(left)} to torch, which is on this computer alone, and the"
            " target is another one; compile for pattern/native, or replace what is named"
        )


def _runs_here(target: Target) -> bool:
    """Whether code for a target runs in the memory of this computer."""
    return target.kind.name == "llvm" and not why_not_runnable(
        target_architecture(target), required_features(target)
    )


def _build(
    models: Sequence[ImportedModel],
    resolved: Target,
    num_threads: int,
    tuning_log: str | os.PathLike | None,
    *,
    interleaved_lanes: bool | None,
    winograd: bool,
) -> Library:
    """A library with an entry for each size of one model."""
    stay_alone()
    cache = code_cache.from_environment()
    records = config_lookup(tuning_log, resolved, num_threads)
    with kept_choices(cache), stage("passes and packing of weights"):
        modules, entries = _lowered(
            models,
            resolved,
            num_threads,
            records,
            interleaved_lanes=interleaved_lanes,
            winograd=winograd,
        )
    lowered = merged(modules)
    graph = graph_of(lowered, models[0].layer_names)
    launches: dict[str, list[list[int]]] = {}
    if resolved.kind.name == "llvm":
        with stage("machine code"):
            built = build(lowered, resolved, cache, maps_weights=True)
        code = CompiledCode(built.executable, triple_of(resolved), built.objects, built.weights)
        sources = Sources.of(built.primfuncs, graph)
        planned = built.activations
    else:
        launches = launches_of(lowered)
        executable = tvm.compile(lowered, resolved)
        with resolved:
            planned = planned_activations(relax.get_pipeline("default")(lowered))
        code = CompiledCode(executable, triple_of(resolved))
        sources = gpu_sources(lowered, executable, graph)
    imported, report, steps = entries[0]
    footprint = Footprint(weights_of(lowered), planned[MAIN])
    manifest = describe(
        resolved, imported.inputs, imported.outputs, num_threads, report, steps, launches, footprint
    )
    further = []
    for number, (imported, report, steps) in enumerate(entries[1:], 1):
        name = function_names(number)[0]
        further.append(
            describe_size(name, imported.inputs, imported.outputs, report, steps, planned[name])
        )
    left = host_operators_of(lowered)
    manifest = replace(manifest, sizes=further, host_operators=left)
    return Library(code, manifest, sources=sources)


def _lowered(
    models: Sequence[ImportedModel],
    resolved: Target,
    num_threads: int,
    records: ConfigLookup,
    *,
    interleaved_lanes: bool | None,
    winograd: bool,
) -> tuple[list[tvm.IRModule], list[tuple[ImportedModel, RewriteReport, tuple[Step, ...]]]]:
    """Of each size, the lowered module, and the model with its report and its steps."""
    lookups = shared_configs(
        models,
        resolved,
        num_threads,
        records,
        interleaved_lanes=interleaved_lanes,
        winograd=winograd,
    )
    modules, entries = [], []
    for number, (imported, config_for) in enumerate(zip(models, lookups, strict=True)):
        lowered, report = pipeline.lower(
            imported.mod,
            resolved,
            num_threads=num_threads,
            config_for=config_for,
            structures=imported.structures,
            interleaved_lanes=interleaved_lanes,
            winograd=winograd,
        )
        prefix = function_names(number)[1]
        lowered, steps = with_steps(lowered, imported.layer_names, prefix)
        modules.append(lowered)
        notes = (*records.notes(), *report.winograd_notes(), *host_notes(imported.mod))
        report = _with_names(report, imported.layer_names, notes)
        entries.append((imported, report, steps))
    return modules, entries


def _verified(
    library: Library,
    model: Any,
    imported: ImportedModel,
    example_inputs: Any,
    build_part: Callable[[tvm.IRModule], Library],
    *,
    verify: bool | str,
) -> Verification:
    """Check as :func:`compile` promises, or say why not."""
    if verify is False:
        return not_checked("verify=False")
    manifest = library.manifest
    reason = why_not_runnable(manifest.architecture, manifest.cpu_features)
    if reason is None:
        reason = why_no_device(library.target)
    if reason is None:

        def compile_and_run(mod: tvm.IRModule, arrays: Sequence[Any]) -> list[Any]:
            result = build_part(mod)(*arrays)
            return list(result) if isinstance(result, tuple) else [result]

        return verify_library(library, model, imported, example_inputs, compile_and_run)
    if verify == GRAPH:
        return verify_graph(model, imported, example_inputs)
    return not_checked(
        f"the library does not run on this computer ({reason}); verify='graph' checks the imported"
        " graph"
    )


def _with_names(
    report: RewriteReport, names: dict[str, str], notes: tuple[str, ...]
) -> RewriteReport:
    """The report with the model's own layer names instead of Relax's, and with ``notes`` added."""
    rows = (replace(row, layer=names.get(row.layer, row.layer)) for row in report.rows)
    return RewriteReport(tuple(rows), (*report.notes, *notes))
