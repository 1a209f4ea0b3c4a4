"""The model card: README.md of a delivered model, filled from what its run knows, for people and
for model hubs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from raysft.data.decoding import Decoding, describe_ranges, hex_colour
from raysft.job import Job
from raysft.job.recipe import Augment, Schedule, Train
from raysft.job.space import TrialSettings, trial_settings
from raysft.records.documents import Confirmation, LoadedWeights, TrialRow
from raysft.results.model import ModelCard
from raysft.train.architecture import TIMM, foreign_module, is_torchvision, network_call

CLASSES_SHOWN = 100
FEWEST_SHOWN = 3
_Z95 = 1.959963984540054  # the standard normal distribution has 95 % within this

# What model hubs call a metric and a data set; everything else goes by its own name.
_HUB_METRICS = {"macro_f1": "f1"}
_HUB_DATASETS = {"cifar10": "uoft-cs/cifar10"}
_DATA_NAMES = {"cifar10": "CIFAR-10", "digits": "scikit-learn's digits"}


@dataclass(frozen=True)
class ModelFacts:
    """What a run knows of its model beyond the model's own card."""

    job: Job
    metric: str
    """What picked the trial and its epoch."""
    rows: Mapping[str, int]
    """Images of train, val and test."""
    class_rows: Sequence[int]
    """Training images of each class."""
    skipped: int
    """Unreadable images that were left out."""
    trials: Sequence[TrialRow]
    """As in results.json."""
    weights: LoadedWeights | None = None
    """Which tensors of the network came from pretrained weights, as in run.json."""
    confirmed: Confirmation | None = None
    """The metric over repeats with other seeds, as in results.json."""
    recall: Mapping[str, float] | None = None
    """Share of the test images of each class that were classified right."""
    notes: Sequence[str] = ()
    """How the folders of images were read, and which files were left out."""
    doubts: Sequence[str] = ()
    """What speaks against the result, as in results.json."""


def model_readme(card: ModelCard, known: ModelFacts) -> str:
    """Front matter (YAML) and Markdown. A fact that is not known is left out."""
    recipe = trial_settings(known.job, card.provenance["config"])
    return "\n".join(
        [
            "---",
            yaml.safe_dump(
                _front_matter(card, known), sort_keys=False, allow_unicode=True
            ).rstrip(),
            "---",
            "",
            f"# {_text(card.architecture)} for {len(card.classes)} classes",
            "",
            *_summary(card, known, recipe),
            "",
            "## Use",
            "",
            *_use(card),
            "",
            "## Metrics",
            "",
            *_metrics(card, known),
            "",
            "## Data",
            "",
            *_data(card, known),
            "",
            "## Training",
            "",
            *_training(card, known, recipe),
            "",
            "## Limits",
            "",
            *_limits(card, known),
            "",
            "## Provenance",
            "",
            *_provenance(card),
            "",
        ]
    )


# --- for hubs ----------------------------------------------------------------------------------


def _front_matter(card: ModelCard, known: ModelFacts) -> dict[str, Any]:
    """Metadata as the Hugging Face hub reads it (its specification of model cards, `model-index`
    included).
    """
    found = [
        {"type": _HUB_METRICS.get(name, name), "value": value, "name": f"test {_words(name)}"}
        for name, value in _scores(card, "test").items()
    ]
    source = known.job.data.source
    library = (
        ["timm"]
        if card.architecture.startswith(TIMM)
        else ["torchvision"]
        if is_torchvision(card.architecture)
        else []
    )
    tags = ["image-classification", "pytorch", *library, _plain(card.architecture)]
    matter: dict[str, Any] = {
        "library_name": "raysft",
        "pipeline_tag": "image-classification",
        "tags": tags,
    }
    if source in _HUB_DATASETS:
        matter["datasets"] = [_HUB_DATASETS[source]]
    results = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "name": _plain(_data_name(known.job)),
            "type": _HUB_DATASETS.get(source, source),
            "split": "test",
        },
        "metrics": found,
    }
    return matter | {
        "metrics": list(dict.fromkeys(m["type"] for m in found)),
        "model-index": [{"name": _plain(card.provenance["run"]), "results": [results]}],
    }


