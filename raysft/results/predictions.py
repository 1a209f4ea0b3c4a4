"""What the delivered model made of each test image: one row an image, beside the results of its run."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.errors import UserError
from raysft.storage import Place, write_bytes

FILE = "test_predictions.parquet"
SCHEMA = pa.schema({"id": pa.int64(), "label": pa.int32(), "predicted": pa.int32(), "probability": pa.float32(),
                    "label_probability": pa.float32()})


def write_predictions(run: Place, judged: np.ndarray) -> None:
    """Write the predictions of a run, whole or not at all.

    judged: (images, 5) float64, of each: row id, label, predicted label, its probability, probability of the label.
    """
    table = pa.table([pa.array(column, SCHEMA.types[i], safe=False) for i, column in enumerate(judged.T.copy())],
                     schema=SCHEMA)
    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(run / FILE, content.getvalue())


def read_predictions(run: Place) -> pa.Table | None:
    """The predictions of a run, sorted by row id; None where it has none. Raises UserError for a file that is torn."""
    file = run / FILE
    if not file.is_file():
        return None
    try:
        return pq.read_table(pa.BufferReader(file.read_bytes()), schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(file), f"cannot be read ({str(error).splitlines()[0]})", "`raysft evaluate` the model again"
                        ) from None
