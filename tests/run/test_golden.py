"""What a refactoring must not move: losses and figures of two small runs, to the last bit.

The values in golden.json hold for one version of torch on one kind of processor; on any other the
same sums are rounded in another order, and 1e-3 is asked for. `python -m tests.run.test_golden`
writes them anew, where a change of the figures is what is wanted.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raysft.job import Job
from raysft.job.plan import Node
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
from raysft.run.slot_pool import SlotPool
from tests.run.runs import ONE_TEAM, TWO_TEAMS, Runner

GOLDEN = Path(__file__).with_name("golden.json")
FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")

QUICKSTART = {
    "data": {"source": "digits"},
    "model": {"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
    "train": {
        "precision": "fp32",
        "epochs": 2,
        "batch_size": 64,
        "schedule": {"name": "cosine", "warmup_epochs": 1},
        "augment": {"flip": False, "crop_padding": 2},
    },
    "search": {
        "trials": 3,
        "space": {
            "optimizer": [
                {"name": "sgd", "lr": {"loguniform": [1e-2, 2e-1]}, "momentum": 0.9},
                {"name": "adamw", "lr": {"loguniform": [1e-3, 1e-2]}},
            ]
        },
        "scheduler": {"name": "none"},
    },
}
FROZEN = {
    "data": {"source": "digits"},
    "model": {"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
    "train": {
        "precision": "fp32",
        "epochs": 3,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "freeze": ["0", "1", "4", "5"],
        "augment": {"flip": False},
    },
}
JOBS = {"quickstart": QUICKSTART, "frozen": FROZEN}
MARKED = [pytest.param("quickstart", marks=TWO_TEAMS), pytest.param("frozen", marks=ONE_TEAM)]
ONE_WORKER = {"resources": {"workers": 1}}


def setting() -> dict[str, str]:
    """What the last bit of a sum depends on."""
    return {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def figures_of(
    sections: dict, folder: Path, cache: Path | None = None, pool: SlotPool | None = None
) -> dict[str, list]:
    """Of each trial its figures by epoch; of the best its test accuracy and loss."""
    job = Job.model_validate({"storage": str(folder / "runs"), **sections, **ONE_WORKER})
    quiet = {"note", "progress", "epochs", "trial_ended", "status"}
    listener = SimpleNamespace(**{name: lambda *a: None for name in quiet})
    run = Run.create(job, "golden")
    with run.recorded():
        workspace = Workspace(folder / "scratch", cache)
        results = execute(run, [Node(2)], listener, workspace, True, slots=pool)
    figures = {}
    for trial in results["trials"]:
        file = run.trial_folder(trial["trial"]) / "trial.json"
        history = json.loads(file.read_text())["history"]
        figures[trial["trial"]] = [[epoch[name] for name in FIGURES] for epoch in history]
    best = results["best"]
    return figures | {"best": [best["trial"], best["test_loss"], best["test_accuracy"]]}


@pytest.mark.parametrize("name", MARKED)
def test_losses_are_the_golden_ones(name, go: Runner, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    found = figures_of(JOBS[name], tmp_path, go.cache, go.pool)
    assert found.keys() == golden[name].keys()
    exact = golden["setting"] == setting()
    for key, expected in golden[name].items():
        flat_found, flat_expected = flat(found[key]), flat(expected)
        assert flat_found == (flat_expected if exact else pytest.approx(flat_expected, abs=1e-3))


def flat(figures: list) -> list:
    """Figures of all epochs in one list, without the name of the best trial."""
    rows = [row if isinstance(row, list) else [row] for row in figures]
    return [value for row in rows for value in row if not isinstance(value, str)]


if __name__ == "__main__":
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    document: dict[str, object] = {"setting": setting()}
    for each in JOBS:
        document[each] = figures_of(JOBS[each], Path(tempfile.mkdtemp()))
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")
    ray.shutdown()
