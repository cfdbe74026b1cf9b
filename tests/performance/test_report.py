"""The tables of docs/PERFORMANCE.md are what the committed measurements say."""

import json
from pathlib import Path

import pytest

from offset_equivariant.performance.report import ratio, render_benchmark, render_benchmarks
from offset_equivariant.reporting.tables import replace_block

ROOT = Path(__file__).parents[2]
(MEASURED, *_) = sorted((ROOT / "results" / "benchmarks").glob("*.json"))


@pytest.fixture(scope="module")
def found():
    return json.loads(MEASURED.read_text())


def test_document():
    text = (ROOT / "docs" / "PERFORMANCE.md").read_text(encoding="utf-8")
    assert text == replace_block(text, render_benchmarks(ROOT)), "run `make benchmark` and commit docs/PERFORMANCE.md"


def test_measurements_are_of_committed_code(found):
    assert not found["dirty"] and not found["quick"] and len(found["commit"]) == 40


def test_rates_and_ratios_follow_from_the_times(found):
    training = found["training"]
    for row in training.values():
        assert row["images_per_second"] == pytest.approx(128 / (row["ms"]["median"] / 1000))
        assert row["ms"]["min"] <= row["ms"]["median"] <= row["ms"]["max"]
        rate = row["floor"]["gflop"] / (row["ms"]["median"] / 1000)
        assert row["share_of_gemm_rate"] == pytest.approx(rate / found["limits"]["gemm_gflops"])
        assert row["floor"]["arithmetic_ms"] < row["ms"]["median"]
    expected = training["equivariant"]["ms"]["median"] / training["plain"]["ms"]["median"]
    assert ratio(found, "training", "plain") == pytest.approx(expected)
    assert f"over the plain composition: time {expected:.2f}" in render_benchmark(found)


def test_rates_beside_the_authors_code(found):
    rate = found["sweep"]["equivariant"]["images_per_second_and_saturation"]
    most = 3 * 128 / (found["training"]["equivariant"]["floor"]["arithmetic_ms"] / 1000)
    line = f"| evaluation, equivariant | 707 | {rate:.0f} | {rate / 707:.2f} | 3.0 | {most / 707:.2f} |"
    assert line in render_benchmark(found)
    other = found | {"environment": found["environment"] | {"threads": 64}}
    assert "authors" not in render_benchmark(other)


def test_uncommitted_changes_are_said(found):
    assert "uncommitted" in render_benchmark(found | {"dirty": True})
    assert "uncommitted" not in render_benchmark(found)


def test_memory_that_was_not_measured_is_left_out(found):
    training = {network: row | {"peak_memory_mb": None} for network, row in found["training"].items()}
    text = render_benchmark(found | {"training": training})
    assert "emory of a step" in render_benchmark(found) and "emory of a step" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| original |"))
    assert row.split("|")[4].strip() == "–" and "nan" not in text and "None" not in text
