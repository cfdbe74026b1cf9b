"""The committed tables, figure sources and README numbers are what the committed records say."""

from pathlib import Path

import matplotlib
import numpy as np
import PIL
import pytest
import torch

from offset_equivariant.building.illuminant_estimation import load_estimators
from offset_equivariant.building.inpainting import load_filler
from offset_equivariant.color import apply_illuminant, linear_to_srgb, srgb_to_linear
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.evaluation.sweep import sweep
from offset_equivariant.nn import check_equivariance, project_
from offset_equivariant.panels import PANELS
from offset_equivariant.provenance import file_sha256
from offset_equivariant.reporting.descriptions import TABLES
from offset_equivariant.reporting.figures import curves_csv, curves_figure, save_figure
from offset_equivariant.reporting.image_panel import image_figure, read_image_panel
from offset_equivariant.reporting.predictions import figure3, read_panel
from offset_equivariant.reporting.readme import render_readme
from offset_equivariant.reporting.records import find_records, outcomes_path, read_outcomes, saturation_key
from offset_equivariant.reporting.reproduction import examined_tables, render_reproduction
from offset_equivariant.reporting.search import SEARCHES, render_search
from offset_equivariant.reporting.tables import render_tables
from offset_equivariant.runs import released_weights_path
from offset_equivariant.tasks.illuminant_estimation import CHANGE, EstimationEvaluation
from offset_equivariant.training.weights import read_digests

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def records():
    return find_records(RESULTS)


@pytest.fixture(scope="module")
def examined():
    return examined_tables(RESULTS)


def test_every_experiment_of_table_1_is_recorded_and_complete(records):
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("table1_*.yaml")}
    table1 = [record for record in records if record.table == 1 and record.preset == "fast"]
    assert {(record.experiment, record.seed) for record in table1} == {
        (e, seed) for e in experiments for seed in range(3)
    }
    for record in table1:
        assert (record.complete, record.flags, record.n, record.dataset) == (True, (), 10_000, "cifar10")
        assert len(record.metrics["error_percent"]) == 11


def test_trainings_of_the_papers_length_are_recorded_and_complete(records):
    long = [record for record in records if record.table == 1 and record.preset != "fast"]
    assert {(record.row, record.seed) for record in long} >= {("original", 0), ("equivariant", 0)}
    for record in long:
        assert (record.preset, record.n, record.dataset) == ("paper", 10_000, "cifar10")
        assert record.steps == record.total_steps == 64_000 and record.flags == ()


def test_every_experiment_of_table_2_on_imagenette_is_recorded_and_complete(records):
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("table2_imagenette_*.yaml")}
    table2 = {record.experiment: record for record in records if record.table == 2 and record.dataset == "imagenette"}
    assert table2.keys() == experiments
    for record in table2.values():
        assert (record.complete, record.flags, record.n, record.preset) == (True, (), 3925, "fast")
        assert len(record.metrics["error_percent"]) == len(record.metrics["top5_error_percent"]) == 11


def test_every_experiment_of_table_3_is_recorded_and_complete(records):
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("table3_*.yaml")}
    table3 = {record.experiment: record for record in records if record.table == 3 and record.seed == 0}
    assert table3.keys() <= experiments
    assert {name for name in experiments if "unseen" not in name} <= table3.keys()
    for record in (record for record in records if record.table == 3):
        assert (record.complete, record.flags, record.n, record.dataset) == (True, (), 1853, "nus")
        assert len(record.metrics["median_reproduction_error_degrees"]) == 11
        if record.total_steps:
            assert record.config["train"]["preset"] == "fast"


def test_errors_of_the_exactly_equivariant_networks_do_not_depend_on_the_light(records):
    filled = [record for record in records if record.row.startswith("equivariant_filled") and record.table == 3]
    assert filled
    for record in filled:
        changes = record.metrics["reproduction_error_change_degrees"]
        assert max(value for saturation, value in changes.items() if float(saturation) <= 0.9) < 0.01
    other = [record for record in records if record.experiment == "table3_original"]
    assert min(record.metrics["reproduction_error_change_degrees"]["0.9"] for record in other) > 10


def test_the_released_networks_follow_the_light_on_other_images_too():
    scenes = synthetic_scenes(27)
    paths = sorted((RESULTS / "checkpoints").glob("table3_equivariant_filled-seed*.safetensors"))
    assert paths
    for path in paths:
        for estimator in load_estimators(path)[0]:
            evaluation = EstimationEvaluation(lambda linear, folds, of=estimator: of(linear), scenes)
            found = sweep(evaluation, (0.0, 0.3, 0.6, 0.9))
            assert max(found.metrics[CHANGE].values()) < 0.01
            assert np.median(found.outcomes["reproduction_error_degrees"][0.0]) < 15


