"""What a job file means: values without quotes, overrides, encodings, and YAML's own traps."""

import pytest

from raysft.errors import JobError
from raysft.job import dump_job, load_job
from raysft.job.load import load_text


def value(job, key):
    for part in key.split("."):
        job = getattr(job, part)
    return job


def line(text: str) -> str:
    with pytest.raises(JobError) as caught:
        load_text(text, "j.yaml")
    (problem,) = caught.value.problems
    return str(problem)


FREEZE = (
    "must be none (nothing is frozen), backbone, or a list of prefixes of tensor names, "
    "such as [layer1]"
)
TEXTS = [
    "no",
    "on",
    "off",
    "yes",
    "y",
    "n",
    "true",
    "2024-01-01",
    "007",
    "1_000",
    "12:30",
    "1e3",
    "1e-3",
    "0o17",
    "017",
    "0x1F",
    ".5",
    "+1",
    "1.",
    ".inf",
    ".nan",
    "12",
    "1.0",
    "=",
    "<<",
    "2001-12-14t21:59:43.10-05:00",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_written(text):
    job = load_text(
        f"data: {{path: {text}}}\nstorage: {text}\nmodel: {{name: {text}}}\n"
        f"train: {{freeze: [{text}, head]}}\n",
        "j.yaml",
    )
    assert (job.data.path, job.storage, job.model.name) == (text, text, text)
    assert job.train.freeze == [text, "head"]
    assert load_text(dump_job(job), "again") == job


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "007", "1e3", "0o17", "1.0"])
def test_job_may_be_named_like_a_value(text):
    assert load_text(f"name: {text}", "j.yaml").name == text


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.epochs", "1.0", 1),
        ("train.epochs", "1.", 1),
        ("train.epochs", "+1", 1),
        ("train.epochs", "1e1", 10),
        ("train.epochs", "1_000", 1000),
        ("train.epochs", "0o17", 15),
        ("train.epochs", "0x1F", 31),
        ("train.optimizer.lr", "1e-3", 1e-3),
        ("train.optimizer.lr", "1E-3", 1e-3),
        ("train.optimizer.lr", ".5", 0.5),
        ("train.optimizer.lr", "1", 1.0),
        ("model.image_size", "224.0", 224),
        ("resources.workers", "2.0", 2),
        ("resources.workers", "[1, 2.0]", [1, 2]),
        ("data.mean", "[.5, 1, 1e-1]", [0.5, 1, 0.1]),
        ("train.compile", "y", True),
        ("train.compile", "On", True),
        ("train.compile", "YES", True),
        ("train.channels_last", "n", False),
        ("train.channels_last", "off", False),
        ("data.path", "~", None),
        ("data.path", "null", None),
        ("data.path", "", None),
        ("model.weights", "~", "none"),
        ("train.freeze", "none", "none"),
        ("train.checkpoint_every", "5 minutes", "5 minutes"),
        ("data.path", "!!str no", "no"),
        ("data.path", "'~'", "~"),
    ],
)
def test_field_decides_how_a_value_reads(tmp_path, key, text, expected):
    sections = "".join(f"{part}: {{" for part in key.split(".")[:-1])
    last = key.split(".")[-1]
    in_file = load_text(f"{sections}{last}: {text}{'}' * sections.count('{')}", "j.yaml")
    (tmp_path / "j.yaml").write_text("seed: 1")
    in_override = load_job(tmp_path / "j.yaml", [f"{key}={text}"])
    for job in [in_file, *([] if text.startswith("!!") else [in_override])]:
        found = value(job, key)
        assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochs: 1.5}", "train.epochs: got 1.5, must be a whole number"),
        ("train: {epochs: 1e30}", "train.epochs: got 1e30, must be a whole number"),
        ("train: {epochs: 12:30}", "train.epochs: got '12:30', must be a whole number"),
        (
            "train: {epochs: 017}",
            "train.epochs: got '017', must be a whole number; write 17, or 0o17 for an octal "
            "number",
        ),
        ("train: {epochs: 009}", "train.epochs: got '009', must be a whole number; write 9"),
        (
            "train: {epochs: '3'}",
            "train.epochs: got '3', must be a whole number; write 3 without quotes",
        ),
        ("train: {epochs: yes}", "train.epochs: got yes, must be a whole number"),
        (
            "train:\n  label_smoothing: 0,1",
            "train.label_smoothing: got '0,1', must be a number; write 0.1 with a point",
        ),
        ("train: {ema: .inf}", "train.ema: got .inf, must be a finite number or null"),
        ("train: {ema: .nan}", "train.ema: got .nan, must be a finite number or null"),
        ("train: {patience: none}", "train.patience: got 'none', must be a whole number or null"),
        ("train: {compile: 1}", "train.compile: got 1, must be true or false"),
        ("train: {freeze: off}", f"train.freeze: {FREEZE}"),
        ("train: {freeze: 1}", f"train.freeze: {FREEZE}"),
        (
            "train: {freeze: {a: 1}}",
            "train.freeze: got {'a': 1}, must be none, backbone or a list of text",
        ),
        ("train: {freeze: [{a: 1}, [b]]}", "train.freeze.0: got {'a': 1}, must be text"),
        (
            "search: {space: {train.freeze: {choice: [none, 0]}}}",
            f"search.space.train.freeze: {FREEZE}",
        ),
        (
            "storage: ~",
            "storage: got ~, must be text; leave the key out for its default, or put the text in "
            "quotes",
        ),
        (
            "storage:",
            "storage: got nothing, must be text; leave the key out for its default, or put the "
            "text in quotes",
        ),
        (
            "model: {weights: no}",
            "model.weights: got 'no', which names nothing; write none for no weights, "
            "DEFAULT for the library's",
        ),
        (
            "tracking: {wandb: no}",
            "tracking.wandb: got 'no', which names nothing; give the name of a project, "
            "or null for none",
        ),
        ("name: a/b", "name: got 'a/b', must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
        ("data: {mean: [0, 1]}", "data.mean: got [0, 1], must have at least 3 items, not 2"),
        ("train: 3", "train: got 3, must be a section with keys of its own"),
        (
            "resources: {workers: [1, 2.5]}",
            "resources.workers: must be a whole number of at least 1, or two of them, [LEAST, "
            "MOST]",
        ),
    ],
)
def test_wrong_value_is_one_plain_line(text, expected):
    assert line(text) == f"j.yaml: {expected}"


