"""Exports: the same answers in runtimes that know nothing of raysft, for any number of images of
any size.
"""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from raysft.data.images import fit as fit_of_pillow
from raysft.data.pixels import resize
from raysft.data.shards import (
    ImageSpec,
    Manifest,
    Split,
    read_manifest,
    write_manifest,
    write_shard,
)
from raysft.deploy import export as exporting
from raysft.deploy.export import FORMATS, TOLERANCE
from raysft.deploy.graph import WholeModel, enlarging, fit
from raysft.errors import ModelError, RunError, UserError
from raysft.results import predict
from raysft.results.model import ModelCard, deliver
from raysft.storage import read_json, write_json
from raysft.train.modeling import create_network
from tests.conftest import make_images
from tests.test_cli import call, here  # noqa: F401

CLASSES = ("ant", "bee", "cow")
TINY = "tests.tiny:tiny"
export, Classifier = (
    partial(exporting.export, trust_code=True),
    partial(predict.Classifier, trust_code=True),
)  # TINY's
QUICKSTART = "raysft.train.smallnet:small_cnn"


def quiet(what: str, done: int, total: int) -> None:
    pass


def pixels(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


def delivered(
    folder: Path,
    architecture: str,
    size: tuple[int, int],
    classes=CLASSES,
    image_size=None,
    interpolation="bilinear",
    resampling="bilinear",
    **provenance,
) -> Path:
    """A model with random weights; statistics of batches have been run in, so that its answers
    differ by image.
    """
    torch.manual_seed(0)
    net = create_network(architecture, len(classes), image_size)
    if any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()):
        # Statistics of channels are about the same on small images, and much sooner there.
        with torch.no_grad():
            for _ in range(20):
                net.train()(torch.randn(16, 3, 32, 32))
    folder.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors"
    )
    card = ModelCard(
        architecture,
        tuple(classes),
        *size,
        (0.48, 0.45, 0.4),
        (0.23, 0.22, 0.25),
        {},
        provenance,
        image_size,
        interpolation,
        resampling=resampling,
    )
    deliver(folder.parent / "model", folder, card)
    return folder.parent / "model"


def dataset(folder: Path, height: int, width: int, classes=CLASSES, rows: int = 25) -> Path:
    splits = {}
    for seed, name in enumerate(("train", "test")):
        (folder / name).mkdir(parents=True)
        spec = ImageSpec("raw", height, width)
        labels = (np.arange(rows) % len(classes)).astype(np.int32)
        splits[name] = Split(
            rows,
            (
                write_shard(
                    folder / name / "0000.parquet",
                    spec,
                    np.arange(rows),
                    pixels(rows, height, width, seed),
                    labels,
                ),
            ),
        )
    write_manifest(folder, Manifest(tuple(classes), spec, (0.5,) * 3, (0.25,) * 3, splits))
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """ROOT/CLASS/IMAGE of mixed sizes and formats."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, size in enumerate(
            ((300, 200), (199, 301), (224, 224), (640, 427), (50, 40), (33, 500))
        ):
            low = rng.integers(0, 256, (5 + i, 4 + label, 3), np.uint8)
            image = Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)
            image.save(tmp_path / "photos" / name / (f"{i}.png" if i % 2 else f"{i}.jpg"))
    return tmp_path / "photos"


# --- what is computed --------------------------------------------------------------------------

SIDES = (1, 2, 3, 7, 8, 12, 31, 32, 33, 64, 100, 224, 225, 448)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "bicubic"])
def test_graph_resizes_exactly_like_pillow(resampling):
    rng = np.random.default_rng(0)
    for case in range(150):
        height, width = rng.choice(SIDES, 2)
        tall, wide = (int(side) for side in rng.choice((8, 32, 96, 224), 2))
        image = pixels(1, height, width, case)[0]
        if case % 3 == 0:
            image = 255 * (image > 127).astype(np.uint8)
        found = (
            fit(torch.from_numpy(image)[None], tall, wide, resampling)[0].permute(1, 2, 0).numpy()
        )
        expected = fit_of_pillow(Image.fromarray(image), tall, wide, resampling)
        assert np.array_equal(found, expected), (height, width, tall, wide)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "out"), [((8, 8), 32), ((32, 48), 64), ((30, 20), 9)])
def test_weights_of_enlarging_do_what_training_does(interpolation, size, out):
    images = torch.rand(2, 3, *size)
    rows, columns = (enlarging(side, out, interpolation) for side in size)
    expected = resize(images, out, interpolation)
    assert torch.allclose(rows @ images @ columns.T, expected, atol=1e-5)


# --- exports -----------------------------------------------------------------------------------

ONNX = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(given,), (made,) = session.get_inputs(), session.get_outputs()
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["n", "height", "width", 3]), given
assert (made.name, made.type, made.shape) == ("probabilities", "tensor(float)", ["n", len(classes)]), made
answers = {name: session.run(None, {"images": images})[0] for name, images in np.load(sys.argv[2]).items()}
np.savez(sys.argv[3], **answers)
assert not {"torch", "ray", "raysft"} & {name.split(".")[0] for name in sys.modules}
print(json.dumps(classes))
"""

