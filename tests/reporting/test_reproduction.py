"""Verdicts on the paper's numbers and claims: by their rules, on made-up records, and the document as rendered."""

from dataclasses import replace

import numpy as np
import pytest

from offset_equivariant.reporting.claims import CLAIMS
from offset_equivariant.reporting.comparison import Cell, build_table
from offset_equivariant.reporting.descriptions import TABLE1, TABLE3
from offset_equivariant.reporting.paper import paper_value
from offset_equivariant.reporting.records import find_records, save_evaluation
from offset_equivariant.reporting.reproduction import (
    examined_tables,
    paper_inside,
    render_reproduction,
    tally,
    write_reproduction,
)
from offset_equivariant.statistics import proportion_interval

KEYS = ("0.0", "0.5", "0.9")
PAPERS = {
    "original": (8.67, 12.6, 29.0),
    "preprocessing_quasi_unsupervised": (9.19, 9.43, 11.0),
    "augmentation": (9.20, 9.91, 11.9),
    "equivariant": (8.88, 8.85, 9.29),
}


def records(make_record, rows, **changes):
    made = []
    for row, errors in rows.items():
        metrics = {"error_percent": dict(zip(KEYS, errors, strict=True))}
        made.append(make_record(row, n=10_000, metrics=metrics, **changes))
    return made


@pytest.mark.parametrize(
    ("interval", "inside"), [((8.0, 9.0), True), ((8.675, 9.0), True), ((8.676, 9.0), False), (None, None)]
)
def test_number_is_inside_as_exactly_as_it_is_printed(interval, inside):
    cell = Cell(0.0, paper_value(1, "original", "error_percent", 0.0), 8.5, None, interval, None)
    assert paper_inside(cell) is inside  # 8.67
    assert paper_inside(replace(cell, paper=None)) is None


def test_table_is_reproduced_where_all_numbers_are(make_record):
    every = tally(build_table(TABLE1, records(make_record, PAPERS)))
    assert (every.verdict, every.numbers, every.expected) == ("reproduced", 12, 12)
    off = PAPERS | {"augmentation": (9.20, 9.91, 15.0)}
    some = tally(build_table(TABLE1, records(make_record, off)))
    assert (some.verdict, some.expected) == ("partly", 12) and 0 < some.numbers < 12
    missing = {row: errors for row, errors in PAPERS.items() if row != "augmentation"}
    assert tally(build_table(TABLE1, records(make_record, missing))).verdict == "partly"


def test_nothing_is_reproduced_on_other_data(make_record):
    other = tally(build_table(TABLE1, records(make_record, PAPERS, dataset="synthetic")))
    assert (other.verdict, other.measured) == ("not yet", False)
    alone = {"preprocessing_quasi_unsupervised": (30.0, 30.0, 30.0)}  # which no claim is of
    measured = tally(build_table(TABLE1, records(make_record, alone)))
    assert (measured.verdict, measured.examined, measured.measured) == ("not yet", 0, True)


def outcomes_of(made):
    """For each record, images that give its errors."""
    return {
        (record.experiment, record.seed): {
            "error": {
                s: np.arange(record.n) < round(record.n * error / 100)
                for s, error in record.metrics["error_percent"].items()
            }
        }
        for record in made
    }


def test_claims_alone_make_it_partly_reproduced(make_record):
    shifted = {row: tuple(error + 3 for error in errors) for row, errors in PAPERS.items()}
    made = records(make_record, shifted)
    table = build_table(TABLE1, made, outcomes=outcomes_of(made))
    assert tally(table).verdict == "partly"  # no number, but claims
    apart = {"original": (50.0, 50.0, 50.0), "equivariant": (60.0, 65.0, 70.0)}
    rest = {row: (55.0, 55.0, 55.0) for row in PAPERS if row not in apart}
    made = records(make_record, apart | rest)
    assert tally(build_table(TABLE1, made, outcomes=outcomes_of(made))).verdict == "not yet"


