"""The predictions of the delivered model for the test images, one row an image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.data.parquet import read_plain
from raysft.errors import UserError
from raysft.storage import StoragePath, write_bytes

PREDICTIONS = "test_predictions.parquet"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Columns of one length, a row a test image, in the order of the images' ids."""

    id: np.ndarray
    """(n,) int64: the row in the test split."""
    label: np.ndarray
    """(n,) int32: the number of the class that the image is of."""
    predicted: np.ndarray
    """(n,) int32: the number of the class with the highest probability."""
    probability: np.ndarray
    """(n,) float32: of the predicted class."""
    label_probability: np.ndarray
    """(n,) float32: of the class that the image is of."""

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Predictions:
        """matrix: (n, 5), the columns in the order of the fields."""
        # A team gathers its members' predictions as one float64 tensor, which holds every id and
        # class number exactly.
        return cls.from_columns(dict(zip(COLUMNS, matrix.T, strict=True)))

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> Predictions:
        """columns: by the names of the fields, of any type; raises KeyError for one missing."""
        typed = {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
        return cls(**typed)

    def __len__(self) -> int:
        return len(self.id)

    @property
    def wrong(self) -> np.ndarray:
        """(n,) bool: whether the image was taken for another class."""
        wrong: np.ndarray = self.label != self.predicted
        return wrong

    def are_of(self, classes: int) -> bool:
        """Whether a model of so many classes can have made them."""
        numbers = np.concatenate([self.label, self.predicted])
        probabilities = np.concatenate([self.probability, self.label_probability])
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= classes:
            return False
        return bool(np.all((probabilities >= 0) & (probabilities <= 1)))


# The stored columns are the fields. Half the bytes of float64 are enough: nobody reads more than
# four digits of a probability.
COLUMNS: dict[str, type[np.generic]] = {
    "id": np.int64,
    "label": np.int32,
    "predicted": np.int32,
    "probability": np.float32,
    "label_probability": np.float32,
}


def write_predictions(file: StoragePath, predictions: Predictions) -> None:
    """Write the predictions of a run, whole or not at all."""
    table = pa.table({name: getattr(predictions, name) for name in COLUMNS})
    content = io.BytesIO()
    # Checksums of pages, so that a damaged file is found when it is read.
    pq.write_table(table, content, write_page_checksum=True)
    write_bytes(file, content.getvalue())


def read_predictions(file: StoragePath, classes: int) -> Predictions:
    """The predictions of a run; raises UserError where the file does not hold any."""
    try:
        table = read_plain(
            pa.BufferReader(file.read_bytes()),
            columns=list(COLUMNS),
            page_checksum_verification=True,
        )
        found = Predictions.from_columns({name: table[name].to_numpy() for name in COLUMNS})
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(str(file), f"cannot be read ({str(error).splitlines()[0]})") from None
    if not found.are_of(classes):
        raise UserError(str(file), f"does not hold predictions of {classes} classes")
    return found
