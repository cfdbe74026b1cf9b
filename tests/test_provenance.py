import hashlib
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from offset_equivariant import provenance, runs


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with one commit, taken for the one that the code lies in."""
    monkeypatch.setattr(provenance, "repository_root", lambda: tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # which may ask for signatures, or run hooks
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("a = 1\n")
    (tmp_path / "notes.md").write_text("notes\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "-m", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_clean_tree(repository):
    assert provenance.commit() == (git(repository, "rev-parse", "HEAD"), False)


def test_a_tree_is_dirty_by_what_decides_a_result_alone(repository):
    head = git(repository, "rev-parse", "HEAD")
    (repository / "notes.md").write_text("other notes\n")
    (repository / "results").mkdir()
    (repository / "results" / "table.md").write_text("a table\n")
    assert provenance.commit() == (head, False)
    (repository / "src" / "new.py").write_text("")
    assert provenance.commit() == (head, True)
    (repository / "src" / "new.py").unlink()
    (repository / "src" / "code.py").write_text("a = 2\n")
    assert provenance.commit() == (head, True)


def test_without_a_repository_nothing_is_known_and_all_is_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "repository_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == ("unknown", True)
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == ("unknown", True)


def test_a_copy_installed_in_a_repository_of_something_else_is_of_no_commit(repository, monkeypatch):
    monkeypatch.setattr(provenance, "repository_root", lambda: repository / "src")
    assert provenance.commit() == ("unknown", True)


def test_where_git_cannot_tell_the_tree_is_dirty(repository, monkeypatch):
    ask = provenance._git
    monkeypatch.setattr(provenance, "_git", lambda *words: None if words[0] == "status" else ask(*words))
    assert provenance.commit() == (git(repository, "rev-parse", "HEAD"), True)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("0123456789", False), []),
        (("0123456789", True), ["differs from commit 01234567 "]),
        (("unknown", True), ["is of no commit that is known "]),
    ],
)
def test_a_run_of_code_without_a_commit_warns_once(found, said, monkeypatch, caplog):
    monkeypatch.setattr(provenance, "commit", lambda: found)
    runs.code_version.cache_clear()
    try:
        assert runs.code_version() == runs.code_version() == found
    finally:
        runs.code_version.cache_clear()
    assert len(caplog.messages) == len(said)
    assert all(words in message for words, message in zip(said, caplog.messages, strict=True))


def test_decisive_paths_are_there():
    root = provenance.repository_root()
    assert (root / "src" / "offset_equivariant" / "provenance.py").samefile(provenance.__file__)
    assert {path for path in provenance.DECISIVE_PATHS if not (root / path).exists()} == set()


def test_digest_of_a_configuration_does_not_depend_on_the_order():
    config = {"b": [1, 2.5, None], "a": {"d": True, "c": "x"}}
    text = '{"a": {"c": "x", "d": true}, "b": [1, 2.5, null]}'
    assert provenance.config_sha256(config) == hashlib.sha256(text.encode()).hexdigest()
    assert provenance.config_sha256(json.loads(text)) == provenance.config_sha256(config)
    assert provenance.config_sha256({**config, "b": [2.5, 1, None]}) != provenance.config_sha256(config)


def test_digest_of_a_file(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert provenance.file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_environment_names_device_and_versions():
    found = provenance.environment(torch.device("cpu"))
    assert found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"hydra-core": found["hydra-core"], "omegaconf": found["omegaconf"], "numpy": found["numpy"]} == {
        name: metadata.version(name) for name in ("hydra-core", "omegaconf", "numpy")
    }
    json.dumps(found)
    assert "images" not in found
    assert provenance.environment(torch.device("cpu"), "a copy") == found | {"images": "a copy"}