def exactly(value):
    """An interval of no width."""
    return (value, value, value)


def cells_of(values, table=1, metric="error_percent", paired=None):
    """Cells whose intervals have no width, but for that of the paired difference, where it is given."""
    return {
        row: {
            s: Cell(
                s,
                paper_value(table, row, metric, s),
                value,
                None,
                None,
                paired or exactly(value - values["original"][i] if "original" in values else 0.0),
                exactly(value - values["equivariant"][i]) if "equivariant" in values else None,
                exactly(value - errors[0]),
                exactly(value / errors[0]),
            )
            for i, (s, value) in enumerate(zip((0.0, 0.5, 0.9), errors, strict=True))
        }
        for row, errors in values.items()
    }


def papers_cells(table, metric, rows):
    return cells_of({r: [paper_value(table, r, metric, s).value for s in (0.0, 0.5, 0.9)] for r in rows}, table, metric)


def test_every_claim_holds_of_the_papers_own_numbers():
    of_four = ("original", "preprocessing", "augmentation", "equivariant")
    of_two = ("original", "equivariant")
    own = {1: ("error_percent", of_four), 2: ("error_percent", of_four)}
    own |= {3: ("median_reproduction_error_degrees", of_two), 4: ("psnr_db", of_two)}
    cells = {n: papers_cells(n, *own[n]) for n in CLAIMS}
    for n, said in ((1, 8.83), (2, 24.83)):  # of the text, up to S = 0.8
        shift = exactly(said - cells[n]["equivariant"][0.0].ours)
        cells[n]["equivariant"][0.8] = Cell(0.8, None, said, None, None, None, shift=shift)
        # Up to S = 0.3 the text has no number of the original's.
        cells[n]["original"][0.3] = replace(cells[n]["original"][0.0], saturation=0.3)
    held = {n: [claim.examine(cells[n]).holds for claim in CLAIMS[n]] for n in CLAIMS}
    assert held == {1: [True] * 7, 2: [True] * 7, 3: [True] * 4, 4: [True] * 3}


def test_as_good_goes_by_the_paired_interval():
    claim = next(claim for claim in CLAIMS[1] if "as good" in claim.statement)
    values = {"original": (8.0, 12.0, 29.0), "equivariant": (9.0, 9.0, 9.0)}
    assert claim.examine(cells_of(values, paired=(-1.0, -1.9, -0.1))).holds is True
    assert claim.examine(cells_of(values, paired=(1.0, -0.1, 2.1))).holds is None
    assert claim.examine(cells_of(values, paired=(1.0, 0.31, 1.9))).holds is False
    assert claim.examine(cells_of(values, paired=(0.1, -0.1, 0.29))).holds is True  # within 0.3 points
    assert claim.examine(cells_of(values, paired=(0.2, 0.1, 0.31))).holds is None
    claim = next(claim for claim in CLAIMS[4] if "as good" in claim.statement)  # where more is better
    assert claim.examine(cells_of(values, paired=(1.0, 0.1, 1.9))).holds is True
    assert claim.examine(cells_of(values, paired=(-1.0, -2.1, 0.1))).holds is None
    assert claim.examine(cells_of(values, paired=(-1.0, -1.9, -0.11))).holds is False


def test_steady_goes_by_all_saturations_up_to_the_last_that_is_named():
    claim = next(claim for claim in CLAIMS[1] if "within 0.2 points" in claim.statement)

    def examined(changed):
        errors = {0.0: 8.8, 0.3: 8.7, 0.5: 8.9, 0.8: 9.0, 0.9: 15.0} | changed
        return claim.examine({"equivariant": {s: steady(s, e) for s, e in errors.items()}})

    def steady(s, error):
        return Cell(s, None, error, None, None, None, shift=exactly(error - 8.8))

    assert examined({}).holds is True  # 0.9 does not count
    said = "8.70 to 9.00, at 4 saturations; furthest from S = 0, by its interval: +0.20 [+0.20, +0.20]"
    assert examined({}).measured == said
    assert examined({0.8: 9.01}).holds is False
    short = {s: steady(s, 8.8) for s in (0.0, 0.5, 0.9)}
    assert claim.examine({"equivariant": short}).measured == "not measured at S = 0.8"
    assert claim.examine({"equivariant": short}).holds is None
    assert examined({0.3: 8.59}).holds is False


