"""A run that has learned nothing says so, and none that has learned something."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from raysft.data.preparation import Preparation
from raysft.data.shards import read_manifest
from raysft.data.sources import outline_dataset
from raysft.data.splits import split_sources
from raysft.display.results import result_lines
from raysft.job.plan import Node, make_plan
from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.records.predictions import Predictions
from raysft.records.trial import TrialRecord
from raysft.results.chance import at_chance, binomial_tail, score_doubts, training_doubts
from raysft.results.report import write_report
from raysft.run.delivery import build_card, build_readme
from raysft.run.outcome import Scored, build_results
from raysft.run.run_data import RunData
from raysft.storage import read_json, write_json
from raysft.train.queue.assignment import Assignment
from tests.results.made import config, make_run


def trial(*accuracies: float, losses=None) -> list[dict]:
    losses = losses or [1.0 / n for n in range(1, len(accuracies) + 1)]
    return [
        {"epoch": n, "val_accuracy": accuracy, "val_macro_f1": accuracy, "val_loss": loss}
        for n, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1)
    ]


def told(histories, rows, metric="val_accuracy") -> str:
    return "\n".join(training_doubts(histories, metric, rows))


@pytest.mark.parametrize(
    ("right", "images", "share"),
    [
        (60, 100, 0.5),
        (51, 100, 0.5),
        (9, 10, 0.8),
        (700, 5000, 0.1),
        (50_600, 100_000, 0.5),
        (100, 100, 0.9),
        (30, 40, 0.01),
    ],
)
def test_the_tail_is_that_of_the_binomial_test(right, images, share):
    expected = binomtest(right, images, share, alternative="greater").pvalue
    assert binomial_tail(right, images, share) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize(
    ("right", "most", "images", "tries", "expected"),
    [
        (50, 50, 100, 1, True),  # the answer is always the same
        (58, 50, 100, 1, True),
        (59, 50, 100, 1, False),  # P(≥ 58) = 0.067, P(≥ 59) = 0.044
        (59, 50, 100, 20, True),
        (70, 50, 100, 20, False),  # the best of twenty
        (90, 90, 100, 1, True),
        (96, 90, 100, 1, False),  # unbalanced
        (4, 2, 4, 1, False),
        (3, 2, 4, 1, False),
        (2, 2, 4, 1, True),  # too few images for any test
        (5, 5, 5, 1, False),
        (4, 5, 5, 1, True),  # a single class
        (20, 15, 144, 1, True),
        (130, 15, 144, 6, False),  # ten classes
    ],
)
def test_an_accuracy_is_told_from_chance(right, most, images, tries, expected):
    assert at_chance(right, most, images, tries) is expected


@pytest.mark.parametrize(
    ("histories", "rows"),
    [
        ([trial(0.4, 0.7, 0.9), trial(0.3, 0.5, 0.6)], [50, 50]),
        ([trial(0.8)], [50, 50]),  # one epoch
        ([trial(0.8), trial(0.7)], [50, 50]),
        ([trial(1.0)], [1, 1]),
        ([trial(1.0, 1.0)], [2, 1, 1]),
        ([trial(1.0), trial(1.0)], [3, 3]),  # tiny and perfect
        ([trial(0.9, losses=[0.3])], [50, 50]),
        ([trial(0.9, 0.9, losses=[0.3, 0.4])], [50, 50]),  # the loss alone says nothing
        ([], [50, 50]),
        ([trial(0.5)], []),
    ],
)
def test_nothing_is_said_of_runs_that_learned(histories, rows):
    assert told(histories, rows) == ""


@pytest.mark.parametrize(
    ("accuracy", "balanced", "rows", "expected"),
    [
        (
            0.5,
            0.5,
            [50, 50],
            "the model has 50 of 100 test images right; to always answer the most frequent class "
            "gets 50",
        ),
        (0.8, 0.5, [80, 20], "80 of 100"),
        (0.75, 0.75, [80, 20], ""),  # trained with class weights: both classes are found
        (0.9, 0.9, [50, 50], ""),
        (0.6, 0.6, [3, 2], "3 of 5"),
        (1.0, 1.0, [1, 1], ""),
    ],
)
def test_a_test_score_at_chance_says_so(accuracy, balanced, rows, expected):
    found = score_doubts({"test_accuracy": accuracy, "test_balanced_accuracy": balanced}, rows)
    assert (expected in found[0]) if expected else not found


def test_balanced_accuracy_decides_with_class_weights():
    history = [epoch | {"val_balanced_accuracy": 0.75} for epoch in trial(0.6, 0.75)]
    assert told([history], [80, 20]) == ""
    assert told([trial(0.6, 0.75)], [80, 20]) != ""


def test_a_run_at_chance_says_so():
    said = told([trial(0.5, 0.5, losses=[9.0, 9.5]), trial(0.48)], [50, 50])
    assert "the best of all epochs has 50 of 100 validation images right" in said
    assert "to always answer the most frequent class gets 50" in said
    assert said.endswith("never fell below that of its first epoch")


def test_falling_losses_differ_from_nan_losses():
    assert "never fell" not in told([trial(0.5, 0.5, losses=[9.0, 8.0])], [50, 50])
    assert "never fell" in told([trial(0.5, 0.5, losses=[9.0, math.nan])], [50, 50])
    assert "nothing was learned" in told([trial(math.nan)], [50, 50])


def test_one_trial_that_learned_is_enough():
    assert told([trial(0.9), trial(0.5), trial(0.5)], [50, 50]) == ""


def test_equal_metric_in_all_trials_is_doubted():
    assert (
        told([trial(0.95), trial(0.95, 0.95)], [50, 50])
        == "val_accuracy is 0.9500 in all 2 trials: it does not tell them apart"
    )
    assert "tell them apart" not in told([trial(0.95)], [50, 50])


def at_chance_run(folder):
    history = [
        {
            "epoch": 1,
            "train_loss": 2.0,
            "train_accuracy": 0.5,
            "val_loss": 3.0,
            "val_accuracy": 0.5,
            "val_macro_f1": 0.3,
            "seconds": 1.0,
            "train_seconds": 1.0,
            "data_wait_seconds": 0.0,
            "images": 20,
        }
    ]
    return make_run(
        folder,
        ("ant", "bee"),
        [TrialRecord("t0", config("sgd", 100.0), "finished", history, 0.0, 1.0)],
    )


@pytest.mark.slow
def test_it_stands_beside_the_result(tmp_path):
    run = at_chance_run(tmp_path)
    results = read_json(run.folder / "results.json")
    (doubt,) = results["doubts"]
    assert f"doubt    {doubt}" in result_lines(results)
    assert doubt in write_report(run.folder).read_text()


@pytest.mark.slow
def test_results_of_an_older_raysft_are_read(tmp_path):
    run = at_chance_run(tmp_path)
    results = read_json(run.folder / "results.json")
    del results["doubts"]
    write_json(run.folder / "results.json", results)
    assert not [line for line in result_lines(results) if line.startswith("doubt")]
    assert "Doubtful" not in write_report(run.folder).read_text()


def test_doubt_appears_in_results_and_model_card(tmp_path):
    run, record = (
        at_chance_run(tmp_path),
        TrialRecord("t0", config("sgd", 0.1), "finished", [], 0.0, 1.0),
    )
    manifest = read_manifest(tmp_path / "D")
    matrix = np.array([[i, i % 2, 0, 0.6, 0.4] for i in range(40)], float)
    epoch = {"epoch": 1, "val_accuracy": 0.95, "val_loss": 1.0}
    record.history.append(
        epoch
        | {
            "train_loss": 1.0,
            "val_loss": 1.0,
            "seconds": 1.0,
            "train_seconds": 1.0,
            "data_wait_seconds": 0.0,
            "images": 20,
        }
    )
    scored = Scored(
        record,
        epoch,
        Assignment("train", "t0", "", Model(), Train(), 7),
        {"test_accuracy": 0.5, "test_balanced_accuracy": 0.5},
        Preparation((0.5,) * 3, (0.25,) * 3),
        Predictions.from_matrix(matrix),
    )
    sources = split_sources(tmp_path / "D", manifest, 4, None, 0)
    plan = make_plan(run.job, outline_dataset(tmp_path / "D", manifest), [Node(1)])
    data = RunData(plan, manifest, sources, in_memory=True)
    (doubt,) = build_results(run, [record], scored, None, {}, [10, 10])["doubts"]
    assert doubt.startswith("the model has 20 of 40 test images right")
    card = build_card(run, data, scored)
    assert f"**Doubtful: {doubt}.**" in build_readme(run, data, [record], None, card, scored)
