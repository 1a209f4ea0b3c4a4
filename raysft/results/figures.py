"""The figures of a run, read from its directory into one plain document: what its report shows."""

from __future__ import annotations

from collections.abc import Sequence

from raysft.data.folders import describe_files
from raysft.errors import UserError
from raysft.job import Job
from raysft.job.metrics import sort_key
from raysft.job.space import trial_settings
from raysft.records.documents import (
    DataDocument,
    ResultsDocument,
    RunDocument,
    Timing,
    TrialDocument,
    TrialRow,
)
from raysft.records.predictions import PREDICTIONS, read_predictions
from raysft.records.reading import read_job, read_results, read_run_document, read_trials
from raysft.records.relocation import locate
from raysft.results.answers import summarize_answers
from raysft.results.document import (
    AnswerFigures,
    DataFigures,
    Figures,
    HostFigures,
    ProvenanceFigures,
    SearchFigures,
    TrialFigures,
)
from raysft.results.model import CARD, read_card
from raysft.results.thumbnails import Images
from raysft.storage import StoragePath

ENDED_EARLY = ("stopped", "diverged", "failed")


def read_figures(folder: StoragePath) -> Figures:
    """Everything the report of a run shows but the images; raises UserError where the run has no
    results yet.
    """
    return gather_figures(folder)[0]


def gather_figures(folder: StoragePath) -> tuple[Figures, Images | None]:
    """The figures of a run, and the images of its data set where they can be reached."""
    results = read_results(str(folder))
    info = read_run_document(folder)
    job = read_job(folder, info)
    trials = _trials(results, read_trials(folder), job)
    # The data set may have been moved together with the run.
    path = str(locate(folder, info, info["data"]["path"]))
    data, images = _data({**info["data"], "path": path}, job)
    test, no_test = _test(folder, data["classes"])
    figures: Figures = {
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
    }
    return figures, images


def _trials(
    results: ResultsDocument, records: Sequence[TrialDocument], job: Job
) -> list[TrialFigures]:
    """The rows of the leaderboard in their order, each with what its trial.json adds."""
    known = {record["trial"]: record for record in records}
    metric = results["metric"]
    return [_trial(row, known.get(row["trial"]), job, metric) for row in results["trials"]]


def _trial(row: TrialRow, record: TrialDocument | None, job: Job, metric: str) -> TrialFigures:
    """A row of the leaderboard; a trial that never started has no record."""
    history = [] if record is None else record["history"]
    settings = trial_settings(job, row["config"])
    best_epoch = None
    if history:
        best_epoch = min(history, key=lambda epoch: sort_key(epoch, metric))["epoch"]
    return {
        **row,
        "optimizer": settings.train.optimizer.name,
        "lr": settings.train.optimizer.lr,
        "model": settings.model.name,
        "history": history,
        "best_epoch": best_epoch,
        "trace": None if record is None else record.get("trace"),
    }


def _search(job: Job, trials: Sequence[TrialFigures]) -> SearchFigures | None:
    """How the job searched."""
    if job.search is None:
        return None
    rates = {trial["lr"] for trial in trials if trial["history"]}
    return {
        "algorithm": job.search.algorithm.name,
        "scheduler": job.search.scheduler.name,
        "changes_trials": job.search.scheduler.changes_trials,
        "target": job.search.target,
        "by_rate": len(rates) > 1,
        "ended_early": sum(trial["status"] in ENDED_EARLY for trial in trials),
    }


def _test(folder: StoragePath, classes: Sequence[str]) -> tuple[AnswerFigures | None, str | None]:
    """(figures of the test images, None), or (None, why there are none)."""
    file = folder / PREDICTIONS
    # Runs of an older raysft, and those without a model.
    if not file.is_file():
        return None, f"The run has kept no predictions of its test images ({PREDICTIONS})."
    predictions = read_predictions(file, len(classes))
    return summarize_answers(predictions, classes), None


def _data(known: DataDocument, job: Job) -> tuple[DataFigures, Images | None]:
    """What is known of the data, of its images too where they can be reached."""
    figures: DataFigures = {
        **known,
        "source": job.data.source,
        "limit": job.data.limit,
        "skipped": None,
        "counts": None,
        "notes": [],
        "unreached": None,
    }
    try:
        images = Images(known)
        counts = {split: images.counts(split) for split in images.manifest.splits}
    except UserError as error:
        # A report is for years, data sets come and go: it is written without pictures then.
        figures["unreached"] = str(error)
        return figures, None
    figures["counts"] = counts
    figures["skipped"] = images.manifest.skipped
    figures["notes"] = [*images.manifest.notes, *describe_files(images.manifest.counts)]
    return figures, images


def _hosts(trials: Sequence[TrialFigures]) -> list[HostFigures]:
    """What the trials that ended on each host took, in the order of the hosts' names."""
    hosts: dict[str, HostFigures] = {}
    for trial in trials:
        if not trial["history"]:
            continue
        # Runs of an older raysft did not write down where a trial ended.
        name = trial["host"] or "unknown"
        host = hosts.setdefault(name, _no_work(name))
        host["trials"] += 1
        taken = trial.get("came_from")
        # Until then others trained the weights.
        first = taken[-1]["epoch"] if taken else 0
        own = [epoch for epoch in trial["history"] if epoch["epoch"] > first]
        host["epochs"] += len(own)
        for epoch in own:
            host["images"] += epoch["images"]
            host["seconds"] += epoch["seconds"]
            host["train_seconds"] += epoch["train_seconds"]
            host["data_wait_seconds"] += epoch["data_wait_seconds"]
    return [host for _, host in sorted(hosts.items())]


def _no_work(host: str) -> HostFigures:
    return {
        "host": host,
        "trials": 0,
        "epochs": 0,
        "images": 0,
        "seconds": 0.0,
        "train_seconds": 0.0,
        "data_wait_seconds": 0.0,
    }


def _cost(job: Job, timing: Timing) -> float | None:
    """What the cluster has cost for the time of the run, where its price is known."""
    price = job.cluster.price_per_hour
    return None if price is None else price * timing["total_s"] / 3600


def _provenance(
    folder: StoragePath, info: RunDocument, results: ResultsDocument
) -> ProvenanceFigures:
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