def test_tables(records):
    rendered = {str(path): content for path, content in render_tables(RESULTS).items()}
    committed = {
        str(path.relative_to(RESULTS)): path.read_text(encoding="utf-8") for path in RESULTS.glob("tables/table*")
    }
    assert committed == rendered, "run `make tables` and commit results/tables"


def test_readme(examined):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rendered = render_readme(readme, RESULTS, examined)
    assert readme == rendered, "run `make tables` and commit README.md"


def test_reproduction(examined):
    text = (ROOT / "docs" / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert render_reproduction(examined) in text, "run `make tables` and commit docs/REPRODUCTION.md"


@pytest.mark.parametrize("description", TABLES, ids=lambda table: f"figure{table.figure}")
def test_curves_and_their_sources(records, description, tmp_path):
    shown = [record for record in records if record.table == description.number]
    stem = RESULTS / "figures" / f"figure{description.figure}"
    committed = stem.with_suffix(".csv").read_text(encoding="utf-8")
    assert committed == curves_csv(description, shown), "run `make figures` and commit results/figures"
    assert is_drawn(curves_figure(description, shown), stem, tmp_path), "run `make figures` and commit results/figures"


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("figure3", lambda path: figure3(read_panel(path))),
        *((name, lambda path: image_figure(read_image_panel(path))) for name in ("figure6", "figure8")),
    ],
)
def test_figures_of_images_show_what_is_kept_beside_them(name, draw, tmp_path):
    stem = RESULTS / "figures" / name
    assert is_drawn(draw(stem.with_suffix(".npz")), stem, tmp_path), "run `make figures` and commit results/figures"


def is_drawn(figure, stem, folder):
    """Whether the committed SVG is this figure; by other libraries than the locked ones, whether there is one."""
    assert stem.with_suffix(".png").exists()
    drawn, _ = save_figure(figure, folder / stem.name)
    lock = (ROOT / "requirements.lock").read_text().lower().splitlines()
    locked = {f"matplotlib=={matplotlib.__version__}", f"pillow=={PIL.__version__}"} <= set(lock)
    return stem.with_suffix(".svg").read_bytes() == drawn.read_bytes() if locked else stem.with_suffix(".svg").exists()


def test_figure6_shows_recorded_weights_and_errors(records):
    panel = read_image_panel(RESULTS / "figures" / "figure6.npz")
    shown = PANELS["nus"]
    weights = {record.experiment: record.checkpoint_sha256 for record in records if record.seed == 0}
    assert panel.checkpoint_sha256 == {title: weights[experiment] for title, experiment in shown.items()}
    for title, experiment in shown.items():
        errors = read_outcomes(outcomes_path(RESULTS, experiment, 0))["reproduction_error_degrees"]
        recorded = [errors[saturation_key(s)][0] for s in panel.saturations]
        np.testing.assert_allclose(panel.values[title], recorded, atol=0.01)


def test_figure8_shows_recorded_weights_and_fills(records):
    panel = read_image_panel(RESULTS / "figures" / "figure8.npz")
    weights = {record.experiment: record.checkpoint_sha256 for record in records if record.seed == 0}
    assert panel.checkpoint_sha256 == {title: weights[experiment] for title, experiment in PANELS["facades"].items()}
    for title, experiment in PANELS["facades"].items():
        psnr = read_outcomes(outcomes_path(RESULTS, experiment, 0))["psnr_db"]
        recorded = [psnr[saturation_key(s)][0] for s in panel.saturations]
        np.testing.assert_allclose(panel.values[title], recorded, atol=0.01)


def test_figure3_shows_recorded_weights(records):
    panel = read_panel(RESULTS / "figures" / "figure3.npz")
    shown = PANELS["cifar10"]
    weights = {record.experiment: record.checkpoint_sha256 for record in records if record.seed == 0}
    assert panel.checkpoint_sha256 == {network: weights[experiment] for network, experiment in shown.items()}
    # What is drawn is what was counted: right and wrong answers are those of the sweep.
    for network, experiment in shown.items():
        errors = read_outcomes(outcomes_path(RESULTS, experiment, 0))["error"]
        for column, saturation in enumerate(panel.saturations):
            wrong = panel.posteriors[network][:, column].argmax(1) != panel.labels
            assert wrong.tolist() == errors[saturation_key(saturation)][list(panel.numbers)].tolist()


def test_what_the_readme_says_of_figure3_is_so():
    said = "both are right throughout; what the light moves is how sure the original is of the aeroplane"
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    panel = read_panel(RESULTS / "figures" / "figure3.npz")
    moved = {}
    for network, posteriors in panel.posteriors.items():
        assert (posteriors.argmax(2) == np.array(panel.labels)[:, None]).all()
        true = np.take_along_axis(posteriors, np.array(panel.labels)[:, None, None], 2)[..., 0]
        for label, values in zip(panel.labels, true, strict=True):
            moved[network, panel.classes[label]] = float(np.ptp(values))
    assert moved.pop(("original", "airplane")) > 0.3 and max(moved.values()) < 0.03


