"""The job file: what is accepted, and what a person reads when it is not."""

import subprocess
import sys

import pytest
import yaml

from raysft.errors import JobError, JobErrors
from raysft.job import Job, dump_job, load_job
from raysft.job.describe import fields, json_schema
from raysft.job.load import load_text
from raysft.job.recipe import Train
from raysft.job.space import trial_settings
from raysft.job.spec import Model
from raysft.search.space import configurations


@pytest.fixture
def write(tmp_path):
    def _write(text: str):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return _write


def lines(path, *overrides) -> list[str]:
    with pytest.raises(JobErrors) as caught:
        load_job(path, overrides)
    return [str(p) for p in caught.value.problems]


def test_empty_job_has_defaults_everywhere():
    job = Job()
    assert (job.data.source, job.train.epochs, job.resources.workers, job.search) == (
        "digits",
        10,
        1,
        None,
    )
    assert (job.train.optimizer.name, job.train.optimizer.lr, job.train.optimizer.momentum) == (
        "sgd",
        0.01,
        0.9,
    )


def test_dumped_job_reads_back_equal(write):
    job = load_job(write("name: a\nsearch: {trials: 3}\n"))
    assert load_job(write(dump_job(job))) == job


def test_overrides_set_any_key_and_make_sections(write):
    job = load_job(
        write("name: a\n"), ["train.optimizer.lr=1e-3", "search.trials=3", "data={source: cifar10}"]
    )
    assert (job.train.optimizer.lr, job.search.trials, job.data.source) == (1e-3, 3, "cifar10")


def test_override_can_remove_the_search(write):
    assert load_job(write("search: {trials: 3}\n"), ["search=null"]).search is None


def test_defaults_depend_on_the_optimizer():
    optimizer = Job.model_validate({"train": {"optimizer": {"name": "adamw"}}}).train.optimizer
    assert (optimizer.lr, optimizer.momentum) == (1e-3, None)


def test_job_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Job().seed = 1


def test_unknown_key_names_the_closest_one(write):
    path = write("train: {epoch: 3}\n")
    assert lines(path) == [f"{path}: train.epoch: is not a key; did you mean epochs?"]


def test_unknown_key_unlike_any_lists_all(write):
    path = write("train: {zzz: 3}\n")
    assert lines(path) == [
        f"{path}: train.zzz: is not a key; known here: " + ", ".join(Train.model_fields)
    ]


def test_wrong_type_names_file_key_and_value(write):
    path = write("train: {epochs: ten}\n")
    assert lines(path) == [f"{path}: train.epochs: got 'ten', must be a whole number"]


def test_true_is_not_a_number(write):
    assert "got true" in lines(write("train: {epochs: true}\n"))[0]


def test_out_of_range_names_the_bound(write):
    path = write("train: {optimizer: {lr: -1}}\n")
    assert lines(path) == [f"{path}: train.optimizer.lr: got -1, must be greater than 0"]


def test_unknown_choice_lists_the_choices(write):
    (line,) = lines(write("train: {optimizer: {name: sdg}}\n"))
    assert all(
        word in line for word in ("train.optimizer.name", "'sdg'", "sgd", "adamw", "rmsprop")
    )


def test_all_problems_are_shown_at_once(write):
    found = lines(
        write("train: {epochs: 0}\nmodle: {}\nsearch: {space: {train.batch_siz: {choice: [1]}}}\n")
    )
    assert len(found) == 3
    assert "did you mean model" in found[1] or "did you mean model" in found[0]
    assert "did you mean train.batch_size" in found[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {source: imagefolder}", "needs data.path"),
        ("data: {source: digits, test_path: x}", "belongs to source imagefolder"),
        ("train: {optimizer: {name: adam, momentum: 0.5}}", "adam has no momentum"),
        ("train: {epochs: 1, schedule: {warmup_epochs: 2}}", "more than the 1 epochs"),
        ("train: {batch_size: 2}\nresources: {workers: 3}", "less than one image"),
        ("resources: {gpus_per_worker: 1.5}", "a worker trains on one GPU"),
        ("resources: {gpus_per_worker: 2}", "raise resources.workers to use more"),
        ("resources: {gpus_per_worker: 0.5, workers: 2}", "cannot share a GPU"),
        ("resources: {gpus_per_worker: 0.5, workers: [1, 2]}", "cannot share a GPU"),
        ("resources: {workers: [4, 1]}", "[LEAST, MOST]"),
        ("name: a/b", "pattern"),
    ],
)
def test_contradicting_fields_are_refused(write, text, expected):
    (line,) = lines(write(text))
    assert expected in line


