"""What is missing for the tables and how it is had, and the script that renders all of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from offset_equivariant import inventory, panels, runs
from offset_equivariant.composition import composed_words, plain_settings
from offset_equivariant.data import DataNotFoundError
from offset_equivariant.inventory import experiments_on, missing_records
from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.records import (
    RecordError,
    find_records,
    outcomes_path,
    read_record,
    record_path,
    write_record,
)
from offset_equivariant.runs import Run

RESULTS = repository_root() / "results"


def test_experiments_of_a_data_set_are_those_of_its_name_or_of_none():
    assert "table4_facades_original" in experiments_on("table4", "facades")
    assert "table4_original" in experiments_on("table4", "paris_street_view")
    for table, (stand_in, own) in (
        ("table2", ("imagenette", "ilsvrc12")),
        ("table4", ("facades", "paris_street_view")),
    ):
        assert all(stand_in in name for name in experiments_on(table, stand_in))
        assert not any(stand_in in name for name in experiments_on(table, own))
    assert len(experiments_on("table2", "imagenette")) == len(experiments_on("table2", "ilsvrc12")) == 5


@pytest.fixture
def few(monkeypatch):
    """Three rows in place of all experiments."""
    names = {"table1": ["table1_original", "table1_equivariant"], "table3": ["table3_grey_world"]}
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: names.get(prefix, []))
    monkeypatch.setattr(inventory, "SEEDS", {"table1": (0,), "table3": (0,)})
    monkeypatch.setattr(inventory, "ABLATIONS", ())
    monkeypatch.setattr(inventory, "OTHERS", ())
    monkeypatch.setattr(inventory, "LONG", {})
    monkeypatch.setattr(panels, "FIGURES", {})


@pytest.mark.usefixtures("few")
def test_missing_records_come_with_the_commands_that_make_them(tmp_path, monkeypatch):
    missing = missing_records(tmp_path)
    assert [(record.name, record.seed, record.trains) for record in missing] == [
        ("table1_original", 0, False),  # its weights are released
        ("table1_equivariant", 0, False),
        ("table3_grey_world", 0, False),  # learns nothing: one seed, no weights
    ]
    assert missing[0].command == (
        f"python -m offset_equivariant experiment=table1_original seed=0 mode=evaluate paths.results={tmp_path} "
        "weights=results/checkpoints/table1_original-seed0.safetensors"
    )
    assert missing[0].job[-1] == f"weights='{RESULTS}/checkpoints/table1_original-seed0.safetensors'"
    assert "weights=" not in missing[2].command
    path = record_path(tmp_path, "table1_original", 0)
    write_record(read_record(record_path(RESULTS, "table1_original", 0)), path)
    assert [record.name for record in missing_records(tmp_path)] == ["table1_equivariant", "table3_grey_world"]
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: ["table1_original"] if prefix == "table1" else [])
    (smoke,) = missing_records(tmp_path, ["train=smoke"])
    assert (smoke.name, smoke.trains) == ("table1_original_smoke", True)


@pytest.mark.usefixtures("few")
def test_a_training_that_continues_over_several_machines_continues_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(inventory.provenance, "repository_root", lambda: tmp_path)
    assert [set(missing.paths) for missing in missing_records(tmp_path / "results")] == [{"paths.results"}] * 3
    run = tmp_path / "results" / "unfinished" / "table1_original" / "seed=0"
    run.mkdir(parents=True)
    missing = missing_records(tmp_path / "results")
    assert [set(record.paths) for record in missing[1:]] == [{"paths.results"}] * 2
    assert missing[0].command == (
        "python -m offset_equivariant experiment=table1_original seed=0 paths.results=results "
        "paths.runs=results/unfinished"
    )
    settings = composed_words(["paths.runs=/elsewhere", *missing[0].job])
    assert Run(plain_settings(settings)).directory == run  # behind what all jobs have


@pytest.mark.usefixtures("few")
def test_unfinished_and_partial_records_are_missing_too(tmp_path):
    path = record_path(tmp_path, "table1_original", 0)
    whole = read_record(record_path(RESULTS, "table1_original", 0))
    write_record(replace(whole, complete=False, steps=7, total_steps=9), path)
    assert missing_records(tmp_path)[0].why == "incomplete (7/9 steps)"
    some = {name: {s: v for s, v in by_s.items() if s not in ("0.3", "1.0")} for name, by_s in whole.metrics.items()}
    write_record(replace(whole, dirty=True, metrics=some), path)
    assert missing_records(tmp_path)[0].why == "dirty evaluation, no S = 0.3 1.0"
    config = {**whole.config, "train": {**whole.config["train"], "learning_rate": 9.0}}
    write_record(replace(whole, config=config), path)
    assert missing_records(tmp_path)[0].why == "train.learning_rate=9.0"
    path.write_text("{}")
    with pytest.raises(RecordError, match="missing field"):
        missing_records(tmp_path)


@pytest.mark.usefixtures("few")
def test_a_record_of_before_its_experiment_gained_a_setting_is_missing(tmp_path, monkeypatch):
    path = record_path(tmp_path, "table1_original", 0)
    whole = read_record(record_path(RESULTS, "table1_original", 0))
    write_record(whole, path)

    def names_with(section, **gained):
        def gaining(composed):
            settings = plain_settings(composed)
            of_table1 = settings["table"] == 1
            return {**settings, section: {**settings[section], **gained}} if of_table1 else settings

        monkeypatch.setattr(inventory, "plain_settings", gaining)
        return {record.name: record.why for record in missing_records(tmp_path)}

    assert names_with("train", autocast="bfloat16")["table1_original"] == "train.autocast=None"
    balanced = names_with("strategy", illuminant_saturation=0.25)
    assert balanced["table1_original"] == "strategy.illuminant_saturation=None"
    # What was null, what the record does not know and is null now, and what decides nothing, may differ.
    others = {"table1_equivariant": "", "table3_grey_world": ""}
    assert names_with("train", log_every=7) == others
    train = {name: value for name, value in whole.config["train"].items() if name != "autocast"}
    write_record(replace(whole, config={**whole.config, "train": train}), path)
    assert names_with("train") == others


def test_what_others_need_comes_first_and_every_seed_and_preset_is_there(tmp_path, monkeypatch):
    names = {"table1": ["table1_original"], "table3": ["table3_original", "table3_original_unseen_camera"]}
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: names.get(prefix, []))
    monkeypatch.setattr(inventory, "ABLATIONS", ())
    missing = missing_records(tmp_path)
    assert missing[0].name == "quasi_unsupervised"
    assert [(record.name, record.seed) for record in missing[1:]] == [
        *(("table1_original", seed) for seed in (0, 1, 2)),
        *(("table3_original", seed) for seed in (0, 1, 2)),
        ("table3_original_unseen_camera", 0),
        *(("table1_original_paper", 0), ("table1_equivariant_paper", 0)),
    ]
    # Those of the paper's length have released weights as well: nothing of theirs is trained again.
    for record in missing[-2:]:
        assert {"train=paper", "mode=evaluate"} <= set(record.words) and not record.trains
    assert all("paths.runs" not in record.paths for record in missing)


def test_what_is_rounded_is_evaluated_again(tmp_path, monkeypatch):
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: [])
    rounded = [record for record in missing_records(tmp_path) if record.name.endswith("_requantized")]
    assert {record.name for record in rounded} == {
        *("table1_original_requantized", "table1_equivariant_requantized", "table1_equivariant_relative_requantized")
    }
    for record in rounded:
        assert "distortion.requantize=true" in record.words
        assert record.paths["paths.results"] == tmp_path / "ablations"


@pytest.fixture
def root(tmp_path):
    """A repository of one record of each table."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/REPRODUCTION.md"):
        blocks = [f"<!-- {block}:begin -->\n<!-- {block}:end -->\n" for block in ("answer", "results")]
        (tmp_path / name).write_text("".join(blocks))
    for name in ("table1_original", "table2_imagenette_original", "table3_grey_world", "table4_facades_original"):
        for path in (record_path, outcomes_path):
            target = path(tmp_path / "results", name, 0)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path(RESULTS, name, 0), target)
    return tmp_path


