"""What is named like a module in the current folder, and workers that cannot start."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raysft import ray_calls as answers
from raysft import search_path
from raysft.errors import RunError
from raysft.search_path import current_folder_last, empty_current_folder
from tests.conftest import make_images

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with a job and the network that it names."""
    folder = tmp_path / "here"
    make_images(folder / "images", {"ant": 40, "bee": 40})
    (folder / "mine.py").write_text("from tests.tiny import tiny as net\n")
    (folder / "j.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "j",
                "data": {"source": "imagefolder", "path": "images"},
                "train": {"epochs": 1, "batch_size": 16},
                "model": {"name": "mine:net", "weights": "none"},
            }
        )
    )
    monkeypatch.chdir(folder)
    return folder


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "raysft", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_current_folder_comes_after_the_libraries(here, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", str(here), "/lib"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(here), ".", "/other"]))
    current_folder_last()
    assert sys.path == ["/lib", str(here)]
    assert os.environ["PYTHONPATH"] == "/other"


def test_folder_holding_raysft_stays_first_in_path(monkeypatch):
    monkeypatch.chdir(search_path.OWN.parent)
    monkeypatch.setattr(sys, "path", ["", "/lib"])
    current_folder_last()
    assert sys.path == ["", "/lib"]


def test_ray_starts_without_current_folder_or_script(here, tmp_path):
    script = sys.argv[0]
    with empty_current_folder(tmp_path / "nowhere"):
        assert Path.cwd() == tmp_path / "nowhere"
        assert sys.argv[0] == ""
    assert (Path.cwd(), sys.argv[0]) == (here, script)


def test_import_error_in_worker_ends_run_immediately(no_ray, here, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import sys\n"
        "if any('default_worker' in word for word in sys.orig_argv):\n"
        "    sys.modules['raysft.train.loop'] = None\n"
    )
    began = time.monotonic()
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    done = run(
        "submit", "j.yaml", "--name", "r", PYTHONPATH=path, RAY_ADDRESS="local"
    )  # which is this machine
    assert time.monotonic() - began < 150  # of a run that would go on trying for hours
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot start: ModuleNotFoundError: import of raysft.train.loop halted" in line
    assert "raysft/train/worker.py, line " in line


@pytest.mark.usefixtures("ray_local")
def test_process_that_never_starts_is_reported(monkeypatch, tmp_path):
    import ray

    monkeypatch.setattr(answers, "START_SECONDS", 0.2)
    monkeypatch.setattr(answers, "_logs", [tmp_path])
    (tmp_path / "worker-1.err").write_text("one\ntwo\n\nImportError: three\nfour\n")
    (tmp_path / "worker-2.err").write_text("\n")
    told = r"within 0\.2 seconds; worker-1\.err ends: two \| ImportError: three \| four; see"
    with pytest.raises(RunError, match=told):
        answers.first_result(ray.remote(resources={"nothing has it": 1})(answers._nothing).remote())