@pytest.mark.parametrize(
    ("space", "key", "expected"),
    [
        (
            "{optimizer: [{name: sgd, lr: {loguniform: [0.1, 0.01]}}]}",
            "optimizer.0.lr",
            "lower end first",
        ),
        (
            "{optimizer: [{name: sgd, lr: {loguniform: [0, 0.01]}}]}",
            "optimizer.0.lr",
            "greater than 0",
        ),
        (
            "{optimizer: [{name: sgd, lr: {uniform: [-1, 0.01]}}]}",
            "optimizer.0.lr",
            "must be greater than 0",
        ),
        ("{optimizer: [{name: sgd}, {name: sdg}]}", "optimizer.1.name", "got 'sdg'"),
        ("{optimizer: [{name: sgd, lrr: 1}]}", "optimizer.0", "did you mean lr"),
        (
            "{optimizer: [{name: adam, momentum: {uniform: [0.1, 0.9]}}]}",
            "optimizer.0",
            "adam has no momentum",
        ),
        ("{optimizer: sgd}", "optimizer", "give a list of optimizers"),
        ("{train.batch_size: {uniform: [16, 128]}}", "train.batch_size", "must be a whole number"),
        (
            "{train.optimizer.name: {choice: [sgd, adamw]}}",
            "train.optimizer.name",
            "use the key `optimizer`",
        ),
        ("{train.batch_size: {choice: 5}}", "train.batch_size", "needs a list"),
        ("{train.batch_size: {int: null}}", "train.batch_size", "two whole numbers"),
        ("{train.batch_size: {choice: [16, a]}}", "train.batch_size", "got 'a'"),
        ("{train.epochs: {choice: [1, 2]}}", "train.epochs", "cannot be searched"),
        ("{train.schedule.name: {grid: [cosine, cosin]}}", "train.schedule.name", "got 'cosin'"),
        ("{train.batch_size: 16}", "train.batch_size", "{grid: [...]}"),
        ("{lr: {choice: [1]}}", "lr", "is not a field that can be searched"),
        ("{}", "optimizer", "space is empty"),
    ],
)
def test_wrong_search_space_names_its_key(write, space, key, expected):
    path = write(f"search: {{space: {space}}}\n")
    (line,) = lines(path)
    assert line.startswith(f"{path}: search.space.{key}: ")
    assert expected in line


def test_optimizer_range_in_two_places_is_refused(write):
    path = write(
        "search: {space: {optimizer: [{name: sgd}], train.optimizer.lr: {choice: [0.1]}}}\n"
    )
    assert "is part of `optimizer`, which is searched as a whole" in lines(path)[0]


def test_searched_momentum_is_checked_with_own_optimizer(write):
    space = "search: {space: {train.optimizer.momentum: {uniform: [0.1, 0.9]}}}\n"
    assert load_job(write(space)).search is not None
    assert (
        "adamw has no momentum"
        in lines(write(f"train: {{optimizer: {{name: adamw}}}}\n{space}"))[0]
    )


