"""Which versions of Ray a cluster may have."""

import re
from pathlib import Path

import pytest
import ray

from raysft.cluster import versions
from raysft.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("cluster", "client"),
    [("2.60.0", "2.60.0"), ("2.60.3", "2.60.0"), ("2.59.1", "2.59.0"), ("2.60.0", None)],
)
def test_another_patch_release_is_accepted(monkeypatch, cluster, client):
    given(monkeypatch, cluster, client)
    versions.check_versions()


@pytest.mark.parametrize(
    ("cluster", "client", "problem"),
    [
        (
            "2.59.0",
            "2.60.0",
            "cluster: runs Ray 2.59.0, the client has Ray 2.60.0; "
            "install Ray 2.59.* on the client, or 2.60.* on every node",
        ),
        ("2.58.1", "2.58.1", "cluster: runs Ray 2.58.1, raysft needs Ray 2.59 or 2.60; install "),
    ],
)
def test_another_series_is_refused_with_what_to_do(monkeypatch, cluster, client, problem):
    given(monkeypatch, cluster, client)
    with pytest.raises(UserError) as raised:
        versions.check_versions()
    assert str(raised.value).startswith(problem)


def given(monkeypatch, cluster, client):
    monkeypatch.setattr(ray, "__version__", cluster)
    if client is None:
        monkeypatch.delenv(versions.CLIENT_RAY, raising=False)
    else:
        monkeypatch.setenv(versions.CLIENT_RAY, client)


def test_supported_series_are_those_that_are_required():
    required = re.findall(
        r'"ray\[\S+\]>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text()
    )
    first, last = versions.SUPPORTED_SERIES[0], versions.SUPPORTED_SERIES[-1]
    major, minor = last.split(".")
    assert required == [(first, f"{major}.{int(minor) + 1}")] * 2