def test_steady_is_undecided_where_an_interval_reaches_over_the_tolerance():
    claim = next(claim for claim in CLAIMS[1] if "within 0.2 points" in claim.statement)

    def examined(shift):
        cells = {s: Cell(s, None, 9.0, None, None, None, shift=exactly(0.0)) for s in (0.0, 0.5, 0.8)}
        return claim.examine({"equivariant": cells | {0.8: replace(cells[0.8], ours=9.0 + shift[0], shift=shift)}})

    assert examined((-0.1, -0.2, 0.0)).holds is True
    assert examined((0.1, -0.05, 0.25)).holds is None
    assert examined((-0.1, -0.25, 0.05)).holds is None
    assert examined((0.3, 0.21, 0.39)).holds is False
    assert examined((-0.3, -0.39, -0.21)).holds is False
    said = "8.90 to 9.00, at 3 saturations; furthest from S = 0, by its interval: -0.10 [-0.25, +0.05]"
    assert examined((-0.1, -0.25, 0.05)).measured == said


def test_growth_goes_by_the_interval_of_the_ratio():
    def examined(claim, row, growth):
        cells = cells_of({row: (10.0, 20.0, 30.0)})
        cells[row][0.9] = replace(cells[row][0.9], growth=growth)
        return claim.examine(cells)

    at_least = next(claim for claim in CLAIMS[1] if "triples" in claim.statement)
    assert examined(at_least, "original", (3.2, 3.0, 3.4)).holds is True
    assert examined(at_least, "original", (3.1, 2.9, 3.3)).holds is None
    assert examined(at_least, "original", (2.7, 2.5, 2.9)).holds is False
    assert examined(at_least, "original", (2.7, 2.26, 3.15)).measured == "10.00 → 30.00, 2.70 times [2.26, 3.15]"
    at_most = next(claim for claim in CLAIMS[3] if "double" in claim.statement)
    assert examined(at_most, "equivariant", (1.9, 1.8, 2.0)).holds is True
    assert examined(at_most, "equivariant", (2.0, 1.8, 2.2)).holds is None
    assert examined(at_most, "equivariant", (2.3, 2.1, 2.5)).holds is False


def test_the_original_is_ahead_where_the_whole_interval_says_so():
    claim = next(claim for claim in CLAIMS[3] if "slightly smaller" in claim.statement)
    values = {"original": (2.0, 12.0, 29.0), "equivariant": (2.1, 2.5, 3.0)}
    assert claim.examine(cells_of(values, paired=(0.1, 0.02, 0.18))).holds is True
    assert claim.examine(cells_of(values, paired=(0.1, -0.02, 0.22))).holds is None
    ahead = claim.examine(cells_of(values, paired=(-0.3, -0.5, -0.1)))
    assert ahead.holds is False and ahead.measured.endswith("equivariant minus original: -0.30 [-0.50, -0.10]")


def test_the_psnr_of_both_rises_or_of_one_falls():
    claim = next(claim for claim in CLAIMS[4] if "raises" in claim.statement)

    def examined(original, equivariant):
        cells = {}
        for row, shift in (("original", original), ("equivariant", equivariant)):
            before = Cell(0.0, None, 17.0, None, None, None)
            cells[row] = {0.0: before, 0.9: replace(before, saturation=0.9, ours=17.0 + shift[0], shift=shift)}
        return claim.examine(cells)

    assert examined((1.0, 0.5, 1.5), (2.0, 1.5, 2.5)).holds is True
    assert examined((0.1, -0.5, 0.7), (2.0, 1.5, 2.5)).holds is None
    assert examined((-1.0, -1.5, -0.5), (2.0, 1.5, 2.5)).holds is False
    said = "original 17.00 → 16.00, -1.00 [-1.50, -0.50]; equivariant 17.00 → 19.00, +2.00 [+1.50, +2.50]"
    assert examined((-1.0, -1.5, -0.5), (2.0, 1.5, 2.5)).measured == said