def test_algorithm_is_a_name_or_a_section_with_arguments(write):
    plain = load_job(write("search: {algorithm: tpe}\n"))
    assert (plain.search.algorithm.name, plain.search.algorithm.arguments) == ("tpe", {})
    assert "algorithm: tpe\n" in dump_job(plain)  # as every version has written it
    given = load_job(write("search: {algorithm: {name: tpe, n_startup_trials: 5}}\n"))
    assert given.search.algorithm.arguments == {"n_startup_trials": 5}
    for job in (plain, given):
        assert load_text(dump_job(job), "again") == job
    forms = json_schema()["$defs"]["Algorithm"]["anyOf"]
    assert "tpe" in forms[0]["enum"]
    assert "n_startup_trials" in forms[1]["properties"]


def test_override_reaches_into_the_search_space(write):
    job = load_job(
        write("search: {trials: 3}\n"), ["search.space.train.batch_size={choice: [8, 16]}"]
    )
    assert job.search is not None
    assert job.search.space == {"train.batch_size": {"choice": [8, 16]}}


@pytest.mark.parametrize(
    "text",
    [
        "train: {optimizer: {name: [sgd]}}",
        "train: {optimizer: {weight_decay: .nan}}",
        "data: {[1]: 2}",
        "search: {space: {1: {choice: [1]}}}",
        "data: {mean: [.inf, 0.5, 0.5]}",
    ],
)
def test_odd_values_give_lines_not_tracebacks(write, text):
    with pytest.raises(JobError):
        load_job(write(text))


def test_yaml_mistakes_name_the_line(write):
    assert "line 2" in lines_of_job_error(write("name: a\nname: b\n"))
    assert "given twice" in lines_of_job_error(write("name: a\nname: b\n"))
    assert "not valid YAML" in lines_of_job_error(write("train: [\n"))


def lines_of_job_error(path) -> str:
    with pytest.raises(JobError) as caught:
        load_job(path)
    return str(caught.value)


def test_missing_file_is_named(tmp_path):
    assert "no such job file" in lines_of_job_error(tmp_path / "none.yaml")


def test_shipped_jobs_are_valid():
    from pathlib import Path

    found = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
    assert [p.stem for p in found] == [
        "efficientnet_finetune",
        "quickstart",
        "resnet18_cifar10",
        "resnet18_tune",
    ]
    for path in found:
        job = load_job(path)
        assert yaml.safe_load(dump_job(job))["name"] == job.name