def _scores(card: ModelCard, split: str) -> dict[str, float]:
    """The metrics on a split by their names; what is not a number says nothing."""
    return {
        key.removeprefix(f"{split}_"): value
        for key, value in card.scores.items()
        if key.startswith(f"{split}_") and math.isfinite(value)
    }


def _data_name(job: Job) -> str:
    return _DATA_NAMES.get(job.data.source) or _last_part(job.data.path or job.data.source)


# --- for people --------------------------------------------------------------------------------


def _summary(card: ModelCard, known: ModelFacts, recipe: TrialSettings) -> list[str]:
    started = (
        "trained from scratch"
        if recipe.model.weights == "none"
        else "fine-tuned from pretrained weights"
    )
    return [
        f"An image classifier, {_code(card.architecture)}, {started} on "
        f"{_text(_data_name(known.job))} with "
        f"raysft. It tells {len(card.classes)} classes apart; `model.json` names them in the "
        "order of the outputs."
    ]


def _use(card: ModelCard) -> list[str]:
    module = foreign_module(card.architecture)
    flag = "" if module is None else " --trust-code"
    lines = ["With raysft, in this folder:", "", f"    raysft predict{flag} . IMAGE..."]
    if module is not None:
        lines += [
            "",
            f"The network is made by {_code(card.architecture)}. The module {_code(module)} is "
            "not part of "
            "this folder and has to be importable where the model is used; `--trust-code` says "
            "that its code may "
            "run.",
        ]
    if is_torchvision(card.architecture):
        lines += [
            "",
            "With torch and torchvision alone, in this folder:",
            "",
            "```python",
            *_snippet(card),
            "```",
            "",
            *_of_pixels(card.decoding),
        ]
    return lines


def _of_pixels(how: Decoding) -> list[str]:
    """What a program has to do to images that are not opaque RGB of 8 bits before it hands them
    on.
    """
    behind = (
        f"Transparent pixels go over {hex_colour(how.background)}. "
        if how.background is not None
        else ""
    )
    ranges = (
        f"More than 8 bits have to be scaled first: {'; '.join(describe_ranges(how))}."
        if how.ranges
        else ""
    )
    return [
        "This program is for opaque images in sRGB with 8 bits a channel. "
        f"{behind}{ranges}".rstrip()
    ]


def _snippet(card: ModelCard) -> list[str]:
    """A program that prints the class of image.jpg and its probability; it needs neither raysft nor
    Ray.
    """
    call, arguments = network_call(card.architecture, len(card.classes), card.image_size)
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    resized = []
    if card.image_size is not None and (card.image_size, card.image_size) != (
        card.height,
        card.width,
    ):
        how = "" if card.interpolation == "nearest" else ", antialias=True"
        resized = [
            f"pixels = torch.nn.functional.interpolate(pixels, size={card.image_size}, "
            f'mode="{card.interpolation}"{how})'
        ]
    return [
        "import json",
        "",
        "import numpy as np",
        "import torch",
        "import torchvision",
        "from PIL import Image, ImageOps",
        "from safetensors.torch import load_file",
        "",
        f"net = {call}({given})",
        'net.load_state_dict(load_file("model.safetensors"))',
        "net.eval()",
        "",
        'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")',
        f"image = ImageOps.fit(image, ({card.width}, {card.height}), "
        f"Image.Resampling.{card.resampling.upper()})",
        "pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255",
        f"mean, std = torch.tensor({list(card.mean)}), torch.tensor({list(card.std)})",
        "pixels = (pixels - mean[:, None, None]) / std[:, None, None]",
        *resized,
        "with torch.inference_mode():",
        "    probability, label = net(pixels).softmax(1)[0].max(0)",
        'print(json.load(open("model.json"))["classes"][label], float(probability))',
    ]


