"""``tvm-pattern report``: pruning, compilation and profile of a network on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import Json, escape, message, print_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# Layers whose kernels are drawn, unless some are named.
_DRAWN = 3


@app.command("report")
def report(
    library: Annotated[
        Path | None, typer.Argument(help="A library written by the command compile.")
    ] = None,
    pruned: Annotated[
        Path | None, typer.Option(help="The folder that the command prune wrote.")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Weights before pruning (.safetensors): kernels before / after, energy by rate."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time the library here, whole and by layer.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The network compiled without pruning: timed too, for each layer's gain."
        ),
    ] = None,
    kernels: Annotated[
        list[str] | None,
        typer.Option(help="Layers whose kernels are drawn; default: those that lost most energy."),
    ] = None,
    by_time: Annotated[bool, typer.Option("--sort", help="The slowest layers first.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    json_output: Json = False,
) -> None:
    """Write one HTML page with tables and plots of pruning, compilation and profile.

    Name what there is: a library, the folder of a pruning run, the weights before it.

    Example: tvm-pattern report net.so --pruned pruned --profile -o report.html

    Example: tvm-pattern report net.so --profile --against dense.so
    """
    from .html_report import ReportError, write_html
    from .html_report.data import energy_curves, read_pruned, read_weights
    from .publish import manifest_of

    if profile and library is None:
        raise ReportError("--profile: got no library to time; name one, net.so")
    if against is not None and not profile:
        raise ReportError(f"--against {against}: got nothing to time it against; add --profile")
    facts: dict[str, Any] = {"by_time": by_time}
    if pruned is not None:
        run = read_pruned(pruned)
        facts |= {"pruned": run.report, "epochs": run.epochs}
        if run.weights is not None:
            weights = read_weights(run.weights)
            chosen = kernels or _most_changed(run.report, weights)
            facts["weights"] = {name: _weight(weights, name) for name in chosen}
    if dense is not None:
        before = read_weights(dense)
        facts["dense_weights"] = before
        facts["sensitivity"] = energy_curves(before)
        facts["sensitivity_label"] = "energy removed by connectivity alone (%)"
    if library is not None:
        facts["library"] = manifest_of(library)
        facts["title"] = library.name
    if profile:
        facts |= _timed(Path(str(library)))
    if against is not None:
        facts["dense_profile"] = _timed(against)["profile"]
    write_html(output, **facts)
    if json_output:
        print_json({"report": str(output), "bytes": output.stat().st_size})
        return
    message(f"wrote {escape(str(output))}")


def _timed(library: Path) -> dict[str, Any]:
    import numpy as np

    from .artifact import load
    from .random_inputs import random_array
    from .timing import latency, latency_line

    lib = load(library)
    rng = np.random.default_rng(0)
    arrays = [random_array(rng, s.shape, s.dtype) for s in lib.inputs]
    figures = latency(lib.benchmark(*arrays, repeat=20).results)
    return {"profile": lib.profile(), "latency": latency_line(figures)}


def _weight(weights: dict[str, Any], name: str) -> Any:
    from .html_report import ReportError

    if name not in weights:
        raise ReportError(
            f"--kernels: no layer {name!r} with spatial kernels; expected one of"
            f" {', '.join(weights) or 'none: the network has only 1x1 kernels'}"
        )
    return weights[name]


def _most_changed(report: dict[str, Any], weights: dict[str, Any]) -> list[str]:
    known = {
        layer["name"]: layer["energy_kept"]
        for layer in report["layers"]
        if layer["name"] in weights and layer["energy_kept"] is not None
    }
    return sorted(known, key=lambda name: known[name])[:_DRAWN]