def test_no_record_comes_from_a_dirty_tree(records):
    dirty = [f"{r.experiment}, seed {r.seed}" for r in records if r.dirty or r.training_dirty]
    assert not dirty, "commit first, then train and evaluate again"


def test_medians_are_those_of_the_outcomes(records):
    for record in (record for record in records if record.table == 3):
        errors = read_outcomes(outcomes_path(RESULTS, record.experiment, record.seed))
        for name in ("reproduction_error_degrees", "recovery_error_degrees"):
            for saturation, values in errors[name].items():
                assert record.metrics[f"median_{name}"][saturation] == pytest.approx(np.median(values), abs=1e-5)


def test_error_rates_are_those_of_the_outcomes(records):
    of_errors = [record for record in records if record.table in (1, 2)]
    assert of_errors
    for record in of_errors:
        path = outcomes_path(RESULTS, record.experiment, record.seed)
        errors = read_outcomes(path)["error"]
        assert errors.keys() == record.metrics["error_percent"].keys()
        for saturation, outcomes in errors.items():
            expected = 100 * outcomes.mean()
            assert record.metrics["error_percent"][saturation] == pytest.approx(expected, abs=1e-9), (path, saturation)


@pytest.mark.parametrize("name", list(SEARCHES))
def test_search_is_what_its_records_say(name):
    committed = RESULTS / name / "search.md"
    records = find_records(RESULTS / name)
    rendered = render_search(records, SEARCHES[name])
    assert records and committed.read_text(encoding="utf-8") == rendered, "run `make tables` and commit"
    assert not [record.experiment for record in records if record.flags]


def test_strategies_have_what_their_search_chose(records, make_settings):
    def best(search):
        runs = find_records(RESULTS / search)
        score = {
            run.experiment: np.mean([run.metrics["error_percent"][s] for s in SEARCHES[search].decided_at])
            for run in runs
        }
        return min(runs, key=lambda run: score[run.experiment]).config["strategy"]

    chosen = {
        "augmentation": ("jitter", best("search_jitter")["jitter"]),
        "augmentation_illuminants": ("illuminant_saturation", best("search_illuminants")["illuminant_saturation"]),
    }
    for strategy, (setting, value) in chosen.items():
        assert make_settings(f"strategy={strategy}")["strategy"][setting] == value
        trained = [record for record in records if record.row == strategy]
        assert {record.table for record in trained} >= {1}
        for record in trained:
            assert record.config["strategy"][setting] == value, f"{record.experiment}, seed {record.seed}"


def test_released_weights_are_listed_and_recorded():
    released = sorted((RESULTS / "checkpoints").glob("*.safetensors"))
    digests = {path.name: file_sha256(path) for path in released}
    assert digests == read_digests(RESULTS / "checkpoints")
    # An unfinished training has no weights to release.
    recorded = {r.checkpoint_sha256: r.experiment for r in find_records(RESULTS) if r.total_steps and r.complete}
    assert set(digests.values()) <= recorded.keys()
    # The Context Encoders of full width have 280 MB each, the ResNet-50s 95 to 110 MB.
    unreleased = {recorded[digest] for digest in recorded.keys() - set(digests.values())}
    large = {f"table4_facades_{row}" for row in ("original", "equivariant", "equivariant_relative")}
    assert {name for name in unreleased if not name.startswith("table2_")} <= large


def test_released_inpainting_follows_the_light_from_srgb_to_srgb():
    """Section 4.3's claim on trained weights: hole, clipping, network, cut and gamma; on drawings, for speed."""
    filler = load_filler(released_weights_path(RESULTS, "table4_facades_small_equivariant_relative", 0))
    network = filler.args[0].double().eval()
    project_(network)  # constrained to double precision too
    assert check_equivariance(network, (2, 3, 128, 128)).worst() < 1e-11
    srgb = drawn_facades("test", n_test=3).images.double() / 255
    before = filler(srgb_to_linear(srgb))
    assert before.std() > 0.01
    for gains in (torch.tensor([1.0, 0.1, 0.4]).double(), torch.tensor([0.02, 0.5, 0.001]).double()):
        after = filler(srgb_to_linear(linear_to_srgb(apply_illuminant(srgb_to_linear(srgb), gains))))
        expected = linear_to_srgb(apply_illuminant(before, gains))
        torch.testing.assert_close(linear_to_srgb(after), expected, rtol=0, atol=1e-10)