def test_nothing_is_claimed_without_intervals():
    bare = {
        row: {s: Cell(s, None, value, None, None, None) for s, value in zip((0.0, 0.3, 0.8, 0.9), errors, strict=True)}
        for row, errors in (
            ("original", (8.0, 12.0, 20.0, 29.0)),
            ("preprocessing", (9.0, 9.0, 9.0, 11.0)),
            ("augmentation", (9.0, 9.0, 9.0, 12.0)),
            ("equivariant", (8.0, 8.0, 8.0, 8.0)),
        )
    }
    for claim in (*CLAIMS[1], *CLAIMS[3][2:3], *CLAIMS[4][1:2]):
        if "S = 0.5" in claim.statement:
            continue
        finding = claim.examine(bare)
        assert finding.holds is None and "outcomes of images are missing" in finding.measured


def test_what_was_measured_under_another_light_is_not_the_papers(tmp_path, make_record):
    for record in records(make_record, PAPERS):
        save_evaluation(tmp_path, record, {})
    usual = render_reproduction(examined_tables(tmp_path))
    config = {"train": {"lr": 0.1}, "seed": 0, "distortion": {"requantize": True, "seed": 5}}
    (other,) = records(make_record, {"equivariant": PAPERS["equivariant"]}, config=config)
    save_evaluation(tmp_path, replace(other, experiment="table1_equivariant_requantized_hues5"), {})
    tables = examined_tables(tmp_path)
    text = render_reproduction(tables)
    assert "| Equivariant, 8-bit images, hues of seed 5 | cifar10, 10,000 |" in text
    assert "| Equivariant, 8-bit images, hues of seed 5 | 0.0 |" not in text  # beside no number of the paper's
    assert text.count("| yes |") == usual.count("| yes |")
    (row,) = (row for row in tables[0].rows if row.records and row.records[0].distorted_otherwise)
    assert all(cell.paper is None and cell.paired is None and cell.ours is not None for cell in row.cells if cell.ours)


def test_outcomes_of_another_evaluation_are_refused(make_record):
    (record,) = records(make_record, {"original": PAPERS["original"]})
    outcomes = {("table1_original", 0): {"error": {"0.5": np.arange(10_000) < 1261}}}
    with pytest.raises(ValueError, match=r"table1_original, seed 0: error_percent at S = 0.5 is 12.6, but .* 12.61;"):
        build_table(TABLE1, [record], outcomes=outcomes)


def test_shift_and_growth_are_of_the_same_images_and_seeds(make_record):
    generator = np.random.default_rng(0)
    made, outcomes, white, coloured = [], {}, [], []
    for seed, rate in ((0, 0.2), (1, 0.3)):
        white.append(generator.random(2000) < 0.1)
        coloured.append(white[-1] | (generator.random(2000) < rate))
        errors = (100 * white[-1].mean(), 0.0, 100 * coloured[-1].mean())
        made += records(make_record, {"original": errors}, seed=seed)
        made[-1] = replace(made[-1], n=2000)
        outcomes[made[-1].experiment, seed] = {"error": {"0.0": white[-1], "0.9": coloured[-1]}}
    row = next(row for row in build_table(TABLE1, made, outcomes=outcomes).rows if row.records)
    before, after = (np.array([values.mean() for values in of]) for of in (white, coloured))
    cell = next(cell for cell in row.cells if cell.saturation == 0.9)
    assert cell.shift[0] == pytest.approx(100 * (after - before).mean())
    assert cell.growth[0] == pytest.approx((after / before).mean())
    # Two seeds: Student's 12.7 and their spread make most of the interval.
    of_seeds = 12.706 * (after / before).std(ddof=1) / np.sqrt(2)
    assert of_seeds < (cell.growth[2] - cell.growth[1]) / 2 < 1.1 * of_seeds
    assert row.cells[0].shift is None and row.cells[1].growth is None


