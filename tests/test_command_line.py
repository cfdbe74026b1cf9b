"""``python -m offset_equivariant``: real processes."""

import ast
import fcntl
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from offset_equivariant import __main__ as entry
from offset_equivariant.reporting.records import outcomes_path, read_outcomes, read_record, record_path
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run, RunDirectoryError
from offset_equivariant.storage import locked

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "offset_equivariant"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))

#: Eight steps.
SHORT = ("dataset.options.n_train=64", "dataset.options.n_test=40")
AT_ZERO = ("distortion.saturations=[0.0]",)


@pytest.fixture(scope="module")
def short(tiny_words):
    return (*tiny_words, *SHORT)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("."))


WRONG = {
    "misspelt experiment": (("experiment=table1_orignal",), EXPERIMENTS),
    "no experiment": ((), ["setting name has no value; give experiment=<one of", *EXPERIMENTS]),
    "misspelt group": (
        ("experiment=table1_original", "strategy=jitter"),
        ["augmentation", "none", "preprocessing_grey_world"],
    ),
    "misspelt name": (("experiment=table1_original", "train.batch_sise=3"), ["batch_sise"]),
    "added name": (("experiment=table1_original", "+train.lr=3"), ["unknown setting train.lr", "learning_rate"]),
    "mode": (("experiment=table1_original", "mode=trian"), ["mode = 'trian' must be one of train, evaluate, both"]),
    "batch size": (("experiment=table1_original", "train.batch_size=0"), ["train.batch_size = 0 must be positive"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_an_error_before_any_work(case, command_line, tmp_path):
    words, expected = WRONG[case]
    code, said = command_line.run(*words, "logger=none", folder=tmp_path)
    assert code in (1, 2), said
    for text in expected:
        assert text in said
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train.batch_size=8,-1",), "train.batch_size=-1): train.batch_size = -1 must be positive"),
        (("strategy=none,jitter",), "Could not find 'strategy/jitter'"),
        (("experiment=table1_original,table1_orignal",), "table1_equivariant_relative"),
        (
            ("experiment=glob(table1_equivariant*)", "train.momentum=-1"),
            "job 0 (experiment=table1_equivariant): train.momentum = -1.0 must not be negative",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_one_wrong_job_of_a_multirun_stops_it_before_the_first(words, expected, command_line, short, tmp_path):
    code, said = command_line.run("-m", "experiment=table1_original", *short, *words, folder=tmp_path)
    assert code in (1, 2) and expected in said, said
    assert not list(tmp_path.glob("runs/table1_*")) and not (tmp_path / "runs" / "results").exists()


def test_failed_job_leaves_a_mark_until_it_succeeds(command_line, short, tmp_path):
    words = ("experiment=table1_original", *short, *AT_ZERO)
    code, said = command_line.run(*words, "mode=evaluate", folder=tmp_path)
    run = tmp_path / "runs" / "table1_original_smoke" / "seed=0"
    assert code == 2 and "there is nothing to evaluate in runs/table1_original_smoke/seed=0; train first" in said
    assert "FileNotFoundError: there is nothing to evaluate" in (run / "FAILED").read_text()
    assert not (tmp_path / "runs" / "results").exists()

    code, said = command_line.run(*words, folder=tmp_path)
    assert code == 0, said
    assert not (run / "FAILED").exists()
    assert "table1_original_smoke seed 0 on synthetic: error_percent = " in said
    assert {"config.json", "log.jsonl", "record.json", "weights.safetensors"} <= {path.name for path in run.iterdir()}

    code, said = command_line.run(*words, "mode=train", folder=tmp_path)
    assert code == 0 and "is complete: all 8 steps were taken" in said


def test_multirun_over_experiments_and_seeds(command_line, short, tmp_path):
    words = ("experiment=table1_original,table1_equivariant", "seed=0,1", *short, *AT_ZERO)
    code, said = command_line.run("-m", *words, folder=tmp_path)
    assert code == 0, said
    names = [f"table1_{row}_smoke" for row in ("equivariant", "original")]
    runs = sorted(str(path.relative_to(tmp_path / "runs")) for path in tmp_path.glob("runs/*/seed=*"))
    assert runs == [f"{name}/seed={seed}" for name in names for seed in (0, 1)]
    for name in names:
        for seed in (0, 1):
            record = read_record(record_path(tmp_path / "runs" / "results", name, seed))
            assert (record.experiment, record.seed, record.complete) == (name, seed, True)
            assert record.config["seed"] == seed

    # The last job of four in one process learned what it learns alone.
    alone = tmp_path / "alone"
    alone.mkdir()
    words = ("experiment=table1_equivariant", "seed=1", *short, "mode=train")
    assert command_line.run(*words, folder=alone)[0] == 0
    path = Path("runs") / "table1_equivariant_smoke" / "seed=1" / "weights.safetensors"
    ours, theirs = load_file(tmp_path / path), load_file(alone / path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_failed_job_of_a_multirun_is_marked_and_the_others_run(command_line, short, tmp_path):
    words = ("experiment=table1_original", *short, "mode=train")
    run = tmp_path / "runs" / "table1_original_smoke"
    (run / "seed=0").mkdir(parents=True)
    (run / "seed=0" / "config.json").write_text('{"train": {"learning_rate": 0.5}}')
    before = files_of(run / "seed=0")
    code, said = command_line.run("-m", *words, "train.learning_rate=0.2", "seed=0,1", folder=tmp_path)
    assert code == 1
    assert "train.learning_rate: 0.5 there, 0.2 now" in said
    mark = tmp_path / "runs" / "FAILED-table1_original_smoke-seed0"
    assert "RunDirectoryError" in mark.read_text()
    assert files_of(run / "seed=0") == before  # the run that is there is as good as it was
    assert not (run / "seed=1" / "FAILED").exists() and (run / "seed=1" / "weights.safetensors").exists()
    assert list(mark.parent.glob("FAILED*")) == [mark]
    (run / "seed=0" / "config.json").unlink()
    assert command_line.run(*words, "train.learning_rate=0.2", folder=tmp_path)[0] == 0 and not mark.exists()


def test_one_saturation_a_job_gives_the_sweeps_record_to_the_last_digit(command_line, short, tmp_path):
    # Relative clipping, and numbers that are not round: posterior changes and errors with all their digits.
    words = ("experiment=table1_equivariant_relative", *short)
    code, said = command_line.run(*words, "mode=train", folder=tmp_path)
    assert code == 0, said
    code, said = command_line.run(*words, "mode=evaluate", "paths.results=sweep", folder=tmp_path)
    assert code == 0, said
    saturations = ",".join(f"{step / 10}" for step in (3, 0, 10, 1, 2, 4, 5, 6, 7, 8, 9))
    jobs = ("mode=evaluate", "distortion=random_illuminant", f"distortion.saturation={saturations}")
    code, said = command_line.run("-m", *words, *jobs, "paths.results=jobs", folder=tmp_path)
    assert code == 0, said

    name = "table1_equivariant_relative_smoke"
    sweep, jobs = (json.loads(record_path(tmp_path / place, name, 0).read_text()) for place in ("sweep", "jobs"))
    assert len(sweep["metrics"]["error_percent"]) == 11
    assert jobs.pop("evaluate_seconds") >= 0 and sweep.pop("evaluate_seconds") >= 0
    assert jobs == sweep
    assert [list(jobs["metrics"][metric]) for metric in jobs["metrics"]] == [
        list(sweep["metrics"][metric]) for metric in sweep["metrics"]
    ]
    ours, theirs = (outcomes_path(tmp_path / place, name, 0) for place in ("jobs", "sweep"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(read_outcomes(ours)["error"]) == 11


def test_a_training_keeps_its_curve_and_one_that_is_refused_has_none(tiny_settings, monkeypatch):
    identities = []

    def track(*_, identity, **__):
        identities.append(identity)
        return NullTracker()

    def start(*words):
        monkeypatch.setattr(entry, "checked_run", lambda composed: Run(tiny_settings(*words)))
        entry._run_configuration(None)

    monkeypatch.setattr(entry, "make_tracker", track)
    monkeypatch.setattr(entry, "run_experiment", lambda run, tracker: None)
    run = Run(tiny_settings())
    run.claim()
    with pytest.raises(RunDirectoryError, match=r"there, 0\.7 now"):
        start("train.learning_rate=0.7")
    assert identities == []
    start()
    start("mode=evaluate")
    assert identities == [run.directory / "wandb-id", None]


def test_a_second_process_leaves_mark_and_curve_alone_while_it_waits(tiny_settings, monkeypatch):
    run = Run(tiny_settings("mode=train"))
    mark, events, asked = run.directory / "FAILED", [], threading.Event()

    class Watcher(NullTracker):
        def finish(self):
            events.append("finished")

    def track(*_, **__):
        events.append("tracker")
        return Watcher()

    def sole_use(run):
        asked.set()
        return locked(run.directory / ".lock")

    def work(run, tracker):
        with run.claimed():  # as the experiment does: the process that holds the directory does not wait for itself
            events.append((mark.exists(), taken(run.directory / ".lock")))

    def taken(path):
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    monkeypatch.setattr(entry, "checked_run", lambda composed: run)
    monkeypatch.setattr(entry, "make_tracker", track)
    monkeypatch.setattr(entry, "run_experiment", work)
    monkeypatch.setattr(Run, "sole_use", sole_use)
    second = threading.Thread(target=entry._run_configuration, args=(None,))
    with locked(run.directory / ".lock"):
        mark.write_text("of the first process")
        second.start()
        assert asked.wait(30)
        second.join(0.3)
        assert second.is_alive() and events == [] and mark.exists()
    second.join(30)
    assert events == ["tracker", (False, True), "finished"]
    assert not taken(run.directory / ".lock")


@pytest.mark.parametrize(
    ("words", "metric", "minimised"),
    [
        (("experiment=table1_original",), "error_percent", 8.5),
        (("experiment=table4_original", "train=inpainting_smoke"), "psnr_db", -8.5),
    ],
)
def test_a_sweeper_minimises_the_value_at_the_lowest_saturation(words, metric, minimised, make_settings, monkeypatch):
    metrics = {"other": {"0.1": 7.0}, metric: {"0.9": 3.5, "0.1": 8.5, "0.5": 1.5}}
    record = SimpleNamespace(experiment="x", seed=0, dataset="y", metrics=metrics)
    monkeypatch.setattr(entry, "run_configuration", lambda composed: record)
    assert entry.main.__wrapped__(OmegaConf.create(make_settings(*words))) == minimised


def test_tracking_with_wandb_offline(command_line, short, tmp_path, finished_run, wandb_history):
    words = [word for word in short if not word.startswith("logger=")]
    job = command_line.start_fresh(
        "experiment=table1_equivariant",
        *words,
        "logger=wandb",
        "distortion.saturations=[0.0,0.5]",
        folder=tmp_path,
        WANDB_MODE="offline",
    )
    assert job.wait() == 0, job.text
    run = tmp_path / "runs" / "table1_equivariant_smoke" / "seed=0"
    paths = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(paths) == 1, job.text
    path = paths[0]
    assert path.name == f"run-{(run / 'wandb-id').read_text().strip()}.wandb"
    records = finished_run(path)
    history = wandb_history(records)

    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [row for row in history if "train/loss" in row]
    assert [(row["_step"], row["train/loss"], row["train/error_percent"]) for row in logged] == [
        (line["step"], line["loss"], line["error_percent"]) for line in log
    ]
    record = read_record(run / "record.json")
    tables = {file.name: json.loads(file.read_text()) for file in path.parent.glob("files/media/table/*")}
    (sweep,) = [table for name, table in tables.items() if name.startswith("saturation_sweep")]
    (curves,) = [table for name, table in tables.items() if name.startswith("error_percent_over_saturation")]
    errors = record.metrics["error_percent"]
    assert [row[sweep["columns"].index("error_percent")] for row in sweep["data"]] == list(errors.values())
    assert curves["data"] == [[float(s), "table1_equivariant_smoke", errors[s]] for s in errors]
    (table1,) = [table for name, table in tables.items() if name.startswith("table1")]
    (figure2,) = [table for name, table in tables.items() if name.startswith("figure2")]
    (measured,) = [row for row in table1["data"] if errors["0.5"] in row]
    assert "smoke" in measured and errors["0.0"] in measured
    assert [row[2] for row in figure2["data"]] == list(errors.values())
    described = "".join(u.value_json for r in records for u in [*r.config.update, *r.run.config.update])
    assert "wandb/lineseries/v0" in described


def imported(tree: ast.AST, inside_functions: bool) -> set[str]:
    """First names of the modules that code imports; without those that functions import when they are called."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= imported(node, inside_functions)
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_library_knows_neither_hydra_nor_wandb(path):
    tree = ast.parse(path.read_text())
    if path not in (SOURCE / "__main__.py", SOURCE / "composition.py"):
        assert not imported(tree, inside_functions=True) & {"hydra", "omegaconf"}
    assert "wandb" not in imported(tree, inside_functions=False)
    if path != SOURCE / "reporting" / "tracking.py":
        assert "wandb" not in imported(tree, inside_functions=True)


#: Of the lower storeys, what each may import of this package.
STOREYS = {
    **{ground: set() for ground in ("groups", "color", "statistics", "signals", "storage")},
    "nn": {"groups"},
    "models": {"nn", "color"},
    "data": {"signals", "storage"},
    "training": {"models", "nn", "provenance", "signals", "storage", "tasks"},
    "tasks": {"color", "data", "models", "nn", "statistics", "training"},
}


@pytest.mark.parametrize("storey", STOREYS)
def test_lower_storeys_know_nothing_of_the_upper_ones(storey):
    paths = [SOURCE / f"{storey}.py"] if (SOURCE / f"{storey}.py").exists() else (SOURCE / storey).rglob("*.py")
    modules = {
        node.module
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "offset_equivariant"
    }
    assert "offset_equivariant" not in modules  # which says no storey
    assert {module.split(".")[1] for module in modules} - {storey} <= STOREYS[storey]


def test_reader_of_imports_finds_what_is_there():
    entry, tracking = (ast.parse((SOURCE / name).read_text()) for name in ("__main__.py", "reporting/tracking.py"))
    assert {"hydra", "omegaconf"} <= imported(entry, inside_functions=False)
    assert "wandb" in imported(tracking, inside_functions=True)