TORCH = """
import json, sys
import numpy as np, torch
extra = {"classes.json": ""}
net = torch.export.load(sys.argv[1], extra_files=extra).module()
with torch.inference_mode():
    answers = {name: net(torch.from_numpy(images)).numpy() for name, images in np.load(sys.argv[2]).items()}
np.savez(sys.argv[3], **answers)
assert not {"ray", "raysft", "torchvision"} & {name.split(".")[0] for name in sys.modules}
print(extra["classes.json"] if isinstance(extra["classes.json"], str) else extra["classes.json"].decode())
"""


def answers_elsewhere(
    made: dict, batches: dict[str, np.ndarray], scratch: Path
) -> dict[str, np.ndarray]:
    """What an export answers in a process of its own, away from this repository; its classes are
    compared.
    """
    scratch.mkdir()
    np.savez(scratch / "in.npz", **batches)
    program = {"onnx": ONNX, "torch-export": TORCH}[made["kind"]]
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            program,
            f"{made['path']}/{made['file']}",
            scratch / "in.npz",
            scratch / "out.npz",
        ],
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == made["classes"]
    return dict(np.load(scratch / "out.npz"))


def of_model(model: Path, images: np.ndarray) -> np.ndarray:
    return Classifier(model).image_probabilities(map(Image.fromarray, images))


def compare_elsewhere(
    made: dict, model: Path, sizes: list[tuple[int, int, int]], scratch: Path
) -> None:
    batches = {str(size): pixels(*size, seed=7) for size in sizes}
    found = answers_elsewhere(made, batches, scratch)
    for name, images in batches.items():
        expected = of_model(model, images)
        assert expected.std(axis=0).max() > 0 or len(images) == 1  # the model tells images apart
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - expected).max() <= TOLERANCE, name


