"""The figures of a run, read from its directory into one plain document: what its report shows."""

from __future__ import annotations

from typing import Any

from raysft.data.folders import describe_files
from raysft.errors import UserError
from raysft.job import Job
from raysft.job.space import trial_settings
from raysft.job.spec import sort_key
from raysft.records.predictions import PREDICTIONS, read_predictions
from raysft.records.relocation import located
from raysft.records.run import INFO, RESULTS, job_of, read_json, read_trials
from raysft.results.answers import judged
from raysft.results.model import CARD, read_card
from raysft.results.thumbnails import Images
from raysft.storage import StoragePath

ENDED_EARLY = ("stopped", "diverged", "failed")


def figures(folder: StoragePath) -> dict[str, Any]:
    """Everything the report of a run tells but the images; raises UserError where the run has no
    results yet.
    """
    return gather(folder)[0]


def gather(folder: StoragePath) -> tuple[dict[str, Any], Images | None]:
    """The figures of a run, and the images of its data set where they can be reached."""
    info = read_json(folder / INFO)
    if not (folder / RESULTS).is_file():
        raise UserError(
            str(folder), f"has no results: its status is {info['status']}", "see `raysft status`"
        )
    results, job = read_json(folder / RESULTS), job_of(folder, info)
    records = {record["trial"]: record for record in read_trials(folder)}
    trials = [
        _trial(row, records.get(row["trial"], {}), job, results["metric"])
        for row in results["trials"]
    ]
    data, images = _data(
        info["data"] | {"path": str(located(folder, info, info["data"]["path"]))}, job
    )
    test, no_test = _test(folder, data["classes"])
    return {
        "run": results["run"],
        "status": results["status"],
        "metric": results["metric"],
        "mode": results["mode"],
        "started": info["started"],
        "resumed": info.get("resumed", []),
        "job": job.model_dump(),
        "best": results["best"],
        "doubts": results.get("doubts", []),
        "trials": trials,
        "search": _search(job, trials),
        "test": test,
        "no_test": no_test,
        "data": data,
        "timing": results["timing"],
        "hosts": _hosts(trials),
        "cost": _cost(job, results["timing"]),
        "provenance": _provenance(folder, info, results),
    }, images


def _trial(row: dict[str, Any], record: dict[str, Any], job: Job, metric: str) -> dict[str, Any]:
    """A row of the leaderboard with its epochs, what it was trained with, and the epoch that
    counts.
    """
    history = record.get("history", [])
    recipe = trial_settings(job, row["config"])
    best = min(history, key=lambda m: sort_key(m, metric))["epoch"] if history else None
    return row | {
        "optimizer": recipe.train.optimizer.name,
        "lr": recipe.train.optimizer.lr,
        "model": recipe.model.name,
        "history": history,
        "best_epoch": best,
        "trace": record.get("trace"),
    }


def _search(job: Job, trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How the job searched; `by_rate` says whether its trials differ in their learning rates."""
    if job.search is None:
        return None
    return {
        "algorithm": job.search.algorithm,
        "scheduler": job.search.scheduler.name,
        "target": job.search.target,
        "by_rate": len({trial["lr"] for trial in trials if trial["history"]}) > 1,
        "ended_early": sum(trial["status"] in ENDED_EARLY for trial in trials),
    }


def _test(folder: StoragePath, classes: list[str]) -> tuple[dict[str, Any] | None, str | None]:
    """(figures of the test images, None), or (None, why there are none)."""
    file = folder / PREDICTIONS
    if not file.is_file():
        return None, f"The run has kept no predictions of its test images ({PREDICTIONS})."
    return judged(read_predictions(file, len(classes)), classes), None


def _data(known: dict[str, Any], job: Job) -> tuple[dict[str, Any], Images | None]:
    """What is known of the data, of its images too where they can be reached."""
    data = known | {
        "source": job.data.source,
        "limit": job.data.limit,
        "skipped": None,
        "counts": None,
        "notes": [],
        "unreached": None,
    }
    try:
        images = Images(known)
        data["counts"] = {split: images.counts(split) for split in images.manifest.splits}
    except UserError as error:
        return data | {"unreached": str(error)}, None
    manifest = images.manifest
    return data | {
        "skipped": manifest.skipped,
        "notes": [*manifest.notes, *describe_files(manifest.counts)],
    }, images


def _hosts(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the trials that ended on each host took: trials, epochs, images, and seconds by what
    they were spent on.
    """
    hosts: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if not trial["history"]:
            continue
        host = hosts.setdefault(
            trial["host"] or "unknown",
            {
                "trials": 0,
                "epochs": 0,
                "images": 0,
                "seconds": 0.0,
                "train_seconds": 0.0,
                "data_wait_seconds": 0.0,
            },
        )
        host["trials"] += 1
        host["epochs"] += len(trial["history"])
        for key in ("images", "seconds", "train_seconds", "data_wait_seconds"):
            host[key] += sum(epoch[key] for epoch in trial["history"])
    return [{"host": name, **host} for name, host in sorted(hosts.items())]


def _cost(job: Job, timing: dict[str, Any]) -> float | None:
    """What the cluster has cost for the time of the run, where its price is known."""
    price = job.cluster.price_per_hour
    return None if price is None else price * timing["total_s"] / 3600


def _provenance(
    folder: StoragePath, info: dict[str, Any], results: dict[str, Any]
) -> dict[str, Any]:
    """Where the model came from."""
    delivered = results["best"] is not None and (folder / "model" / CARD).is_file()
    return {
        "git": info["git"],
        "versions": info["versions"],
        "host": info["host"],
        "job_sha256": info["job"],
        "weights": info.get("weights", []),
        "model_sha256": read_card(folder / "model").weights_sha256 if delivered else None,
    }
