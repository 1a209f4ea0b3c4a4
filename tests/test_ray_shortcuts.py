"""Every use of Ray's insides is there in the pinned version, and a run does without any of them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from raysft import ray_shortcuts
from raysft.cluster.nodes import hosts
from raysft.ray_shortcuts import DISABLE, RECOUNT, SHORTCUTS, Shortcut

ROOT = Path(__file__).parent.parent
# Those that the oldest supported Ray does not have yet.
NEW = {RECOUNT.name} if ray.__version__.startswith("2.59.") else set()


@pytest.mark.parametrize("shortcut", SHORTCUTS, ids=lambda shortcut: shortcut.name)
def test_shortcut_is_there_in_this_ray(shortcut):
    assert (shortcut.get() is None) is (shortcut.name in NEW), str(shortcut)


def test_missing_shortcut_says_why():
    def find():
        from ray.data._internal import no_such_module  # noqa: F401

    gone = Shortcut("gone", "slower", find)
    assert gone.get() is None
    assert str(gone).startswith("gone (ImportError: cannot import name 'no_such_module'")


def test_all_are_disabled_for_tests_and_told(monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    assert ray_shortcuts.describe_shortcuts().startswith(f"0 of {len(SHORTCUTS)}; without ")
    told = "\n".join(ray_shortcuts.describe_fallbacks(elastic=True))
    assert f"Ray shortcut missing: {RECOUNT.name} ({DISABLE} is set)" in told
    monkeypatch.delenv(DISABLE)
    assert ray_shortcuts.describe_shortcuts().startswith(f"{len(SHORTCUTS) - len(NEW)} of ")


def test_importing_commands_imports_nothing_private():
    code = (
        "import sys, raysft.cli, raysft.ray_shortcuts, raysft.cluster.local\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'ray'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert told.stdout == "[]\n", told.stderr


def test_private_ray_is_named_in_one_module_alone():
    named = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "raysft").rglob("*.py")
        if "ray" in file.read_text()
        for line in file.read_text().splitlines()
        if "._internal" in line or "._private" in line or "ray.train.v2" in line
    }
    assert named == {"raysft/ray_shortcuts.py"}


@pytest.mark.usefixtures("ray_local")
def test_head_is_known_by_its_address_too(monkeypatch):
    heads = [host.id for host in hosts() if host.head]
    monkeypatch.setenv(DISABLE, "1")
    assert [host.id for host in hosts() if host.head] == heads
    assert len(heads) == 1


@pytest.mark.usefixtures("ray_local")
def test_workers_have_the_title_that_is_looked_for():
    title = ray.get(ray.remote(_own_title).remote())
    assert ray_shortcuts.is_worker_title(title)


def _own_title() -> str:
    return psutil.Process().cmdline()[0]
