"""A run that was moved: its data and its weights are found beside it, or it is said how to say
where they are.
"""

from pathlib import Path

import pytest

from raysft.errors import UserError
from raysft.job import Job
from raysft.records.documents import INFO
from raysft.records.reading import read_job, read_run_document
from raysft.records.relocation import parse_places
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.results.figures import read_figures
from raysft.storage import read_json, write_json
from tests.results.made import make_run


def begun(root: Path, **sections) -> Path:
    """A run that was stopped, in ROOT/runs/r, with data in ROOT/data/photos and weights in
    ROOT/w.pth.
    """
    (root / "data/photos").mkdir(parents=True)
    (root / "w.pth").write_bytes(b"weights")
    job = {
        "storage": str(root / "runs"),
        "data": {"source": "imagefolder", "path": str(root / "data/photos")},
        "model": {"name": "resnet18", "weights": str(root / "w.pth")},
    } | sections
    run = Run.create(Job.model_validate(job), "r")
    run.save_trial(TrialRecord("t0", {}, "running"))
    run.save(status="stopped")
    return Path(run.folder)


def test_files_moved_along_with_run_are_found(tmp_path):
    begun(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    run = Run.reopen(tmp_path / "new/runs/r")
    assert run.job.data.path == str(tmp_path / "new/data/photos")
    assert run.job.model.weights == str(tmp_path / "new/w.pth")
    assert (
        run.notes[0] == f"data.path: {tmp_path}/old/data/photos does not exist any more; "
        f"using {tmp_path}/new/data/photos"
    )
    run.save(status="stopped")
    again = read_json(run.folder / INFO)
    assert read_job(run.folder, again).data.path == str(tmp_path / "new/data/photos")
    (tmp_path / "new").rename(tmp_path / "newer")
    assert Run.reopen(tmp_path / "newer/runs/r").job.data.path == str(
        tmp_path / "newer/data/photos"
    )


def test_relative_paths_resolve_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    folder = begun(
        tmp_path / "old",
        data={"source": "imagefolder", "path": "data/photos"},
        model={"name": "resnet18", "weights": "w.pth"},
    )
    monkeypatch.chdir(tmp_path)
    run = Run.reopen(folder)
    assert run.job.data.path == str(tmp_path / "old/data/photos")
    assert run.job.model.weights == str(tmp_path / "old/w.pth")


@pytest.mark.parametrize("where", ["runs/r/photos", "runs/photos", "photos"])
def test_run_of_older_raysft_finds_data_beside_it(tmp_path, where):
    folder = begun(tmp_path / "old", model={"name": "resnet18"})
    info = read_run_document(folder)
    write_json(
        folder / INFO, {key: value for key, value in info.items() if key not in ("folder", "cwd")}
    )
    (tmp_path / "old/data/photos").rmdir()
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / where).mkdir()
    assert Run.reopen(tmp_path / "new/runs/r").job.data.path == str(tmp_path / "new" / where)


def test_missing_data_says_which_option_to_give(tmp_path):
    folder = begun(tmp_path)
    (tmp_path / "data/photos").rename(tmp_path / "pictures")
    with pytest.raises(UserError) as raised:
        Run.reopen(folder)
    assert str(raised.value) == (
        f"data.path: {tmp_path}/data/photos: does not exist any more, and is not beside the run; "
        f"`raysft resume {folder} --set data.path=PATH` says where it is"
    )
    run = Run.reopen(folder, places={"data.path": str(tmp_path / "pictures")})
    assert run.job.data.path == str(tmp_path / "pictures")
    with pytest.raises(UserError, match="nowhere: does not exist"):
        Run.reopen(folder, places={"data.path": str(tmp_path / "nowhere")})


def test_other_weights_than_first_used_are_refused(tmp_path):
    folder = begun(tmp_path)
    (tmp_path / "v.pth").write_bytes(b"others")
    with pytest.raises(UserError, match=r"v\.pth: is not the file that the run began with"):
        Run.reopen(folder, places={"model.weights": str(tmp_path / "v.pth")})
    with pytest.raises(UserError, match=r"model\.weights=DEFAULT: is not a file"):
        Run.reopen(folder, places={"model.weights": "DEFAULT"})
    (tmp_path / "w.pth").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"w\.pth: is not the file that the run began with"):
        Run.reopen(folder)


def test_only_places_the_job_has_can_change(tmp_path):
    assert parse_places(["data.path=a b=c", "storage=s3://b"]) == {
        "data.path": "a b=c",
        "storage": "s3://b",
    }
    with pytest.raises(
        UserError, match="cannot be changed in a run that has begun, only where it finds its files"
    ):
        parse_places(["train.epochs=3"])
    with pytest.raises(UserError, match="is not KEY=VALUE"):
        parse_places(["data.path"])
    folder = begun(tmp_path, data={"source": "digits"}, model={"name": "resnet18"})
    for given in ({"data.path": str(tmp_path)}, {"model.weights": str(tmp_path / "w.pth")}):
        with pytest.raises(
            UserError, match=r"cannot be changed: the job of the run has (none|DEFAULT) there"
        ):
            Run.reopen(folder, places=given)


def test_report_of_moved_run_finds_its_images(tmp_path):
    make_run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_figures(tmp_path / "new/runs/r")["data"]["unreached"] is None
