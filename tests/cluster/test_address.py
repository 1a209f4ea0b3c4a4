"""What --address and RAY_ADDRESS may say."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from raysft.cluster import address
from raysft.cluster.address import Address, parse_address
from raysft.errors import UserError
from tests.cluster.standin import Dashboard

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("given", [None, "", "local"])
def test_this_machine(given):
    assert parse_address(given, True) is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:8265", "http://h:8265"),
        ("https://h/ray/", "https://h/ray"),
        ("h:8265", "http://h:8265"),
        ("h", "http://h:8265"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("http://gcs:6380", "http://gcs:6380"),
    ],
)
def test_a_dashboard(given, url):
    assert parse_address(given, False) == Address(url)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "ray://head:10001",
            "RAY_ADDRESS=ray://head:10001: is not the address of a dashboard; give "
            "http://head:8265",
        ),
        (
            "head:6379",
            "is a port that Ray's processes speak to each other on, not the dashboard's; give "
            "http://head:8265",
        ),
        ("127.0.0.1:10001", "not the dashboard's; give http://127.0.0.1:8265"),
        ("anyscale://x", "is not the address of a dashboard"),
        ("http://", "give http://HOST:8265"),
        ("h:port", "is not an address"),
        ("http://h:99999", "is not an address"),
    ],
)
def test_malformed_address_is_refused_naming_its_variable(given, expected):
    with pytest.raises(UserError) as raised:
        parse_address(given, True)
    assert expected in str(raised.value)
    assert str(raised.value).startswith("RAY_ADDRESS=")


def test_address_tells_if_environment_gave_it():
    assert str(Address("http://h:8265", True)) == "RAY_ADDRESS=http://h:8265"
    assert str(Address("http://h:8265")) == "http://h:8265"


@pytest.fixture
def running(monkeypatch):
    """Start a dashboard in a process that looks like Ray's; the port where the first one usually is
    is free.
    """
    monkeypatch.setattr(address, "DASHBOARD_PORT", 9)
    ended = []

    def _start() -> str:
        made = Dashboard()
        command = [
            sys.executable,
            "-c",
            "input()",
            "ray/dashboard/dashboard.py",
            f"--port={made.port}",
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        ended.extend([process.kill, process.wait, made.close])
        return made.url

    yield _start
    for end in ended:
        end()


def test_auto_is_the_dashboard_of_this_machine(running):
    url = running()
    assert parse_address("auto", False) == Address(url)


@pytest.mark.parametrize(
    ("status", "is_one"), [(None, True), (401, True), (403, True), (404, False), (500, False)]
)
def test_auto_finds_dashboard_by_its_answer(monkeypatch, status, is_one):
    made = Dashboard()
    made.status = status
    monkeypatch.setattr(address, "DASHBOARD_PORT", made.port)
    monkeypatch.setattr(address, "_ports_here", lambda: [])
    try:
        assert address._answers(made.port) is is_one
        if is_one:
            assert parse_address("auto", False) == Address(made.url)
    finally:
        made.close()


def test_auto_refuses_to_guess(running):
    running()
    running()
    with pytest.raises(UserError, match=r"auto: may be each of http.*, http"):
        parse_address("auto", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", ["auto", "ray://127.0.0.1:10001", "127.0.0.1:6379", "http://127.0.0.1:9"]
)
def test_unreachable_cluster_is_one_quick_line(given):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "raysft", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"RAY_ADDRESS": given, "PYTHONPATH": str(REPOSITORY)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )  # of the processor: it may be busy
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS={given}: ")
    assert (done.returncode, done.stdout) == (2, "")
    assert took < (
        2 if not given.startswith("http") else 20
    )  # for that one, Ray's client has to be imported


@pytest.mark.slow
def test_only_bulk_prediction_uses_cluster_of_environment(tmp_path):
    command = [sys.executable, "-m", "raysft", "predict", "nothing", "x.jpg"]
    for more, expected in (
        ([], "nothing: is not a model"),
        (["--out", "x.parquet"], "RAY_ADDRESS=h:6379: is a port"),
    ):
        done = subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=os.environ | {"RAY_ADDRESS": "h:6379", "PYTHONPATH": str(REPOSITORY)},
        )
        assert expected in done.stderr
