"""A delivered model as a file for other runtimes, scored again in each of them before it is handed
out.
"""

from __future__ import annotations

import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raysft.data.images import fit
from raysft.data.importer import cache_folder
from raysft.data.pixels import Preparer, scoring_batch_size
from raysft.data.preparation import Preparation
from raysft.data.shards import MANIFEST, read_manifest
from raysft.deploy.graph import WholeModel
from raysft.errors import DataError, ModelError, RunError, UserError, describe_error
from raysft.records.documents import INFO
from raysft.records.reading import read_run_document
from raysft.records.relocation import locate
from raysft.records.run import versions
from raysft.results.model import WEIGHTS, ModelCard, model_folder
from raysft.results.predict import Classifier, batch_size_for, count_images, labelled_images
from raysft.storage import (
    StoragePath,
    local_copy,
    put_file,
    put_folder,
    scratch_beside,
    sha256,
    storage_path,
    write_json,
)
from raysft.train.architecture import network_call

FORMAT = 1
RECORD = "export.json"
IMAGES, PROBABILITIES = "images", "probabilities"
SPLIT = "test"
_SIDES = ("n", "height", "width")

# Far above what another order of the same sums changes, far below what a person would call another
# answer.
TOLERANCE = 1e-4
# Two classes this close are told apart by rounding alone: such an image is in nobody's accuracy.
UNDECIDED = 2e-6
OTHER_SIZES = 3  # images that are also compared stretched to other sizes

Runtime = Callable[[np.ndarray], np.ndarray]
"""(n, height, width, 3) uint8 of any n, height and width to (n, classes) float32."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Format:
    """One way to hand a model out."""

    file: str
    write: Callable[[Path, StoragePath, Classifier], dict[str, Any]]
    """Make the file of a delivered model's folder; returns what export.json says of it alone."""
    open: Callable[[Path, dict[str, Any]], Runtime]
    """The file in its own runtime, with what export.json says."""
    libraries: tuple[str, ...] = ()


