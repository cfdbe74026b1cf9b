"""The scripts behind Make's targets, on tiny synthetic runs."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import resize

from offset_equivariant.config import TASKS
from offset_equivariant.data.imagenet_synthetic import load_imagenet_synthetic
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.data.synthetic import synthetic_images
from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.image_panel import read_image_panel
from offset_equivariant.reporting.records import find_records, outcomes_path, read_outcomes, record_path
from offset_equivariant.training.weights import read_digests

ROOT = repository_root()
ROWS = ["table1_equivariant", "table1_original"]


def load_script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reproduce(tiny_words) -> ModuleType:
    """The script, with two rows of tiny networks."""
    module = load_script("reproduce")
    chosen_by_the_script = ("train=", "logger=")
    words = [word for word in tiny_words if not word.startswith(chosen_by_the_script)]
    module.settings = [*words, "distortion.saturations=[0.0,0.5,0.9]"]
    module.experiments_of = lambda table: ROWS
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
def released(trained, tmp_path, monkeypatch, reproduce):
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


def test_unfinished_or_dirty_weights_are_not_released(trained, tmp_path):
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


def printed_statistics(capsys, *words: str) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """What the script says of the images, and the statistics that it prints."""
    load_script("compute_statistics").main(words)
    printed = capsys.readouterr().out
    return printed.splitlines()[0], yaml.safe_load(printed)["statistics"]


def assert_statistics(found: dict[str, list[float]], pixels: np.ndarray) -> None:
    """Those of float64 values (N, 3), in the four decimals that are printed."""
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=0, atol=5.1e-5)


def linear_of(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, of bytes."""
    values = srgb / 255.0
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def assert_srgb_statistics(found: dict[str, dict[str, list[float]]], images: list[np.ndarray]) -> None:
    """Of images (H, W, 3) of bytes, in sRGB, where it was asked for, and in log RGB with either clipping."""
    linear = [linear_of(image) for image in images]
    assert_statistics(found["log_rgb_absolute"], -np.log(np.maximum(2e-4, np.concatenate(flat(linear)))))
    relative = [np.maximum(image, 1e-3 * image.mean((0, 1))) for image in linear]
    assert_statistics(found["log_rgb_relative"], -np.log(np.concatenate(flat(relative))))
    if "srgb" in found:
        assert_statistics(found["srgb"], np.concatenate(flat(images)) / 255.0)


def flat(images: list[np.ndarray]) -> list[np.ndarray]:
    return [image.reshape(-1, 3) for image in images]


