"""Nothing that is read runs code: not a model, whatever it names, and not a data set, a run or
weights.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from raysft.data.shards import ImageSpec, Manifest, ShardFile, Split, read_table, write_manifest
from raysft.deploy.bulk import Predictor, PredictorSettings
from raysft.deploy.image_sources import list_source
from raysft.entrypoints import predict as predictor
from raysft.errors import DataError, ModelError, UserError
from raysft.records.predictions import read_predictions
from raysft.results.model import WEIGHTS, ModelCard, deliver, load_model
from raysft.storage import read_json, sha256, write_json
from raysft.train.architecture import foreign_module
from raysft.train.weights import read_state_dict
from tests.conftest import make_images
from tests.results.made import make_run
from tests.test_cli import call, here  # noqa: F401
from tests.tiny import tiny

SENT = """
import pathlib
pathlib.Path({marker!r}).touch()

def make(num_classes):
    from tests.tiny import tiny
    return tiny(num_classes)
"""


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that is there once the code that was sent has run."""
    return tmp_path / "it ran"


@pytest.fixture
def sent(here, marker, monkeypatch) -> Path:  # noqa: F811
    """The current folder is a model that somebody sent, with a module of theirs; as for the
    command, it is not on the search path, as it is for `python -m pytest`.
    """
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "sent", raising=False)  # of a test before
    (here / "sent.py").write_text(SENT.format(marker=str(marker)))
    (here / "weights").mkdir()
    save_file(tiny(2).state_dict(), here / "weights" / WEIGHTS)
    card = ModelCard(
        "sent:make", ("ant", "bee"), 8, 8, (0.5,) * 3, (0.25,) * 3, {"test_accuracy": 0.5}, {}
    )
    deliver(here / "made", here / "weights", card)
    for file in (here / "made").iterdir():
        file.rename(here / file.name)
    make_images(here / "photos", {"ant": 2, "bee": 2})
    return here


READING = [
    ["predict", ".", "photos/ant/000.png"],
    ["predict", ".", "photos", "--out", "p.parquet"],
    ["evaluate", ".", "photos"],
    ["serve", ".", "--port", "0"],
    *(
        ["export", ".", "--format", kind, "--data", "photos"]
        for kind in ("safetensors", "torch-export", "onnx")
    ),
]


@pytest.mark.parametrize("words", READING, ids=lambda words: " ".join(words))
def test_no_command_runs_what_a_model_brings(call, sent, marker, words):  # noqa: F811
    before, files = [*sys.path], sorted(sent.iterdir())
    answer = call(*words)
    assert answer.status == 2
    (line,) = answer.lines
    assert "its architecture sent:make is code of the module sent" in line
    assert "--trust-code" in line
    assert (marker.exists(), sys.path, sorted(sent.iterdir())) == (False, before, files)


def test_a_job_of_a_cluster_runs_nothing_either(sent, marker, monkeypatch, capfd):
    monkeypatch.setattr("ray.init", lambda **how: None)
    write_json(
        sent / "predict.json",
        {
            "model": str(sent),
            "source": str(sent / "photos"),
            "split": None,
            "out": str(sent / "p.parquet"),
            "probabilities": False,
            "trust_code": False,
        },
    )
    assert predictor.main(str(sent / "predict.json")) == 2
    assert "code of the module sent" in capfd.readouterr().out
    assert not marker.exists()


def test_processes_that_predict_run_nothing_either(sent, marker):
    list_source(sent / "photos")
    with pytest.raises(ModelError, match="code of the module sent"):
        Predictor(PredictorSettings(str(sent), str(sent), False, False, 1, False, None))
    assert not marker.exists()


@pytest.mark.slow
def test_a_report_does_not_load_the_model(call, tmp_path, here, marker):  # noqa: F811
    run = make_run(tmp_path)
    (here / "sent.py").write_text(SENT.format(marker=str(marker)))
    write_json(
        run.folder / "model/model.json",
        read_json(run.folder / "model/model.json") | {"architecture": "sent:make"},
    )
    assert call("report", run.folder).status == 0
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "timm:hf-hub:somebody/theirs",
        "timm:local-dir:.",
        "timm:resnet18.hf-hub:x",
        "get_model",
        "__builtins__",
        "detection",
        "resnet.resnet18",
        "torchvision.models:get_model",
        "torchvision:x",
        "raysft.cli:main",
        "raysft.train.smallnet:nn",
        "raysft.train.smallnet.small_cnn:x",
        " raysft.train.smallnet:small_cnn",
        "TIMM:resnet18",
        ":make",
        "sent:",
        "a\nb:c",
        "",
        ["sent:make"],
        None,
        7,
    ],
)
def test_other_names_get_one_line_and_run_nothing(sent, call, marker, name):  # noqa: F811
    write_json(sent / "model.json", read_json(sent / "model.json") | {"architecture": name})
    answer = call("predict", ".", "photos/ant/000.png")
    assert (answer.status, len(answer.lines)) == (2, 1), answer.err
    assert not marker.exists()


@pytest.mark.parametrize("size", [10**9, "8", [8]])
def test_impossible_image_size_is_one_line(sent, call, size):  # noqa: F811
    write_json(
        sent / "model.json",
        read_json(sent / "model.json") | {"architecture": "resnet18", "image_size": size},
    )
    answer = call("predict", ".", "photos/ant/000.png")
    assert (answer.status, len(answer.lines)) == (2, 1), answer.err


