"""Parquet files of plain types: Ray registers others whose values are pickles, which run code."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem


def read_plain(
    source: str | Path | pa.NativeFile,
    columns: list[str] | None = None,
    filesystem: FileSystem | None = None,
    page_checksum_verification: bool = False,
) -> pa.Table:
    """A Parquet file as `pyarrow.parquet.read_table` reads it; ArrowInvalid for extension types.

    Nothing is unpickled here: that happens when the first value of such a column is looked at.
    """
    try:
        table = pq.read_table(
            source,
            columns=columns,
            filesystem=filesystem,
            page_checksum_verification=page_checksum_verification,
        )
    except (pa.ArrowException, OSError):
        raise
    except Exception as error:
        # Ray's own code makes a type of what the file says of it, and raises whatever it likes.
        raise pa.ArrowInvalid(
            f"a column has a type of its own, which cannot be read ({error!r:.80})"
        ) from None
    for column in table.schema:
        if _is_extended(column.type):
            raise pa.ArrowInvalid(
                f"its column {column.name!r:.80} has a type of its own, which could run code"
            )
    return table


def _is_extended(kind: pa.DataType) -> bool:
    """Whether a type, or one inside it (of a list, struct or dictionary), is an extension type."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _is_extended(kind.value_type)
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return any(_is_extended(field.type) for field in fields)
