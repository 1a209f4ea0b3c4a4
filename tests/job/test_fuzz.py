"""Whatever stands in a job file, it is a job or a line for a person each; never anything else."""

from collections.abc import Callable
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysft.errors import JobError, ResourceError
from raysft.job import Job, dump_job
from raysft.job.load import apply_override, load_text, validate_job
from raysft.job.plain import NULLS
from raysft.job.plan import Node, Outline, make_plan
from raysft.job.read import parse_mapping
from raysft.search.space import check_configurations, configurations

JOBS = [path.read_text() for path in sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))]
OUTLINE = Outline(("ant", "bee"), 100, 20, "D")
FUZZ = settings(
    max_examples=7 * settings.default.max_examples,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

NAMES = st.sampled_from(
    [
        "name",
        "seed",
        "storage",
        "data",
        "source",
        "path",
        "limit",
        "val_fraction",
        "budget_gb",
        "mean",
        "std",
        "model",
        "weights",
        "image_size",
        "train",
        "epochs",
        "batch_size",
        "freeze",
        "optimizer",
        "lr",
        "momentum",
        "betas",
        "schedule",
        "warmup_epochs",
        "augment",
        "mixup",
        "clip_norm",
        "checkpoint_every",
        "patience",
        "search",
        "trials",
        "space",
        "start_with",
        "confirm",
        "max_failures",
        "scheduler",
        "grace_epochs",
        "resources",
        "workers",
        "gpus_per_worker",
        "train.optimizer.lr",
        "train.batch_size",
        "model.name",
        "grid",
        "choice",
        "uniform",
        "loguniform",
        "cluster",
        "x",
    ]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(
        [
            "adam",
            "sgd",
            "digits",
            "imagefolder",
            "none",
            "asha",
            "pbt",
            "tpe",
            "backbone",
            "1e-3",
            "resnet18",
            "5 minutes",
            "timm:x",
            "a.b:c",
            "s3://b/c",
            "\0",
            "2001-01-01",
        ]
    ),
)
TREES = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(NAMES, VALUES), inner, max_size=5)
    ),
    max_leaves=25,
)
SYNTAX = st.text(
    alphabet=st.sampled_from("ab:{}[],&*!|>-?#%@`'\"\\ \n\t0123.eE~<=\0é\ud7ff"), max_size=60
)


def check_lines(error: JobError | ResourceError) -> None:
    lines = [str(problem) for problem in error.problems]
    assert all(line.strip() and "\n" not in line for line in lines), lines


def check_text(text: str) -> None:
    """Read a job and all that is made of it before anything starts."""
    check_loaded(lambda: load_text(text, "j.yaml"))


def check_loaded(load: Callable[[], Job]) -> None:
    try:
        job = load()
        check_configurations(job)
        make_plan(job, OUTLINE, [Node(2, 0)])
    except (JobError, ResourceError) as error:
        check_lines(error)
        return
    assert load_text(dump_job(job), "again") == job
    if job.search is not None and job.search.trials <= 100 and job.search.algorithm.is_planned:
        assert configurations(job)


@FUZZ
@given(st.dictionaries(NAMES, TREES, max_size=6))
def test_any_tree(tree):
    check_text(yaml.safe_dump(tree))


@FUZZ
@given(SYNTAX)
def test_any_text(text):
    check_text(text)


@FUZZ
@given(
    st.sampled_from(JOBS),
    st.lists(
        st.tuples(st.integers(0, 5000), st.one_of(SYNTAX, st.just(""))), min_size=1, max_size=4
    ),
)
def test_shipped_jobs_with_pieces_replaced(text, changes):
    for at, piece in changes:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + len(piece) + 1 :]
    check_text(text)


@FUZZ
@given(st.sampled_from(JOBS), NAMES, NAMES, st.one_of(SYNTAX, VALUES.map(str)))
def test_any_override(text, section, key, value):
    def load() -> Job:
        tree = parse_mapping(text, "j.yaml")
        apply_override(tree, f"{section}.{key}={value}")
        return validate_job(tree, "j.yaml")

    check_loaded(load)


# What YAML 1.1 or 1.2 reads as something else than text, and what can end a scalar.
ODD = st.one_of(
    st.sampled_from(
        [
            "no",
            "off",
            "y",
            "N",
            "1e3",
            "1e-3",
            "0o7",
            "007",
            "0x1F",
            "12:30",
            "1_000",
            ".5",
            "+1",
            "1.",
            ".nan",
            ".inf",
            "~",
            "null",
            "",
            " ",
            "=",
            "<<",
            "a: b",
            "a #b",
            "- a",
            "{a}",
            "[a",
            "2024-01-01",
            "\ufeffa",
            "\x85",
            "a\u2028b",
            "a\r\nb",
            "\ta",
            "'a'",
            '"a"',
            "%a",
            "@a",
            "`a`",
            "!a",
            "&a",
            "*a",
            "---",
            "...",
        ]
    ),
    st.text(max_size=20),
)


@FUZZ
@given(ODD, ODD, ODD, st.lists(ODD, max_size=3))
def test_text_fields_survive_dump_and_load(path, storage, prefix, prefixes):
    tree = {
        "data": {"path": path, "test_path": storage, "source": "imagefolder"},
        "storage": storage,
        "train": {"freeze": [prefix, *prefixes]},
        "tracking": {"mlflow_experiment": prefix or None},
        "search": {"space": {"train.freeze": {"choice": [prefixes, [prefix]]}}},
    }
    job = validate_job(tree, "tree")
    assert load_text(dump_job(job), "again") == job
    if "\\x85" not in repr(tree):  # which an older raysft lost in writing
        before = yaml.safe_dump(job.model_dump(), sort_keys=False, allow_unicode=True)
        assert load_text(before, "a run of before") == job


@FUZZ
@given(ODD)
def test_text_overrides_are_taken_as_written(text):
    if text.strip()[:1] in ("'", '"') or text.strip() in NULLS:
        return  # in quotes, or no text
    tree = {}
    apply_override(tree, f"data.path={text}")
    assert validate_job(tree, "tree").data.path == text.strip()