@pytest.mark.parametrize(
    "change",
    [
        {"height": "32"},
        {"height": -1},
        {"width": 0},
        {"height": 32.0},
        {"height": 60000, "width": 60000},
        {"height": True},
        {"mean": [0.5]},
        {"mean": "abc"},
        {"mean": [0.5, None, 0.5]},
        {"std": [0, 0, 0]},
        {"std": [float("nan")] * 3},
        {"image_size": 0},
        {"classes": []},
        {"classes": "ab"},
        {"classes": ["a", 1]},
        {"resampling": 5},
        {"resampling": "lanczos"},
        {"interpolation": []},
        {"scores": None},
        {"provenance": []},
        {"weights_sha256": None},
        {"format": "4"},
        {"format": None},
        {"decoding": []},
        {"decoding": {"background": None, "ranges": {}}},
        *(
            {"decoding": {"background": None, "ranges": {}, "profiles": True} | change}
            for change in (
                {"ranges": []},
                {"ranges": None},
                {"ranges": {"uint16": [5, 5]}},
                {"ranges": {"uint16": [float("nan"), 1]}},
                {"ranges": {"uint16": 5}},
                {"background": [300, -1, 2]},
                {"background": "abc"},
                {"profiles": "no"},
            )
        ),
    ],
    ids=str,
)
def test_malformed_model_card_is_one_line(sent, call, change):  # noqa: F811
    stored = read_json(sent / "model.json")
    (sent / "model.json").write_text(json.dumps(stored | change))
    answer = call("predict", ".", "photos/ant/000.png")
    assert (answer.status, len(answer.lines)) == (2, 1), answer.err
    assert "model.json: cannot be read (" in answer.lines[0]
    assert "Error" not in answer.lines[0]


def test_only_own_networks_have_a_foreign_module():
    known = ("resnet18", "timm:resnet18", "raysft.train.smallnet:small_cnn")
    assert [foreign_module(name) for name in known] == [None] * 3
    assert foreign_module("own.nets:make") == "own.nets"


# --- trusted -----------------------------------------------------------------------------------


def predict(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess:
    repository = str(Path(__file__).parents[2])
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "raysft"),
            "predict",
            *words,
            ".",
            "photos/ant/000.png",
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, repository]))},
    )


@pytest.mark.slow
def test_trusted_code_prefers_installed_modules(sent, marker, tmp_path):
    done = predict(sent, "--trust-code")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["class"] in ("ant", "bee")
    assert marker.exists()
    marker.unlink()
    other = tmp_path / "installed"
    other.mkdir()
    (other / "sent.py").write_text(SENT.format(marker=str(tmp_path / "the other")))
    assert predict(sent, "--trust-code", path=str(other)).returncode == 0
    assert (marker.exists(), (tmp_path / "the other").exists()) == (False, True)


def test_trust_in_python_leaves_the_search_path_alone(sent, marker):
    before = [*sys.path]
    with pytest.raises(ModelError, match="cannot be imported"):
        load_model(sent, trust_code=True)  # the current folder is for the caller to add
    assert sys.path == before
    assert not marker.exists()


# --- other files -------------------------------------------------------------------------------


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def objects(values: list) -> pa.Array:
    """A column of pickles, as Ray knows it."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    pickles = pa.array(map(pickle.dumps, values), pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pickles)


@pytest.mark.parametrize("column", ["id", "image", "label"])
def test_shard_with_own_type_is_refused(tmp_path, marker, column):
    plain = {"id": pa.array([0]), "image": pa.array([b""]), "label": pa.array([0], pa.int32())}
    pq.write_table(
        pa.table(plain | {column: objects([Touches(marker)])}), tmp_path / "0000.parquet"
    )
    file = ShardFile("0000.parquet", 1, sha256(tmp_path / "0000.parquet"))
    write_manifest(
        tmp_path,
        Manifest(
            ("a", "b"), ImageSpec("file"), (0.5,) * 3, (0.25,) * 3, {"test": Split(1, (file,))}
        ),
    )
    for columns in (None, [column]):
        with pytest.raises(DataError, match="has a type of its own, which could run code"):
            read_table(tmp_path, file, columns)
    assert not marker.exists()


def test_predictions_with_own_type_are_refused(tmp_path, marker):
    names = ("id", "label", "predicted", "probability", "label_probability")
    pq.write_table(
        pa.table(dict.fromkeys(names, objects([Touches(marker)]))), tmp_path / "p.parquet"
    )
    with pytest.raises(UserError, match="has a type of its own"):
        read_predictions(tmp_path / "p.parquet", 2)
    assert not marker.exists()


def test_weights_that_would_run_code_are_refused(tmp_path, marker):
    for name, value in (
        ("whole.pt", {"state_dict": Touches(marker)}),
        ("safe.safetensors", Touches(marker)),
    ):
        torch.save(value, tmp_path / name)
        with pytest.raises(ModelError, match=r"cannot be read|would run code") as refused:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert not marker.exists()


def test_a_nested_type_of_its_own_is_found(tmp_path, marker):
    from raysft.data.parquet import read_plain

    inside = pa.StructArray.from_arrays([objects([Touches(marker)])], ["deep"])
    pq.write_table(pa.table({"x": pa.array(np.arange(1)), "y": inside}), tmp_path / "n.parquet")
    with pytest.raises(pa.ArrowInvalid, match="'y' has a type of its own"):
        read_plain(tmp_path / "n.parquet")


def test_invalid_ray_tensor_type_is_refused(tmp_path):
    import ray.data  # noqa: F401  # registers its types

    from raysft.data.parquet import read_plain

    kind = {
        b"ARROW:extension:name": b"ray.data.arrow_tensor",
        b"ARROW:extension:metadata": b"not JSON",
    }
    field = pa.field("image", pa.list_(pa.uint8()), metadata=kind)
    pq.write_table(
        pa.table([pa.array([[1]], field.type)], schema=pa.schema([field])), tmp_path / "t.parquet"
    )
    with pytest.raises(pa.ArrowInvalid, match="has a type of its own"):
        read_plain(tmp_path / "t.parquet")
