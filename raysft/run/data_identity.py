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

DECIDED = frozenset(
    {COMPOSITED, BLANK, CONVERTED}
)  # of `raysft.data.images.QUIRKS`: what `Decoding` decides


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
    before, now = run.info.get("data"), identity(manifest)
    if before is None:
        return
    if before["fingerprint"] == now["fingerprint"]:
        _compare_decoding(parse_decoding(before.get("decoding")), manifest, folder)
        return
    told = [
        f"{name} has {rows} rows, had {before['stored'].get(name, 0)}"
        for name, rows in now["stored"].items()
        if before["stored"].get(name) != rows
    ]
    if now["classes"] != before["classes"]:
        told.append(f"classes are {', '.join(now['classes'])}, were {', '.join(before['classes'])}")
    raise DataError(
        str(folder),
        f"is not the data that the run began with: {'; '.join(told) or 'other images'}",
        "restore it, or submit a run of its own",
    )


def _compare_decoding(before: Decoding, manifest: Manifest, folder: StoragePath) -> None:
    """Raise DataError where files of the same fingerprint become other pixels than before.

    Of pixels that are stored raw, the fingerprint says all; of files, not what is made of
    transparency and profiles.
    """
    if manifest.image.encoding == "raw" or before == manifest.image.decoding:
        return
    changed = {key: count for key, count in manifest.decoded.items() if key in DECIDED}
    if changed or manifest.image.decoding == LEGACY_DECODING:  # which counted none
        told = (
            "; ".join(describe_quirks(changed, manifest.image.decoding))
            or "transparency and profiles are ignored"
        )
        raise DataError(
            str(folder),
            f"holds images that become other pixels than when the run began, with an older "
            f"raysft or import: {told}",
            "submit a run of its own, or resume this one with what began it",
        )


def note_missing(manifest: Manifest, val: SplitSource, note: Callable[[str], None]) -> None:
    """Say which classes no validation image judges."""
    missing = [label for label, rows in enumerate(val.class_rows) if not rows]
    if missing:
        names = ", ".join(manifest.classes[label] for label in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        todo = "" if "val" in manifest.splits else ": raise data.val_fraction or data.limit"
        note(f"no validation image of {names}{more}{todo}")
