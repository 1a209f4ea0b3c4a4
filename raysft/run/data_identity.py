"""The data of a run: what is known of it before it is read, and whether it is still what the run
began with.
"""

from __future__ import annotations

from collections.abc import Callable

from raysft.data.colours import BLANK, COMPOSITED, CONVERTED
from raysft.data.decoding import LEGACY_DECODING, Decoding, parse_decoding
from raysft.data.images import describe_quirks
from raysft.data.shards import Manifest
from raysft.data.splits import SplitSource
from raysft.errors import DataError
from raysft.records.documents import DataIdentity
from raysft.records.run import Run
from raysft.storage import StoragePath

# Of `raysft.data.images.QUIRKS` those of which `Decoding` decides what becomes of them.
DECIDED = frozenset({COMPOSITED, BLANK, CONVERTED})
NAMES_SHOWN = 5


def identity(manifest: Manifest) -> DataIdentity:
    """What of a data set must be the same when a run is resumed."""
    return {
        "fingerprint": manifest.fingerprint,
        "classes": list(manifest.classes),
        "stored": {name: split.rows for name, split in manifest.splits.items()},
        "decoding": manifest.image.decoding.document(),
    }


def compare(run: Run, manifest: Manifest, folder: StoragePath) -> None:
    """Raise DataError where the data is not what the run began with, and say what is different."""
    before = run.info.get("data")
    if before is None:  # a new run
        return
    now = identity(manifest)
    if before["fingerprint"] == now["fingerprint"]:
        _compare_decoding(parse_decoding(before.get("decoding")), manifest, folder)
        return
    differences = _describe_differences(before, now)
    raise DataError(
        str(folder),
        f"is not the data that the run began with: {differences or 'other images'}",
        "restore it, or submit a run of its own",
    )


def _describe_differences(before: DataIdentity, now: DataIdentity) -> str:
    found = []
    for name, rows in now["stored"].items():
        rows_before = before["stored"].get(name, 0)
        if rows != rows_before:
            found.append(f"{name} has {rows} rows, had {rows_before}")
    if now["classes"] != before["classes"]:
        classes, classes_before = ", ".join(now["classes"]), ", ".join(before["classes"])
        found.append(f"classes are {classes}, were {classes_before}")
    return "; ".join(found)


def _compare_decoding(before: Decoding, manifest: Manifest, folder: StoragePath) -> None:
    """Raise DataError where files of the same fingerprint become other pixels than before.

    Of pixels that are stored raw, the fingerprint says all; of files, not what is made of
    transparency and profiles.
    """
    if manifest.image.encoding == "raw" or before == manifest.image.decoding:
        return
    changed = {key: count for key, count in manifest.decoded.items() if key in DECIDED}
    # An older import did not count such images: there may be some.
    if changed or manifest.image.decoding == LEGACY_DECODING:
        quirks = "; ".join(describe_quirks(changed, manifest.image.decoding))
        raise DataError(
            str(folder),
            f"holds images that become other pixels than when the run began, with an older "
            f"raysft or import: {quirks or 'transparency and profiles are ignored'}",
            "submit a run of its own, or resume this one with what began it",
        )


def note_missing(manifest: Manifest, val: SplitSource, note: Callable[[str], None]) -> None:
    """Say which classes have no validation image."""
    missing = [
        name for name, rows in zip(manifest.classes, val.class_rows, strict=True) if not rows
    ]
    if not missing:
        return
    names = ", ".join(missing[:NAMES_SHOWN])
    if len(missing) > NAMES_SHOWN:
        names += f" and {len(missing) - NAMES_SHOWN} more"
    # A validation split of its own is as the person made it; else the job decides how large it is.
    todo = "" if "val" in manifest.splits else ": raise data.val_fraction or data.limit"
    note(f"no validation image of {names}{todo}")
