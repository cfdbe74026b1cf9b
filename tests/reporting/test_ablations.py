"""The ablations: values, intervals and differences as they are; nothing of what was not measured."""

import dataclasses
from pathlib import Path

import numpy as np

from offset_equivariant.reporting.ablations import ABLATIONS, FOLDER, render_ablations, write_ablations
from offset_equivariant.reporting.costs import Cost, Costs
from offset_equivariant.reporting.records import find_records, save_evaluation

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
    for ablation in ABLATIONS:
        if ablation.question in text:
            assert ablation.conclusion and ablation.conclusion in text, ablation.question


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
