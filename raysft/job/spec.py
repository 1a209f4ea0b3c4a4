"""The job file as frozen models: every field with its meaning, its default and its bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from raysft.job.algorithms import ALGORITHMS, PLANNED, AlgorithmName, wrong_argument
from raysft.job.metrics import MetricName
from raysft.job.ranges import INTERVALS, check_range, is_range, values_to_check
from raysft.job.recipe import Train
from raysft.job.scheduler import Scheduler
from raysft.job.section import Section, refuse_switch
from raysft.job.values import Config, Space, SpaceValue

DEFAULT_OPTIMIZERS = ("sgd", "adamw", "rmsprop")  # each with its usual range of learning rates

Count = Annotated[int, Field(ge=1)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


_COLOURS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "gray": (128, 128, 128),
}


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a name or of #rrggbb; raises ValueError."""
    if text.lower() in _COLOURS:
        return _COLOURS[text.lower()]
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        raise ValueError(
            'must be white, black, grey or "#rrggbb" (in quotes: # begins a comment in YAML)'
        )
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


class Data(Section):
    """The labelled images."""

    source: Literal["cifar10", "digits", "imagefolder", "shards"] = "digits"
    """cifar10 | digits | imagefolder (ROOT/CLASS/IMAGE) | shards (from `raysft data import`)"""
    path: str | None = None
    """Where it lies: a file or folder; null: bundled, or downloaded to the cache on first use."""
    test_path: str | None = None
    """imagefolder: the folder of test images; null: the test split in PATH, else a fifth of the
    training images.
    """
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training images used for validation, stratified, fixed by the seed; unused with
    a val split.
    """
    limit: int | None = Field(None, ge=1)
    """At most this many training images (before the validation share is taken), stratified; null:
    all.
    """
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What an unreadable image does: end the import with its name, or be counted and left out."""
    background: str = "white"
    """imagefolder: the colour behind transparent pixels: white | black | grey, or "#rrggbb"."""
    verify: bool = True
    """Compare every shard with its SHA-256 before training."""
    mean: Triple | None = None
    """Mean of each channel (0 to 1) for normalising; null: that of the weights, else the data's."""
    std: Triple | None = None
    """Standard deviation of each channel (0 to 1) for normalising; null: as for the mean."""
    budget_gb: float = Field(4.0, gt=0)
    """Decoded images up to so many gigabytes (10^9 bytes) are kept in memory, more are streamed."""

    @field_validator("background")
    @classmethod
    def _a_colour(cls, value: str) -> str:
        parse_colour(value)
        return value

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return parse_colour(self.background)

    @model_validator(mode="after")
    def _path_where_needed(self) -> Data:
        if self.source in ("imagefolder", "shards") and self.path is None:
            raise ValueError(f"source {self.source} needs data.path, the folder that holds it")
        if self.source != "imagefolder" and self.test_path is not None:
            raise ValueError("test_path belongs to source imagefolder")
        if self.source != "imagefolder" and self.background != "white":
            hint = ""
            if self.source == "shards":
                hint = "; a data set of shards was given its own when it was imported"
            raise ValueError(f"background belongs to source imagefolder{hint}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be greater than 0 in every channel")
        return self


