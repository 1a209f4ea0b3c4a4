"""What the delivered model made of each test image: one row an image, beside the results of its
run.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.data.parquet import read_plain
from raysft.errors import UserError
from raysft.storage import StoragePath, write_bytes

PREDICTIONS = "test_predictions.parquet"
COLUMNS = {
    "id": np.int64,
    "label": np.int32,
    "predicted": np.int32,
    "probability": np.float32,
    "label_probability": np.float32,
}

Columns = dict[str, np.ndarray]


def write_predictions(file: StoragePath, judged: np.ndarray) -> None:
    """Write the predictions of a run, whole or not at all.

    judged: (images, 5) float64, of each: row id, label, predicted label, its probability,
    probability of the label.
    """
    content = io.BytesIO()
    pq.write_table(
        pa.table(
            {
                name: column.astype(kind)
                for (name, kind), column in zip(COLUMNS.items(), judged.T, strict=True)
            }
        ),
        content,
        write_page_checksum=True,
    )
    write_bytes(file, content.getvalue())


def read_predictions(file: StoragePath, classes: int) -> Columns:
    """The columns of the predictions of a run, one row a test image; raises UserError where they
    are not that.
    """
    try:
        table = read_plain(
            pa.BufferReader(file.read_bytes()),
            columns=list(COLUMNS),
            page_checksum_verification=True,
        )
        rows = {name: table[name].to_numpy().astype(kind) for name, kind in COLUMNS.items()}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(str(file), f"cannot be read ({str(error).splitlines()[0]})") from None
    both = np.concatenate([rows["label"], rows["predicted"]])
    shares = np.concatenate([rows["probability"], rows["label_probability"]])
    if (
        not len(both)
        or both.min() < 0
        or both.max() >= classes
        or not np.all((shares >= 0) & (shares <= 1))
    ):
        raise UserError(str(file), f"does not hold predictions of {classes} classes")
    return rows
