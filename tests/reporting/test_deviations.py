"""What docs/DEVIATIONS.md says of committed results in numbers is what the records say.

A record that changes one of them fails its test: the sentence must be read again, not the number alone.
"""

from pathlib import Path

import numpy as np
import pytest

from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.descriptions import TABLE1, TABLE2, TABLE3, TABLE4
from offset_equivariant.reporting.paper import paper_value
from offset_equivariant.reporting.records import find_records, load_outcomes, read_record, record_path
from offset_equivariant.reporting.reproduction import SATURATIONS
from offset_equivariant.statistics import paired_difference_interval, widened_by_seeds

RESULTS = repository_root() / "results"
TEXT = " ".join((Path(RESULTS).parent / "docs" / "DEVIATIONS.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def every_line():
    """All lines of Table 1, of either length, and the outcomes of their networks."""
    records = find_records(RESULTS, 1)
    outcomes = load_outcomes(RESULTS, records)
    return build_table(TABLE1, records, saturations=SATURATIONS, outcomes=outcomes).rows, outcomes


def of_preset(rows, preset):
    return {row.description.name: row for row in rows if row.records[0].preset == preset}


@pytest.fixture(scope="module")
def table1(every_line):
    rows, outcomes = every_line
    return of_preset(rows, "fast"), outcomes


@pytest.fixture(scope="module")
def long_trainings(every_line):
    """The lines that have the paper's length, by name."""
    return of_preset(every_line[0], "paper")


def beside_equivariant(table1, row):
    """Saturation -> difference to the equivariant network, low, high."""
    return {cell.saturation: cell.second_paired for cell in table1[0][row].cells}


def test_grey_world(table1):
    lower = -beside_equivariant(table1, "preprocessing_grey_world")[0.0][0]
    assert f"balancing by grey-world takes it away, too, and its error is {lower:.1f} points lower" in TEXT


def test_learned_balancing(table1):
    differences = beside_equivariant(table1, "preprocessing_quasi_unsupervised")
    assert "up to S = 0.8 the learned balancing has a smaller error than the equivariant network, by more than" in TEXT
    assert all(high < 0 for s, (_, _, high) in differences.items() if s <= 0.8)
    assert differences[0.9][1] < 0 < differences[0.9][2]


def test_random_illuminants_and_the_equivariant_network(table1):
    coloured = {s: d for s, d in beside_equivariant(table1, "augmentation_illuminants").items() if s <= 0.9}
    ahead = [-difference for difference, _, _ in coloured.values()]
    seeds = {3: "three"}[len(table1[0]["augmentation_illuminants"].records)]
    assert f"at every S up to 0.9, by {min(ahead):.1f} to {max(ahead):.1f} points" in TEXT
    outside = " and ".join(f"{s:.1f}" for s, (_, _, high) in coloured.items() if high < 0)
    assert f"over {seeds} seeds reaches: at S = {outside} by a little more, else by less" in TEXT


def between(table1, row, other):
    """Saturation -> the interval of a row's difference to another one that is no baseline."""
    rows, outcomes = table1
    seeds = {record.seed for record in rows[row].records} & {record.seed for record in rows[other].records}
    intervals = {}
    for s in SATURATIONS:
        a, b = (
            np.stack(
                [outcomes[r.experiment, r.seed]["error"][f"{s:.1f}"] for r in rows[name].records if r.seed in seeds]
            )
            for name in (row, other)
        )
        a, b = 100.0 * a, 100.0 * b
        _, *interval = paired_difference_interval(a.mean(0), b.mean(0))
        intervals[s] = widened_by_seeds(tuple(interval), (a.mean(1) - b.mean(1)).tolist())
    return intervals


def test_random_illuminants_and_the_exactly_invariant_network(table1):
    assert "It is ahead of the exactly invariant network by more than the interval up to S = 0.8." in TEXT
    intervals = between(table1, "augmentation_illuminants", "equivariant_relative")
    assert all(high < 0 for s, (_, high) in intervals.items() if s <= 0.8)


def test_random_illuminants_and_jitter(table1):
    intervals = between(table1, "augmentation", "augmentation_illuminants")
    told_apart = min(s for s, (low, high) in intervals.items() if not low <= 0 <= high)
    assert told_apart == 0.8 and "in Table 1 it is behind, up to S = 0.7 by less than the interval" in TEXT
    means = {s: table1[0]["augmentation"].cells[i].ours for i, s in enumerate(SATURATIONS)}
    others = {s: table1[0]["augmentation_illuminants"].cells[i].ours for i, s in enumerate(SATURATIONS)}
    assert all(means[s] > others[s] for s in SATURATIONS)


def test_balancing_costs_nothing_that_can_be_told(table1):
    assert "At S = 0 what balancing costs is not told apart from nothing, give or take a point" in TEXT
    balanced = [row for name, row in table1[0].items() if name.startswith("preprocessing")]
    assert len(balanced) == 5
    for _, low, high in (row.cells[0].paired for row in balanced):
        assert -1.5 < low < 0 < high < 1.5


def test_psnr_in_linear_rgb():
    def gains(row, metric="psnr_linear_db"):
        (record,) = [r for r in find_records(RESULTS, 4) if (r.row, r.dataset) == (row, "facades")]
        values = record.metrics[metric]
        return {(a, b): values[b] - values[a] for a, b in (("0.0", "0.9"), ("0.5", "0.9"))}

    def papers(row):
        white, coloured = (paper_value(4, row, TABLE4.metric, s).value for s in (0.0, 0.9))
        return coloured - white

    original, ours = gains("original"), gains("equivariant")
    assert (
        f"by {original['0.0', '0.9']:.1f} decibels, as the paper's does, by {papers('original'):.1f}; it still falls "
        f"from S = 0.5 on, by {-original['0.5', '0.9']:.1f}." in TEXT
    )
    srgb = gains("equivariant", TABLE4.metric)
    assert (
        f"rises by {ours['0.0', '0.9']:.1f} there and by {srgb['0.0', '0.9']:.1f} in sRGB, the paper's by "
        f"{papers('equivariant'):.1f}" in TEXT
    )


def test_the_two_ratios_of_the_reproduction_error():
    records = [record for record in find_records(RESULTS, 3) if record.row == "original"]
    names = (TABLE3.metric, "median_reproduction_error_finlayson_degrees")
    printed, usual = (np.mean([record.metrics[name]["0.9"] for record in records]) for name in names)
    assert f"for the original network at S = 0.9 they are {printed:.1f}° and {usual:.1f}°" in TEXT


def test_from_where_on_the_equivariant_resnet50_is_ahead():
    records = find_records(RESULTS, 2)
    rows = build_table(TABLE2, records, saturations=SATURATIONS, outcomes=load_outcomes(RESULTS, records)).rows
    first = {}
    for row in rows:
        ahead = [cell.saturation for cell in row.cells if cell.paired is not None and cell.paired[2] < 0]
        first[row.description.name] = min(ahead, default=None)
    assert (
        f"by more than the interval, from S = {first['equivariant']} on with the paper's clipping and from "
        f"{first['equivariant_relative']} with the relative one" in TEXT
    )


def test_psnr_of_the_original_network_under_coloured_light():
    (record,) = [r for r in find_records(RESULTS, 4) if r.row == "original" and r.dataset == "facades"]
    values = record.metrics[TABLE4.metric]
    papers = [paper_value(4, "original", TABLE4.metric, s).value for s in (0.5, 0.9)]
    assert (
        f"from S = 0.5 to 0.9 it loses {values['0.5'] - values['0.9']:.1f} decibels here, and gains "
        f"{papers[1] - papers[0]:.1f} in the paper" in TEXT
    )


@pytest.mark.parametrize("row", ["original", "equivariant"])
def test_networks_after_the_papers_steps(long_trainings, row):
    cells = [cell for cell in long_trainings[row].cells if cell.saturation in (0.0, 0.5, 0.9)]
    ours, papers = ([f"{cell.ours:.2f}" for cell in cells], [cell.paper.printed for cell in cells])
    assert long_trainings[row].records[0].steps == 64_000
    measured, printed = (f"{numbers[0]}, {numbers[1]} and {numbers[2]} %" for numbers in (ours, papers))
    assert f"the {row} network's error is {measured}, the paper's {printed}" in TEXT


def test_the_equivariant_network_reaches_the_papers_numbers(long_trainings):
    assert "all three inside its intervals" in TEXT
    for cell in long_trainings["equivariant"].cells:
        if cell.saturation in (0.0, 0.5, 0.9):
            assert cell.interval[0] <= cell.paper.value <= cell.interval[1]


def test_the_gap_between_the_two_families(table1, long_trainings):
    original, ours = (long_trainings[row].cells[0] for row in ("original", "equivariant"))
    papers = ours.paper.value - original.paper.value
    assert "by {:.2f} points, [{:.2f}, {:.2f}], after 64,000".format(*ours.paired) in TEXT
    assert f"it is behind by {papers:.2f} points. Of the {ours.paired[0] - papers:.2f} points between the" in TEXT
    own, others = ours.ours - ours.paper.value, original.paper.value - original.ours
    assert f"{own:.2f} are the equivariant network's, well inside its interval, and {others:.2f} the original's" in TEXT
    fast = table1[0]["equivariant"].cells[0].paired
    assert "and {:.2f} points, [{:.2f}, {:.2f}], after the 12 of `train=fast` (three seeds)".format(*fast) in TEXT


def ablated(experiment):
    """The error of an ablation's network, by saturation."""
    return read_record(record_path(RESULTS / "ablations", experiment, 0)).metrics["error_percent"]


def test_the_gap_in_short_trainings():
    def after_8(decay):
        ours, original = (
            searched("search", "error_percent", row=row, learning_rate=0.6, weight_decay=decay)
            for row in ("equivariant", "original")
        )
        return ours - original

    brief = {name: ablated(f"ablation_{name}_brief")["0.0"] for name in ("original", "equivariant")}
    assert f"it is {brief['equivariant'] - brief['original']:.1f} points after 4 epochs" in TEXT
    assert f"{after_8(1e-4):.1f} and {after_8(5e-4):.1f} after 8, by the two recipes" in TEXT


def test_training_errors_after_the_papers_steps(long_trainings):
    rows = [long_trainings[row] for row in ("equivariant", "original")]
    wrong = [row.records[0].training_means["error_percent"] for row in rows]
    assert "and {:.1f} against {:.1f} % after 64,000 steps".format(*wrong) in TEXT
    for row, in_training in zip(rows, wrong, strict=True):
        assert f"the error in the test is {row.cells[0].ours - in_training:.1f} points above that in training" in TEXT


def test_candidates_for_the_gap_from_ablations():
    def lower(variant):
        return f"{ablated('ablation_equivariant_brief')['0.0'] - ablated(variant)['0.0']:.1f} points lower"

    assert (
        f"with a learned combination the error of a short training is {lower('ablation_pooling_linear_brief')}" in TEXT
    )
    assert f"zeros beside the offset the error of a short training is {lower('ablation_padding_offset_brief')}" in TEXT


def test_errors_where_a_channel_is_gone(table1, long_trainings):
    fast, long = (rows["equivariant"].cells[-1] for rows in (table1[0], long_trainings))
    assert f"has an error of {long.paper.printed} % there" in TEXT and long.saturation == 1.0
    assert f"the one here {fast.ours:.2f} % with `train=fast` and {long.ours:.2f} % with `train=paper`" in TEXT


def test_the_equivariant_networks_error_hardly_rises():
    records = [record for record in find_records(RESULTS, 1) if record.row == "equivariant"]
    rises = [record.metrics["error_percent"]["0.9"] - record.metrics["error_percent"]["0.0"] for record in records]
    assert f"that of no network here, with the paper's ε, by more than {max(rises):.2f}" in TEXT and len(rises) == 4


def test_training_errors_of_the_two_families():
    def errors(row):
        found = [r for r in find_records(RESULTS, 1) if (r.row, r.preset) == (row, "fast") and r.training_means]
        return " and ".join(f"{r.training_means['error_percent']:.1f}" for r in sorted(found, key=lambda r: r.seed))

    assert f"{errors('equivariant')} % of the training images, augmented as they are, are wrong" in TEXT
    assert f"against {errors('original')} % for the original" in TEXT


def searched(folder, metric, **settings):
    """The metric at S = 0 of the one run of a search that has these settings, wherever in its configuration."""

    def flat(config):
        for key, value in config.items():
            if isinstance(value, dict):
                yield from flat(value)
            elif isinstance(value, str | int | float | None):
                yield key, value

    def has_them(record):
        unless_named = {"row": record.row, "smallest_crop": None, "initial_gain": None}
        return settings.items() <= (unless_named | dict(flat(record.config))).items()

    (run,) = filter(has_them, find_records(RESULTS / folder))
    return run.metrics[metric]["0.0"]


def test_what_weight_decay_costs_either_family():
    cost = {
        row: searched("search", "error_percent", row=row, learning_rate=0.6, weight_decay=5e-4)
        - searched("search", "error_percent", row=row, learning_rate=0.6, weight_decay=1e-4)
        for row in ("equivariant", "original")
    }
    assert (
        f"more decay cost the equivariant network {cost['equivariant']:.1f} points and the original "
        f"{cost['original']:.1f}, one run each" in TEXT
    )


def test_search_of_illuminant_estimation():
    def error(row, decay, rate=0.003, crop=None, epochs=60, **others):
        settings = {"weight_decay": decay, "learning_rate": rate, "smallest_crop": crop, "epochs": epochs, **others}
        return searched("search_nus", TABLE3.metric, row=row, **settings)

    ours = "equivariant_filled"
    projected, reparametrised = (
        error(ours, 0.01, rate=0.001, constraint=constraint) for constraint in ("projection", "parametrization")
    )
    assert f"{projected:.2f}° with projection, {reparametrised:.2f}° with reparametrisation" in TEXT
    assert f"({error(ours, 0.01):.2f}° to {error(ours, 0.5):.2f}° in 60 epochs)" in TEXT
    assert abs(error("original", 0.5) - error("original", 0.01)) < 0.05  # weight decay did not help it
    gains = [error(row, 0.5, crop=0.8) - error(row, 0.5, crop=0.8, epochs=150) for row in ("original", ours)]
    assert f"gained it {gains[0]:.2f}°, where they gained the equivariant one {gains[1]:.2f}°" in TEXT


def test_search_of_the_initial_gamma():
    def psnr(row, **gain):
        settings = {"epochs": 60, "learning_rate": 1e-3, **gain}
        return searched("search_inpainting", TABLE4.metric, row=row, **settings)

    found = [f"{psnr('equivariant_relative', initial_gain=gain):.2f}" for gain in (1.0, 0.1, 0.03, 0.01)]
    assert f"γ = 1, 0.1, 0.03 and 0.01 gave {', '.join(found[:3])} and {found[3]} dB" in TEXT
    before = searched("search_inpainting", TABLE4.metric, row="original", epochs=60, initial_gain=None)
    assert f"with 0.01 it falls from {before:.2f} to {psnr('original', initial_gain=0.01):.2f} dB" in TEXT


def test_the_authors_epsilon():
    theirs, papers = ablated("ablation_epsilon_2e-3_brief"), ablated("ablation_equivariant_brief")
    assert f"the smaller error in white light, by {papers['0.0'] - theirs['0.0']:.1f} points" in TEXT
    assert "and one that rises by half a point up to S = 0.9" in TEXT
    assert theirs["0.9"] - theirs["0.0"] == pytest.approx(0.5, abs=0.05)


def test_how_nearly_the_fill_keeps_its_pattern():
    rows = {r.row: r.largest(TABLE4.invariance) for r in find_records(RESULTS, 4) if r.dataset == "facades"}
    assert f"off the recoloured one by up to {rows['equivariant']:.1f} of 255 levels (RMS)" in TEXT
    assert f"it is so, within {rows['equivariant_relative']:.3f}." in TEXT
