"""Clusters that are only stood in for."""

import pytest


@pytest.fixture(autouse=True)
def _no_token(tmp_path, monkeypatch):
    """No token of the person who runs the tests: once it is sent, no Ray of this process starts
    without it.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