@pytest.mark.parametrize(
    "text", ["{a: 1}", "[[1]]", "1.5", "[{}, {}]", "{list[str]: 1}", "!!binary aGk="]
)
@pytest.mark.parametrize(
    "field", ["freeze", "compile", "optimizer", "precision", "checkpoint_every", "ema"]
)
def test_messages_only_name_keys_of_the_file(field, text):
    with pytest.raises(JobError) as caught:
        load_text(f"train: {{{field}: {text}}}", "j.yaml")
    for problem in caught.value.problems:
        place = str(problem).split(": ")[1]
        assert not {"literal", "constrained", "function", "list"} & {
            w for w in place.split("[")[0].split(".")
        }


def test_search_space_reads_values_like_fields():
    job = load_text(
        """
search:
  space:
    optimizer: [sgd, {name: adam, lr: {loguniform: [1e-5, 1]}, amsgrad: on, betas: [.9, 1e-1]}]
    train.batch_size: {int: [16.0, 32]}
    train.compile: {choice: [y, no]}
    model.name: {choice: [no, 1e3]}
    train.freeze: {choice: [none, [0, on]]}
  start_with: [{train.batch_size: 16.0, train.compile: off, model.name: 007}]
""",
        "j.yaml",
    )
    assert job.search.space == {
        "optimizer": [
            "sgd",
            {"name": "adam", "lr": {"loguniform": [1e-5, 1]}, "amsgrad": True, "betas": [0.9, 0.1]},
        ],
        "train.batch_size": {"int": [16, 32]},
        "train.compile": {"choice": [True, False]},
        "model.name": {"choice": ["no", "1e3"]},
        "train.freeze": {"choice": ["none", ["0", "on"]]},
    }
    assert job.search.start_with == [
        {"train.batch_size": 16, "train.compile": False, "model.name": "007"}
    ]
    assert all(type(end) is int for end in job.search.space["train.batch_size"]["int"])
    assert load_text(dump_job(job), "again") == job


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("name=on", "name", "on"),
        ("data.path=a: b", "data.path", "a: b"),
        ("data.path=a #b", "data.path", "a #b"),
        ("data.path={x}", "data.path", "{x}"),
        ("data.path=[a]", "data.path", "[a]"),
        ("data.path=[a", "data.path", "[a"),
        ("data.path='no'", "data.path", "no"),
        ("data.path=null", "data.path", None),
        ("data.path=@a", "data.path", "@a"),
        ("train.freeze=[0, no]", "train.freeze", ["0", "no"]),
        ("storage=%5", "storage", "%5"),
    ],
)
def test_text_override_is_taken_as_written(tmp_path, override, key, expected):
    (tmp_path / "j.yaml").write_text("seed: 1")
    assert value(load_job(tmp_path / "j.yaml", [override]), key) == expected