def check_record(made: dict, images: int) -> None:
    """export.json says what was checked, and of which file."""
    folder = Path(made["path"])
    stored = read_json(folder / "export.json")
    assert {**stored, "path": made["path"]} == made
    assert {file.name for file in folder.iterdir()} == {"export.json", made["file"]}
    content = (folder / made["file"]).read_bytes()
    assert stored["files"] == {
        made["file"]: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }
    checked = stored["checked"]
    assert checked["images"] == images
    assert checked["accuracy"] == pytest.approx(checked["model_accuracy"])
    assert checked["largest_difference"] <= checked["tolerance"] == TOLERANCE
    assert not list(folder.parent.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
def test_a_small_network_answers_alike_elsewhere(tmp_path, kind):
    model = delivered(tmp_path / "weights", QUICKSTART, (8, 8))
    made = export(model, kind, tmp_path / "out", dataset(tmp_path / "D", 8, 8), quiet)
    check_record(made, 25)
    assert made["input"]["shape"] == ["n", "height", "width", 3]
    assert made["output"]["shape"] == ["n", 3]
    compare_elsewhere(
        made, model, [(1, 8, 8), (7, 8, 8), (1, 13, 29), (7, 300, 200), (2, 1, 1)], tmp_path / "s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
@pytest.mark.parametrize(
    ("size", "image_size", "interpolation"),
    [((8, 12), 24, "bicubic"), ((8, 12), 24, "nearest"), ((40, 40), 16, "bilinear")],
)
def test_images_are_resized_for_the_network_inside(tmp_path, kind, size, image_size, interpolation):
    model = delivered(
        tmp_path / "weights", TINY, size, image_size=image_size, interpolation=interpolation
    )
    check_record(export(model, kind, tmp_path / "out", dataset(tmp_path / "D", *size), quiet), 25)


@pytest.mark.slow
def test_resnet18_answers_alike_in_every_format(tmp_path):
    classes = [f"class {i}" for i in range(10)]
    model = delivered(tmp_path / "weights", "resnet18", (32, 32), classes, image_size=64)
    data = dataset(tmp_path / "D", 32, 32, classes)
    for kind in FORMATS:
        made = export(model, kind, tmp_path / kind, data, quiet)
        check_record(made, 25)
        if kind == "safetensors":
            assert made["network"] == {
                "call": "torchvision.models.resnet18",
                "arguments": {"num_classes": 10},
            }
        else:
            compare_elsewhere(
                made, model, [(1, 32, 32), (7, 32, 32), (2, 120, 90)], tmp_path / f"s-{kind}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ["nearest", "bicubic"])
@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_scaled_as_in_training(tmp_path, photos, kind, resampling):
    model = delivered(tmp_path / "weights", TINY, (24, 24), resampling=resampling)
    made = export(model, kind, tmp_path / "out", photos, quiet)
    check_record(made, 18)
    assert made["preparation"]["resampling"] == resampling


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_photos_of_mixed_sizes_score_alike(tmp_path, photos, kind):
    model = delivered(tmp_path / "weights", QUICKSTART, (224, 224))
    made = export(model, kind, tmp_path / "out", photos, quiet)
    check_record(made, 18)
    if kind == "onnx":
        files = sorted(str(file) for file in photos.rglob("*.*"))
        batches = {
            str(i): np.asarray(Image.open(file).convert("RGB"))[None]
            for i, file in enumerate(files)
        }
        found = answers_elsewhere(made, batches, tmp_path / "s")
        for i, prediction in enumerate(Classifier(model).predict(files)):
            name, probability = prediction.classes[0]
            assert CLASSES[found[str(i)][0].argmax()] == name
            assert abs(found[str(i)][0].max() - probability) <= TOLERANCE


def test_safetensors_load_where_torchvision_makes_the_network(tmp_path):
    from safetensors.torch import load_file
    from torchvision import models

    model = delivered(tmp_path / "weights", "squeezenet1_1", (32, 32))
    made = export(model, "safetensors", tmp_path / "out", dataset(tmp_path / "D", 32, 32), quiet)
    net = models.squeezenet1_1(num_classes=3)
    net.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    assert made["preparation"]["mean"] == [0.48, 0.45, 0.4]
    check_record(made, 25)


# --- refusals ----------------------------------------------------------------------------------


def darker(images, *how):
    return fit(images, *how) * 0.9


def not_a_number(images, *how):
    return fit(images, *how) * float("nan")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
@pytest.mark.parametrize("sabotage", [darker, not_a_number])
def test_deviating_export_is_refused_and_leaves_nothing(tmp_path, monkeypatch, kind, sabotage):
    model, data = delivered(tmp_path / "weights", QUICKSTART, (8, 8)), dataset(tmp_path / "D", 8, 8)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("raysft.deploy.graph.fit", sabotage)
    with pytest.raises(RunError, match="differs from the model"):
        export(model, kind, tmp_path / "out", data, quiet)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_weights_in_a_safetensors_export_are_refused(tmp_path, monkeypatch):
    model, data = delivered(tmp_path / "weights", TINY, (8, 8)), dataset(tmp_path / "D", 8, 8)
    monkeypatch.setattr(
        exporting,
        "put_file",
        lambda source, target: save_file(
            {k: v + 0.1 for k, v in create_network(TINY, 3).state_dict().items()}, target
        ),
    )
    with pytest.raises(RunError, match="differs from the model"):
        export(model, "safetensors", tmp_path / "out", data, quiet)
    assert not (tmp_path / "out").exists()


def test_export_deviating_for_other_sizes_is_refused(tmp_path, monkeypatch):
    model, data = delivered(tmp_path / "weights", QUICKSTART, (8, 8)), dataset(tmp_path / "D", 8, 8)
    monkeypatch.setattr(
        "raysft.deploy.graph.fit",
        lambda images, height, width, *_: torch.nn.functional.interpolate(
            images.permute(0, 3, 1, 2).float(), (height, width)
        ),
    )  # not antialiased: right for images of the model's size
    with pytest.raises(RunError, match="differs from the model"):
        export(model, "torch-export", tmp_path / "out", data, quiet)


def test_changed_class_is_refused_despite_close_probabilities(tmp_path):
    class Coin:
        card = ModelCard(TINY, ("a", "b"), 8, 8, (0.5,) * 3, (0.25,) * 3, {}, {})

        def image_probabilities(self, images):
            return np.array([[0.500005, 0.499995]] * len(list(images)), np.float32)

    images, labels = pixels(2, 8, 8), np.array([0, 0])
    turned = exporting._Comparison(
        "onnx", lambda batch: np.array([[0.499995, 0.500005]] * len(batch), np.float32), Coin()
    )
    turned.add(images, labels)
    assert turned.difference < TOLERANCE
    assert not turned.alike
    same = exporting._Comparison(
        "onnx", lambda batch: np.array([[0.500006, 0.499994]] * len(batch), np.float32), Coin()
    )
    same.add(images, labels)
    assert same.alike


class Fixed(torch.nn.Module):
    """Takes two images and no other number."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, classes)

    def forward(self, images):
        return self.head(images.mean((2, 3)).reshape(2, 3))


def fixed(num_classes: int) -> torch.nn.Module:
    return Fixed(num_classes)


def test_network_without_export_support_is_one_line(tmp_path):
    model = delivered(tmp_path / "weights", "tests.deploy.test_export:fixed", (8, 8))
    with pytest.raises(ModelError, match="cannot be exported as torch-export") as told:
        export(model, "torch-export", tmp_path / "out", dataset(tmp_path / "D", 8, 8), quiet)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_nothing_but_an_export_is_replaced(tmp_path):
    model, data = delivered(tmp_path / "weights", TINY, (8, 8)), dataset(tmp_path / "D", 8, 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists and is not an export"):
        export(model, "safetensors", tmp_path / "mine", data, quiet)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    first = export(model, "safetensors", tmp_path / "out", data, quiet)
    again = export(model, "safetensors", tmp_path / "out", data, quiet)
    assert again["files"] == first["files"]


# --- the data, and the command line ------------------------------------------------------------


def a_run(tmp_path: Path) -> tuple[Path, Path]:
    """(run, its data set), as a run leaves them."""
    data = dataset(tmp_path / "D", 8, 8)
    run = tmp_path / "runs/r"
    run.mkdir(parents=True)
    delivered(
        run / "weights",
        TINY,
        (8, 8),
        run="r",
        trial="t0",
        epoch=1,
        data=read_manifest(data).fingerprint,
        job={"data": {"source": "shards", "path": str(data)}},
    )
    write_json(run / "run.json", {"data": {"path": str(data)}})
    return run, data


@pytest.mark.slow
def test_run_is_exported_and_scored_on_its_data(tmp_path, call):  # noqa: F811
    run, data = a_run(tmp_path)
    answer = call("export", "--trust-code", run, "--format", "onnx", "--json")
    assert answer.status == 0, answer.err
    made = json.loads(answer.out)
    assert Path(made["path"]) == run / "export-onnx"
    assert made["checked"]["data"] == str(data)
    assert (made["model"]["run"], made["model"]["trial"], made["model"]["epoch"]) == ("r", "t0", 1)
    check_record(made, 25)
    shown = call("export", "--trust-code", run / "model", "--format", "torch-export")
    assert shown.status == 0, shown.err
    assert shown.err == ""
    exported, checked = shown.out.splitlines()[-2:]
    assert exported.startswith(f"export   {run}/export-torch-export/model.pt2")
    assert "uint8 (n, height, width, 3) to float32 (n, 3)" in exported
    assert checked.startswith(f"checked  25 test images of {data}: accuracy ")


def test_missing_or_other_data_is_refused(tmp_path, call):  # noqa: F811
    run, data = a_run(tmp_path)
    data.rename(tmp_path / "elsewhere")
    answer = call("export", "--trust-code", run, "--format", "safetensors")
    assert answer.status == 2
    (line,) = answer.lines
    assert "the data it was trained on is not here any more; give --data" in line
    dataset(data, 8, 8, rows=20)
    assert "give --data" in call("export", "--trust-code", run, "--format", "safetensors").err
    assert (
        call(
            "export",
            "--trust-code",
            run,
            "--format",
            "safetensors",
            "--data",
            tmp_path / "elsewhere",
        ).status
        == 0
    )


def test_imported_data_is_found_again_by_its_fingerprint(tmp_path):
    run, data = a_run(tmp_path)
    (tmp_path / "cache/datasets").mkdir(parents=True)
    data.rename(tmp_path / "cache/datasets/imagefolder-x")
    (run / "model").rename(tmp_path / "alone")
    made = export(tmp_path / "alone", "safetensors", None, None, quiet)
    assert made["path"] == str(tmp_path / "alone-safetensors")
    assert made["checked"]["data"] == str(tmp_path / "cache/datasets/imagefolder-x")


def test_a_missing_extra_is_one_line(tmp_path, call, monkeypatch):  # noqa: F811
    run, _ = a_run(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    answer = call("export", "--trust-code", run, "--format", "onnx")
    assert answer.status == 2
    (line,) = answer.lines
    assert line == "error: --format onnx: needs the library onnxscript; pip install 'raysft[onnx]'"
    assert not (run / "export-onnx").exists()


def test_unwritable_target_is_refused(tmp_path):
    model, data = delivered(tmp_path / "weights", TINY, (8, 8)), dataset(tmp_path / "D", 8, 8)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        export(model, "safetensors", tmp_path / "file/out", data, quiet)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--format", "video"],
            "--format video: is not a format; give safetensors | torch-export | onnx",
        ),
        (["--format", "safetensors", "--data", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, call, here, words, expected):  # noqa: F811
    run, _ = a_run(tmp_path)
    answer = call("export", "--trust-code", run, *words)
    assert answer.status == 2
    (line,) = answer.lines
    assert expected in line


def test_images_of_unknown_classes_are_one_line(tmp_path):
    model = delivered(tmp_path / "weights", TINY, (8, 8))
    other = make_images(tmp_path / "other", {"ant": 2, "dog": 2})
    with pytest.raises(UserError, match="has the class dog, which the model does not know"):
        export(model, "safetensors", tmp_path / "out", other, quiet)
    assert not (tmp_path / "out").exists()


def test_whole_model_answers_like_the_classifier(tmp_path):
    model = delivered(tmp_path / "weights", TINY, (8, 8))
    classifier = Classifier(model)
    images = pixels(3, 8, 8)
    with torch.inference_mode():
        found = WholeModel(classifier.net, classifier.card)(torch.from_numpy(images))
    assert torch.allclose(found, torch.from_numpy(of_model(model, images)), atol=1e-6)