def _metrics(card: ModelCard, known: ModelFacts) -> list[str]:
    val, test = _scores(card, "val"), _scores(card, "test")
    rows = [
        (_words(name), *(f"{found[name]:.4f}" if name in found else "" for found in (val, test)))
        for name in dict.fromkeys([*val, *test])
    ]
    return [
        *_table(("metric", "validation", "test"), rows),
        "",
        f"`{known.metric}` on the validation images picked the model; the test images were "
        "scored once.",
        *(line for doubt in known.doubts for line in ("", f"**Doubtful: {_text(doubt)}.**")),
    ]


def _data(card: ModelCard, known: ModelFacts) -> list[str]:
    splits = [
        (name, f"{known.rows[key]:,}")
        for key, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        if key in known.rows
    ]
    lines = [
        f"{_text(_data_name(known.job))} (source: {known.job.data.source}).",
        "",
        *_table(("split", "images"), splits),
        "",
    ]
    if known.skipped:
        lines += [f"{known.skipped:,} unreadable images were left out.", ""]
    if known.notes:
        lines += [*(f"- {_text(note)}" for note in known.notes), ""]
    size = f"{card.height} × {card.width}"
    lines += [
        f"Images are scaled to cover {size} pixels (height × width) and cropped around their "
        "centre, "
        f"normalised with mean {_numbers(card.mean)} and standard deviation {_numbers(card.std)} "
        "of values from "
        f"0 to 1{_seen(card)}.",
        "",
    ]
    shown = list(zip(card.classes, known.class_rows, strict=True))[:CLASSES_SHOWN]
    lines += _table(
        ("class", "training images"), [(_text(name), f"{rows:,}") for name, rows in shown]
    )
    if len(card.classes) > CLASSES_SHOWN:
        lines += ["", f"{len(card.classes) - CLASSES_SHOWN:,} more classes are in `model.json`."]
    return [*lines, "", f"SHA-256 of the data set: `{card.provenance['data']}`."]


def _seen(card: ModelCard) -> str:
    if card.image_size is None or (card.image_size, card.image_size) == (card.height, card.width):
        return ""
    return f", then resized to {card.image_size} × {card.image_size} ({card.interpolation})"


def _training(card: ModelCard, known: ModelFacts, recipe: TrialSettings) -> list[str]:
    train, given = recipe.train, known.job.resources
    least = f"{given.least_workers} to " if given.elastic else ""
    lines = [
        f"- Weights: {_weights(recipe, known.weights)}",
        f"- Optimizer: {train.optimizer.name}, {_settings(train.optimizer.arguments)}",
        f"- Learning rate: {_schedule(train.schedule)}",
        f"- Epochs: {train.epochs} at most; delivered is epoch {card.provenance['epoch']}",
        f"- Batch: {train.batch_size} images a step, over {least}"
        f"{given.most_workers} worker{'s' if given.most_workers > 1 else ''}",
        f"- Augmentation: {_augmentation(train.augment)}",
    ]
    if rest := _rest(train):
        lines.append(f"- Besides: {rest}")
    return [*lines, f"- {_search(card, known)}"]


def _weights(recipe: TrialSettings, told: LoadedWeights | None) -> str:
    if recipe.model.weights == "none":
        return "drawn at random"
    of = f" of {told['total']}" if told is not None and "total" in told else ""
    loaded = (
        f" ({told['loaded']}{of} tensors loaded, {len(told['new'])} new)"
        if told is not None
        else ""
    )
    return f"{_text(_last_part(recipe.model.weights))}{loaded}"


def _schedule(schedule: Schedule) -> str:
    own = {
        "cosine": ("warmup_epochs", "floor"),
        "linear": ("warmup_epochs", "floor"),
        "constant": ("warmup_epochs",),
        "step": ("warmup_epochs", "step_epochs", "step_factor"),
        "one_cycle": ("rise",),
    }[schedule.name]
    settings = _settings({name: value for name in own if (value := getattr(schedule, name))})
    return f"{schedule.name}{f', {settings}' if settings else ''}"


def _augmentation(augment: Augment) -> str:
    return _settings(augment.active) or "none"