def test_override_changes_one_place_of_an_anchor(tmp_path):
    (tmp_path / "j.yaml").write_text("train: {schedule: &a {}, augment: *a}")
    assert load_job(tmp_path / "j.yaml", ["train.schedule.name=step"]).train.schedule.name == "step"


def test_merge_keys_are_read():
    job = load_text("train: {epochs: 2, <<: {epochs: 3, patience: 2}}", "j.yaml")
    assert (job.train.epochs, job.train.patience) == (2, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# nothing", "is empty"),
        ("---\n...", "is empty"),
        ("[1]", "is not a job"),
        ("name: a\n---\nname: b", "line 2: holds a second document (---): a job file is one"),
        ("train:\n\tepochs: 1", "line 2: is not valid YAML"),
        ("train:\n\tepochs: 1", "spaces instead of tabs"),
        ("data:\n  path: a: b", "needs quotes"),
        ("data: {path: @a}", "in quotes"),
        ('data: {path: "C:\\data"}', "single quotes"),
        ("on: 1\non: 2", "the key 'on' is given twice"),
        ("? {a: 1}\n: 2", "is not a name"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 3000, "nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
                for a, b in zip("abcde", "bcdef", strict=True)
            ),
            "100,000 values",
        ),
    ],
)
def test_yaml_traps_are_one_line(text, expected):
    assert expected in line(text)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfname: a\nseed: 3\n", b"name: a\r\nseed: 3\r\n"])
def test_windows_marks_and_line_ends_are_read(tmp_path, content):
    (tmp_path / "j.yaml").write_bytes(content)
    assert (load_job(tmp_path / "j.yaml").name, load_job(tmp_path / "j.yaml").seed) == ("a", 3)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (
            "cp1252",
            "j.yaml, line 2: is not UTF-8 but looks like WINDOWS-1252, which would read it as "
            "'data: {path: Müller}'; convert it: iconv -f WINDOWS-1252 -t UTF-8 ",
        ),
        ("latin-1", "iconv -f WINDOWS-1252 -t UTF-8 "),
        ("utf-16", "iconv -f UTF-16 -t UTF-8 "),
        ("utf-16-le", "iconv -f UTF-16-LE -t UTF-8 "),
        ("utf-16-be", "iconv -f UTF-16-BE -t UTF-8 "),
        ("utf-32", "iconv -f UTF-32 -t UTF-8 "),
    ],
)
def test_other_encoding_is_named(tmp_path, encoding, expected):
    (tmp_path / "j.yaml").write_bytes("name: a\ndata: {path: Müller}\n".encode(encoding))
    with pytest.raises(JobError) as caught:
        load_job(tmp_path / "j.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_of_no_encoding_are_one_line(tmp_path):
    (tmp_path / "j.yaml").write_bytes(b"name: a\n# \x81\n")
    with pytest.raises(JobError, match="line 2: is neither UTF-8"):
        load_job(tmp_path / "j.yaml")
