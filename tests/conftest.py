"""One local Ray for the whole test session, and tiny data to run on."""

import builtins
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest
from hypothesis import settings
from PIL import Image

_PRINT = builtins.print
_STATUS = pytest.StashKey[int]()

os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
# As on a Ray that raysft starts itself; the tests of nodes put it back.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One of several processes: with a thread a core in each they wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests of properties take their number of examples from here: --hypothesis-profile fast
# Without a deadline: a machine may be busy with something else.
settings.register_profile("usual", deadline=None, max_examples=50)
settings.load_profile("usual")
settings.register_profile("fast", deadline=None, max_examples=10)

# Started in the background, as a CI may do, a shell has its children ignore Ctrl-C, and theirs:
# tests send it to them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End without the libraries' own farewells: with threads of Ray and Arrow still there, some
    crash in them.
    """
    status = config.stash.get(_STATUS, pytest.ExitCode.USAGE_ERROR)
    if status == pytest.ExitCode.USAGE_ERROR:  # which is said only after this
        return
    if not hasattr(config, "workerinput"):  # pytest-xdist's: it reports
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# --- Ray, and the order of the tests -------------------------------------------------------------

# Which tests start a Ray shows in their fixtures, so that nobody has to mark them: those that share
# the session's, and those that have to be alone, since two Rays on a machine disturb each other.
SHARED_RAY = "ray_local"
ALONE = {"no_ray", "module_without_ray"}
# Runs of one shape use the same workers, so they follow one another, whatever file they are in. A
# test that goes on with another shape is the last of its own, and so spares the next one the start.
SHAPES = [(2, 1), (1, 2), (1, 1)]  # (teams, workers of each)


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks given here
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with Ray; run those without first, then those that share one."""
    for item in items:
        if _turn(item)[0]:
            item.add_marker(pytest.mark.ray)
    # A Ray takes six seconds to come and to go: with the files in between it would do so each time.
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, int, bool]:
    fixtures = set(getattr(item, "fixturenames", ()))
    teams = item.get_closest_marker("teams")
    if ("go" in fixtures) is not (teams is not None):
        raise pytest.UsageError(f"{item.nodeid}: a test with `go`, and no other, is marked `teams`")
    if teams is not None:
        # Behind those that want the CPUs which these workers hold.
        return 2, SHAPES.index(teams.args), bool(teams.kwargs)
    if fixtures & ALONE:
        return 3, 0, False
    return (1 if SHARED_RAY in fixtures else 0), 0, False


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """What tells pyarrow and boto3 of an S3 server of our own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server.stop()


@pytest.fixture(scope="session")
def _shared_ray() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def ray_local(_shared_ray: None, s3_environment: dict[str, str]) -> None:
    """The Ray of the session, started when first needed and again after a test that had to be
    alone.
    """
    import ray

    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)  # workers have the environment of their Ray's start
        ray.init(
            address="local",
            num_cpus=2,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
        )


@pytest.fixture
def no_ray() -> None:
    """For tests that start a Ray of their own: two at once disturb each other."""
    _end_ray()


@pytest.fixture(scope="module")
def module_without_ray() -> None:
    """For fixtures that start a Ray for a whole module."""
    _end_ray()


def _end_ray() -> None:
    if ray := sys.modules.get("ray"):  # who has not imported it has not started it
        ray.shutdown()


# --- what a test must not leave behind, or do without its mark ------------------------------------

_running: list[pytest.Item] = []
_COMMANDS = {"ray", "raysft", "gcs_server"}


def _refuse_commands_of_unmarked_tests(event: str, arguments: tuple[object, ...]) -> None:
    """Have `make test-fast` stay fast: a command takes seconds and more."""
    if event != "subprocess.Popen" or not _running:
        return
    words = [str(word) for word in cast("Sequence[object]", arguments[1])]
    marks = {mark.name for mark in _running[-1].iter_markers()}
    if not marks & {"ray", "slow"} and _COMMANDS & {Path(word).name for word in words[:3]}:
        raise RuntimeError(f"a test that starts `{words[0]}` is to be marked slow or use no_ray")


sys.addaudithook(_refuse_commands_of_unmarked_tests)


@pytest.fixture(autouse=True)
def _as_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that starts a Ray says so with a fixture."""
    _running.append(request.node)
    yield
    _running.remove(request.node)
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and not request.node.get_closest_marker("ray"):
        ray.shutdown()
        pytest.fail("starts a Ray and uses neither of the fixtures ray_local and no_ray")


@pytest.fixture(autouse=True)
def _own_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts a function of its own in place of print when it starts a worker, for good."""
    monkeypatch.setattr(builtins, "print", _PRINT)


def make_images(
    root: Path, counts: dict[str, int], size=(8, 8), seed: int = 0, suffix: str = ".png"
) -> Path:
    """ROOT/CLASS/IMAGE: each class one brightness with noise, so that a tiny network can tell them
    apart.
    """
    rng = np.random.default_rng(seed)
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for n in range(count):
            level = 40 + 170 * i // max(1, len(counts) - 1)
            pixels = np.clip(rng.normal(level, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{n:03d}{suffix}")
    return root


MARK = "RAYSFT_TEST_MARK"


def processes_of(mark: str) -> list[psutil.Process]:
    """Processes that were started with MARK=mark in their environment, and theirs."""
    return [process for process in living() if _environment(process).get(MARK) == mark]


def processes_of_ray(since: float) -> list[psutil.Process]:
    """Processes of any Ray on this machine that began at `since` (seconds of the epoch) or later,
    by their titles.

    Those that set a title overwrite their environment with it, and with that any mark.
    """
    named = re.compile(r"^ray::|(^|/)(raylet|gcs_server)$")
    return [
        process
        for process in living()
        if process.create_time() >= since and named.search(_title(process))
    ]


def assert_nothing_is_left(mark: str, since: float) -> None:
    """Within 15 seconds no process is there that was started with `mark`, nor one of a Ray that
    began `since` then.
    """
    deadline = time.monotonic() + 15
    while (left := processes_of(mark) + processes_of_ray(since)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    assert not left


def living() -> Iterator[psutil.Process]:
    """All processes but those that are dead and only not yet waited for."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _environment(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return process.environ()
    return {}


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [process.name()])[0]
    return ""


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with train (3 classes, 60 images) and test (15 images)."""
    make_images(tmp_path / "images/train", {"ant": 20, "bee": 20, "cow": 20})
    make_images(tmp_path / "images/test", {"ant": 5, "bee": 5, "cow": 5}, seed=1)
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch):
    """Commands that run in this process may add the current folder; the next test must not find
    modules there.
    """
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of one megabyte."""
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the file system of a folder but for `leave` bytes; returns the file that does."""
    filler = folder / "filler"
    filler.write_bytes(b"")
    left = os.statvfs(folder)
    filler.write_bytes(b"0" * (left.f_bavail * left.f_frsize - leave))
    return filler
