"""The search's record: every run, in order, on validation images only."""

from dataclasses import replace

import pytest

from offset_equivariant.reporting.search import SEARCHES, render_search, write_searches


def runs(make_record):
    def run(row: str, rate: float, error: float):
        recipe = {"learning_rate": rate, "weight_decay": 5e-4, "epochs": 8}
        return replace(
            make_record(),
            experiment=f"{row}_lr{rate}",
            table=None,
            row=row,
            dataset="cifar10_validation",
            config={"train": recipe},
            metrics={"error_percent": {"0.0": error, "0.9": 2 * error}},
        )

    return [run("original", 0.2, 12.5), run("original", 0.6, 11.25), run("equivariant", 0.2, 14.0)]


def test_every_run_stands_best_first(make_record):
    lines = [
        line
        for line in render_search(runs(make_record), SEARCHES["search"]).splitlines()
        if line.startswith(("| orig", "| equi"))
    ]
    assert [line.split(" | ")[:5] for line in lines] == [
        ["| equivariant", "0.2", "0.0005", "8", "14.00"],
        ["| original", "0.6", "0.0005", "8", "11.25"],
        ["| original", "0.2", "0.0005", "8", "12.50"],
    ]
    assert [line.split(" | ")[5:7] for line in lines] == [["–", "28.00"], ["–", "22.50"], ["–", "25.00"]]


def test_test_images_are_refused(make_record):
    with pytest.raises(ValueError, match=r"original_lr0\.2 was measured on cifar10, not on validation images"):
        render_search([replace(run, dataset="cifar10") for run in runs(make_record)], SEARCHES["search"])


def test_nothing_is_written_without_records(tmp_path):
    assert write_searches(tmp_path) == []


def test_the_mean_over_saturations_can_decide(make_record):
    def jittered(hue, errors):
        return replace(
            make_record(),
            table=None,
            dataset="cifar10_validation",
            config={"train": {"epochs": 4}, "strategy": {"jitter": {"brightness": 0.4, "hue": hue}}},
            metrics={"error_percent": dict(zip(("0.0", "0.5", "0.9"), errors, strict=True))},
        )

    text = render_search(
        [jittered(0.1, (12.0, 15.0, 30.0)), jittered(0.5, (16.0, 16.0, 16.0))], SEARCHES["search_jitter"]
    )
    assert "# Search for the strengths of `strategy=augmentation`" in text and "mean over S = 0.0, 0.5, 0.9" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| original")]
    assert [(line[1], line[4], line[6]) for line in lines] == [("0.4", "0.5", "16.00"), ("0.4", "0.1", "12.00")]


def test_settings_of_the_strategy_itself_are_shown(make_record):
    run = replace(
        make_record(),
        table=None,
        dataset="cifar10_validation",
        config={"train": {"epochs": 4}, "strategy": {"illuminant_saturation": 0.9, "jitter": None}},
        metrics={"error_percent": {"0.0": 12.0, "0.5": 13.0, "0.9": 14.0}},
    )
    (line,) = [
        line for line in render_search([run], SEARCHES["search_illuminants"]).splitlines() if line.startswith("| orig")
    ]
    assert line.split(" | ")[1:6] == ["0.9", "4", "12.00", "13.00", "14.00"]
