"""A cluster that refuses, forgets, or goes away: told by the HTTP status, and nobody waits without
end.
"""

import socket
import threading
import time

import pytest

from raysft.backends.cluster import ClusterBackend
from raysft.cluster import jobs
from raysft.cluster.address import Address
from raysft.cluster.jobs import ClusterClient
from raysft.console import Output
from raysft.errors import RaysftError, RunError, UserError
from raysft.job import Job
from tests.cluster.standin import Dashboard

NAMED_LIKE_STATUSES = "quickstart-20261124-101401-unauthorized-403"


@pytest.fixture
def dashboard(monkeypatch):
    monkeypatch.setattr(jobs, "RECONNECT_SECONDS", 0.02)
    made = Dashboard()
    yield made
    made.close()


@pytest.fixture
def address(dashboard) -> Address:
    return Address(dashboard.url)


def follow(cluster: ClusterClient, lost: list[str], seconds: float = 20) -> RaysftError:
    """What following the run ends with."""
    ended: list[Exception] = []

    def _follow() -> None:
        try:
            for _ in cluster.follow("r", lost.append):
                pass
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=_follow, daemon=True)
    thread.start()
    thread.join(seconds)
    (error,) = ended
    assert isinstance(error, RaysftError)
    return error


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "refuses this client"),
        (403, "refuses this client"),
        (404, "does not know what it was asked for"),
        (500, r"did not do what it was asked \(HTTP 500, RuntimeError: ValueError: broken"),
    ],
)
def test_an_error_is_told_by_its_status(dashboard, address, status, expected):
    cluster = ClusterClient(address)
    dashboard.status, dashboard.text = status, f"of {NAMED_LIKE_STATUSES}\nValueError: broken"
    with pytest.raises(UserError, match=expected):
        cluster.runs()


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_the_first_question_has_its_status_too(dashboard, address, status):
    dashboard.status = status
    expected = {401: "refuses", 403: "refuses"}.get(status, "did not do what it was asked")
    with pytest.raises(UserError, match=expected):
        ClusterClient(address)


def test_error_text_is_not_read_as_status(dashboard, address):
    cluster = ClusterClient(address)
    dashboard.status = 500
    for text in (NAMED_LIKE_STATUSES, "Authentication of 401 images", "Could not connect the dots"):
        dashboard.text = text
        with pytest.raises(UserError, match="did not do what it was asked"):
            cluster.runs()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "refuses this client"),
        (403, "refuses this client"),
        (404, "r: is not known any more to http"),
    ],
)
def test_following_ends_at_once_on_lasting_errors(dashboard, address, status, expected):
    cluster, lost = ClusterClient(address), list[str]()
    dashboard.status = status
    error = follow(cluster, lost)
    assert error.exit_code == 2
    assert expected in str(error)
    assert lost == []


def test_following_gives_up_after_stated_time(dashboard, address, monkeypatch):
    monkeypatch.setattr(jobs, "GIVE_UP_SECONDS", 0.5)
    cluster, lost = ClusterClient(address), list[str]()
    dashboard.status = 503
    error = follow(cluster, lost)
    assert isinstance(error, RunError)
    assert "has not answered for 0.5 seconds" in str(error)
    assert len(lost) == 1


def test_following_continues_when_cluster_comes_back(dashboard, address):
    cluster = ClusterClient(address)
    dashboard.status = 503

    def come_back(why: str) -> None:
        dashboard.status = None

    stream = cluster.follow("r", come_back)
    assert [next(stream), next(stream)] == ["one", "two"]


def test_a_stream_that_says_nothing_is_asked_about(dashboard, address, monkeypatch):
    monkeypatch.setattr(jobs, "SILENT_SECONDS", 0.2)
    cluster = ClusterClient(address)
    stream = cluster.follow("r", lambda why: None)
    assert [next(stream), next(stream)] == ["one", "two"]
    dashboard.job_status, dashboard.log = "SUCCEEDED", "one\ntwo\nthree"
    assert [line for line in stream if line] == ["three"]


@pytest.mark.parametrize(
    "command",
    [
        lambda address: ClusterBackend(address, Output()).logs("r", follow=True),
        lambda address: list(ClusterBackend(address, Output()).watch("r")),
    ],
    ids=["logs", "watch"],
)
def test_commands_following_vanished_cluster_end(dashboard, address, monkeypatch, command):
    monkeypatch.setattr(jobs, "GIVE_UP_SECONDS", 0.5)
    threading.Thread(
        target=lambda: dashboard.asked.wait(10) and dashboard.close(), daemon=True
    ).start()
    with pytest.raises(RunError, match=r"has not answered for .* if the cluster is up, r goes on"):
        command(address)


def test_doctor_gives_up_when_cluster_vanishes(dashboard, address, monkeypatch):
    monkeypatch.setattr(jobs, "GIVE_UP_SECONDS", 0.5)
    monkeypatch.setattr(ClusterClient, "_start", lambda *arguments: "r")
    threading.Thread(
        target=lambda: dashboard.asked.wait(10) and dashboard.close(), daemon=True
    ).start()
    with pytest.raises(RunError, match="has not answered"):
        ClusterBackend(address, Output()).doctor("runs")


def test_stop_gives_up_on_unresponsive_run(dashboard, address, monkeypatch):
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.2)
    cluster = ClusterClient(address)
    with pytest.raises(RunError, match="was asked to stop and has not ended within"):
        cluster.stop(cluster.run("r"))


def test_silent_port_is_reported_in_time(monkeypatch):
    monkeypatch.setattr(jobs, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached"):
            ClusterClient(Address(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - began < 10


def test_silent_dashboard_is_reported_unreachable(dashboard, address, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.2)
    cluster = ClusterClient(address)
    monkeypatch.setattr(cluster._client, "list_jobs", threading.Event().wait)
    with pytest.raises(UserError, match="cannot be reached"):
        cluster.runs()


def test_given_address_overrides_the_environment(dashboard, address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert [row["run"] for row in ClusterBackend(address, Output()).runs("runs")] == ["r"]


def test_job_waits_for_head_that_is_starting(dashboard, address, monkeypatch):
    dashboard.agent_after = 3
    assert ClusterClient(address).submit(Job(), "new") == "r"
    assert dashboard.agent_after == 0
    monkeypatch.setattr(jobs, "READY_SECONDS", 0.0)
    dashboard.agent_after = 3
    with pytest.raises(UserError, match="No available agent"):
        ClusterClient(address).submit(Job(), "other")
