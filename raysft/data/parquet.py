"""Parquet files of plain types. Others could run code: Ray registers a type whose values are
pickles.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_plain(source: Any, **options: Any) -> pa.Table:
    """`pyarrow.parquet.read_table(source, **options)` of a file without extension types; raises
    ArrowInvalid for one.

    Nothing is unpickled here: that happens when the first value of such a column is looked at.
    """
    try:
        table = pq.read_table(source, **options)
    except (pa.ArrowException, OSError):
        raise
    except (
        Exception
    ) as error:  # of the code that Ray registers, which makes a type of what the file says of it
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
    if isinstance(kind, pa.BaseExtensionType):
        return True
    inner = (
        [kind.value_type]
        if pa.types.is_dictionary(kind)
        else [kind.field(i).type for i in range(kind.num_fields)]
    )
    return any(map(_is_extended, inner))
