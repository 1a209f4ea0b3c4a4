"""The trials of a run as a data frame."""

from raysft.job import Job
from raysft.records.run import Run
from raysft.records.trial import TrialRecord


def epochs(*values: float) -> list[dict]:
    return [{"epoch": i + 1, "val_accuracy": v, "val_loss": 1 - v} for i, v in enumerate(values)]


def test_trials_are_a_data_frame_the_best_first(tmp_path):
    run = Run.create(Job(storage=str(tmp_path)), "r")
    assert run.trials.empty
    sgd = {"optimizer": {"name": "sgd", "lr": 0.1}}
    adam = {"optimizer": {"name": "adam", "lr": 0.001}, "train.batch_size": 8}
    run.save_trial(TrialRecord("t0", sgd, "failed", error="out of memory"))
    run.save_trial(TrialRecord("t1", sgd, "running", epochs(0.5)))
    run.save_trial(TrialRecord("t2", adam, "finished", epochs(0.5, 0.9, 0.7), seconds=3.0))
    found = run.trials
    assert found["trial"].tolist() == ["t2", "t1", "t0"]
    assert found["status"].tolist() == ["finished", "running", "failed"]
    assert found["config.optimizer.name"].tolist() == ["adam", "sgd", "sgd"]
    best = found.set_index("trial").loc["t2"]
    assert (best["val_accuracy"], best["best_epoch"], best["epochs"]) == (0.9, 2, 3)
    assert (best["config.optimizer.lr"], best["config.train.batch_size"]) == (0.001, 8)
    assert found["val_accuracy"].isna().tolist() == [False, False, True]
