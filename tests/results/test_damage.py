"""One bit flipped, or the end cut off, in any file of a run, its model and a data set: an error or
the same numbers.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raysft.data.ingest import read_split
from raysft.data.preparation import Preparation
from raysft.data.shards import (
    ImageSpec,
    Manifest,
    Split,
    read_manifest,
    write_manifest,
    write_shard,
)
from raysft.data.splits import split_sources
from raysft.errors import RaysftError
from raysft.job import Job
from raysft.job.recipe import Train
from raysft.records.predictions import PREDICTIONS, Predictions, read_predictions, write_predictions
from raysft.records.reading import list_runs, read_results, read_status
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.results.model import ModelCard, deliver
from raysft.results.predict import Classifier
from raysft.train.checkpoint import load_checkpoint, newest_valid
from raysft.train.checkpoint_paths import checkpoint_path
from raysft.train.learner import Learner
from raysft.train.loop import Hooks, Splits, TrialPlan, run_trial
from raysft.train.team import Team
from tests.tiny import tiny

ALONE = Team(0, 1, torch.device("cpu"))
CASES = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A data set, and a run on it with a trial, its checkpoints, results and a model; written as a
    run writes them.
    """
    root = tmp_path_factory.mktemp("whole")
    rng, spec, splits = np.random.default_rng(0), ImageSpec("raw", 8, 8), {}
    for name, rows in (("train", 24), ("test", 6)):
        (root / "D" / name).mkdir(parents=True)
        splits[name] = Split(
            rows,
            (
                write_shard(
                    root / "D" / name / "0000.parquet",
                    spec,
                    np.arange(rows),
                    rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
                    (np.arange(rows) % 3).astype(np.int32),
                ),
            ),
        )
    manifest = Manifest(("ant", "bee", "cow"), spec, (0.5,) * 3, (0.25,) * 3, splits)
    write_manifest(root / "D", manifest)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "image.png")

    run = Run.create(Job(storage=str(root / "runs")), "r")
    source = split_sources(root / "D", manifest, 6, None, 0)
    kept = {name: read_split(source[name]) for name in ("train", "val")}
    from raysft.data.epochs import KeptSplit

    recipe = TrialPlan(
        Train(epochs=3, batch_size=8),
        0,
        Preparation((0.5,) * 3, (0.25,) * 3),
        (6, 6, 6),
        "val_accuracy",
        run.trial_folder("t0") / "checkpoints",
        "4",
    )
    history: list[dict] = []
    torch.manual_seed(0)
    run_trial(
        recipe,
        tiny(3),
        Splits(KeptSplit(kept["train"]), KeptSplit(kept["val"])),
        ALONE,
        Hooks(lambda known, last: history.append(known[-1]) or len(known) < 2, lambda *a: None),
    )
    record = TrialRecord("t0", {"optimizer": {"name": "sgd", "lr": 0.1}}, "finished", history)
    run.save_trial(record)
    run.save_results({"best": record.row("val_accuracy"), "trials": [record.row("val_accuracy")]})
    card = ModelCard(
        "tests.tiny:tiny",
        manifest.classes,
        8,
        8,
        (0.5,) * 3,
        (0.25,) * 3,
        {"test_accuracy": 0.5},
        {},
    )
    deliver(run.folder / "model", checkpoint_path(recipe.folder, 2), card)
    predictions = Predictions.from_matrix(rng.random((6, 5)) * (1, 2, 2, 1, 1))
    write_predictions(run.folder / PREDICTIONS, predictions)
    run.info["pid"] = 0
    run.save(status="stopped")
    return root


def use(root: Path) -> dict:
    """Every number that raysft reads back from these files."""
    run = root / "runs/r"
    manifest = read_manifest(root / "D")
    splits = split_sources(root / "D", manifest, 6, None, 0)
    rows = {name: read_split(source) for name, source in splits.items()}
    checkpoints = run / "trials/t0/checkpoints"
    latest = newest_valid(checkpoints)
    learner = Learner(tiny(3), "4", Train(), (6, 6, 6), ALONE)
    if latest is not None:
        load_checkpoint(checkpoint_path(checkpoints, latest.epoch), learner)
    classifier = Classifier(run, trust_code=True)
    reopened = Run.reopen(run)
    return {
        "data": (
            manifest,
            {
                name: (part.ids.tolist(), part.images.tobytes(), part.labels.tolist())
                for name, part in rows.items()
            },
        ),
        "status": read_status(str(run)),
        "results": read_results(str(run)),
        "list": list_runs(str(root / "runs")),
        "job": reopened.job.model_dump(),
        "known": {k: vars(v) for k, v in reopened.known.items()},
        "predictions": classifier.predict([str(root / "image.png")]),
        "test_predictions": {
            name: column.tolist()
            for name, column in vars(read_predictions(run / PREDICTIONS, 3)).items()
        },
        "checkpoint": latest
        and (latest, {k: v.tolist() for k, v in learner.net.state_dict().items()}),
    }


def without_places(found: dict, whole: Path, root: Path) -> str:
    return repr(found).replace(str(whole), "ROOT").replace(str(root), "ROOT")


def damaged(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


@pytest.mark.slow
def test_damage_is_told_or_does_not_matter(whole, tmp_path):
    rng, expected, lines = random.Random(0), use(whole), []
    last = expected["checkpoint"][0].epoch
    files = sorted(
        p.relative_to(whole)
        for top in ("D", "runs")
        for p in (whole / top).rglob("*")
        if p.is_file()
    )
    assert len(files) == 13
    for number in range(CASES):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        victim = root / files[number % len(files)]
        victim.write_bytes(damaged(victim.read_bytes(), rng))
        try:
            found = use(root)
        except RaysftError as error:
            lines.append(str(error))
        else:
            if found["checkpoint"] is None or found["checkpoint"][0].epoch < last:
                assert "checkpoints" in victim.parts
                found["checkpoint"] = expected[
                    "checkpoint"
                ]  # fell back to the one before, or to the beginning
            assert without_places(found, whole, root) == without_places(expected, whole, whole), (
                victim
            )
        shutil.rmtree(root)
    assert len(lines) > CASES / 2
    assert not [line for line in lines if "\n" in line]
