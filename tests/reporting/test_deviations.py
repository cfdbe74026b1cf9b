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
from offset_equivariant.reporting.records import find_records, load_outcomes
from offset_equivariant.reporting.reproduction import SATURATIONS
from offset_equivariant.reporting.statistics import paired_difference_interval, widened_by_seeds

RESULTS = repository_root() / "results"
TEXT = " ".join((Path(RESULTS).parent / "docs" / "DEVIATIONS.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def table1():
    records = find_records(RESULTS, 1)
    outcomes = load_outcomes(RESULTS, records)
    rows = build_table(TABLE1, records, saturations=SATURATIONS, outcomes=outcomes).rows
    return {row.description.name: row for row in rows if row.records[0].preset == "fast"}, outcomes


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


def test_random_illuminants_and_the_exactly_invariant_network(table1):
    assert "It is ahead of the exactly invariant network by more than the interval up to S = 0.8." in TEXT
    rows, outcomes = table1
    exact, augmented = (rows[name].records for name in ("equivariant_relative", "augmentation_illuminants"))
    seeds = {record.seed for record in exact} & {record.seed for record in augmented}
    for s in SATURATIONS[:9]:
        a, b = (
            np.stack([outcomes[r.experiment, r.seed]["error"][f"{s:.1f}"] for r in of if r.seed in seeds]) * 100.0
            for of in (augmented, exact)
        )
        _, *interval = paired_difference_interval(a.mean(0), b.mean(0))
        assert widened_by_seeds(tuple(interval), (a.mean(1) - b.mean(1)).tolist())[1] < 0, s


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