def test_reading_a_job_imports_no_ray_or_torch():
    code = (
        "import sys, raysft.job, raysft.job.plan; print({'ray', 'torch', 'numpy'} & "
        "set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


KNOBS = {
    "train.freeze": "backbone",
    "train.head_epochs": 1,
    "train.layer_decay": 0.8,
    "train.clip_norm": 1.0,
    "train.label_smoothing": 0.1,
    "train.class_weights": "balanced",
    "train.ema": 0.99,
    "train.patience": 3,
    "train.checkpoint_every": "200 steps",
    "train.precision": "bf16",
    "train.accumulate": 2,
    "train.channels_last": False,
    "train.compile": True,
    "train.optimizer.weight_decay": 0.1,
    "train.optimizer.nesterov": True,
    "train.optimizer.dampening": 0.1,
    "train.optimizer.decay_norms_and_biases": True,
    "train.schedule.name": "one_cycle",
    "train.schedule.floor": 0.1,
    "train.schedule.step_epochs": 2.0,
    "train.schedule.step_factor": 0.5,
    "train.schedule.rise": 0.4,
    "train.augment.color_jitter": 0.3,
    "train.augment.auto": "randaugment",
    "train.augment.erasing": 0.2,
    "train.augment.mixup": 0.2,
    "train.augment.cutmix": 1.0,
    "train.augment.crop_padding": 2,
    "model.name": "resnet34",
    "model.weights": "none",
    "model.image_size": 96,
    "model.interpolation": "bicubic",
}


@pytest.mark.parametrize("key", KNOBS)
def test_every_recipe_field_can_be_set_and_searched(write, key):
    value = yaml.safe_dump(KNOBS[key]).splitlines()[0]
    node = load_job(write("name: a\n"), [f"{key}={value}"])
    for part in key.split("."):
        node = getattr(node, part)
    assert node == KNOBS[key]
    searched = load_job(
        write("search: {trials: 2}\n"), [f"search.space={{{key}: {{choice: [{value}]}}}}"]
    )
    (config,) = configurations(searched)[:1]
    recipe = trial_settings(searched, config)
    for part in key.split("."):
        recipe = getattr(recipe, part)
    assert recipe == KNOBS[key]


def test_recipe_field_test_covers_all_fields():
    simple = {
        "train.epochs",
        "train.batch_size",
        "train.optimizer.name",
        "train.optimizer.lr",
        "train.optimizer.momentum",
        "train.schedule.warmup_epochs",
        "train.augment.flip",
    }
    known = {
        f.key
        for section, prefix in ((Train, "train."), (Model, "model."))
        for f in fields(section, prefix)
    }
    assert known - simple <= set(KNOBS)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (
            "{name: sgd, betas: [0.9, 0.99]}",
            "sgd has no betas; it has lr, weight_decay, momentum, dampening, nesterov",
        ),
        ("{name: adamw, beta: [0.9, 0.99]}", "did you mean betas?"),
        ("{name: adam, betas: 0.9}", "betas must be a list of two numbers"),
        ("{name: adam, betas: [0.9, 1.0]}", "at least 0 and less than 1"),
        ("{name: adam, amsgrad: 1}", "amsgrad must be true or false"),
        ("{name: sgd, momentum: 0, nesterov: true}", "nesterov needs a momentum"),
        ("{name: rprop, weight_decay: 0.1}", "rprop has no weight_decay"),
        ("{name: adam, fused: true, foreach: true}", "exclude each other"),
        ("{name: sgd, nesterov: true, dampening: 0.1}", "needs a dampening of 0"),
        ("{name: adafactor, d: 0.5}", "d must be at least 1"),
        ("{name: adafactor, beta2_decay: 0.8}", "beta2_decay must be at most 0"),
        ("{name: rprop, etas: [1.5, 0.5]}", "one number below 1 and one above"),
    ],
)
def test_wrong_optimizer_argument_lists_the_known(write, optimizer, expected):
    (line,) = lines(write(f"train: {{optimizer: {optimizer}}}\n"))
    assert expected in line
    (line,) = lines(write(f"search: {{space: {{optimizer: [{optimizer}]}}}}\n"))
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {checkpoint_every: 0 steps}", "give epoch, N steps or N minutes"),
        ("train: {head_epochs: 11}", "more than the 10 epochs"),
        ("train: {head_epochs: 1, freeze: backbone}", "leave head_epochs at 0"),
        (
            "train: {head_epochs: 1, optimizer: {name: sgd, fused: true}}",
            "cannot begin with the head alone",
        ),
        ("train: {batch_size: 8, accumulate: 9}", "more than the 8 images"),
        ("train: {batch_size: 8, accumulate: 5}\nresources: {workers: 2}", "a worker's share"),
        ("train: {schedule: {name: one_cycle, warmup_epochs: 1}}", "rises by itself"),
        ("train: {ema: 1.0}", "must be less than 1"),
        (
            "search: {start_with: [{train.epochs: 3}]}",
            "search.start_with.0.train.epochs: cannot be searched",
        ),
        ("search: {start_with: [{train.ema: 3}]}", "search.start_with.0.train.ema: got 3"),
        (
            "search: {start_with: [{train.head_epochs: 2, train.freeze: backbone}]}",
            "start_with.0: ",
        ),
        (
            "search: {algorithm: tpe, space: {train.batch_size: {grid: [8, 16]}}}",
            "does not try a grid in full",
        ),
        (
            "search: {algorithm: grid, space: {train.batch_size: {choice: [8, 16]}}}",
            "grid tries every combination and draws nothing",
        ),
        ("search: {algorithm: grid}", "grid tries every combination and draws nothing"),
        ("search: {algorithm: bayesopt}", "bayesopt proposes continuous numbers alone"),
        ("search: {algorithm: bohb}", "bohb is search.algorithm and search.scheduler.name"),
        ("search: {algorithm: tpo}", "search.algorithm: got 'tpo', must be "),
        (
            "search: {algorithm: {name: tpe, n_startup_trails: 3}}",
            "search.algorithm: tpe has no argument n_startup_trails; did you mean n_startup_trials?",
        ),
        (
            "search: {algorithm: {name: tpe, n_startup_trials: few}}",
            "n_startup_trials of tpe is 'few', must be a whole number",
        ),
        (
            "search: {algorithm: {name: tpe, n_startup_trials: true}}",
            "n_startup_trials of tpe is True, must be a whole number",
        ),
        (
            "search: {algorithm: {name: random, seed: 3}}",
            "search.algorithm: random takes no arguments, got seed",
        ),
        (
            "train: {epochs: 2}\nsearch: {space: {train.schedule: [{name: cosine, warmup_epochs: "
            "5}]}}",
            "than the 2 epochs",
        ),
        (
            "search: {space: {train.schedule: [{name: stair}]}}",
            "search.space.train.schedule.0.name: got 'stair'",
        ),
        (
            "search: {space: {train.schedule: [{name: step}], train.schedule.floor: {choice: "
            "[0.1]}}}",
            "searched as a whole",
        ),
    ],
)
def test_impossible_recipes_and_searches_are_refused(write, text, expected):
    (line,) = lines(write(text))
    assert expected in line


