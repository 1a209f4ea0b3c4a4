"""A run resumes only on the pixels that it began with."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from raysft.data.colours import COMPOSITED, CONVERTED
from raysft.data.decoding import LEGACY_DECODING, Decoding
from raysft.data.images import NO_END
from raysft.data.shards import ImageSpec, Manifest, ShardFile, Split
from raysft.errors import DataError
from raysft.run.data_identity import compare, identity

SPLITS = {"train": Split(3, (ShardFile("train/0000.parquet", 3, "0" * 64),))}
FILES = Manifest(
    ("cat", "dog"),
    ImageSpec("file", decoding=Decoding()),
    (0.0,) * 3,
    (1.0,) * 3,
    SPLITS,
    decoded={COMPOSITED: 2, NO_END: 1},
)


def begun_with(manifest, **changes):
    return SimpleNamespace(info={"data": identity(manifest) | changes})


def of_before(manifest):
    return replace(manifest, image=replace(manifest.image, decoding=LEGACY_DECODING), decoded={})


def test_a_run_resumes_on_data_that_is_decoded_as_before(tmp_path):
    for same in (FILES, of_before(FILES)):
        compare(begun_with(same), same, tmp_path)
    older = begun_with(of_before(FILES))
    del older.info["data"]["decoding"]
    compare(older, of_before(FILES), tmp_path)
    compare(
        older, replace(FILES, decoded={NO_END: 1}), tmp_path
    )  # neither transparency nor profiles: the same pixels


@pytest.mark.parametrize("key", [COMPOSITED, CONVERTED])
@pytest.mark.parametrize("known", [True, False])
def test_a_run_of_an_older_raysft_does_not_resume_on_other_pixels(tmp_path, key, known):
    older = begun_with(of_before(FILES))
    if not known:
        del older.info["data"]["decoding"]
    now = replace(FILES, decoded={key: 2})
    assert now.fingerprint == older.info["data"]["fingerprint"]
    with pytest.raises(
        DataError, match=r"become other pixels than when the run began.*: 2"
    ) as caught:
        compare(older, now, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="transparency and profiles are ignored"):
        compare(begun_with(now), of_before(now), tmp_path)
    raw = ImageSpec("raw", 8, 8, decoding=Decoding())  # whose fingerprint says all
    compare(
        begun_with(replace(now, image=raw), decoding=LEGACY_DECODING.document()),
        replace(now, image=raw),
        tmp_path,
    )