def test_what_the_text_alone_says_is_shown_with_its_place_and_leaves_the_verdict(tmp_path, make_record):
    for record in records(make_record, PAPERS):
        record.metrics["error_percent"]["1.0"] = 50.0
        save_evaluation(tmp_path, record, {})
    text = render_reproduction(examined_tables(tmp_path))
    assert "| Equivariant | 1.0 | 28.17 (Section 4.1.1) | 50.00 [" in text and "## Table 1: reproduced" in text


def test_what_training_ended_with_is_shown_where_it_was_recorded(tmp_path, make_record):
    for record in records(make_record, PAPERS):
        save_evaluation(tmp_path, record, {})
    later = {"training_means": {"error_percent": 4.26, "loss": 0.1}, "training_devices": ["a GPU"]}
    for record in records(make_record, {"original": PAPERS["original"]}, seed=1, **later):
        save_evaluation(tmp_path, record, {})
    text = render_reproduction(examined_tables(tmp_path))
    columns = "| Steps | Seeds | Error in training, last (%) | Training, hours in all | Trained on | Trained at |"
    assert columns in text
    assert (
        "| Original | cifar10, 10,000 | fast | 100 of 100 | 0 1 | – 4.3 | 0.0 | not recorded; a GPU | aaaaaaaa |"
        in text
    )
    assert "| Equivariant | cifar10, 10,000 | fast | 100 of 100 | 0 | – | 0.0 | not recorded | aaaaaaaa |" in text


def test_the_device_of_the_evaluation_is_said_as_far_as_it_is_known(tmp_path, make_record):
    environments = ({}, {"device": "cpu", "device_name": "cpu", "threads": 2}, {"device": "cuda", "device_name": "A"})
    for seed, environment in enumerate(environments):
        (record,) = records(make_record, {"original": PAPERS["original"]}, seed=seed, environment=environment)
        save_evaluation(tmp_path, record, {})
    assert "| not recorded; a CPU, 2 threads; A |\n" in render_reproduction(examined_tables(tmp_path))


def test_the_papers_numbers_stand_beside_those_on_other_data(tmp_path, make_record):
    values = dict(zip(KEYS, (30.0, 44.0, 77.0), strict=True))
    changes = {"experiment": "table2_imagenette_original", "table": 2, "dataset": "imagenette", "n": 3_925}
    save_evaluation(tmp_path, make_record("original", metrics={"error_percent": values}, **changes), {})
    text = render_reproduction(examined_tables(tmp_path))
    assert "| Strategy | S | Paper, on ilsvrc12 | Ours, 95 % interval | On | Paper's inside |" in text
    assert "| Original | 0.9 | 31.17 | 77.00 [" in text and "] | imagenette | other data |" in text


@pytest.mark.parametrize("s", [0.5, 0.9])
def test_best_is_decided_by_the_interval_to_the_best_of_the_others(s):
    claim = next(claim for claim in CLAIMS[1] if f"S = {s}, it has the smallest error" in claim.statement)
    coloured = {"original": 29.0, "preprocessing": 11.0, "augmentation": 12.0}

    def under_light(value):  # at the other saturation all are the same
        return (9.0, *((value, 9.0) if s == 0.5 else (9.0, value)))

    def examined(equivariant, preprocessing_minus_it):
        cells = cells_of({row: under_light(v) for row, v in (coloured | {"equivariant": equivariant}).items()})
        cells["preprocessing"][s] = replace(cells["preprocessing"][s], second_paired=preprocessing_minus_it)
        return claim.examine(cells)

    assert examined(10.0, (1.0, 0.4, 1.6)).holds is True
    assert examined(10.0, (1.0, -0.2, 2.2)).holds is None
    assert examined(11.5, (-0.5, -1.2, 0.2)).holds is None
    assert examined(12.0, (-1.0, -1.6, -0.4)).holds is False
    assert examined(12.0, None).holds is None and "outcomes of images are missing" in examined(12.0, None).measured
    # Of the seeds that both have, the other way round than of all.
    assert examined(11.5, (0.5, 0.1, 0.9)).holds is None
    assert examined(10.5, (-0.5, -0.9, -0.1)).holds is None
    assert "preprocessing minus equivariant: -1.00 [-1.60, -0.40]" in examined(12.0, (-1.0, -1.6, -0.4)).measured