@pytest.mark.usefixtures("few")
def test_all_is_rendered_and_tracked_in_one_run_and_the_rest_is_listed(
    load_script, root, capsys, monkeypatch, finished_run
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = sorted(Path(root / "results" / "records").rglob("*"))
    assert load_script("reproduce_all").main([], root) == 0
    said = capsys.readouterr().out
    assert "missing: records 1, figures of images 0;" in said and "experiment=table1_equivariant seed=0" in said
    assert sorted(Path(root / "results" / "records").rglob("*")) == before  # nothing was run
    assert "| Original | 0.5 | 12.6 | 16.42 [" in (root / "docs" / "REPRODUCTION.md").read_text()
    assert all(f"### Table {number}" in (root / "README.md").read_text() for number in (1, 2, 3, 4))
    for name in ("figure2.svg", "figure5.png"):
        assert (root / "results" / "figures" / name).stat().st_size > 5_000
    (path,) = (root / "runs" / "reproduction").glob("wandb/offline-run-*/run-*.wandb")
    records = finished_run(path)
    (start,) = [record.run for record in records if record.HasField("run")]
    assert (start.project, start.run_group) == ("offset-equivariant", "reproduction")
    tables = [file.name for file in path.parent.glob("files/media/table/*.json")]
    for shown in ("table1", "table2", "table3", "table4", "figure2", "figure4", "figure5", "figure7"):
        assert [name for name in tables if name.startswith(shown)], shown


@pytest.mark.usefixtures("few")
def test_what_was_made_elsewhere_is_found_and_copied_when_asked_for(load_script, root, capsys):
    elsewhere, wanted = root / "runs" / "reproduction", root / "results"
    for path in (record_path, outcomes_path):
        path(elsewhere, "table1_equivariant", 0).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path(RESULTS, "table1_equivariant", 0), path(elsewhere, "table1_equivariant", 0))
    # Of an unfinished training: not taken.
    unfinished = root / "runs" / "results"
    record = replace(read_record(record_path(RESULTS, "table1_equivariant", 0)), complete=False)
    write_record(record, record_path(unfinished, "table1_equivariant", 0))
    (missing,) = missing_records(wanted, (), [unfinished, elsewhere])
    folder = wanted / "records" / "table1_equivariant"
    source = elsewhere / "records" / "table1_equivariant" / "seed0"
    assert missing.command == f"mkdir -p {folder} && cp {source}.* {folder}/"
    reproduce_all = load_script("reproduce_all")
    assert reproduce_all.main(["--logger", "none"], root) == 0
    assert f"Made here, to be copied:\n  {missing.command}\n" in capsys.readouterr().out and not folder.exists()
    assert reproduce_all.run_all([missing], "none", root / "runs") == ([], [])
    assert {path.name for path in folder.iterdir()} == {"seed0.json", "seed0.npz"}
    assert read_record(record_path(wanted, "table1_equivariant", 0)).seed == 0
    assert missing_records(wanted, (), [elsewhere]) == []
    outcomes_path(elsewhere, "table1_equivariant", 0).unlink()
    missing.adopt()
    assert [path.name for path in folder.iterdir()] == ["seed0.json"]  # not beside the outcomes of another record


