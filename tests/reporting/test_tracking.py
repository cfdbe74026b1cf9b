import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from offset_equivariant.reporting.tracking import NullTracker, WandbTracker, logged_in, make_tracker


@pytest.fixture
def clean_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def arguments(directory):
    return {"project": "p", "name": "n", "group": None, "config": {"seed": 3}, "directory": directory}


def test_offline_run_holds_what_was_logged(tmp_path, clean_login, finished_run, wandb_history):
    columns, rows = ["row", "S0.9_ours", "marks"], [["original", 28.5, None], ["equivariant", 9, "dirty"]]
    tracker = make_tracker("wandb", **arguments(tmp_path))
    tracker.log({"loss": 2.25, "error": 0.5}, step=10)
    tracker.log({"loss": 1.125}, step=20)
    tracker.table("table1", columns, rows)
    tracker.curves("figure2", [0.0, 0.5], {"original": [8.0, 12.0], "equivariant": [9.0, 9.5]}, "S", "Error rates")
    tracker.finish()

    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = finished_run(path)
    history = wandb_history(records)
    assert [(row["_step"], row["loss"]) for row in history if "loss" in row] == [(10, 2.25), (20, 1.125)]
    assert history[0]["error"] == 0.5

    logged = {key.split("/")[0]: value for row in history for key, value in row.items()}
    assert "table1" in logged and "figure2_table" in logged
    files = {file.name.split("_table_")[0].rsplit("_", 2)[0]: file for file in path.parent.glob("files/media/table/*")}
    assert json.loads(files["table1"].read_text()) == {"columns": columns, "data": rows}
    assert json.loads(files["figure2"].read_text())["data"] == [
        *([0.0, "original", 8.0], [0.5, "original", 12.0]),
        *([0.0, "equivariant", 9.0], [0.5, "equivariant", 9.5]),
    ]
    config = "".join(u.value_json for r in records for u in [*r.config.update, *r.run.config.update])
    assert "wandb/lineseries/v0" in config and "Error rates" in config


def test_a_run_that_is_started_again_goes_on_under_its_id(tmp_path, clean_login, finished_run, wandb_history):
    for step, identity in ((10, "a"), (20, "a"), (30, "b")):
        tracker = make_tracker("wandb", **arguments(tmp_path / str(step)), identity=tmp_path / identity)
        tracker.log({"loss": 0.5}, step)
        tracker.finish()
    ids = {}
    for step in (10, 20, 30):
        (path,) = tmp_path.glob(f"{step}/wandb/offline-run-*/run-*.wandb")
        records = finished_run(path)
        (ids[step],) = {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}
        assert [row["_step"] for row in wandb_history(records)] == [step]
    assert ids[10] == ids[20] == (tmp_path / "a").read_text().strip()
    assert ids[30] == (tmp_path / "b").read_text().strip() != ids[10]


@pytest.mark.parametrize("identity", [None, "a"])
def test_runs_that_have_an_id_are_resumed(identity, tmp_path, monkeypatch):
    asked = {}
    stand_in = SimpleNamespace(Settings=lambda **_: None, init=lambda **given: asked.update(given))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    WandbTracker(**arguments(tmp_path), identity=identity and tmp_path / identity)
    kept = [path.read_text().strip() for path in tmp_path.iterdir()]
    assert (asked["id"], asked["resume"]) == ((kept[0], "allow") if identity else (None, None))


def test_unknown_kind_and_mode_are_errors_with_the_valid_ones(tmp_path, clean_login):
    with pytest.raises(ValueError, match="wandb, none; got 'tensorboard'"):
        make_tracker("tensorboard", **arguments(tmp_path))
    with pytest.raises(ValueError, match="offline, online, disabled; got 'of-line'"):
        make_tracker("wandb", **arguments(tmp_path), mode="of-line")


def test_no_tracker_neither_writes_nor_imports(tmp_path):
    script = (
        "import sys, pathlib; from offset_equivariant.reporting.tracking import make_tracker\n"
        "t = make_tracker('none', project='p', name='n', group=None, config={}, directory=pathlib.Path('x'))\n"
        "t.log({'a': 1.0}, 0); t.table('t', [], []); t.curves('c', [], {}, 'x', 't'); t.finish()\n"
        "sys.exit('wandb' in sys.modules)"
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(source)}, check=True
    )
    assert not list(tmp_path.iterdir())
    assert isinstance(make_tracker("none", **arguments(tmp_path)), NullTracker)


def test_absent_wandb_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        tracker = WandbTracker(**arguments(tmp_path))
        tracker.log({"loss": 1.0}, 1)
        tracker.table("t", ["a"], [[1]])
        tracker.curves("c", [0.0], {"a": [1.0]}, "x", "t")
        tracker.finish()
    assert [r.levelname for r in caplog.records if r.name.startswith("offset_equivariant")] == ["WARNING"]
    assert "ModuleNotFoundError" in caplog.text


def test_failure_in_mid_run_warns_once_and_turns_the_tracker_off(tmp_path, monkeypatch, caplog):
    class Run:
        calls = 0

        def log(self, *_, **__):
            self.calls += 1
            raise OSError("disk full")

    tracker = WandbTracker(**arguments(tmp_path), mode="disabled")
    tracker._run = run = Run()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log({"loss": 1.0}, step)
        tracker.finish()
    assert run.calls == 1
    assert [record.getMessage() for record in caplog.records if record.name.startswith("offset_equivariant")] == [
        "Weights & Biases failed and is off for this run (OSError: disk full)"
    ]


def test_interrupt_is_not_swallowed(tmp_path):
    class Run:
        def log(self, *_, **__):
            raise KeyboardInterrupt

    tracker = WandbTracker(**arguments(tmp_path), mode="disabled")
    tracker._run = Run()
    with pytest.raises(KeyboardInterrupt):
        tracker.log({"loss": 1.0}, 0)


def test_logged_in_by_variable_or_netrc(clean_login, monkeypatch, caplog):
    assert not logged_in()
    clean_login.write_text("machine example.org login user password x\n")
    assert not logged_in()
    clean_login.write_text("machine api.wandb.ai login user password x\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not logged_in()
    clean_login.write_text("machine\n")
    assert not logged_in() and "cannot be read" in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()


@pytest.mark.parametrize(
    ("login", "variable", "argument", "expected"),
    [
        (False, None, None, "offline"),
        (True, None, None, "online"),
        (True, "offline", None, "offline"),
        (True, "offline", "disabled", "disabled"),
    ],
)
def test_mode(tmp_path, clean_login, monkeypatch, login, variable, argument, expected):
    chosen = []
    monkeypatch.setattr(WandbTracker, "_start", lambda self, *args: chosen.append(args[-1]))
    if login:
        monkeypatch.setenv("WANDB_API_KEY", "x")
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    make_tracker("wandb", **arguments(tmp_path), mode=argument)
    assert chosen == [expected]