def test_best_of_two_is_undecided_where_their_interval_holds_zero():
    of_two = cells_of({"original": (2.0, 12.0, 29.0), "equivariant": (2.0, 2.5, 28.0)}, paired=(-1.0, -3.0, 1.0))
    assert CLAIMS[3][-1].examine(of_two).holds is None


def test_document_says_numbers_claims_and_runs(tmp_path, make_record):
    for record in records(make_record, PAPERS):
        (outcomes,) = outcomes_of([record]).values()
        save_evaluation(tmp_path / "results", record, outcomes)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "REPRODUCTION.md"
    page.write_text("before\n<!-- results:begin -->\nstale\n<!-- results:end -->\nafter\n")
    tables = examined_tables(tmp_path / "results")
    assert write_reproduction(tmp_path, tables) == page
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    low, high = (100 * end for end in proportion_interval(1260, 10_000))
    line = f"| Original | 0.5 | 12.6 | 12.60 [{low:.2f}, {high:.2f}] | +0.0 | yes |"
    assert "## Table 1: reproduced" in text and line in text
    # All images that are wrong at S = 0 are at S = 0.9, so that the ratio is one over a proportion of 2,900 images.
    proportion = 867 / 2900
    half = 1.95996 * np.sqrt(proportion * (1 - proportion) / 2900) / proportion**2
    times = f"3.34 times [{1 / proportion - half:.2f}, {1 / proportion + half:.2f}]"
    assert f"more than triples the original's error | 8.67 → 29.00, {times} | yes |" in text
    assert "| Equivariant | cifar10, 10,000 | fast | 100 of 100 | 0 | 0.0 | not recorded | aaaaaaaa |" in text
    assert render_reproduction(tables) in text