@pytest.mark.usefixtures("few")
def test_what_is_missing_is_made_when_asked_for(load_script, root, tiny_words, capsys, monkeypatch):
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: ["table1_original"] if prefix == "table1" else [])
    # What uncommitted code measures would go on missing.
    monkeypatch.setattr(runs, "code_version", lambda: ("0" * 40, False))
    words = [*tiny_words, "distortion.saturations=[0.0,0.5,0.9]"]
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_script("reproduce_all").main(["--run", "missing", "--logger", "none"], root, words) == 0
    assert "nothing is missing" in capsys.readouterr().out
    names = {record.experiment for record in find_records(root / "results")}
    assert len(names) == 5 and {"table1_original", "table3_grey_world"} < names
    assert (root / "runs" / "table1_original_smoke" / "seed=0" / "record.json").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.usefixtures("few")
def test_what_has_no_data_is_no_failure(load_script, root, capsys, monkeypatch):
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: ["table3_max_rgb"] if prefix == "table3" else [])
    monkeypatch.setenv("OEN_DATA_DIR", str(root / "nothing"))
    reproduce_all = load_script("reproduce_all")
    monkeypatch.setattr(reproduce_all, "render_all", lambda root: [])
    assert reproduce_all.main(["--run", "missing", "--logger", "none"], root) == 0
    said = capsys.readouterr()
    assert "missing: records 1," in said.out and not said.err.strip()
    assert "Not made, since their data are not here:\n  table3_max_rgb, seed 0: " in said.out
    words = ["+model.options.nope=1"]
    assert reproduce_all.main(["--run", "missing", "--logger", "none"], root, words) == 1
    said = capsys.readouterr()
    assert "seed 0: unknown setting model.options.nope" in said.err and "Not made" not in said.out
    assert "Traceback" not in said.err

    def run_out_of_memory(composed):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(reproduce_all, "run_configuration", run_out_of_memory)
    assert reproduce_all.main(["--run", "missing", "--logger", "none"], root) == 1
    said = capsys.readouterr()
    assert "table3_max_rgb, seed 0: CUDA out of memory" in said.err and "Traceback" in said.err


@pytest.mark.usefixtures("few")
def test_figures_of_images_that_are_missing_are_listed_and_drawn_from_released_networks(
    load_script, root, capsys, monkeypatch
):
    monkeypatch.setattr(inventory, "experiments_of", lambda prefix: [])
    monkeypatch.setattr(panels, "FIGURES", {"table1": "figure3", "table3": "figure6", "table4": "figure8"})
    reproduce_all = load_script("reproduce_all")
    monkeypatch.setattr(reproduce_all, "render_all", lambda root: [])
    figures = root / "results" / "figures"
    figures.mkdir(exist_ok=True)
    (figures / "figure3.npz").write_bytes(b"")
    assert reproduce_all.main(["--logger", "none"], root) == 0
    said = capsys.readouterr().out
    assert "missing: records 0, figures of images 2" in said and "reproduce-table1" not in said
    assert "  make reproduce-table3 RESULTS=results  # figure6\n" in said
    drawn = {}

    def draw(table, runs, folder):
        if table == "table4":
            raise DataNotFoundError("no photos")
        drawn.update({run.config.weights: run.config.experiment for run in runs.values()}, folder=folder, table=table)
        (folder / "figure6.npz").write_bytes(b"")

    monkeypatch.setattr(reproduce_all, "draw_panel", draw)
    assert reproduce_all.main(["--run", "missing", "--logger", "none"], root) == 0
    said = capsys.readouterr().out
    assert "missing: records 0, figures of images 1" in said and "  figure8: no photos" in said
    assert (drawn.pop("folder"), drawn.pop("table")) == (figures, "table3")
    assert set(drawn.values()) == {"table3_original", "table3_equivariant", "table3_equivariant_filled"}
    assert {Path(path).name: name for path, name in drawn.items() if Path(path).exists()} == {
        f"{name}-seed0.safetensors": name for name in drawn.values()
    }
