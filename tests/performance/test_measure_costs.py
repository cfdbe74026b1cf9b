"""What the costs of Table 1 count beside their times: the trainings of the searches, and disturbances."""

import pytest


def test_searches_are_counted_in_steps_of_what_was_recorded(load_script, monkeypatch, tmp_path):
    script = load_script("measure_costs")
    epoch = 45_000 // 128
    assert script.search_steps("augmentation") == 14 * 4 * epoch  # results/search_jitter/search.md
    assert script.search_steps("augmentation_illuminants") == 3 * 4 * epoch
    assert script.search_steps("equivariant") == 0
    monkeypatch.setattr(script.provenance, "repository_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="search_jitter: holds no records"):
        script.search_steps("augmentation")


def test_a_disturbed_measurement_is_said_to_be_one(load_script, capsys):
    script = load_script("measure_costs")
    script.warn_of_disturbance({"original step": {"median": 200.0, "max": 230.0}})
    assert capsys.readouterr().out == ""
    script.warn_of_disturbance({"original step": {"median": 200.0, "max": 300.0}, "x": {"median": 1.0, "max": 1.2}})
    assert "of original step; measure again" in capsys.readouterr().out
