"""``tvm-pattern quantize``: arguments to :func:`tvm_pattern.quantization.quantize`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .model_options import IMAGENET_MEAN, IMAGENET_STD
from .terminal import Json, open_console, print_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Method(str, Enum):
    """How ranges of values follow from the pictures."""

    MSE = "mse"
    PERCENTILE = "percentile"
    MINMAX = "minmax"


@app.command("quantize")
def quantize_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A built-in network (resnet50, vgg16, vgg16_bn, mobilenet_v2) or"
            " package.module:factory."
        ),
    ],
    calibration: Annotated[
        Path,
        typer.Option("--calibration", "--data", help="Folder of pictures; labels are not needed."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Quantised network: .pt2, or .onnx (QDQ).")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Trained weights, pruned or not: safetensors, state dict.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="Ranges of least error, without outliers, or all values.")
    ] = Method.MSE,
    percentile: Annotated[
        float, typer.Option(help="Per cent of values within the range, with --method percentile.")
    ] = 99.99,
    weight_bits: Annotated[
        int, typer.Option(help="8; or 7 for x86 without VNNI, where sums of two must fit 16 bits.")
    ] = 8,
    bias_correction: Annotated[
        bool, typer.Option(help="Correct biases for what rounded weights shift.")
    ] = True,
    skip: Annotated[
        list[str] | None, typer.Option(help="Layers that stay float32; wildcards; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of the crops.")] = 224,
    mean: Annotated[
        tuple[float, float, float], typer.Option(help="Of the pictures' colours, 0 to 1.")
    ] = IMAGENET_MEAN,
    std: Annotated[
        tuple[float, float, float], typer.Option(help="Their deviations; 1 1 1 with mean 0 0 0.")
    ] = IMAGENET_STD,
    json_output: Json = False,
) -> None:
    """Quantise a trained network to int8 by some pictures: no labels, no training.

    Patterns of pruned weights stay. The result goes to compile, tune and torch.

    Example: tvm-pattern quantize resnet50 --weights w.safetensors --data photos/ -o r50.pt2
    """
    from .posttrain import calibration_batches
    from .quantization import quantize
    from .quantization.model import check_name
    from .sources import open_model

    check_name(output)
    if Path(model).suffix in (".onnx", ".pt2"):
        raise ValueError(
            f"got {model}, expected a network that torch can trace: a built-in one or"
            " package.module:factory. Files are quantised by onnxruntime.quantization or torchao,"
            " and compile takes what these write"
        )
    network = open_model(model, weights)
    batches = calibration_batches(
        calibration, size=image_size, batch=batch, limit=limit, mean=mean, std=std
    )
    result = quantize(
        network.eval(),
        batches,
        method=method.value,
        percentile=percentile,
        weight_bits=weight_bits,
        bias_correction=bias_correction,
        skip=skip or (),
    )
    result.save(output)
    if json_output:
        print_json({**result.to_dict(), "file": str(output)})
        return
    console = open_console()
    console.print(table_of(result.layers))
    inputs = result.settings["inputs"]
    size = output.stat().st_size / 1e6
    console.print(f"calibrated on {inputs} pictures; wrote {output} ({size:.1f} MB)")


def table_of(layers: Any) -> Table:
    """What became of each layer."""
    table = Table(title="Quantisation")
    for name in ("layer", "kind", "inputs", "weights, dB", "to zero", "note"):
        table.add_column(name)
    for row in layers:
        if row.reason:
            table.add_row(row.layer, row.kind, "", "", "", f"float32: {row.reason}")
            continue
        low, high = row.input_range
        lost = str(row.rounded_to_zero) if row.rounded_to_zero else ""
        note = f"bias by {row.bias_shift:.0f} steps" if row.bias_shift >= 1 else ""
        table.add_row(
            row.layer, row.kind, f"{low:.3g} to {high:.3g}", f"{row.weight_sqnr:.1f}", lost, note
        )
    return table