def test_optimizer_name_alone_gets_its_usual_range(write):
    job = load_job(write("search: {trials: 40, space: {optimizer: [sgd, adamw]}}\n"))
    rates = {
        name: [c["optimizer"]["lr"] for c in configurations(job) if c["optimizer"]["name"] == name]
        for name in ("sgd", "adamw")
    }
    assert all(1e-3 <= rate <= 1e-1 for rate in rates["sgd"])
    assert all(1e-5 <= rate <= 3e-3 for rate in rates["adamw"])
    assert len(set(rates["sgd"])) == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {None}),
        ("model: {image_size: 64}", {64}),
        (
            "search: {space: {model: [{name: resnet18}, {name: resnet34, image_size: 64}]}}",
            {None, 64},
        ),
        ("search: {space: {model.image_size: {choice: [null, 96, 64]}}}", {None, 96, 64}),
        ("model: {image_size: 32}\nsearch: {start_with: [{model.image_size: 384}]}", {32, 384}),
    ],
)
def test_image_sizes_cover_every_trial(write, text, expected):
    assert load_job(write(text)).image_sizes() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {None}),
        ("model: {interpolation: bicubic}", {"bicubic"}),
        (
            "search: {space: {model: [{name: resnet18}, {name: resnet34, interpolation: "
            "nearest}]}}",
            {None, "nearest"},
        ),
        (
            "model: {interpolation: bicubic}\nsearch: {space: {model: [{name: resnet18}, {name: "
            "resnet34}]}}",
            {None},
        ),
        ("search: {space: {model.interpolation: {choice: [null, nearest]}}}", {None, "nearest"}),
    ],
)
def test_interpolations_cover_every_trial(write, text, expected):
    assert load_job(write(text)).interpolations() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{source: imagefolder, path: x, background: pink}", "must be white, black, grey or"),
        ("{source: imagefolder, path: x, background: '#12345'}", "must be white, black, grey or"),
        ("{source: shards, path: x, background: black}", "was given its own when it was imported"),
    ],
)
def test_unusable_backgrounds_are_refused(write, text, expected):
    with pytest.raises(JobError, match=expected):
        load_job(write(f"data: {text}"))


def test_background_is_a_name_or_hex_code(write):
    job = load_job(write("data: {source: imagefolder, path: x, background: '#0aff10'}"))
    assert job.data.background_rgb == (10, 255, 16)
