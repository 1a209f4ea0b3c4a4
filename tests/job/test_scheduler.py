"""`search.scheduler`: its names, what each of them takes, and what older files have."""

from typing import get_args

import pytest

from raysft.errors import JobErrors
from raysft.job.load import dump_job, load_text
from raysft.job.scheduler import ARGUMENTS, OLD_NAMES, Scheduler, SchedulerName


def scheduler_of(text: str) -> Scheduler:
    job = load_text(f"search: {{scheduler: {text}, space: {{optimizer: [sgd]}}}}", "j.yaml")
    assert job.search is not None
    assert load_text(dump_job(job), "stored") == job
    return job.search.scheduler


def said(text: str) -> list[str]:
    with pytest.raises(JobErrors) as caught:
        scheduler_of(text)
    return [str(problem) for problem in caught.value.problems]


def test_every_name_is_known_to_take_something():
    assert set(get_args(SchedulerName)) == set(ARGUMENTS) | set(OLD_NAMES)


def test_every_argument_is_taken_by_some():
    taken = {argument for arguments in ARGUMENTS.values() for argument in arguments}
    assert taken == set(Scheduler.model_fields) - {"name"}


# bohb goes with the searcher of that name.
@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"bohb"}))
def test_name_alone_will_do(name):
    assert scheduler_of(name) == Scheduler(name=name)


def test_asha_is_the_old_name_of_halving():
    assert scheduler_of("{name: asha, grace_epochs: 2}") == Scheduler(
        name="halving", grace_epochs=2
    )


@pytest.mark.parametrize("name", ["none", "median"])
def test_stored_factor_of_an_older_raysft_is_read(name):
    stored = f"{{name: {name}, grace_epochs: null, reduction_factor: 4}}"
    assert scheduler_of(stored) == Scheduler(name=name)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "{name: pbt, grace_epochs: 2}",
            "j.yaml: search.scheduler: pbt has no grace_epochs; it has perturbation_interval, "
            "quantile_fraction, synch, burn_in_period, resample_probability, perturbation_factors",
        ),
        (
            "{name: none, brackets: 2}",
            "search.scheduler: none has no brackets; it has no arguments: give its name alone",
        ),
        (
            "{name: pbt, perturbation_intervall: 2}",
            "search.scheduler.perturbation_intervall: is not a key; did you mean "
            "perturbation_interval?",
        ),
        ("{name: pbt, quantile_fraction: 0.7}", "got 0.7, must be less than or equal to 0.5"),
        ("{name: hyperbnd}", "search.scheduler.name: got 'hyperbnd'"),
        ("hyperbnd", "search.scheduler: got 'hyperbnd'"),
    ],
)
def test_wrong_ones_are_one_line_each(given, line):
    problems = said(given)
    assert len(problems) == 1
    assert line in problems[0]


# --- populations ---------------------------------------------------------------------------------


def population(space: str, scheduler: str = "pbt", trials: int = 4, epochs: int = 8) -> str:
    return (
        f"{{train: {{epochs: {epochs}}}, search: "
        f"{{scheduler: {scheduler}, trials: {trials}, space: {space}}}}}"
    )


def problems_of(text: str) -> list[str]:
    try:
        load_text(text, "j.yaml")
    except JobErrors as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "space",
    [
        "{optimizer: [sgd, adamw]}",
        "{optimizer: [{name: adamw, lr: {loguniform: [1e-5, 1e-3]}, betas: {choice: [[0.9, 0.99]]}}]}",
        "{train.optimizer.weight_decay: {uniform: [0, 0.1]}}",
        "{train.augment.erasing: {uniform: [0, 0.5]}, train.label_smoothing: {choice: [0, 0.1]}}",
        "{train.schedule: [{name: cosine, floor: {uniform: [0, 0.5]}}, {name: constant}]}",
        "{model: [{name: resnet18}, {name: resnet34}], train.optimizer.lr: {uniform: [0.1, 0.2]}}",
    ],
)
def test_population_changes_what_every_step_reads_anew(space):
    assert problems_of(population(space)) == []


@pytest.mark.parametrize(
    ("space", "key"),
    [
        ("{train.layer_decay: {uniform: [0.7, 1.0]}}", "train.layer_decay"),
        ("{train.batch_size: {choice: [32, 64]}}", "train.batch_size"),
        ("{model.name: {choice: [resnet18, resnet34]}}", "model.name"),
        ("{train.ema: {uniform: [0.9, 0.99]}}", "train.ema"),
        ("{optimizer: [{name: adam, amsgrad: {choice: [true, false]}}]}", "optimizer.amsgrad"),
    ],
)
def test_population_changes_no_key_of_a_whole_trial(space, key):
    (line,) = problems_of(population(space))
    assert f"search.space.{key}: cannot change while a trial trains, which pbt wants" in line
    assert problems_of(population(space, "halving")) == []


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (population("{train.clip_norm: 1.0}"), "search.space.train.clip_norm"),
        (population("{optimizer: [{name: sgd}]}"), "search.space: pbt has nothing to change"),
        (
            population("{optimizer: [sgd]}").replace("search: {", "search: {confirm: 2, "),
            "search.confirm: trains one configuration again",
        ),
        (population("{optimizer: [sgd]}", trials=1), "search.trials: pbt compares trials"),
        (
            population("{optimizer: [sgd]}", epochs=1),
            "search.scheduler.perturbation_interval: is 1",
        ),
        (
            population("{optimizer: [sgd, adamw]}", "pb2"),
            "search.space.optimizer: pb2 needs the same",
        ),
        (
            population("{train.optimizer.weight_decay: {choice: [0, 0.1]}}"),
            "search.space.train.optimizer.weight_decay: 0 cannot change while a trial trains",
        ),
        (
            population("{train.label_smoothing: {choice: [0, 0.1]}}", "pb2"),
            "search.space.train.label_smoothing: pb2 chooses numbers",
        ),
    ],
)
def test_population_that_would_learn_nothing_is_refused(job, line):
    problems = problems_of(job)
    assert len(problems) == 1, problems
    assert line in problems[0]
