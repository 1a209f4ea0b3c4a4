"""README.md of a delivered model, filled from what its run knows, for people and model hubs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypedDict
from urllib.parse import urlsplit

import yaml

from raysft.data.decoding import Decoding, describe_ranges, hex_colour
from raysft.job import Job
from raysft.job.recipe import Augment, Schedule, Train
from raysft.job.scheduler import Scheduler
from raysft.job.space import TrialSettings, trial_settings
from raysft.records.documents import Confirmation, LoadedWeights, TrialRow
from raysft.results import markdown
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


def model_readme(card: ModelCard, facts: ModelFacts) -> str:
    """Front matter (YAML) and Markdown. A fact that is not known is left out."""
    recipe = trial_settings(facts.job, card.provenance["config"])
    # Hubs read the metadata between two lines of ---, before all Markdown.
    front_matter = yaml.safe_dump(_front_matter(card, facts), sort_keys=False, allow_unicode=True)
    lines = ["---", front_matter.rstrip(), "---", ""]
    lines += [f"# {markdown.text(card.architecture)} for {len(card.classes)} classes", ""]
    lines += [*_summary(card, facts, recipe), ""]
    sections = {
        "Use": _use(card),
        "Metrics": _metrics(card, facts),
        "Data": _data(card, facts),
        "Training": _training(card, facts, recipe),
        "Limits": _limits(card, facts),
        "Provenance": _provenance(card),
    }
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


# --- for hubs ----------------------------------------------------------------------------------


class HubMetric(TypedDict):
    """A metric as the hub reads it."""

    type: str
    value: float
    name: str


def _front_matter(card: ModelCard, facts: ModelFacts) -> dict[str, object]:
    """Metadata as the Hugging Face hub reads it (its specification of model cards, `model-index`
    included).
    """
    found: list[HubMetric] = []
    for name, value in _scores(card, "test").items():
        kind = _HUB_METRICS.get(name, name)
        found.append({"type": kind, "value": value, "name": f"test {markdown.words(name)}"})
    source = facts.job.data.source
    matter: dict[str, object] = {
        "library_name": "raysft",
        "pipeline_tag": "image-classification",
        "tags": _tags(card),
    }
    # The hub links `datasets`: a name of ours would be a dead link.
    if source in _HUB_DATASETS:
        matter["datasets"] = [_HUB_DATASETS[source]]
    # Two of our metrics may be the same one to the hub, which wants each once.
    matter["metrics"] = list(dict.fromkeys(metric["type"] for metric in found))
    results = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "name": markdown.plain(_data_name(facts.job)),
            "type": _HUB_DATASETS.get(source, source),
            "split": "test",
        },
        "metrics": found,
    }
    run = markdown.plain(card.provenance["run"])
    matter["model-index"] = [{"name": run, "results": [results]}]
    return matter


def _tags(card: ModelCard) -> list[str]:
    tags = ["image-classification", "pytorch"]
    if card.architecture.startswith(TIMM):
        tags.append("timm")
    elif is_torchvision(card.architecture):
        tags.append("torchvision")
    return [*tags, markdown.plain(card.architecture)]


def _scores(card: ModelCard, split: str) -> dict[str, float]:
    """The metrics on a split by their names."""
    found = {}
    for key, value in card.scores.items():
        # What is not a number says nothing, and neither YAML nor the hub reads it.
        if key.startswith(f"{split}_") and math.isfinite(value):
            found[key.removeprefix(f"{split}_")] = value
    return found


def _data_name(job: Job) -> str:
    # A data set that everybody knows has a name; of a person's own the folder says more.
    known = _DATA_NAMES.get(job.data.source)
    if known is not None:
        return known
    return _last_part(job.data.path or job.data.source)


# --- for people --------------------------------------------------------------------------------


def _summary(card: ModelCard, facts: ModelFacts, recipe: TrialSettings) -> list[str]:
    started = "fine-tuned from pretrained weights"
    if recipe.model.weights == "none":
        started = "trained from scratch"
    network, data = markdown.code(card.architecture), markdown.text(_data_name(facts.job))
    return [
        f"An image classifier, {network}, {started} on {data} with raysft. "
        f"It tells {len(card.classes)} classes apart; `model.json` names them in the order of the "
        "outputs."
    ]


def _use(card: ModelCard) -> list[str]:
    module = foreign_module(card.architecture)
    flag = "" if module is None else " --trust-code"
    lines = ["With raysft, in this folder:", "", f"    raysft predict{flag} . IMAGE..."]
    if module is not None:
        maker, code = markdown.code(card.architecture), markdown.code(module)
        lines += [
            "",
            f"The network is made by {maker}. The module {code} is not part of this folder and has "
            "to be importable where the model is used; `--trust-code` says that its code may run.",
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


def _of_pixels(decoding: Decoding) -> list[str]:
    """What a program must do first to images that are not opaque RGB of 8 bits."""
    line = "This program is for opaque images in sRGB with 8 bits a channel. "
    if decoding.background is not None:
        line += f"Transparent pixels go over {hex_colour(decoding.background)}. "
    if decoding.ranges:
        ranges = "; ".join(describe_ranges(decoding))
        line += f"More than 8 bits have to be scaled first: {ranges}."
    return [line.rstrip()]


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


def _metrics(card: ModelCard, facts: ModelFacts) -> list[str]:
    val, test = _scores(card, "val"), _scores(card, "test")
    rows = []
    # In the order of the first that has them: a metric may be known on one split only.
    for name in dict.fromkeys([*val, *test]):
        cells = [f"{scores[name]:.4f}" if name in scores else "" for scores in (val, test)]
        rows.append((markdown.words(name), *cells))
    lines = markdown.table(("metric", "validation", "test"), rows)
    lines += [
        "",
        f"`{facts.metric}` on the validation images picked the model; the test images were "
        "scored once.",
    ]
    # A doubt belongs where the figures are read, and not among limits that every model has.
    for doubt in facts.doubts:
        lines += ["", f"**Doubtful: {markdown.text(doubt)}.**"]
    return lines


def _data(card: ModelCard, facts: ModelFacts) -> list[str]:
    splits = [
        (name, f"{facts.rows[key]:,}")
        for key, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        if key in facts.rows
    ]
    lines = [
        f"{markdown.text(_data_name(facts.job))} (source: {facts.job.data.source}).",
        "",
        *markdown.table(("split", "images"), splits),
        "",
    ]
    if facts.skipped:
        lines += [f"{facts.skipped:,} unreadable images were left out.", ""]
    if facts.notes:
        lines += [*(f"- {markdown.text(note)}" for note in facts.notes), ""]
    size = f"{card.height} × {card.width}"
    mean, std = markdown.numbers(card.mean), markdown.numbers(card.std)
    lines += [
        f"Images are scaled to cover {size} pixels (height × width) and cropped around their "
        f"centre, normalised with mean {mean} and standard deviation {std} of values from 0 to 1"
        f"{_seen(card)}.",
        "",
    ]
    shown = list(zip(card.classes, facts.class_rows, strict=True))[:CLASSES_SHOWN]
    lines += markdown.table(
        ("class", "training images"), [(markdown.text(name), f"{rows:,}") for name, rows in shown]
    )
    if len(card.classes) > CLASSES_SHOWN:
        lines += ["", f"{len(card.classes) - CLASSES_SHOWN:,} more classes are in `model.json`."]
    return [*lines, "", f"SHA-256 of the data set: `{card.provenance['data']}`."]


def _seen(card: ModelCard) -> str:
    side = card.image_size
    # Images that are decoded at the network's size are not resized once more.
    if side is None or (side, side) == (card.height, card.width):
        return ""
    return f", then resized to {side} × {side} ({card.interpolation})"


def _training(card: ModelCard, facts: ModelFacts, recipe: TrialSettings) -> list[str]:
    train, given = recipe.train, facts.job.resources
    least = f"{given.least_workers} to " if given.elastic else ""
    lines = [
        f"- Weights: {_weights(recipe, facts.weights)}",
        f"- Optimizer: {train.optimizer.name}, {markdown.settings(train.optimizer.arguments)}",
        f"- Learning rate: {_schedule(train.schedule)}",
        f"- Epochs: {train.epochs} at most; delivered is epoch {card.provenance['epoch']}",
        f"- Batch: {train.batch_size} images a step, over {least}"
        f"{given.most_workers} worker{'s' if given.most_workers > 1 else ''}",
        f"- Augmentation: {_augmentation(train.augment)}",
    ]
    if rest := _rest(train):
        lines.append(f"- Besides: {rest}")
    return [*lines, f"- {_search(card, facts)}"]


def _weights(recipe: TrialSettings, loaded: LoadedWeights | None) -> str:
    if recipe.model.weights == "none":
        return "drawn at random"
    name = markdown.text(_last_part(recipe.model.weights))
    if loaded is None:
        return name
    # Older runs did not count the tensors of the network.
    total = f" of {loaded['total']}" if "total" in loaded else ""
    return f"{name} ({loaded['loaded']}{total} tensors loaded, {len(loaded['new'])} new)"


def _schedule(schedule: Schedule) -> str:
    # Of all settings those that this schedule reads: others would seem to have had an effect.
    own = {
        "cosine": ("warmup_epochs", "floor"),
        "linear": ("warmup_epochs", "floor"),
        "constant": ("warmup_epochs",),
        "step": ("warmup_epochs", "step_epochs", "step_factor"),
        "one_cycle": ("rise",),
    }[schedule.name]
    values = {name: getattr(schedule, name) for name in own}
    used = markdown.settings({name: value for name, value in values.items() if value})
    return f"{schedule.name}, {used}" if used else schedule.name


def _augmentation(augment: Augment) -> str:
    return markdown.settings(augment.active) or "none"


def _rest(train: Train) -> str:
    """What of a recipe is not said elsewhere and is not as usual."""
    elsewhere = {
        "optimizer",
        "schedule",
        "augment",
        "epochs",
        "batch_size",
        # These two change how a run goes, and not what it comes to.
        "checkpoint_every",
        "channels_last",
    }
    usual = Train()
    rest = {}
    for name, value in train:
        if name not in elsewhere and value != getattr(usual, name):
            rest[name] = value
    return markdown.settings(rest)


def _search(card: ModelCard, facts: ModelFacts) -> str:
    trial, search = markdown.text(card.provenance["trial"]), facts.job.search
    if search is None:
        return f"One trial, no search; `{facts.metric}` picked its epoch"
    counts = Counter(row["status"] for row in facts.trials)
    ended = ", ".join(f"{count} {status}" for status, count in counts.items())
    early = _scheduling(search.scheduler, facts, trial)
    again = ""
    if facts.confirmed is not None:
        repeated = facts.confirmed
        again = (
            f"; over {len(repeated['seeds'])} seeds its `{repeated['metric']}` is "
            f"{repeated['mean']:.4f} ± {repeated['std']:.4f}"
        )
    return (
        f"Search: {len(facts.trials)} trials, {search.algorithm.name}{early} ({ended}); "
        f"`{facts.metric}` picked trial {trial}{again}"
    )


def _scheduling(scheduler: Scheduler, facts: ModelFacts, best: str) -> str:
    """What the scheduler did with the trials, the best one above all."""
    if scheduler.name == "none":
        return ""
    if not scheduler.changes_trials:
        return f", {scheduler.name} could end them early"
    sources = []
    for row in facts.trials:
        if row["trial"] == best:
            taken = row.get("came_from", [])
            sources = [f"from {take['trial']} after epoch {take['epoch']}" for take in taken]
    came = f", {best} went on {', then '.join(sources)}" if sources else ""
    return f", {scheduler.name} gave weak ones the weights of strong ones{came}"


def _limits(card: ModelCard, facts: ModelFacts) -> list[str]:
    lines = []
    accuracy, images = card.scores.get("test_accuracy"), facts.rows.get("test")
    if accuracy is not None and images:
        low, high = wilson_interval(round(accuracy * images), images)
        lines.append(
            f"- The test accuracy is that of {images:,} images. Were they drawn at random from "
            "what the model will see, its accuracy there would lie between "
            f"{low:.4f} and {high:.4f} (95 % confidence, Wilson's score interval: E. B. Wilson, "
            "J. Am. Stat. Assoc. 22, 209-212, 1927)."
        )
    counted = sorted(zip(facts.class_rows, card.classes, strict=True))
    most = counted[-1][0]
    # Where all classes have as many images, none has the fewest.
    fewest = [(rows, name) for rows, name in counted if rows < most][:FEWEST_SHOWN]
    if fewest:
        named = ", ".join(f"{markdown.text(name)} ({rows:,})" for rows, name in fewest)
        lines.append(f"- The classes with the fewest training images: {named}.")
    if facts.recall:
        recall, name = min((share, name) for name, share in facts.recall.items())
        shown = markdown.text(name)
        lines.append(
            f"- The class with the lowest recall on the test images: {shown} ({recall:.4f})."
        )
    return [
        *lines,
        "- It was not tested on any other data.",
        "- Whatever an image shows, one of the classes above is the answer.",
    ]


def _provenance(card: ModelCard) -> list[str]:
    known = card.provenance
    run, trial = markdown.code(known["run"]), markdown.code(known["trial"])
    lines = [f"- Run {run}, trial {trial}, epoch {known['epoch']}, seed {known['seed']}"]
    git = known.get("git")
    if git:  # None outside a repository
        lines.append(f"- Git revision of the working folder: {markdown.code(git)}")
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return [
        *lines,
        f"- Versions: {markdown.text(versions)}",
        "- The whole job, the configuration of the trial and the checksum of the weights are in "
        "`model.json`",
    ]


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of which `right` of `images` were seen (Wilson's
    score interval).
    """
    # The normal approximation would give an interval of no width to a model that is always right.
    share, z2 = right / images, _Z95**2
    scale = 1 + z2 / images
    middle = (share + z2 / (2 * images)) / scale
    variance = share * (1 - share) / images + z2 / (4 * images**2)
    reach = _Z95 / scale * math.sqrt(variance)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _last_part(where: str) -> str:
    """The name at the end of a path or address."""
    # What is before it (folders, users, keys in an address) is nobody else's business.
    path = PurePosixPath(urlsplit(where).path)
    return path.name or "without a name"
