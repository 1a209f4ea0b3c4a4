"""The commit of a person's files, without running what a repository that somebody sent names."""

import shutil
import subprocess

import pytest

from raysft.records.revision import git_revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "someone")
        monkeypatch.setenv(f"{name}_EMAIL", "someone@example.com")
    (tmp_path / "file.txt").write_text("one")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def test_a_changed_file_makes_it_dirty(repository):
    clean = git_revision()
    assert clean is not None
    assert len(clean) == 40
    (repository / "file.txt").write_text("two, which is longer")
    assert git_revision() == f"{clean}-dirty"


def test_there_is_none_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None


@pytest.mark.parametrize("key", ["core.fsmonitor", "filter.x.clean", "filter.x.process"])
def test_programs_that_the_repository_names_are_not_run(repository, key):
    commit = git_revision()
    marker = repository / "ran"
    (repository / ".git/info/attributes").write_text("*.txt filter=x\n")
    subprocess.run(["git", "config", key, f"touch {marker}; cat"], check=True)
    (repository / "file.txt").write_text("two")
    assert git_revision() == f"{commit}-unchecked"
    assert not marker.exists()