class Model(Section):
    """The network and where its weights come from."""

    name: str = Field("resnet18", min_length=1)
    """A torchvision classifier (resnet18, mobilenet_v3_small, ...), timm:NAME, or
    package.module:factory.
    """
    weights: str = "DEFAULT"
    """The library's weights (DEFAULT, IMAGENET1K_V1, ...), a file or URI (.safetensors or a state
    dict), or none.
    """
    image_size: int | None = Field(None, ge=8, le=1024)
    """Height and width in pixels that the network sees; null: as stored, 224 for images of mixed
    sizes.
    """
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """How images are scaled; null: small ones as the weights were trained, others bilinear."""

    @field_validator("weights", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        # Everywhere else in a job file null says "nothing", and so it does here.
        return "none" if value is None else value

    @field_validator("weights")
    @classmethod
    def _no_switch(cls, value: str) -> str:
        refuse_switch(value, "write none for no weights, DEFAULT for the library's")
        return value


def _default_space() -> dict[str, SpaceValue]:
    return {"optimizer": list(DEFAULT_OPTIMIZERS)}


class Algorithm(Section):
    """What proposes configurations: its name alone, or a section with arguments beside it."""

    # Extra keys are allowed here and checked below: each algorithm has arguments of its own.
    model_config = ConfigDict(extra="allow")

    name: AlgorithmName = "random"
    """random (and grids) | grid (every combination, nothing drawn) | one of Ray Tune's that learns
    from what did well so far: tpe (Optuna's) | hyperopt | bohb | ax | nevergrad | hebo |
    bayesopt; its arguments stand beside the name.
    """

    @property
    def arguments(self) -> Config:
        """What the class of the algorithm is called with, besides what raysft gives it."""
        return dict(self.model_extra or {})

    @property
    def is_planned(self) -> bool:
        """Whether all configurations are known before any trial has run."""
        return self.name in PLANNED

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _arguments_exist(self) -> Algorithm:
        for argument, value in self.arguments.items():
            wrong = wrong_argument(self.name, argument, value)
            if wrong is not None:
                raise ValueError(wrong)
        return self

    @model_serializer
    def _as_written(self) -> JsonValue:
        """As job files of every version have it, where there are no arguments."""
        return {"name": self.name, **self.arguments} if self.arguments else self.name

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Either form, for editors."""
        section = handler.resolve_ref_schema(handler(schema))
        arguments = {name for info in ALGORITHMS.values() for name in info.arguments}
        for argument in sorted(arguments):
            takers = [name for name, info in ALGORITHMS.items() if argument in info.arguments]
            section["properties"][argument] = {"description": f"Argument of {', '.join(takers)}."}
        section["additionalProperties"] = False
        return {"anyOf": [section["properties"]["name"], section]}


class Search(Section):
    """The search over recipes."""

    trials: int = Field(16, ge=1)
    """Configurations to try; a space with {grid: [...]} tries each combination at least once."""
    algorithm: Algorithm = Field(default_factory=Algorithm)
    """What proposes configurations."""
    metric: MetricName = "val_accuracy"
    """What picks the best trial and epoch: val_ and accuracy | loss | top5_accuracy | macro_f1 |
    balanced_accuracy | calibration_error
    """
    target: float | None = None
    """Stop the whole search when a trial's metric reaches this; null: never."""
    space: dict[str, SpaceValue] = Field(default_factory=_default_space)
    """Dotted train.* and model.* keys, a range each; optimizer (or a section): a list of
    alternatives with ranges.
    """
    start_with: list[dict[str, SpaceValue]] = Field(default_factory=list)
    """Known configurations to try first, each with keys as in `space` and a value for each."""
    max_failures: int | None = Field(None, ge=0)
    """End the run when more trials than this have failed (not those that diverged); null: never."""
    confirm: int = Field(0, ge=0, le=100)
    """Train the best configuration again with this many other seeds; report mean ± std."""
    scheduler: Scheduler = Field(default_factory=Scheduler)
    """Which trials end early, pause or change, decided at every epoch; a name alone will do."""

    @model_validator(mode="after")
    def _space_suits_algorithm(self) -> Search:
        name = self.algorithm.name
        wrong = _unsuited(name, self.space)
        if wrong is not None:
            raise ValueError(wrong)
        # What the one learns from is written into the results by the other alone.
        names: list[str] = [name, self.scheduler.name]
        if names.count("bohb") == 1:
            raise ValueError("bohb is search.algorithm and search.scheduler.name together")
        return self


def _unsuited(algorithm: str, space: Space) -> str | None:
    """Why an algorithm cannot search a space, or None."""
    held = list(_held_values(space))
    has_grid = any(_is_of(("grid",), value) for value in held)
    # An optimizer that is only named has a range of learning rates.
    has_random = any(_is_of(("choice", *INTERVALS), v) or isinstance(v, str) for v in held)
    if algorithm == "grid" and has_random:
        return "grid tries every combination and draws nothing; give {grid: [...]} for each range"
    if algorithm not in PLANNED and has_grid:
        return (
            f"{algorithm} proposes values and does not try a grid in full; "
            "give {choice: [...]} instead"
        )
    chooses = any(_is_of(("choice", "int"), value) for value in held)
    chooses = chooses or any(isinstance(v, list) and len(v) > 1 for v in space.values())
    if algorithm == "bayesopt" and chooses:
        return (
            "bayesopt proposes continuous numbers alone: no {choice: [...]}, no {int: [a, b]}, "
            "one alternative of each section; give another search.algorithm, such as tpe"
        )
    return None


def _held_values(space: Space) -> Iterator[JsonValue]:
    """Every value of a space, also those inside of alternatives, as it is written."""
    for value in space.values():
        for option in value if isinstance(value, list) else [value]:
            if isinstance(option, dict) and not is_range(option):
                yield from option.values()
            else:
                yield option


def _is_of(kinds: Sequence[str], value: JsonValue) -> bool:
    """Whether a value is a range of one of the kinds."""
    return isinstance(value, dict) and any(kind in value for kind in kinds)


class Resources(Section):
    """What one trial uses."""

    workers: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] = 1
    """Data-parallel workers (processes) a trial; [LEAST, MOST]: as many as there is room for, also
    while it trains.
    """
    gpus_per_worker: float = Field(0, ge=0, json_schema_extra={"maximum": 1})
    """GPUs a worker, at most 1; 0: the CPU trains. A fraction shares a GPU, more workers use more
    GPUs.
    """
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs, and so threads, a worker."""
    hang_minutes: float = Field(5.0, gt=0, le=24 * 60)
    """How long the workers of a trial wait for one of them before they consider it dead."""

    @field_validator("workers", mode="before")
    @classmethod
    def _one_or_two_numbers(cls, value: object) -> object:
        # Checked before pydantic does, which would name each member of the union in turn.
        least = most = value
        if isinstance(value, list) and len(value) == 2:
            least, most = value
        # `type`, not isinstance: true is an int to Python.
        if type(least) is not int or type(most) is not int or not 1 <= least <= most:
            raise ValueError("must be a whole number of at least 1, or two of them, [LEAST, MOST]")
        return value

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_or_a_share(cls, value: float) -> float:
        if value > 1:
            raise ValueError(
                "must be at most 1: a worker trains on one GPU, and others would be reserved and "
                "stand idle; raise resources.workers to use more"
            )
        return value

    @model_validator(mode="after")
    def _one_gpu_each(self) -> Resources:
        # NCCL refuses two ranks of one group on the same device.
        if 0 < self.gpus_per_worker < 1 and self.most_workers > 1:
            raise ValueError(
                "workers of one trial cannot share a GPU: set gpus_per_worker to 1, or workers to 1"
            )
        return self

    @property
    def least_workers(self) -> int:
        """A trial does not train with fewer workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """A trial does not train with more workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def elastic(self) -> bool:
        """Whether a trial's workers become fewer or more with the cluster."""
        return not isinstance(self.workers, int)