def test_unfinished_trainings_are_shown_and_count_for_nothing(tmp_path, make_record):
    nothing_holds = dict.fromkeys(PAPERS, (55.0, 55.0, 55.0)) | {"equivariant": (60.0, 65.0, 70.0)}
    for record in records(make_record, nothing_holds):
        save_evaluation(tmp_path, record, {})
    paper = {"experiment": "table1_original_paper", "preset": "paper"}
    (unfinished,) = records(make_record, {"original": PAPERS["original"]}, **paper, complete=False, steps=7)
    fast = build_table(TABLE1, find_records(tmp_path))
    save_evaluation(tmp_path, unfinished, {})
    both = build_table(TABLE1, find_records(tmp_path))
    assert tally(fast).verdict == tally(both).verdict == "not yet"
    title = "Original, `train=paper` **[incomplete (7/100 steps)]**"
    text = render_reproduction(examined_tables(tmp_path))
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} | 0.0 | 8.67 | 8.67 [")]
    assert line.endswith(" | not counted |") and f"| {title} | cifar10, 10,000 | paper | 7 of 100 |" in text
    assert "test error (%). Reproduced: 0 of its 12 numbers, 0 of 7 claims." in text
    assert "on cifar10, `train=paper`" not in text


def test_a_preset_of_some_rows_is_held_against_their_claims(tmp_path, make_record):
    paper = {row: PAPERS[row] for row in ("original", "equivariant")}
    for record in [*records(make_record, PAPERS), *records(make_record, paper, preset="paper")]:
        suffix = "_paper" if record.preset == "paper" else ""
        save_evaluation(tmp_path, replace(record, experiment=record.experiment + suffix), {})
    text = render_reproduction(examined_tables(tmp_path)).partition("`train=paper` | Holds |")[2]
    assert text.count("more than triples") == text.count("as good as the original") == 1
    assert "smallest error of the four" not in text  # not of these rows


def test_numbers_of_two_recipes_do_not_add_up_to_a_reproduction(tmp_path, make_record):
    fast = {row: (errors[0], 90.0, 90.0) for row, errors in PAPERS.items()}
    paper = {row: (90.0, *errors[1:]) for row, errors in PAPERS.items()}
    for preset, rows in (("fast", fast), ("paper", paper)):
        for record in records(make_record, rows, preset=preset):
            save_evaluation(tmp_path, replace(record, experiment=f"{record.experiment}_{preset}"), {})
    assert tally(build_table(TABLE1, find_records(tmp_path))).verdict == "partly"


def test_every_preset_is_held_against_the_claims(tmp_path, make_record):
    for preset, suffix in (("fast", ""), ("paper", "_paper")):
        for record in records(make_record, PAPERS, preset=preset):
            save_evaluation(tmp_path, replace(record, experiment=record.experiment + suffix), {})
    text = render_reproduction(examined_tables(tmp_path))
    for preset in ("fast", "paper"):
        assert f"| The paper shows | Here, on cifar10, `train={preset}` | Holds |" in text


@pytest.mark.parametrize("preset", ["fast_changed_0a1b2c", "smoke"])
def test_a_changed_recipe_is_named_and_counts_for_nothing(tmp_path, make_record, preset):
    made = [replace(r, experiment=f"{r.experiment}_{preset}") for r in records(make_record, PAPERS, preset=preset)]
    table = build_table(TABLE1, made, outcomes=outcomes_of(made))
    found = tally(table)
    assert (found.verdict, found.numbers, found.examined, found.expected) == ("not yet", 0, 0, 12)
    text = render_reproduction([table])
    assert f"| Original, `train={preset}` | 0.0 | 8.67 |" in text and "| The paper shows |" not in text
    for row in table.rows:
        assert not row.records or table.preset_suffix(row) == f", `train={preset}`"
    # Beside a recipe, which is the usual one although it comes behind.
    both = build_table(TABLE1, [*made, *records(make_record, PAPERS, preset="tested", experiment="table1_z")])
    titles = {table.preset_suffix(row) for table in [both] for row in both.rows if row.records}
    assert titles == {"", f", `train={preset}`"} and tally(both).verdict == "reproduced"


def test_a_table_without_claims_or_explanation_is_rendered(make_record):
    description = replace(TABLE1, number=5, title="Another table", dataset="synthetic")
    made = records(make_record, PAPERS, table=5, dataset="synthetic")
    text = render_reproduction([build_table(description, made, outcomes=outcomes_of(made))])
    assert text.startswith("## Table 5: not yet\n\nAnother table.\n\nWhat was run:") and "None" not in text


def test_table_3_has_claims_of_its_rows(make_record):
    metric = TABLE3.metric
    made = [
        make_record(row, table=3, experiment=f"table3_{row}", dataset="nus", n=1_853, metrics={metric: values})
        for row, values in (
            ("original", dict(zip(KEYS, (2.0, 12.0, 25.0), strict=True))),
            ("equivariant", dict(zip(KEYS, (2.0, 2.5, 3.0), strict=True))),
        )
    ]
    rng = np.random.default_rng(0)
    outcomes = {}
    for record in made:
        spread = rng.normal(size=101) / 10
        values = {s: median + spread - np.median(spread) for s, median in record.metrics[metric].items()}
        outcomes[record.experiment, 0] = {TABLE3.outcome: values}
    assert tally(build_table(TABLE3, made, outcomes=outcomes)).verdict == "partly"