def channels_last(images: torch.Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("name", ["synthetic", "imagenet_synthetic"])
def test_statistics_are_those_of_the_configuration(name, capsys):
    _, found = printed_statistics(capsys, name)
    configured = yaml.safe_load((ROOT / "conf" / "dataset" / f"{name}.yaml").read_text())
    assert found == configured["statistics"]


def test_statistics_of_files_are_streamed(capsys):
    words = ("n_train=23", "shorter_side=40", "size=30")
    said, found = printed_statistics(capsys, "imagenet_synthetic", words[0], "--workers", "1", *words[1:])
    expected = "# Of the 23 training images of imagenet_synthetic: of each, resized to 40, the central 30 x 30 pixels."
    assert said == expected
    files = load_imagenet_synthetic("train", [], n_train=23, shorter_side=40, size=30)
    shown = []
    for index in range(len(files)):
        image = torch.from_numpy(np.array(Image.open(files.path(index)))).permute(2, 0, 1)
        scale = 40 / min(image.shape[1:])
        resized = resize(image, [int(side * scale) for side in image.shape[1:]], antialias=True)
        top, left = (round((side - 30) / 2) for side in resized.shape[1:])
        shown.append(resized[:, top : top + 30, left : left + 30].permute(1, 2, 0).numpy())
    assert set(found) == {"srgb", "log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, shown)


def test_statistics_of_linear_images_are_over_all_folds_and_lit_pixels(capsys):
    said, found = printed_statistics(capsys, "nus_synthetic", "images=18", "size=24")
    assert said == "# Of all 18 images of nus_synthetic, 24 x 24 pixels."
    pixels = np.concatenate(flat(channels_last(synthetic_scenes(18, 24).images))).astype(np.float64)
    lit = pixels[pixels.min(1) > 0]
    assert len(lit) == len(pixels) - 18 * 4 * 3  # each has a dark patch of a sixth by an eighth
    assert set(found) == {"linear", "log_rgb"}
    assert_statistics(found["linear"], pixels)
    assert_statistics(found["log_rgb"], -np.log(lit))


def test_statistics_of_photos(tmp_path, capsys):
    said, found = printed_statistics(capsys, "inpainting_synthetic", "n_train=5", "shorter_side=130")
    assert said == "# Of the 5 training images of inpainting_synthetic, 130 x 130 pixels."
    assert found.pop("srgb_unit") == {"mean": [0.5] * 3, "std": [0.5] * 3}  # a range, which is kept
    assert set(found) == {"log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, channels_last(drawn_facades("train", n_train=5, shorter_side=130).images))

    for number, pixels in enumerate(channels_last(synthetic_images("train", n_train=12).images)):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(number % 2) / f"{number}.png")
    said, found = printed_statistics(capsys, "photo_folder", f"folder={tmp_path}", "size=32")
    assert said == "# Of all 12 images of photo_folder, 32 x 32 pixels."
    assert set(found) == {"srgb", "log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, channels_last(synthetic_images("train", n_train=12).images))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nus_synthetic", "sice=3"), "unknown setting dataset.options.sice; valid ones are images, size, seed"),
        (("synthetic", "n_train=many"), "dataset.options.n_train = 'many' must be a whole number"),
        (("cifar10", "train"), "'train' is no option of the data set; give key=value"),
        (("photo_folder",), "photo_folder needs the option folder; give folder="),
        (("photo_folder", "folder=nothing"), "nothing holds no photos"),
        (("imagenet_synthetic", "size=80"), "shorter_side must be at least size, which is 80, got 72"),
    ],
)
def test_statistics_that_cannot_be_computed(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        load_script("compute_statistics").main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_statistics_can_be_asked_of_every_data_set():
    assert set(TASKS) == {path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")}


def test_a_preset_that_a_table_does_not_have_is_refused(capsys):
    with pytest.raises(SystemExit):
        load_script("reproduce").main(["table3", "--preset", "paper"])
    assert "table3 has no preset paper: there is no conf/train/nus_paper.yaml" in capsys.readouterr().err


def test_table_3_from_scratch(tmp_path, capsys):
    module = load_script("reproduce")
    rows = ["table3_equivariant_filled", "table3_grey_world", "table3_original"]
    module.experiments_of = lambda table: rows
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
    assert [record.experiment for record in records] == [f"{row}_smoke" for row in rows]
    filled, grey, original = records
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
    assert trained == {"table3_equivariant_filled_smoke", "table3_original_smoke"}


TABLE4_ROWS = [
    "table4_facades_mean_colour",
    "table4_facades_original",
    "table4_facades_small_equivariant_relative",
    "table4_facades_small_original",
]


def table4(module: ModuleType, folder: Path, *words: str) -> int:
    settings = ["distortion.saturations=[0.0,0.5,0.9]", "dataset.options={n_train: 32, n_test: 6, shorter_side: 130}"]
    settings += ["runtime.threads=1", "runtime.progress=false", f"paths.runs={folder}/runs"]
    given = ["table4", "--preset", "smoke", "--logger", "none", "--results", str(folder / "results")]
    return module.main([*given, *words], settings)


def test_table_4_where_the_weights_of_a_large_network_are_not_released(tmp_path, monkeypatch, capsys):
    module = load_script("reproduce")
    module.experiments_of = lambda table: [*TABLE4_ROWS[:1], *TABLE4_ROWS[2:], "table4_mean_colour"]
    assert table4(module, tmp_path, "--from", "scratch") == 0
    records = {record.row: record for record in find_records(tmp_path / "results", table=4)}
    assert set(records) == {"mean_colour", "small_original", "small_equivariant_relative"}
    assert all(record.experiment.startswith("table4_facades_") for record in records.values())
    for name in ("figure7.png", "figure8.png", "figure8.npz"):
        assert (tmp_path / "results" / "figures" / name).stat().st_size > 5_000
    panel = read_image_panel(tmp_path / "results" / "figures" / "figure8.npz")
    assert panel.name == "inpainting_synthetic, test_0000"
    for title, row in {"original, small": "small_original", "equivariant, small": "small_equivariant_relative"}.items():
        assert panel.checkpoint_sha256[title] == records[row].checkpoint_sha256
        outcomes = read_outcomes(outcomes_path(tmp_path / "results", records[row].experiment, 0))
        assert panel.values[title][0] == pytest.approx(outcomes["psnr_db"]["0.0"][0], abs=0.01)

    # From released weights: of the small networks those of their runs, of the large one none, but a record.
    released = tmp_path / "released"
    kept = record_path(released, "table4_facades_original_smoke", 0)
    kept.parent.mkdir(parents=True)
    shutil.copy(record_path(tmp_path / "results", "table4_facades_small_original_smoke", 0), kept)
    monkeypatch.setattr(module, "RELEASED", released)
    module.experiments_of = lambda table: TABLE4_ROWS
    capsys.readouterr()
    assert table4(module, tmp_path) == 0
    said = capsys.readouterr().err
    assert "row table4_facades_original was not evaluated: its weights are too large to be released" in said
    assert f"SHA-256 {records['small_original'].checkpoint_sha256}" in said
    assert "python -m offset_equivariant experiment=table4_facades_original train=inpainting_smoke seed=0" in said

    kept.unlink()
    assert table4(module, tmp_path) == 1
    assert "missing row table4_facades_original: no weights are released" in capsys.readouterr().err


def test_table_4_knows_its_data_sets(capsys):
    module = load_script("reproduce")
    arguments = module.parse_arguments(["table4", "--dataset", "paris_street_view", "--from", "scratch"])
    names = {name for name, _ in module.runs_of(arguments)}
    assert {"table4_original", "table4_equivariant", "table4_telea"} <= names
    assert not any("facades" in name for name in names)
    assert {name for name, _ in module.runs_of(module.parse_arguments(["table4"]))} >= set(TABLE4_ROWS)
    with pytest.raises(SystemExit):
        module.parse_arguments(["table4", "--dataset", "nus"])
    assert "table4 is measured on facades or paris_street_view" in capsys.readouterr().err


def test_table_2_on_drawn_files(tmp_path):
    module = load_script("reproduce")
    module.experiments_of = lambda table: [
        "table2_imagenette_equivariant_relative",
        "table2_imagenette_original",
        "table2_original",
    ]
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
    assert module.runs_of(on_all) == [("table2_original", 0)]