class Cluster(Section):
    """How the job uses a cluster; has no effect on one machine."""

    scale_up_minutes: float = Field(15, ge=0, le=24 * 60)
    """How long to wait for an autoscaler's nodes, where there are too few for one trial."""
    price_per_hour: float | None = Field(None, ge=0)
    """What the whole cluster costs an hour, in any currency; `raysft plan --measure` then says
    what a run costs.
    """


class Tracking(Section):
    """Where the curves of a run go besides its own directory.

    Keys and passwords come from the environment alone.
    """

    tensorboard: bool = True
    """Event files in RUN/tensorboard, a folder a trial."""
    mlflow: str | None = None
    """An MLflow server (http://host:5000) or database (sqlite:///mlflow.db); null: none."""
    mlflow_experiment: str | None = Field(None, min_length=1)
    """MLflow's experiment that the run belongs to; null: the job's name."""
    wandb: str | None = Field(None, min_length=1)
    """Project of Weights & Biases that the trials go to, as one group; null: none."""
    wandb_mode: Literal["online", "offline"] | None = None
    """offline: into RUN/wandb, for `wandb sync`; null: what $WANDB_MODE says, else online."""

    @field_validator("wandb")
    @classmethod
    def _no_switch(cls, project: str | None) -> str | None:
        return refuse_switch(project, "give the name of a project, or null for none")

    @field_validator("mlflow")
    @classmethod
    def _a_store_and_no_secret(cls, address: str | None) -> str | None:
        if address is None or address == "databricks":
            return address
        parts = urlsplit(address)
        if parts.scheme in ("", "file"):
            raise ValueError(
                "MLflow keeps no runs in plain folders any more; give http://host:5000 or "
                "sqlite:///FOLDER/mlflow.db"
            )
        if "@" in parts.netloc or _SECRET.search(parts.query):
            raise ValueError(
                "has a user or a password in it, which would be stored with the run; set "
                "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, in the environment instead"
            )
        return address


