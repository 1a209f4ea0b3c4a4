"""A delivered model on single images and on whole data sets, in this process."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image

from raysft.data.decoding import find_conflict
from raysft.data.folders import Folders, describe_files
from raysft.data.images import Decoded, decode, decode_stored, describe_quirks, fit
from raysft.data.pixels import Preparer, scoring_batch_size
from raysft.data.shards import (
    MANIFEST,
    ImageSpec,
    Manifest,
    iter_tables,
    read_manifest,
    unpack_rows,
    verify_checksums,
)
from raysft.errors import DataError
from raysft.results.document import ClassFigures
from raysft.results.image_files import GivenImage
from raysft.results.model import ModelCard, load_model
from raysft.results.ranking import TOP, Failed, Prediction, Ranking
from raysft.storage import StoragePath
from raysft.train.metrics import MetricSums, SplitMetrics


class ClassScores(TypedDict):
    """Scores of every class, and images of a class (row) by what they were taken for (column)."""

    classes: list[ClassFigures]
    confusion: list[list[int]]


class Evaluation(SplitMetrics, ClassScores):
    """What `raysft evaluate` says of a model and labelled images."""

    images: int
    notes: list[str]
    """What was left out of a folder, what was special about pixels."""


class Classifier:
    """A delivered model, ready to classify."""

    def __init__(
        self, folder: StoragePath, device: torch.device | str = "cpu", trust_code: bool = False
    ) -> None:
        """trust_code: as for `raysft.results.model.load_model`."""
        net, self.card = load_model(folder, trust_code)
        self.net = net.to(device)
        self._device = device
        self._prepare = Preparer(self.card.preparation, device)

    @torch.inference_mode()
    def logits(self, images: np.ndarray) -> torch.Tensor:
        """(n, classes) float32 on the CPU for (n, height, width, 3) uint8 of the card's size."""
        # As uint8 to the device, a quarter of the bytes; they are prepared there, as in training.
        batch = self._prepare(torch.from_numpy(images).to(self._device))
        outputs: torch.Tensor = self.net(batch)
        return outputs.cpu()

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(n, classes) float32 probabilities, as for `logits`."""
        return torch.softmax(self.logits(images), dim=1).numpy()

    def rank(self, images: np.ndarray, top: int = TOP) -> list[Ranking]:
        """The `top` most likely classes of each of (n, height, width, 3) uint8 images of the card's
        size.
        """
        classes = self.card.classes
        probabilities = torch.softmax(self.logits(images), dim=1)
        best = probabilities.topk(min(top, len(classes)), dim=1)
        rankings: list[Ranking] = []
        for of_image, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            names = [classes[number] for number in numbers]
            rankings.append(tuple(zip(names, of_image, strict=True)))
        return rankings

    def image_probabilities(self, images: Iterable[Image.Image]) -> np.ndarray:
        """(n, classes) float32 for n images of any size."""
        # One image at a time is held as it came: photos are much larger than what a network sees.
        batch = np.stack([fitted(image, self.card) for image in images])
        return self.probabilities(batch)

    def predict(self, paths: Sequence[str]) -> list[Prediction]:
        """The most likely classes of image files; raises DataError for one that cannot be read."""
        found: list[Prediction] = []
        for answer in self.answers(GivenImage(path, Path(path)) for path in paths):
            if isinstance(answer, Failed):
                raise answer.error
            found.append(answer)
        return found

    def answers(self, images: Iterable[GivenImage]) -> Iterator[Prediction | Failed]:
        """The most likely classes of each image, in their order, or why there are none; a batch is
        held at a time.
        """
        waiting = iter(images)
        while part := list(itertools.islice(waiting, batch_size_for(self.card))):
            decoded = [self._decoded(each) for each in part]
            good = [image[0] for image in decoded if not isinstance(image, DataError)]
            rankings = iter(self.rank(np.stack(good)) if good else ())
            for each, image in zip(part, decoded, strict=True):
                # An image that cannot be read keeps its place, and the others their answers.
                if isinstance(image, DataError):
                    yield Failed(each.name, image)
                else:
                    yield Prediction(each.name, next(rankings), image[1])

    def _decoded(self, image: GivenImage) -> tuple[np.ndarray, tuple[str, ...]] | DataError:
        """(height, width, 3) uint8 of the card's size, and what was noted."""
        try:
            decoded = image.decode(self.card.decoding)
            return fitted(decoded.image, self.card), decoded.quirks
        except DataError as error:
            return error

    def evaluate(self, data: StoragePath, split: str) -> Evaluation:
        """Metrics on a split of a data set, or on a folder with one folder of images a class."""
        # Summed on the CPU, batch by batch, as in training: the same images, the same figures.
        sums = MetricSums(len(self.card.classes), torch.device("cpu"))
        predicted: list[np.ndarray] = []
        actual: list[np.ndarray] = []
        special: Counter[str] = Counter()
        for images, labels in labelled_batches(data, split, self.card, special):
            outputs = self.logits(images)
            sums.add(outputs, torch.from_numpy(labels))
            predicted.append(outputs.argmax(1).numpy())
            actual.append(labels)
        quirks = describe_quirks(special, self.card.decoding)
        scores = score_by_class(
            np.concatenate(actual), np.concatenate(predicted), self.card.classes
        )
        return {
            "images": sum(map(len, actual)),
            "notes": [*describe_folder(data, split, self.card), *quirks],
            **sums.metrics(),
            **scores,
        }


