"""What a run hands back: the model with its card, predictions, results.json, the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysft.data.folders import describe_files
from raysft.errors import RaysftError
from raysft.records.documents import (
    Confirmation,
    EpochMetrics,
    LoadedWeights,
    ResultsDocument,
    Timing,
)
from raysft.records.predictions import PREDICTIONS, write_predictions
from raysft.records.run import Run, versions
from raysft.records.trial import TrialRecord, metric_value, validation_metrics
from raysft.results.answers import score_classes
from raysft.results.model import ModelCard, Provenance, deliver
from raysft.results.readme import ModelFacts, model_readme
from raysft.run.outcome import (
    Scored,
    build_results,
    find_doubts,
    measure_timing,
    summarize_repeats,
)
from raysft.run.run_data import RunData
from raysft.run.trials import RunTrials
from raysft.storage import StoragePath, remove_folder
from raysft.train.architecture import foreign_module
from raysft.train.checkpoint_paths import checkpoint_path


class Delivery:
    """The end of a run, when no trial trains any more; `begun`: when the run began."""

    def __init__(
        self,
        run: Run,
        data: RunData,
        trials: RunTrials,
        note: Callable[[str], None],
        begun: float,
    ) -> None:
        self.run = run
        self.data = data
        self.trials = trials
        self.note = note
        self.begun = begun
        # Ranked once: what is scored, delivered and reported must be the same trial.
        self.ranked = trials.ranked()
        self.best_trial = self.ranked[0]
        self.val_rows = data.sources["val"].class_rows

    def best_epoch(self) -> EpochMetrics | None:
        """The epoch that is delivered; None where no trial has any."""
        metric = self.run.metric
        return self.best_trial.best(metric)

    def checkpoint(self, epoch: EpochMetrics) -> StoragePath:
        """The checkpoint of an epoch of the best trial."""
        trial = self.best_trial.trial
        folder = self.run.trial_folder(trial) / "checkpoints"
        return checkpoint_path(folder, epoch["epoch"])

    def report_failure(self) -> None:
        """Write down what became of a run that has no model."""
        # results.json is there for failed runs too: whoever waits for it must not wait for ever.
        timing = self._timing(self.ranked)
        results = build_results(self.run, self.ranked, None, None, timing, self.val_rows)
        self.run.save_results(results)
        self._write_report()

    def deliver(self, scored: Scored) -> ResultsDocument:
        """Write the model folder and all that is known of it; returns what results.json holds."""
        run = self.run
        write_predictions(run.folder / PREDICTIONS, scored.predictions)
        repeats = list(self.trials.repeats.values())
        repeated = summarize_repeats(self.best_trial, repeats, run.metric, run.job.seed)
        card = build_card(run, self.data, scored)
        readme = build_readme(run, self.data, self.ranked, repeated, card, scored)
        checkpoint = self.checkpoint(scored.best)
        deliver(run.folder / "model", checkpoint, card, readme)
        # Only the delivered trial is worth the disk, and only once its model is there.
        for record in (*self.ranked[1:], *repeats):
            remove_folder(run.trial_folder(record.trial) / "checkpoints")
        timing = self._timing([*self.ranked, *repeats])
        results = build_results(run, self.ranked, scored, repeated, timing, self.val_rows)
        run.save(timing=timing)
        # Before the report, which is written from it.
        run.save_results(results)
        self._write_report()
        return results

    def _timing(self, trials: Sequence[TrialRecord]) -> Timing:
        first = self.trials.first_start
        last = self.trials.last_end
        return measure_timing(trials, self.begun, first, last)

    def _write_report(self) -> None:
        """Write the report, which no run fails for: `raysft report` writes it again."""
        # Charts and templates, which nothing else in a run needs, take a second to import.
        from raysft.results.report import write_report

        try:
            write_report(self.run.folder)
        except RaysftError as error:
            self.note(f"no report: {error}")


def build_card(run: Run, data: RunData, scored: Scored) -> ModelCard:
    """The card of the delivered model."""
    manifest, test = data.manifest, data.sources["test"]
    prepared = scored.preparation
    provenance: Provenance = {
        "run": run.folder.name,
        "trial": scored.record.trial,
        "epoch": scored.best["epoch"],
        "config": scored.record.config,
        "job": run.job.model_dump(),
        "versions": versions(),
        "git": run.info["git"],
        "data": manifest.fingerprint,
        "seed": scored.assignment.seed,
    }
    module = foreign_module(scored.assignment.model.name)
    if module is not None:
        # The network is somebody's own code, which is not delivered with its weights.
        provenance["code"] = {"module": module, "needs": "--trust-code"}
    scores: dict[str, float] = {}
    for table in (validation_metrics(scored.best), scored.scores):
        for name in table:
            scores[name] = metric_value(table, name)
    return ModelCard(
        scored.assignment.model.name,
        manifest.classes,
        test.height,
        test.width,
        tuple(prepared.mean),
        tuple(prepared.std),
        scores,
        provenance,
        prepared.image_size,
        prepared.interpolation,
        resampling=test.resampling,
        decoding=manifest.image.decoding,
    )


def build_readme(
    run: Run,
    data: RunData,
    ranked: Sequence[TrialRecord],
    repeated: Confirmation | None,
    card: ModelCard,
    scored: Scored,
) -> str:
    """The README.md of the delivered model; ranked: all trials, from best to worst."""
    sources, manifest = data.sources, data.manifest
    rows = {str(name): len(source.ids) for name, source in sources.items()}
    val_rows = sources["val"].class_rows
    known = ModelFacts(
        run.job,
        run.metric,
        rows,
        sources["train"].class_rows,
        manifest.skipped,
        [record.row(run.metric) for record in ranked],
        _find_weights(run, scored),
        repeated,
        _recall(data, scored),
        (*manifest.notes, *describe_files(manifest.counts)),
        find_doubts(run, ranked, val_rows, scored),
    )
    return model_readme(card, known)


def _find_weights(run: Run, scored: Scored) -> LoadedWeights | None:
    """What run.json says of the weights that the delivered network began with."""
    model = scored.assignment.model
    for loaded in run.info.get("weights", []):
        same_network = loaded["name"] == model.name
        if same_network and loaded["weights"] == model.weights:
            return loaded
    return None


def _recall(data: RunData, scored: Scored) -> dict[str, float]:
    """The recall of each class that has test images."""
    found = scored.predictions
    classes = score_classes(found.label, found.predicted, data.manifest.classes)
    recall = {}
    for row in classes:
        if row["support"]:  # of a class without test images nothing is known
            recall[row["class"]] = row["recall"]
    return recall
