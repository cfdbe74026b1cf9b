import os
from pathlib import Path

import pytest

from offset_equivariant.data import data_directories


def test_argument_then_variable_then_default(monkeypatch):
    monkeypatch.setenv("OEN_DATA_DIR", "from_variable")
    assert data_directories("from_argument") == [Path("from_argument")]
    assert data_directories() == [Path("from_variable")]
    monkeypatch.delenv("OEN_DATA_DIR")
    assert data_directories() == [Path("data")]


def test_several_folders_in_order_without_empty_entries():
    setting = os.pathsep.join(["", "b", " ", os.path.join("~", "a"), ""])
    assert data_directories(setting) == [Path("b"), Path.home() / "a"]


def test_no_folder(monkeypatch):
    with pytest.raises(ValueError, match="the data directory setting names no folder"):
        data_directories(os.pathsep)
    monkeypatch.setenv("OEN_DATA_DIR", "")
    with pytest.raises(ValueError, match="the environment variable OEN_DATA_DIR names no folder"):
        data_directories()
