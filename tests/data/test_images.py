"""Image files to arrays."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from raysft.data.formats import KNOWN, missing_decoder, sniff_format
from raysft.data.images import fit


def test_images_are_scaled_and_cropped_around_centre():
    rng = np.random.default_rng(0)
    for _ in range(60):
        wide, tall, width, height = (
            int(side) for side in rng.choice((1, 7, 8, 31, 64, 100, 225), 4)
        )
        image = Image.fromarray(rng.integers(0, 256, (tall, wide, 3), np.uint8))
        found = fit(image, height, width)
        assert (found.shape, found.dtype) == ((height, width, 3), np.uint8)
        # Pillow's versions differ in the order of rows and columns, which are rounded in between.
        expected = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_rows_are_resized_before_columns():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 47, 3), np.uint8))
    by_hand = image.resize((32, 300), Image.Resampling.BILINEAR).resize(
        (32, 32), Image.Resampling.BILINEAR, (0, 126.5, 32, 173.5)
    )
    assert np.array_equal(fit(image, 32, 32), by_hand)


@pytest.mark.parametrize("name", KNOWN)
def test_a_format_is_told_by_its_first_bytes(name):
    written = io.BytesIO()
    if name == "HEIC":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.new("RGB", (8, 8)).save(written, "HEIF" if name == "HEIC" else name)
    assert sniff_format(written.getvalue()[:64]) == name
    assert missing_decoder(name) is None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"BMW,3,blue\nVW,2,red\n",
        b"P5",
        b"P1 of 2",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"{}",
        b"%PDF-1.7",
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
        b"\0\5\x16\7\0\2\0\0Mac OS X",
    ],
)
def test_other_files_are_no_images(head):
    assert sniff_format(head) is None


def test_undecodable_format_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_decoder("HEIC") == "pip install 'raysft[heif]'"
    assert "convert it" in (missing_decoder("PSD") or "")
