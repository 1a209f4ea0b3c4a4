"""Images with more than 8 bits, or with transparency, are the same to a model wherever it sees
them.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from raysft.data.decoding import LEGACY_DECODING, Decoding
from raysft.data.shards import ImageSpec
from raysft.deploy.export import export
from raysft.deploy.image_sources import list_source
from raysft.deploy.replicas import Predictor
from raysft.deploy.settings import Refused
from raysft.errors import DataError
from raysft.results.model import CARD, read_card
from raysft.results.predict import Classifier, check_stored, labelled_images
from raysft.storage import read_json, write_json
from tests.deploy.models import make_model

HOW = Decoding((0, 90, 0), {"float32": (0.0, 1000.0)})


@pytest.fixture
def model(tmp_path) -> Path:
    """A model of data whose floats reach from 0 to 1000, on dark green."""
    folder = make_model(tmp_path / "model")
    stored = read_json(folder / CARD)
    write_json(folder / CARD, stored | {"decoding": HOW.document(), "resampling": "nearest"})
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """photos/CLASS/IMAGE: values of 500, and a transparent image."""
    for name in ("ant", "bee", "cow"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "photos" / name / "0.tif", np.full((12, 12), 500, np.float32))
        Image.new("RGBA", (12, 12), (255, 0, 0, 0)).save(tmp_path / "photos" / name / "1.png")
    return tmp_path / "photos"


def expected(file: str) -> list[int]:
    return [128, 128, 128] if file.endswith(".tif") else [0, 90, 0]


def test_the_same_pixels_everywhere(model, photos):
    card = read_card(model)
    assert card.decoding == HOW
    files = sorted(photos.rglob("*.*"))
    replica = Predictor(str(model), 10**6, 1, "cpu", None)
    for image, (file, (shown, _)) in zip(
        list_source(photos).chunks[0].items(card),
        zip(files, labelled_images(photos, "test", card), strict=True),
        strict=True,
    ):
        served = replica._decoded(file.name, file.read_bytes())
        assert isinstance(served, np.ndarray)
        for pixels in (image.decode(), served, np.asarray(shown)):
            assert pixels[3, 3].tolist() == expected(file.name)


def test_scaling_is_that_of_training(model, tmp_path):
    chequered = 255 * (np.indices((16, 16)).sum(0) % 2).astype(np.uint8)
    (tmp_path / "x").mkdir()
    Image.fromarray(chequered).save(tmp_path / "x/a.png")
    (item,) = list_source(tmp_path / "x").chunks[0].items(read_card(model))
    assert set(np.unique(item.decode())) <= {0, 255}  # bilinear would be grey


def test_values_unknown_to_model_are_refused(model, photos):
    write_json(model / CARD, read_json(model / CARD) | {"decoding": Decoding().document()})
    with pytest.raises(DataError, match="has float32 samples"):
        Classifier(model).predict([str(photos / "ant/0.tif")])
    refused = Predictor(str(model), 10**6, 1, "cpu", None)._decoded(
        "0.tif", (photos / "ant/0.tif").read_bytes()
    )
    assert isinstance(refused, Refused)
    assert "which values are black and white" in str(refused)


def test_stored_pixels_of_another_range_are_refused(model):
    card, spec = read_card(model), ImageSpec("raw", 8, 8, decoding=HOW)
    check_stored(spec, card, "D")
    other = replace(spec, decoding=Decoding(ranges={"float32": (0.0, 1.0)}))
    with pytest.raises(
        DataError,
        match="scaled in another way than those of the model: float32 samples from 0 to 1",
    ):
        check_stored(other, card, "D")


def test_an_export_says_how_pixels_were_made(model, photos, tmp_path):
    made = export(model, "safetensors", tmp_path / "out", photos, lambda *_: None)
    assert made["preparation"]["decoding"] == {
        "background": [0, 90, 0],
        "ranges": {"float32": [0.0, 1000.0]},
        "profiles": True,
    }
    assert made["checked"]["images"] == 6


def test_older_model_ignores_transparency_as_before(model):
    stored = read_json(model / CARD)
    del stored["decoding"], stored["resampling"]
    write_json(model / CARD, stored | {"format": 3})
    card = read_card(model)
    assert (card.decoding, card.resampling) == (LEGACY_DECODING, "bilinear")
    written = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(written, "PNG")
    served = Predictor(str(model), 10**6, 1, "cpu", None)._decoded("a.png", written.getvalue())
    assert isinstance(served, np.ndarray)
    assert served[0, 0].tolist() == [255, 0, 0]
