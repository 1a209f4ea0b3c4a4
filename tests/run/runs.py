"""Runs on tiny data, one after the other on the same workers."""

import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raysft.data.importer import ensure_dataset
from raysft.job import Job
from raysft.job.plan import Node
from raysft.job.spec import Data
from raysft.records.documents import ResultsDocument
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
from raysft.run.slot_pool import SlotPool
from raysft.storage import StoragePath
from tests.conftest import make_images

TWO_CPUS = [Node(2)]

TWO_TEAMS = pytest.mark.teams(2, 1)
TWO_WORKERS = pytest.mark.teams(1, 2)
ONE_TEAM = pytest.mark.teams(1, 1)
ONE_TEAM_THEN_ANOTHER = pytest.mark.teams(1, 1, goes_on_with=(1, 1))
TWO_TEAMS_THEN_TWO_WORKERS = pytest.mark.teams(2, 1, goes_on_with=(1, 2))
TWO_WORKERS_THEN_ONE = pytest.mark.teams(1, 2, goes_on_with=(1, 1))
ONE_WORKER_THEN_TWO = pytest.mark.teams(1, 1, goes_on_with=(1, 2))


class Recorder:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, what, done, total) -> None:
        pass

    def epochs(self, done, total, records) -> None:
        assert 0 <= done <= total

    def trial_ended(self, record, ended, total) -> None:
        self.ended.append(record.trial)

    def status(self, document, records) -> None:
        pass


@dataclass
class SharedImages:
    """Images that the tests of a module copy, imported once before any pool holds the CPUs."""

    folder: Path
    cache: Path
    datasets: dict[str, StoragePath] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> "SharedImages":
        make_images(folder / "images/train", {"ant": 20, "bee": 20, "cow": 20})
        make_images(folder / "images/test", {"ant": 5, "bee": 5, "cow": 5}, seed=1)
        shutil.copytree(folder / "images", folder / "with_val")
        make_images(folder / "with_val/valid", {"ant": 4, "bee": 4}, seed=2)
        shutil.copytree(folder / "images", folder / "two_classes")
        shutil.rmtree(folder / "two_classes/train/cow")
        shutil.rmtree(folder / "two_classes/test/cow")
        return cls(folder, folder / "cache")

    def dataset(self, name: str = "images") -> StoragePath:
        """The shards of a folder of images; needs Ray the first time."""
        if not self.datasets:
            for each in ("images", "with_val", "two_classes"):
                data = job_of(self.folder, str(self.folder / each)).data
                self.datasets[each] = ensure_dataset(data, lambda *a: None, self.cache)
            ensure_dataset(Data(source="digits"), lambda *a: None, self.cache)
        return self.datasets[name]


def job_of(storage: Path, images: str) -> Job:
    data = {"source": "imagefolder", "path": images}
    return Job.model_validate({"storage": str(storage / "runs"), "data": data})


@dataclass
class Runner:
    """Runs jobs on the tiny data set; a call returns (results, listener, run)."""

    folder: Path
    dataset: StoragePath
    cache: Path
    pool: SlotPool
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def __call__(
        self, listener: Recorder | None = None, **sections
    ) -> tuple[ResultsDocument, Recorder, Run]:
        train = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}}
        data = {"source": "shards", "path": str(self.dataset), "val_fraction": 0.2}
        model = {"name": "tests.tiny:tiny", "weights": "none"}
        tree = {"storage": str(self.folder / "runs")} | sections
        tree["train"] = train | sections.get("train", {})
        tree["data"] = data | sections.get("data", {})
        tree["model"] = model | sections.get("model", {})
        run = Run.create(Job.model_validate(tree), f"r{next(self.numbers)}")
        results, listener = self.execute(run, listener)
        return results, listener, run

    def execute(
        self, run: Run, listener: Recorder | None = None
    ) -> tuple[ResultsDocument, Recorder]:
        """Run a job, or resume it."""
        listener = listener or Recorder()
        workspace = Workspace(self.folder / "scratch", self.cache)
        with run.recorded():
            results = execute(run, TWO_CPUS, listener, workspace, True, slots=self.pool)
        return results, listener


def losses(run: Run, trial: str = "t0") -> list[list[float]]:
    """Losses and accuracies of the epochs of a trial."""
    history = json.loads((run.trial_folder(trial) / "trial.json").read_text())["history"]
    return [
        [m["train_loss"], m["val_loss"], m["train_accuracy"], m["val_accuracy"]] for m in history
    ]