def export(
    model: StoragePath,
    name: str,
    out: StoragePath | None,
    data: StoragePath | None,
    progress: Progress,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Make the folder `out` (beside the model without it) of a delivered model; returns what its
    export.json holds.

    The export is scored on the test images of `data` beside the model, without it of the data that
    the model was trained on. trust_code: as for `raysft.results.model.load_model`.

    Raises UserError for what a person has to correct; RunError, with nothing left behind, where the
    export answers differently from the model.
    """
    form = _format(name)
    folder = model_folder(model)
    classifier = Classifier(folder, trust_code=trust_code)
    target = out or default_out(folder, name)
    _check_out(target)
    data = data or data_of(folder, classifier.card)
    total = count_images(data, SPLIT, classifier.card)
    # Beside the target until it is compared: what differs from its model never has its name.
    with _writable(target), scratch_beside(target) as scratch:
        file = scratch / form.file
        own = form.write(file, folder, classifier)
        record = _record(name, classifier.card, file) | own
        with _running(name):
            # From the file, not from the network in memory: what was lost in writing is found.
            run = form.open(file, record)
        comparison = _Comparison(name, run, classifier)
        for images, labels in _batches(data, classifier.card):
            # Of the first batch alone: the preparation is the same for all images.
            if not comparison.images:
                comparison.add_other_sizes(images)
            # All test images, not a sample: export.json tells the accuracy of this very file.
            comparison.add(images, labels)
            progress("compare", comparison.images, total)
        if not comparison.alike:
            raise RunError(
                str(target),
                f"is not made: the {name} export differs from the model: {comparison.words()}",
                "give another --format",
            )
        record["checked"] = {"data": str(data), "split": SPLIT, **comparison.document()}
        write_json(scratch / RECORD, record)
        put_folder(scratch, target, last=RECORD)
    return {"path": str(target)} | record


@contextmanager
def _writable(target: StoragePath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            str(target), f"cannot be written ({error.strerror or error})", "give an --out that can"
        ) from None


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError(f"--format {name}", "is not a format", f"give {' | '.join(FORMATS)}")
    for library in FORMATS[name].libraries:
        try:
            # Imported and not only looked for: one that is there may be broken.
            importlib.import_module(library)
        except ImportError:
            raise UserError(
                f"--format {name}", f"needs the library {library}", f"pip install 'raysft[{name}]'"
            ) from None
    return FORMATS[name]


def default_out(folder: StoragePath, name: str) -> StoragePath:
    """RUN/export-FORMAT for the model of a run, MODEL-FORMAT beside any other."""
    # In a run every model is called model: its name would say nothing beside others.
    in_run = (folder.parent / INFO).is_file()
    return folder.parent / (f"export-{name}" if in_run else f"{folder.name}-{name}")


def _check_out(target: StoragePath) -> None:
    """Raise UserError where there is something that is not an export; an older export is
    replaced.
    """
    # --out may be a folder full of somebody's work, which put_folder would replace.
    if target.exists() and not (target / RECORD).is_file():
        raise UserError(str(target), "already exists and is not an export", "give another --out")


def data_of(folder: StoragePath, card: ModelCard) -> StoragePath:
    """The data set that a model was trained on, told by its fingerprint; raises UserError where it
    is not here.
    """
    # By its contents and not its path: another data set may lie there by now.
    for found in _likely_data(folder, card):
        with suppress(DataError, OSError):  # no data set any more, or not to be reached
            if (found / MANIFEST).is_file() and read_manifest(found).fingerprint == card.provenance[
                "data"
            ]:
                return found
    raise UserError(
        str(folder),
        "the data it was trained on is not here any more",
        "give --data: a data set of shards, or a folder CLASS/IMAGE of test images",
    )


def _likely_data(folder: StoragePath, card: ModelCard) -> Iterator[StoragePath]:
    """Where its run says that it was, where its job says, and what was imported on this machine."""
    # A model of another origin says nothing of its data.
    if "data" not in card.provenance:
        return
    info = folder.parent / INFO
    if info.is_file() and "data" in (stored := read_run_document(folder.parent)):
        yield locate(folder.parent, stored, stored["data"]["path"])
    named = card.provenance["job"]["data"]
    if named["source"] == "shards":
        yield storage_path(named["path"])
    yield from sorted((cache_folder() / "datasets").glob("*"))


def _record(name: str, card: ModelCard, file: Path) -> dict[str, Any]:
    """What export.json says of any export."""
    known = {
        key: card.provenance[key] for key in ("run", "trial", "epoch") if key in card.provenance
    }
    return {
        "format": FORMAT,
        "kind": name,
        "file": file.name,
        "files": {
            # All that was written: ONNX puts large weights into a second file.
            part.name: {"bytes": part.stat().st_size, "sha256": sha256(part)}
            for part in sorted(file.parent.iterdir())
        },
        "classes": list(card.classes),
        "model": {
            **known,
            "architecture": card.architecture,
            "weights_sha256": card.weights_sha256,
        },
        "preparation": {
            "height": card.height,
            "width": card.width,
            "mean": list(card.mean),
            "std": list(card.std),
            "image_size": card.image_size,
            "interpolation": card.interpolation,
            "resampling": card.resampling,
            "decoding": card.decoding.document(),
        },
    }


# --- formats -----------------------------------------------------------------------------------

_PIXELS = (
    "RGB in sRGB (from the image's own profile where decoding.profiles), upright by its EXIF "
    "orientation, 8 "
    "bits a channel: samples of more bits scaled so that decoding.ranges, (black, white) of each "
    "kind of "
    "sample, become 0 and 255; transparent pixels over decoding.background, without one as they "
    "are stored"
)
_STEPS = [
    _PIXELS,
    "where it is not height × width: scaled to cover it and cropped around its centre, as "
    "PIL.ImageOps.fit does "
    "(with the filter resampling; each row first, rounded to 8 bits, then each column)",
    "divided by 255, minus mean, divided by std, a channel each",
    "where image_size is not null: resized to it × it with interpolation (of float values; "
    "antialias but for "
    "nearest)",
]


def _write_safetensors(file: Path, folder: StoragePath, classifier: Classifier) -> dict[str, Any]:
    """The weights as they were delivered; export.json says how to make the network and how to
    prepare images.
    """
    card = classifier.card
    with local_copy(folder / WEIGHTS) as weights:
        put_file(weights, file)
    # A call that a program without raysft can make itself, of torchvision or timm.
    call, arguments = network_call(card.architecture, len(card.classes), card.image_size)
    size = (card.image_size,) * 2 if card.image_size else (card.height, card.width)
    return {
        "network": {"call": call, "arguments": arguments},
        "preparation_steps": _STEPS,
        "input": {"type": "float32", "shape": ["n", 3, *size]},
        "output": {
            "meaning": "logits: softmax makes probabilities of them",
            "type": "float32",
            "shape": ["n", len(card.classes)],
        },
        "versions": _versions("safetensors"),
    }


def _open_safetensors(file: Path, record: dict[str, Any]) -> Runtime:
    """The network made from what export.json says alone, as a program without raysft would make
    it.
    """
    from safetensors.torch import load_file

    module, _, name = record["network"]["call"].rpartition(".")
    net = getattr(importlib.import_module(module), name)(**record["network"]["arguments"])
    net.load_state_dict(load_file(file))
    # Else batch normalization takes the statistics of the batch it is given.
    net.eval()
    how = record["preparation"]
    prepare = Preparer(
        Preparation(tuple(how["mean"]), tuple(how["std"]), how["image_size"], how["interpolation"])
    )

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        size = how["height"], how["width"]
        # Pillow's resizing, as the steps in export.json say: torch's gives other pixels.
        fitted = np.stack(
            [fit(Image.fromarray(image), *size, how["resampling"]) for image in images]
        )
        logits: torch.Tensor = net(prepare(torch.from_numpy(fitted)))
        return logits.softmax(dim=1).numpy()

    return run


def _write_torch_export(file: Path, folder: StoragePath, classifier: Classifier) -> dict[str, Any]:
    classes = json.dumps(classifier.card.classes)
    torch.export.save(
        _program(classifier, "torch-export"), file, extra_files={"classes.json": classes}
    )
    return _whole(classifier.card) | {"versions": _versions()}


def _open_torch_export(file: Path, record: dict[str, Any]) -> Runtime:
    program = torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        probabilities: torch.Tensor = program(torch.from_numpy(images))
        return probabilities.numpy()

    return run


def _write_onnx(file: Path, folder: StoragePath, classifier: Classifier) -> dict[str, Any]:
    program = _program(classifier, "onnx")
    with _exporting(classifier.card, "onnx"):
        made: Any = torch.onnx.export(
            program,
            (),
            input_names=[IMAGES],
            output_names=[PROBABILITIES],
            dynamo=True,
            dynamic_shapes=(dict(enumerate(_SIDES)),),
            verbose=False,
        )
        made.model.metadata_props["classes"] = json.dumps(classifier.card.classes)
        # Weights of more than 2 GB, which protobuf cannot hold, go to a file beside it.
        made.save(file)
    return _whole(classifier.card) | {
        "opset": made.model.opset_imports[""],
        "versions": _versions("onnx", "onnxscript", "onnxruntime"),
    }


def _open_onnx(file: Path, record: dict[str, Any]) -> Runtime:
    import onnxruntime

    # On the CPU as the model beside it: a GPU adds up in another order.
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = session.run([PROBABILITIES], {IMAGES: images})[0]
        return probabilities

    return run


FORMATS = {
    "safetensors": Format(WEIGHTS, _write_safetensors, _open_safetensors),
    "torch-export": Format("model.pt2", _write_torch_export, _open_torch_export),
    "onnx": Format("model.onnx", _write_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


def _program(classifier: Classifier, name: str) -> torch.export.ExportedProgram:
    """Preparation, network and softmax in one graph for any number of images of any one size."""
    card = classifier.card
    sizes = {axis: torch.export.Dim(word) for axis, word in enumerate(_SIDES)}
    # Two images, as an axis of one becomes a constant, and of no size that the model has.
    example = torch.zeros(2, card.height + 3, card.width + 5, 3, dtype=torch.uint8)
    with _exporting(card, name), torch.no_grad():
        return torch.export.export(
            WholeModel(classifier.net, card).eval(), (example,), dynamic_shapes=(sizes,)
        )


@contextmanager
def _exporting(card: ModelCard, name: str) -> Iterator[None]:
    """Raise ModelError for a network that a library cannot export, and keep to itself what else it
    says.
    """
    try:
        with warnings.catch_warnings():
            # Tracers warn of their own deprecations, of which a person can change nothing.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # whatever a network does that cannot be traced or translated
        raise ModelError(
            card.architecture,
            f"cannot be exported as {name} ({describe_error(error)})",
            "give another --format",
        ) from error


@contextmanager
def _running(name: str) -> Iterator[None]:
    """Raise RunError where the runtime of an export cannot run it."""
    try:
        yield
    except Exception as error:  # each runtime has a tree of errors of its own
        raise RunError(
            f"--format {name}",
            f"its own runtime cannot run the export ({describe_error(error)})",
            "give another --format",
        ) from error


def _whole(card: ModelCard) -> dict[str, Any]:
    return {
        "input": {
            "name": IMAGES,
            "meaning": f"any number, height and width; {_PIXELS}",
            "type": "uint8",
            "shape": [*_SIDES, 3],
        },
        "output": {"name": PROBABILITIES, "type": "float32", "shape": ["n", len(card.classes)]},
        "preparation_steps": ["in the graph"],
    }


def _versions(*libraries: str) -> dict[str, str]:
    return versions() | {name: metadata.version(name) for name in libraries}


# --- the comparison ----------------------------------------------------------------------------


class _Comparison:
    """An export beside its model: counts of right answers, and by how much probabilities differ."""

    def __init__(self, name: str, run: Runtime, classifier: Classifier) -> None:
        self.name, self.run, self.classifier = name, run, classifier
        self.images = self.right = self.model_right = self.undecided = self.wrongly = 0
        self.difference, self.seconds = 0.0, 0.0

    def add(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Score a batch (n, height, width, 3) uint8 with labels (n,) both ways."""
        begun = time.perf_counter()
        # The export's time alone: the model beside it would double what is told.
        theirs = self._answer(images)
        self.seconds += time.perf_counter() - begun
        ours = self._compared(images, theirs)
        right, model_right = theirs.argmax(1) == labels, ours.argmax(1) == labels
        best = np.sort(ours, axis=1)
        # Where two classes are as good as equal either answer is right.
        decided = best[:, -1] - best[:, -2] >= UNDECIDED
        self.images += len(images)
        self.right += int(right.sum())
        self.model_right += int(model_right.sum())
        self.undecided += int((~decided).sum())
        self.wrongly += int((decided & (right != model_right)).sum())

    def add_other_sizes(self, images: np.ndarray) -> None:
        """Compare some images also larger, wider and smaller than they are, one at a time."""
        height, width = images.shape[1:3]
        # Odd sides and another aspect, where the centre lies between two pixels.
        for size in ((2 * width + 1, height + 3), (width // 2 + 1, height // 2 + 1)):
            for image in images[:OTHER_SIZES]:
                stretched = np.asarray(Image.fromarray(image).resize(size))[None].copy()
                self._compared(stretched, self._answer(stretched))

    def _answer(self, images: np.ndarray) -> np.ndarray:
        with _running(self.name):
            return self.run(images)

    def _compared(self, images: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """The model's probabilities, once they are compared with the export's."""
        ours = self.classifier.image_probabilities(map(Image.fromarray, images))
        if theirs.shape != ours.shape:
            raise RunError(
                f"--format {self.name}", f"gives {theirs.shape} where the model gives {ours.shape}"
            )
        # np.maximum keeps what is not a number; max would drop it, and call the export alike.
        self.difference = float(np.maximum(self.difference, np.abs(theirs - ours).max()))
        return ours

    @property
    def alike(self) -> bool:
        """Whether the export may be handed out."""
        # Not by accuracies: both may be wrong equally often, about other images.
        return self.difference <= TOLERANCE and not self.wrongly

    def document(self) -> dict[str, Any]:
        """What export.json says of the comparison."""
        return {
            "images": self.images,
            "accuracy": self.right / self.images,
            "model_accuracy": self.model_right / self.images,
            "undecided": self.undecided,
            "largest_difference": self.difference,
            "tolerance": TOLERANCE,
            "seconds": round(self.seconds, 3),
        }

    def words(self) -> str:
        """Accuracies and differences in words."""
        return (
            f"accuracy {self.right / self.images:.4f}, the model's "
            f"{self.model_right / self.images:.4f}; "
            f"probabilities differ by up to {self.difference:.2g}, {TOLERANCE:g} is allowed"
        )


def _batches(data: StoragePath, card: ModelCard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (n, height, width, 3) uint8 as they are stored, labels (n,)): neighbours of one size
    in one batch.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    for image, label in labelled_images(data, SPLIT, card):
        pixels = np.asarray(image)
        # By the stored size as well: a batch of large photos would not fit into the memory.
        most = min(batch_size_for(card), scoring_batch_size(*pixels.shape[:2]))
        # An array has one shape, so images of mixed sizes come in smaller batches.
        if images and (images[0].shape != pixels.shape or len(images) == most):
            yield np.stack(images), np.array(labels)
            images, labels = [], []
        images.append(pixels)
        labels.append(label)
    if images:
        yield np.stack(images), np.array(labels)