def score_by_class(
    actual: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> ClassScores:
    """scikit-learn's precision, recall, F1 and support of every class, and the confusion matrix."""
    # Slow to import, and single images are predicted without it.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    # All classes of the model, also those without an image, so that rows are where names are.
    numbers = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        actual, predicted, labels=numbers, zero_division=0.0
    )
    rows: list[ClassFigures] = []
    for i, name in enumerate(classes):
        rows.append(
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
        )
    matrix = confusion_matrix(actual, predicted, labels=numbers)
    return {"classes": rows, "confusion": matrix.tolist()}


def fitted(image: Image.Image, card: ModelCard) -> np.ndarray:
    """(height, width, 3) uint8 of the card's size, scaled as in training."""
    return fit(image, card.height, card.width, card.resampling)


def batch_size_for(card: ModelCard) -> int:
    """How many images of a model's size go through it at once."""
    return scoring_batch_size(card.height, card.width, card.image_size or 0)


def labelled_batches(
    data: StoragePath, split: str, card: ModelCard, special: Counter[str] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (n, height, width, 3) uint8, labels (n,) int64) with the labels of the model's
    classes.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    for image, label in labelled_images(data, split, card, special):
        images.append(fitted(image, card))
        labels.append(label)
        if len(images) == batch_size_for(card):
            yield np.stack(images), np.array(labels)
            images, labels = [], []
    if images:
        yield np.stack(images), np.array(labels)


def labelled_images(
    data: StoragePath, split: str, card: ModelCard, special: Counter[str] | None = None
) -> Iterator[tuple[Image.Image, int]]:
    """Images as they are stored, decoded, with the labels of the model's classes.

    data: a data set with that split, or a folder with one folder of images a class. special: counts
    what was special about pixels. Raises DataError for a class that the model does not have.
    """
    # A data set numbers its classes for itself: names, and not numbers, say what is meant.
    numbers = {unicodedata.normalize("NFC", name): i for i, name in enumerate(card.classes)}
    for image, stored_name in _named_images(data, split, card):
        # Older data sets have names as the disk had them: é as one character, or as e and accent.
        name = unicodedata.normalize("NFC", stored_name)
        if name not in numbers:
            raise DataError(
                str(data),
                f"has the class {name}, which the model does not know",
                f"it knows {', '.join(card.classes)}",
            )
        if special is not None:
            special.update(image.quirks)
        yield image.image, numbers[name]


def _named_images(data: StoragePath, split: str, card: ModelCard) -> Iterator[tuple[Decoded, str]]:
    """Images with the names of their classes."""
    if (data / MANIFEST).is_file():
        yield from _shard_images(data, split, card)
        return
    folders = _folders(data, split, card)
    for file, label in folders.test:
        yield decode(Path(file), file, card.decoding), folders.classes[label]


def count_images(data: StoragePath, split: str, card: ModelCard) -> int:
    """How many images `labelled_images` gives; raises DataError."""
    if (data / MANIFEST).is_file():
        return _manifest_with(data, split).splits[split].rows
    return len(_folders(data, split, card).test)


def describe_folder(data: StoragePath, split: str, card: ModelCard) -> list[str]:
    """How a folder of labelled images was read, what was left out; nothing of a data set, whose
    manifest says it.
    """
    if (data / MANIFEST).is_file():
        return []
    # Evaluating on fewer images than a person believes would be a wrong result.
    folders = _folders(data, split, card)
    return [*folders.notes, *describe_files(folders.counts)]


def _folders(data: StoragePath, split: str, card: ModelCard) -> Folders:
    return Folders.find_labelled(Path(str(data)), split, card.classes)


def _manifest_with(data: StoragePath, split: str) -> Manifest:
    manifest = read_manifest(data)
    # A data set may have been imported without a validation split.
    if split not in manifest.splits:
        raise DataError(str(data), f"has no split {split}", f"it has {', '.join(manifest.splits)}")
    return manifest


def check_stored(spec: ImageSpec, card: ModelCard, where: str) -> None:
    """Raise DataError where images are stored with other black and white values than the model was
    trained with.
    """
    # Of stored files nothing is decided yet; raw pixels were scaled when they were imported.
    if spec.encoding != "raw":
        return
    conflict = find_conflict(spec.decoding, card.decoding)
    if conflict is not None:
        raise DataError(
            where,
            f"holds images that were scaled in another way than those of the model: {conflict}",
            "give the folder of the original images",
        )


def _shard_images(data: StoragePath, split: str, card: ModelCard) -> Iterator[tuple[Decoded, str]]:
    manifest = _manifest_with(data, split)
    verify_checksums(data, manifest)
    check_stored(manifest.image, card, str(data))
    for table in iter_tables(data, manifest.splits[split]):
        ids, images, labels = unpack_rows(table, manifest.image)
        for row, image, label in zip(ids, images, labels, strict=True):
            yield decode_stored(image, f"row {row}", card.decoding), manifest.classes[label]
