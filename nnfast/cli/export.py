"""``nnfast export``: a saved model as a file that other runtimes compute."""

from __future__ import annotations

from pathlib import Path

import click

from .common import check_writable, echo, emit_json, output_options


@click.command("export", short_help="Write a saved model as an ONNX file.")
@click.argument("model")
@click.argument("file")
@click.option("--opset", type=int, default=17, show_default=True, help="Version of ONNX's operators, 17 to 21.")
@click.option("--probabilities", is_flag=True, help="Outputs as probabilities (or rates), not as logits.")
@click.option("--preprocessing", is_flag=True, help="Take raw inputs and give labels, as 'nnfast predict' does.")
@output_options
def command(model: str, file: str, opset: int, probabilities: bool, preprocessing: bool, as_json: bool) -> None:
    """Write MODEL, a file that 'nnfast train' or a program wrote, to FILE, which ends in .onnx.

    The graph takes an input x with any number of rows and gives y. With --preprocessing, for models of
    'nnfast train', it takes raw numbers, or each column of a table by its name, and gives labels and
    probabilities, or numbers in the units of the target.
    """
    from ..model import load
    from .bundle import Bundle

    path = Path(file)
    if path.suffix != ".onnx":
        raise ValueError(f"{file} must end in .onnx")
    check_writable(path)
    encoder = None
    if preprocessing:
        bundle = Bundle.load(model, "cpu")
        network, encoder = bundle.model, bundle.preprocessor
    else:
        if not Path(model).is_file():
            raise FileNotFoundError(f"there is no model file {model}")
        network = load(model)
    network.export_onnx(path, opset=opset, probabilities=probabilities, preprocessing=encoder)
    size = path.stat().st_size
    if as_json:
        emit_json({"model": model, "file": str(path), "opset": opset, "bytes": size})
    else:
        echo(f"wrote {path}, {size:,} bytes, opset {opset}")
