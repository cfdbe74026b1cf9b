"""The ablations: values, intervals and differences as they are; nothing of what was not measured."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from offset_equivariant.reporting.ablations import ABLATIONS, FOLDER, render_ablations, write_ablations
from offset_equivariant.reporting.costs import Cost, Costs, read_costs
from offset_equivariant.reporting.records import find_records, load_outcomes, save_evaluation
from offset_equivariant.statistics import paired_difference_interval

(PADDING,) = (ablation for ablation in ABLATIONS if "pad?" in ablation.question)
(ROUNDING,) = (ablation for ablation in ABLATIONS if "8 bits" in ablation.question)
KEYS = ("0.0", "0.5", "0.9", "1.0")


def record(make_record, name, counts, row="equivariant"):
    metrics = {
        "error_percent": {key: 12.5 * count for key, count in zip(KEYS, counts, strict=True)},
        "posterior_change": {"0.0": 0.0, "0.5": 0.25, "0.9": 0.125, "1.0": 0.75},
    }
    changes = {"experiment": name, "table": None, "preset": "brief", "metrics": metrics}
    return make_record(row, **changes), {"error": {k: np.arange(8) < c for k, c in zip(KEYS, counts, strict=True)}}


def pair(make_record):
    names = list(PADDING.variants.values())
    return [record(make_record, names[0], (2, 2, 2, 4)), record(make_record, names[1], (3, 2, 1, 4), "padding_offset")]


def lines(text):
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_variants_stand_beside_the_first(make_record):
    found = pair(make_record)
    outcomes = {(r.experiment, r.seed): values for r, values in found}
    text = render_ablations([r for r, _ in found], outcomes, None)
    header, base, other = (line.strip("| ").split(" | ") for line in lines(text))
    assert header[2:6] == ["S = 0.0", "S = 0.5", "S = 0.9", "S = 1.0"]
    assert base[2].startswith("25.00 [") and other[2].startswith("37.50 [") and base[6:9] == ["–"] * 3
    assert other[6].startswith("+12.50 [") and other[7].startswith("-12.50 [")
    assert other[8] == "+0.00 [+0.00, +0.00]" and other[9] == "0.25" and PADDING.question in text


def test_it_says_where_they_were_trained(make_record):
    (first, _), (second, _) = pair(make_record)
    first = dataclasses.replace(first, training_commits=["a" * 40, "b" * 40], training_devices=["a CPU, 1 thread"])
    second = dataclasses.replace(second, training_commits=["b" * 40], training_devices=[])
    text = render_ablations([first, second], {}, None)
    assert "Trained at aaaaaaaa, bbbbbbbb, on: a CPU, 1 thread; not recorded." in text


def test_times_are_shown_where_they_were_measured(make_record):
    rows = {"equivariant": Cost(1, 2.5, 300.0, 1, 0.0), "padding_offset": Cost(1, 2.25, 280.0, 1, 0.0)}
    costs = Costs("cpu", 2, "0" * 40, False, rows, {})
    text = render_ablations([r for r, _ in pair(make_record)], {}, costs)
    assert [line.strip("| ").split(" | ")[-2:] for line in lines(text)[1:]] == [["300", "2.50"], ["280", "2.25"]]


def test_times_and_rounding_are_only_spoken_of_where_they_are_shown(make_record):
    costs = Costs("cpu", 2, "0" * 40, True, {}, {})
    (shortcut,) = (ablation for ablation in ABLATIONS if "shortcuts" in ablation.question)
    found = [record(make_record, name, (2, 2, 2, 4))[0] for name in shortcut.variants.values()]
    text = render_ablations(found, {}, costs)
    assert shortcut.question in text and "Times:" not in text and "or from rounding" not in text
    text = render_ablations([r for r, _ in pair(make_record)], {}, costs)
    assert "Times: cpu, 2 threads, commit 00000000, with uncommitted changes." in text


def test_what_was_measured_has_a_conclusion():
    root = Path(__file__).parents[2] / "results" / FOLDER / "ablations.md"
    text = root.read_text(encoding="utf-8")
    measured = [ablation for ablation in ABLATIONS if ablation.question in text]
    assert measured
    for ablation in measured:
        assert ablation.conclusion and ablation.conclusion in text, ablation.question


@pytest.fixture(scope="module")
def committed():
    """Errors of the committed records by experiment, in %, and a function that gives their paired differences."""
    results = Path(__file__).parents[2] / "results"
    records = [r for r in [*find_records(results / FOLDER), *find_records(results, 1)] if r.seed == 0]
    outcomes = load_outcomes(results, records) | load_outcomes(results / FOLDER, records)

    def difference(name, base, s):
        return paired_difference_interval(*(100.0 * outcomes[n, 0]["error"][s] for n in (name, base)))

    return {record.experiment: record.metrics["error_percent"] for record in records}, difference


BASE = "ablation_equivariant_brief"


def test_what_is_concluded_of_the_representation_and_of_rounding_is_so(committed):
    errors, difference = committed
    _, low, high = difference("ablation_log_rgb_brief", "ablation_original_brief", "0.0")
    assert low < 0 < high  # not told apart
    grown = {name: errors[name]["0.9"] - errors[name]["0.0"] for name in (BASE, "ablation_log_rgb_brief")}
    sharper = errors["ablation_original_brief"]["0.9"] - errors["ablation_original_brief"]["0.0"]
    assert grown["ablation_log_rgb_brief"] > sharper > 20 and abs(grown[BASE]) < 0.1
    for name, holds in (
        ("equivariant", lambda d: d[1] < 0 < d[2]),
        ("original", lambda d: abs(d[0]) < 0.2),
        ("equivariant_relative", lambda d: d[1] > 0 and d[0] < 0.5),
    ):
        assert holds(difference(f"table1_{name}_requantized", f"table1_{name}", "0.9")), name


def test_what_is_concluded_of_the_constraint_is_so(committed):
    errors, difference = committed
    free, bound = "ablation_unconstrained_brief", "ablation_quarter_rate_brief"
    assert errors[free]["0.9"] / errors[free]["0.0"] > 2 and abs(errors[bound]["0.9"] - errors[bound]["0.0"]) < 0.2
    found, _, high = difference(free, bound, "0.0")
    assert round(found) == -1 and high < 0
    by_rounding = errors["ablation_parametrization_brief"]["0.0"] - errors[BASE]["0.0"]
    assert 0.4 < by_rounding / found < 0.6


def test_what_is_concluded_of_balancing_is_so(committed):
    errors, difference = committed
    fixed = errors["ablation_grey_world_brightness_brief"]
    assert fixed["0.0"] == fixed["0.5"] == fixed["0.9"] < errors["ablation_grey_world_brief"]["0.9"]
    found, low, high = difference("ablation_grey_world_brightness_brief", "ablation_relative_brief", "0.9")
    assert round(found) == -2 and low < high < 0


def test_what_is_concluded_of_clipping_is_so(committed):
    errors, _ = committed
    relative = [errors[f"ablation_{name}_brief"] for name in ("fraction_1e-2", "relative", "fraction_1e-4")]
    absolute = [errors[name] for name in ("ablation_epsilon_2e-3_brief", BASE, "ablation_epsilon_2e-5_brief")]
    assert all(e["0.0"] == e["0.5"] == e["0.9"] for e in relative)
    assert [round(e["0.9"] - e["0.0"], 1) for e in absolute] == [0.5, -0.1, 0.0]
    for highest, *others in (relative, absolute):
        assert min(e["0.0"] for e in others) - highest["0.0"] > 0
        assert max(e["0.0"] for e in others) - highest["0.0"] <= 1
    rounding = abs(errors["ablation_parametrization_brief"]["0.0"] - errors[BASE]["0.0"])
    assert 0.5 < rounding < 0.6  # half of that point


def test_what_is_concluded_of_shortcuts_pooling_and_padding_is_so(committed):
    errors, difference = committed
    assert all(difference("ablation_shortcut_end_brief", BASE, s)[1] < 0 for s in ("0.0", "0.9"))
    assert all(difference("ablation_shortcut_end_brief", BASE, s)[2] > 0 for s in ("0.0", "0.9"))
    by_rounding = errors["ablation_parametrization_brief"]["1.0"] - errors[BASE]["1.0"]
    assert by_rounding < errors["ablation_shortcut_end_brief"]["1.0"] - errors[BASE]["1.0"] < 0
    for s in ("0.0", "0.5", "0.9"):
        assert round(errors["ablation_pooling_linear_brief"][s] - errors[BASE][s]) == -2
        assert round(errors["ablation_pooling_max_brief"][s] - errors[BASE][s]) == 4
        assert difference("ablation_padding_offset_brief", BASE, s)[2] < 0
    costs = read_costs(Path(__file__).parents[2] / "results" / FOLDER)
    assert costs is not None
    times = {name: row.step_ms / costs.rows["equivariant"].step_ms for name, row in costs.rows.items()}
    assert round(times["pooling_linear"]) == 2 and times["padding_offset"] < 0.95


def test_committed_records_are_of_finished_trainings_by_committed_code():
    records = find_records(Path(__file__).parents[2] / "results" / FOLDER)
    assert records
    assert {record.experiment: record.flags for record in records if record.flags} == {}


def test_an_ablation_that_lacks_a_variant_is_left_out(make_record):
    assert PADDING.question not in render_ablations([pair(make_record)[0][0]], {}, None)


def test_file_is_written_where_there_are_records(tmp_path, make_record):
    assert write_ablations(tmp_path) == []
    for found, values in pair(make_record):
        save_evaluation(tmp_path / FOLDER, found, values)
    (path,) = write_ablations(tmp_path)
    assert PADDING.question in path.read_text() and "+12.50 [" in path.read_text()


def test_rounded_images_are_compared_with_the_same_network_and_seed(tmp_path, make_record):
    for name in ROUNDING.variants.values():
        rounded, original = name.endswith("_requantized"), "original" in name
        folder = tmp_path / FOLDER if rounded else tmp_path
        for seed in (0,) if rounded else (0, 1, 2):
            wrong = (4 if original else 1) + rounded + 2 * seed
            found, values = record(make_record, name, (wrong,) * 4, "original" if original else "equivariant")
            found = dataclasses.replace(found, table=1, seed=seed)
            save_evaluation(folder, found, values)
    (path,) = write_ablations(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in lines(path.read_text())[1:]]
    assert [row[2].split()[0] for row in rows] == ["12.50", "25.00", "12.50", "25.00", "50.00", "62.50"]
    assert [row[6].split()[0] for row in rows] == ["–", "+12.50"] * 3