_SECRET = re.compile(r"(password|passwd|pwd|secret|token|key)[^&=]*=", re.IGNORECASE)


class Job(Section):
    """Everything a job file asks for."""

    name: str = Field("job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    """Name of the job; runs are named after it and the time."""
    data: Data = Field(default_factory=Data)
    """The labelled images."""
    model: Model = Field(default_factory=Model)
    """The network and its weights."""
    train: Train = Field(default_factory=Train)
    """The recipe of one trial."""
    search: Search | None = None
    """The search over recipes; leave it out to train once."""
    resources: Resources = Field(default_factory=Resources)
    """What one trial uses."""
    cluster: Cluster = Field(default_factory=Cluster)
    """How the job uses a cluster."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Where the curves of a run go besides its own directory."""
    storage: str = "runs"
    """Folder for run directories, or a URI (s3://…, gs://…); all nodes must reach it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Fixes splits, order, augmentation, initial weights and the configurations searched."""

    @model_validator(mode="after")
    def _workers_share_batches(self) -> Job:
        smallest = min(self.batch_sizes())
        workers = self.resources.most_workers
        if smallest < workers:
            raise ValueError(
                f"train.batch_size is {smallest}, less than one image for each of the {workers} "
                "workers of resources.workers"
            )
        if smallest // workers < self.train.accumulate:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate}, more than the images of a "
                f"worker's share of a batch of {smallest}"
            )
        return self

    @property
    def one_model(self) -> bool:
        """Whether all trials train the same network, with the same weights."""
        searched = self.search.space if self.search else {}
        return not any(key == "model" or key.startswith("model.") for key in searched)

    def batch_sizes(self) -> list[int]:
        """The batch sizes that trials may have, of a range the two ends or all values."""
        own = [self.train.batch_size]
        searched = self.search.space.get("train.batch_size") if self.search else None
        # A range in a wrong form is refused by the check of the space, which comes later.
        if searched is None or check_range(searched) is not None:
            return own
        if not is_range(searched):
            return own
        sizes = [v for v in values_to_check(searched) if isinstance(v, int)]
        return sizes or own

    def image_sizes(self) -> set[int | None]:
        """Every model.image_size that trials may have; None stands for that of the data."""
        sizes = self._model_values("image_size", self.model.image_size)
        return {size for size in sizes if size is None or isinstance(size, int)}

    def interpolations(self) -> set[str | None]:
        """Every model.interpolation that trials may have; None where it is left to the weights."""
        methods = self._model_values("interpolation", self.model.interpolation)
        return {method for method in methods if method is None or isinstance(method, str)}

    def _model_values(self, field: str, own: JsonValue) -> list[JsonValue]:
        """The values that a field of `model` may have in any trial; `own` is the job's."""
        space: Space = self.search.space if self.search else {}
        known = self.search.start_with if self.search else []
        key = f"model.{field}"
        values: list[JsonValue] = []
        for config in (space, *known):
            # A section takes the place of the job's whole: a field that it leaves out is null.
            for section in _model_sections(config):
                values += values_to_check(section.get(field))
            if key in config:
                values += values_to_check(config[key])
        if "model" not in space and key not in space:
            values.append(own)
        return values


def _model_sections(config: Space) -> list[Config]:
    """The networks that a space or a configuration names as whole sections."""
    named = config.get("model", [])
    options = named if isinstance(named, list) else [named]
    return [option for option in options if isinstance(option, dict)]
