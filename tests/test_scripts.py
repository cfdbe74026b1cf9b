"""The scripts behind Make's targets, on tiny synthetic runs."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from offset_equivariant import inventory
from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.image_panel import read_image_panel
from offset_equivariant.reporting.records import find_records, outcomes_path, read_outcomes, record_path
from offset_equivariant.training.weights import WeightsError, read_digests

ROOT = repository_root()
ROWS = ["table1_equivariant", "table1_original"]


@pytest.fixture(scope="module")
def reproduce(load_script, tiny_words) -> ModuleType:
    """The script, with two rows of tiny networks."""
    module = load_script("reproduce")
    chosen_by_the_script = ("train=", "logger=")
    words = [word for word in tiny_words if not word.startswith(chosen_by_the_script)]
    module.settings = [*words, "distortion.saturations=[0.0,0.5,0.9]"]
    module.experiments_on = lambda table, dataset: ROWS
    return module


def run(module: ModuleType, folder: Path, *words: str) -> int:
    arguments = ["table1", "--logger", "none", "--preset", "smoke", "--results", str(folder / "a,b"), *words]
    return module.main(arguments, module.settings)


@pytest.fixture(scope="module")
def trained(reproduce, tmp_path_factory):
    """Where two rows were trained from scratch, by the script."""
    folder = tmp_path_factory.mktemp("scratch")
    reproduce.settings = [*reproduce.settings, f"paths.runs={folder}/runs"]
    assert run(reproduce, folder, "--from", "scratch") == 0
    return folder


@pytest.fixture
def released(load_script, trained, tmp_path, monkeypatch, reproduce):
    """A results folder into which the weights of these runs were released."""
    release = load_script("release_weights")
    runs = sorted((trained / "runs").glob("*/seed=0"))
    for path in runs:
        # What a clean tree would have said, whatever the tree that the tests run on.
        weights = path / "weights.safetensors"
        with safe_open(weights, "pt") as file:
            facts = json.loads(file.metadata()["facts"]) | {"dirty": False}
        save_file(load_file(weights), weights, {"facts": json.dumps(facts)})
        release.release(path, tmp_path)
    monkeypatch.setattr(reproduce, "RELEASED", tmp_path)
    return tmp_path


def test_from_scratch_gives_records_table_and_figures(trained, capsys):
    results = trained / "a,b"
    records = find_records(results, table=1)
    assert [record.experiment for record in records] == [f"{row}_smoke" for row in ROWS]
    assert all(record.complete and set(record.metrics["error_percent"]) == {"0.0", "0.5", "0.9"} for record in records)
    table = (results / "tables" / "table1.md").read_text()
    assert f"{records[1].metrics['error_percent']['0.5']:.2f}" in table and "synthetic" in table
    assert len((results / "figures" / "figure2.csv").read_text().splitlines()) == 1 + 2 * 3
    for name in ("figure2.png", "figure2.svg", "figure3.png", "figure3.svg", "figure3.npz"):
        assert (results / "figures" / name).stat().st_size > 5_000


def test_released_weights_give_the_numbers_of_their_training(trained, released, reproduce, tmp_path, capsys):
    names = [path.name for path in sorted((released / "checkpoints").glob("*.safetensors"))]
    assert names == [f"{row}_smoke-seed0.safetensors" for row in ROWS]
    assert list(read_digests(released / "checkpoints")) == names
    assert run(reproduce, tmp_path, "--from", "released") == 0
    before, after = (find_records(folder / "a,b", table=1) for folder in (trained, tmp_path))
    assert [record.metrics for record in after] == [record.metrics for record in before]
    assert "# Table 1" in capsys.readouterr().out


def test_a_row_without_released_weights_is_named_and_the_others_stand(released, reproduce, tmp_path, capsys):
    (released / "checkpoints" / "table1_original_smoke-seed0.safetensors").unlink()
    assert run(reproduce, tmp_path, "--from", "released") == 1
    message = capsys.readouterr().err
    assert "missing row table1_original" in message and "FROM=scratch" in message
    assert [record.row for record in find_records(tmp_path / "a,b")] == ["equivariant"]


def test_a_row_that_fails_leaves_the_others_standing(released, reproduce, tmp_path, capsys):
    checkpoints = released / "checkpoints"
    (checkpoints / "table1_original_smoke-seed0.safetensors").write_bytes(b"damaged")
    assert run(reproduce, tmp_path, "--from", "released") == 2
    said = capsys.readouterr()
    assert said.err.startswith("table1_original, seed 0: ") and "# Table 1" in said.out
    assert [record.row for record in find_records(tmp_path / "a,b")] == ["equivariant"]
    (checkpoints / "table1_equivariant_smoke-seed0.safetensors").write_bytes(b"damaged")
    assert run(reproduce, tmp_path / "again", "--from", "released") == 2
    assert "table1_original" not in capsys.readouterr().err  # nothing would be lost: it ends at once


def test_what_nobody_foresaw_ends_its_row_alone(released, reproduce, tmp_path, capsys, monkeypatch):
    evaluate = reproduce.run_configuration

    def run_out_of_memory(composed):
        if composed.row == "original":
            raise RuntimeError("CUDA out of memory")
        return evaluate(composed)

    monkeypatch.setattr(reproduce, "run_configuration", run_out_of_memory)
    assert run(reproduce, tmp_path, "--from", "released") == 2
    said = capsys.readouterr()
    assert "table1_original, seed 0: CUDA out of memory" in said.err and "Traceback" in said.err
    assert "# Table 1" in said.out


def test_own_trainings_are_kept_apart_from_released_networks(load_script):
    parse = load_script("reproduce").parse_arguments
    assert parse(["table1"]).results == "runs/reproduction"
    assert parse(["table1", "--from", "scratch"]).results == "runs/from_scratch"
    assert parse(["table1", "--from", "scratch", "--results", "here"]).results == "here"


def test_rows_to_evaluate_are_the_first_seed_and_those_released(load_script, tmp_path, monkeypatch):
    module = load_script("reproduce")
    monkeypatch.setattr(module, "experiments_on", lambda table, dataset: ROWS)
    monkeypatch.setattr(module, "RELEASED", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    names = ["table1_equivariant-seed2", "table1_original-seed7", "table1_original_smoke-seed1"]
    names += ["table1_original_paper-seed0", "table1_equivariant_paper-seed1"]
    lines = [f"{'0' * 64}  {name}.safetensors\n" for name in names]
    (tmp_path / "checkpoints" / "SHA256SUMS").write_text("".join(lines))
    equivariant, original = ROWS

    def rows_of(*words: str) -> list[tuple[str, int, str | None]]:
        rows: list[tuple[str, int, str | None]] = module.rows_of(module.parse_arguments(["table1", *words]))
        return rows

    usual = [(equivariant, 0, None), (equivariant, 2, None), (original, 0, None)]
    assert rows_of() == [*usual, (original, 0, "paper")]
    smoke = [(equivariant, 0, "smoke"), (original, 0, "smoke"), (original, 1, "smoke")]
    assert rows_of("--preset", "smoke") == smoke
    assert rows_of("--seed", "1") == [(equivariant, 1, None), (original, 1, None), (equivariant, 1, "paper")]
    assert rows_of("--from", "scratch") == [(equivariant, 0, None), (original, 0, None)]


def test_released_networks_of_the_papers_length_are_among_those_of_table_1(load_script):
    module = load_script("reproduce")
    rows = module.rows_of(module.parse_arguments(["table1"]))
    released = list((ROOT / "results" / "checkpoints").glob("table1_*.safetensors"))
    assert len(rows) == len(released) == 32
    assert rows[-2:] == [("table1_equivariant", 0, "paper"), ("table1_original", 0, "paper")]


def test_unfinished_or_dirty_weights_are_not_released(load_script, trained, tmp_path, monkeypatch, capsys):
    release = load_script("release_weights")
    source = trained / "runs" / "table1_original_smoke" / "seed=0"
    for changes in ({"steps": 3, "dirty": False}, {"dirty": True}):
        run_folder = tmp_path / "run"
        shutil.copytree(source, run_folder, dirs_exist_ok=True)
        weights = run_folder / "weights.safetensors"
        with safe_open(weights, "pt") as file:
            facts = json.loads(file.metadata()["facts"]) | changes
        save_file(load_file(weights), weights, {"facts": json.dumps(facts)})
        with pytest.raises(ValueError, match=r"weights\.safetensors: step \d+ of 32, dirty"):
            release.release(run_folder, tmp_path / "results")
    with pytest.raises(FileNotFoundError, match="the training has not ended"):
        release.release(tmp_path, tmp_path / "results")
    save_file(load_file(weights), weights)
    with pytest.raises(WeightsError, match="does not say how it was trained"):
        release.release(run_folder, tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["release_weights.py", str(tmp_path)])
    assert release.main() == 1
    assert "the training has not ended" in capsys.readouterr().err


def test_released_weights_are_not_replaced_unasked(load_script, trained, released):
    release = load_script("release_weights").release
    run_folder, other = (trained / "runs" / f"table1_{row}_smoke" / "seed=0" for row in ("original", "equivariant"))
    target = released / "checkpoints" / "table1_original_smoke-seed0.safetensors"
    assert release(run_folder, released) == target  # the same once more
    ours = target.read_bytes()
    target.write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(FileExistsError, match=r"is another network.*--replace"):
        release(run_folder, released)
    release(run_folder, released, replace=True)
    assert target.read_bytes() == ours


def test_a_preset_that_a_table_does_not_have_is_refused(load_script, capsys):
    with pytest.raises(SystemExit):
        load_script("reproduce").main(["table3", "--preset", "paper"])
    assert "table3 has no preset paper: there is no conf/train/nus_paper.yaml" in capsys.readouterr().err


def test_table_3_from_scratch(load_script, tmp_path, capsys):
    module = load_script("reproduce")
    rows = ["table3_equivariant", "table3_equivariant_filled", "table3_grey_world", "table3_original"]
    module.experiments_on = lambda table, dataset: rows
    words = ["dataset.options.images=99", "distortion.saturations=[0.0,0.5,0.9]", "runtime.threads=1"]
    words += ["runtime.progress=false", f"paths.runs={tmp_path}/runs"]
    given = [
        "table3",
        "--from",
        "scratch",
        "--preset",
        "smoke",
        "--logger",
        "none",
        "--results",
        str(tmp_path / "results"),
    ]
    assert module.main(given, words) == 0
    records = find_records(tmp_path / "results", table=3)
    assert [record.experiment for record in records] == sorted(f"{row}_smoke" for row in rows)
    filled, equivariant, grey, original = records
    assert equivariant.parameters == filled.parameters
    assert (filled.parameters, grey.parameters, original.parameters) == (196_668, 0, 203_939)
    assert all(record.n == 99 and record.dataset == "nus_synthetic" and record.complete for record in records)
    assert (grey.total_steps, grey.training_commits, grey.checkpoint_sha256) == (0, [], "")
    for record in (filled, grey):
        assert max(record.metrics["reproduction_error_change_degrees"].values()) < 0.01
    text = (tmp_path / "results" / "tables" / "table3.md").read_text()
    assert "Grey-world, on nus_synthetic" in text and "Color Cerberus on NUS" in text
    for name in ("figure5.png", "figure6.png", "figure6.npz"):
        assert (tmp_path / "results" / "figures" / name).stat().st_size > 5_000
    trained = {path.parents[1].name for path in (tmp_path / "runs").rglob("weights.safetensors")}
    assert trained == {"table3_equivariant_smoke", "table3_equivariant_filled_smoke", "table3_original_smoke"}


TABLE4_ROWS = [
    "table4_facades_mean_colour",
    "table4_facades_original",
    "table4_facades_small_equivariant",
    "table4_facades_small_equivariant_relative",
    "table4_facades_small_original",
]


def table4(module: ModuleType, folder: Path, *words: str) -> int:
    settings = ["distortion.saturations=[0.0,0.5,0.9]", "dataset.options={n_train: 32, n_test: 6, shorter_side: 130}"]
    settings += ["runtime.threads=1", "runtime.progress=false", f"paths.runs={folder}/runs"]
    given = ["table4", "--preset", "smoke", "--logger", "none", "--results", str(folder / "results")]
    return module.main([*given, *words], settings)


def test_table_4_where_the_weights_of_a_large_network_are_not_released(load_script, tmp_path, monkeypatch, capsys):
    module = load_script("reproduce")
    names = [*TABLE4_ROWS[:1], *TABLE4_ROWS[2:], "table4_mean_colour"]
    monkeypatch.setattr(inventory, "experiments_of", lambda table: names)
    assert table4(module, tmp_path, "--from", "scratch") == 0
    records = {record.row: record for record in find_records(tmp_path / "results", table=4)}
    assert set(records) == {"mean_colour", "small_original", "small_equivariant", "small_equivariant_relative"}
    assert all(record.experiment.startswith("table4_facades_") for record in records.values())
    for name in ("figure7.png", "figure8.png", "figure8.npz"):
        assert (tmp_path / "results" / "figures" / name).stat().st_size > 5_000
    panel = read_image_panel(tmp_path / "results" / "figures" / "figure8.npz")
    assert panel.name == "inpainting_synthetic, test_0000"
    of_title = {
        "original, small": "small_original",
        "equivariant, small": "small_equivariant",
        "equivariant, relative clipping, small": "small_equivariant_relative",
    }
    for title, row in of_title.items():
        assert panel.checkpoint_sha256[title] == records[row].checkpoint_sha256
        outcomes = read_outcomes(outcomes_path(tmp_path / "results", records[row].experiment, 0))
        assert panel.values[title][0] == pytest.approx(outcomes["psnr_db"]["0.0"][0], abs=0.01)

    # From released weights: of the small networks those of their runs, of the large one none, but a record.
    released = tmp_path / "released"
    kept = record_path(released, "table4_facades_original_smoke", 0)
    kept.parent.mkdir(parents=True)
    shutil.copy(record_path(tmp_path / "results", "table4_facades_small_original_smoke", 0), kept)
    monkeypatch.setattr(module, "RELEASED", released)
    monkeypatch.setattr(inventory, "experiments_of", lambda table: TABLE4_ROWS)
    capsys.readouterr()
    assert table4(module, tmp_path) == 0
    said = capsys.readouterr().err
    assert "row table4_facades_original was not evaluated: its weights are too large to be released" in said
    assert f"SHA-256 {records['small_original'].checkpoint_sha256}" in said
    assert "python -m offset_equivariant experiment=table4_facades_original train=inpainting_smoke seed=0" in said

    kept.unlink()
    assert table4(module, tmp_path) == 1
    assert "missing row table4_facades_original: no weights are released" in capsys.readouterr().err


def test_a_table_of_which_nothing_is_released_says_where_it_stands(load_script, tmp_path, capsys):
    words = ["table2", "--logger", "none", "--results", str(tmp_path)]
    assert load_script("reproduce").main(words, [f"paths.runs={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert said.count("too large to be released") == 5
    assert said.endswith(f"nothing was evaluated; what was measured before is in {ROOT}/results/tables/table2.md\n")
    assert not list(tmp_path.iterdir())


def test_table_4_knows_its_data_sets(load_script, capsys):
    module = load_script("reproduce")
    arguments = module.parse_arguments(["table4", "--dataset", "paris_street_view", "--from", "scratch"])
    names = {row.experiment for row in module.rows_of(arguments)}
    assert {"table4_original", "table4_equivariant", "table4_telea"} <= names
    assert not any("facades" in name for name in names)
    assert {row.experiment for row in module.rows_of(module.parse_arguments(["table4"]))} >= set(TABLE4_ROWS)
    with pytest.raises(SystemExit):
        module.parse_arguments(["table4", "--dataset", "nus"])
    assert "table4 is measured on facades or paris_street_view" in capsys.readouterr().err


def test_table_2_on_drawn_files(load_script, tmp_path, monkeypatch):
    module = load_script("reproduce")
    names = ["table2_imagenette_equivariant_relative", "table2_imagenette_original", "table2_original"]
    monkeypatch.setattr(inventory, "experiments_of", lambda table: names)
    settings = ["distortion.saturations=[0.0,0.5,0.9]", "dataset.options={n_train: 32, n_test: 20}"]
    settings += ["runtime.threads=1", "runtime.progress=false", f"paths.runs={tmp_path}/runs", "train.epochs=1"]
    words = ["table2", "--from", "scratch", "--preset", "smoke", "--logger", "none", "--results", f"{tmp_path}/results"]
    assert module.main(words, settings) == 0
    records = {record.row: record for record in find_records(tmp_path / "results", table=2)}
    assert set(records) == {"original", "equivariant_relative"}
    assert {record.dataset for record in records.values()} == {"imagenet_synthetic"}
    text = (tmp_path / "results" / "tables" / "table2.md").read_text()
    assert "Original, on imagenet_synthetic" in text and "Top-1 and top-5 error (%), S = 0.5" in text
    assert (tmp_path / "results" / "figures" / "figure4.png").stat().st_size > 5_000
    on_all = module.parse_arguments(["table2", "--dataset", "ilsvrc12", "--from", "scratch"])
    assert module.rows_of(on_all) == [("table2_original", 0, None)]