def _rest(train: Train) -> str:
    """What of a recipe is not told elsewhere and is not as usual."""
    told = {
        "optimizer",
        "schedule",
        "augment",
        "epochs",
        "batch_size",
        "checkpoint_every",
        "channels_last",
    }
    usual = Train()
    return _settings(
        {name: value for name, value in train if name not in told and value != getattr(usual, name)}
    )


def _search(card: ModelCard, known: ModelFacts) -> str:
    trial, search = _text(card.provenance["trial"]), known.job.search
    if search is None:
        return f"One trial, no search; `{known.metric}` picked its epoch"
    ended = ", ".join(
        f"{count} {status}" for status, count in Counter(t["status"] for t in known.trials).items()
    )
    early = (
        f", {search.scheduler.name} could end them early" if search.scheduler.name != "none" else ""
    )
    again = ""
    if known.confirmed is not None:
        again = (
            f"; over {len(known.confirmed['seeds'])} seeds its `{known.confirmed['metric']}` is "
            f"{known.confirmed['mean']:.4f} ± {known.confirmed['std']:.4f}"
        )
    return (
        f"Search: {len(known.trials)} trials, {search.algorithm}{early} ({ended}); "
        f"`{known.metric}` picked trial "
        f"{trial}{again}"
    )


def _limits(card: ModelCard, known: ModelFacts) -> list[str]:
    lines = []
    accuracy, images = card.scores.get("test_accuracy"), known.rows.get("test")
    if accuracy is not None and images:
        low, high = wilson_interval(round(accuracy * images), images)
        lines.append(
            f"- The test accuracy is that of {images:,} images. Were they drawn at random from "
            "what the model "
            f"will see, its accuracy there would lie between {low:.4f} and {high:.4f} (95 % "
            "confidence, "
            "Wilson's score interval: E. B. Wilson, J. Am. Stat. Assoc. 22, 209-212, 1927)."
        )
    counted = sorted(zip(known.class_rows, card.classes, strict=True))
    if fewest := [(rows, name) for rows, name in counted if rows < counted[-1][0]][:FEWEST_SHOWN]:
        named = ", ".join(f"{_text(name)} ({rows:,})" for rows, name in fewest)
        lines.append(f"- The classes with the fewest training images: {named}.")
    if known.recall:
        recall, name = min((share, name) for name, share in known.recall.items())
        lines.append(
            f"- The class with the lowest recall on the test images: {_text(name)} ({recall:.4f})."
        )
    return [
        *lines,
        "- It was not tested on any other data.",
        "- Whatever an image shows, one of the classes above is the answer.",
    ]


def _provenance(card: ModelCard) -> list[str]:
    known = card.provenance
    lines = [
        f"- Run {_code(known['run'])}, trial {_code(known['trial'])}, epoch {known['epoch']}, "
        f"seed {known['seed']}"
    ]
    if known.get("git"):
        lines.append(f"- Git revision of the working folder: {_code(known['git'])}")
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return [
        *lines,
        f"- Versions: {_text(versions)}",
        "- The whole job, the configuration of the trial and the checksum of the weights are in "
        "`model.json`",
    ]


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of which `right` of `images` were seen (Wilson's
    score interval).
    """
    share, z2 = right / images, _Z95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    reach = (
        _Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    )
    return max(0.0, middle - reach), min(1.0, middle + reach)


# --- text --------------------------------------------------------------------------------------

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$!:@])")


def _plain(value: object) -> str:
    """One line of characters that can be seen and written: names of folders may hold anything."""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(value: object) -> str:
    """Plain text in Markdown, whatever it holds; also in a table."""
    return _MARKS.sub(r"\\\1", _plain(value))


def _code(value: object) -> str:
    """Code in Markdown, whatever it holds; not for tables, where a bar would end the cell."""
    text = _plain(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; cells are Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(
        _words(name) if value is True else f"{_words(name)} {_value(value)}"
        for name, value in values.items()
    )


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _words(name: str) -> str:
    return {"lr": "highest rate"}.get(name, name.replace("_", " "))


def _last_part(where: str) -> str:
    """The name at the end of a path or address: what is before it is nobody else's business."""
    return PurePosixPath(urlsplit(where).path).name or "without a name"
