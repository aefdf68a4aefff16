"""``nnfast predict``: a saved model's predictions for the rows of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import check_writable, device_option, echo, emit_json, output_options, version

ENDINGS = (".csv", ".npy", ".parquet")


@click.command("predict", short_help="Predict with a saved model.")
@click.argument("model")
@click.argument("data")
@click.option("--out", metavar="FILE", help="Where to: .csv, .npy or .parquet; without it, CSV on the terminal.")
@click.option("--proba", is_flag=True, help="Add the probability of each class.")
@device_option
@output_options
def command(model: str, data: str, out: str | None, proba: bool, device: str | None, as_json: bool) -> None:
    """Predict the target for each row of DATA with MODEL, a file that 'nnfast train' wrote.

    DATA is as for 'nnfast train'; it needs no target column. Of a data set with a test part, the test part is
    used. The preprocessing of the training is repeated as it is stored in MODEL.
    """
    import numpy as np

    from ..preprocessing import ClassTarget
    from .bundle import Bundle, device_line

    path = None if out is None else _checked(out)
    used, _ = device_line(device)
    bundle = Bundle.load(model, used)
    inputs, _ = bundle.read(data, need_target=False)
    x = bundle.transform(inputs)
    predictions = bundle.predict(x)
    columns: dict[str, np.ndarray] = {"prediction": predictions}
    if predictions.ndim == 2:
        columns = {f"prediction_{i}": column for i, column in enumerate(predictions.T)}
    if proba:
        probabilities = bundle.probabilities(x)
        target = bundle.preprocessor.target
        assert isinstance(target, ClassTarget)  # probabilities() refuses anything else
        columns |= {f"p_{label}": probabilities[:, i] for i, label in enumerate(target.classes)}
    if path is not None:
        _write(path, columns, probabilities if proba else predictions)
        echo(f"saved {len(x)} predictions to {path}")
    elif not as_json:
        click.echo(_csv(columns), nl=False)
    if as_json:
        result: dict[str, Any] = {
            "command": "predict",
            "version": version(),
            "model": model,
            "data": data,
            "rows": len(x),
            "device": used,
            "out": None if path is None else str(path),
        }
        if path is None:
            result["predictions"] = predictions
            result["probabilities"] = probabilities if proba else None
        emit_json(result)


def _checked(out: str) -> Path:
    path = Path(out)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"--out {out}: the ending must be one of {', '.join(ENDINGS)}")
    check_writable(path)
    return path


def _csv(columns: dict[str, Any]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # a NumPy number's text is the shortest that reads back as the same number of its precision
    writer.writerows(zip(*(map(str, column) for column in columns.values()), strict=True))
    return text.getvalue()


def _write(path: Path, columns: dict[str, Any], array: Any) -> None:
    """Write the columns, or for ``.npy`` the array."""
    import numpy as np

    from ..files import replacing

    ending = path.suffix.lower()
    if ending == ".parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(f"parquet files need PyArrow: pip install pyarrow ({error})") from None
    with replacing(path) as temporary:
        if ending == ".csv":
            temporary.write_text(_csv(columns), encoding="utf-8", newline="")
        elif ending == ".npy":
            np.save(temporary, array, allow_pickle=False)
        else:
            pq.write_table(pa.table({name: _arrow(pa, column) for name, column in columns.items()}), temporary)


def _arrow(pa: Any, column: Any) -> Any:
    return pa.array(column.tolist() if column.dtype.kind == "U" else column)
