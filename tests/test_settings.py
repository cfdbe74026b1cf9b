"""Configurations as flat settings: which of them decide a result, and in which two of them differ."""

import pytest

from offset_equivariant.settings import (
    INDIFFERENT,
    decisive_settings,
    differing_settings,
    flat_settings,
    is_recipe,
    recorded_settings,
)

CONFIG = {
    "seed": 0,
    "train": {"learning_rate": 0.1, "autocast": None, "log_every": 50, "checkpoint_seconds": 120},
    "dataset": {"name": "cifar10", "download": True, "options": {}},
}


def with_train(**changes):
    return {**CONFIG, "train": {**CONFIG["train"], **changes}}


def test_settings_have_dotted_names():
    assert flat_settings({"a": 1, "b": {"c": None, "d": {"e": [2]}, "f": {}}}) == {"a": 1, "b.c": None, "b.d.e": [2]}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("fast", True), ("paper", True), ("search", True), ("smoke", False), ("fast_changed_0a1b2c", False)],
)
def test_a_changed_preset_and_that_of_smoke_tests_are_no_recipes(preset, expected):
    assert is_recipe(preset) is expected


def test_a_record_holds_neither_where_it_was_computed_nor_which_saturations():
    elsewhere = {"mode": "both", "weights": None, "runtime": {"device": "cpu"}, "logger": {}, "paths": {"runs": "runs"}}
    light = {"seed": 0, "requantize": False}
    given = {**CONFIG, **elsewhere, "distortion": {**light, "saturations": [0.5]}}
    assert recorded_settings(given) == {**CONFIG, "distortion": light}
    assert recorded_settings({**given, "distortion": {**light, "saturation": 0.5}}) == {**CONFIG, "distortion": light}
    assert given["distortion"]["saturations"] == [0.5]


def test_null_and_indifferent_settings_decide_nothing():
    assert decisive_settings(CONFIG) == {"seed": 0, "train.learning_rate": 0.1, "dataset.name": "cifar10"}


@pytest.mark.parametrize("name", INDIFFERENT)
def test_indifferent_settings_make_no_difference_in_any_section(name):
    for section in ("train", "dataset"):
        assert differing_settings(CONFIG, {**CONFIG, section: {**CONFIG[section], name: 7}}) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate": 0.2}, {"train.learning_rate": (0.1, 0.2)}),
        ({"learning_rate": None}, {"train.learning_rate": (0.1, None)}),
        ({"autocast": "bfloat16"}, {"train.autocast": (None, "bfloat16")}),
        ({"momentum": 0.9}, {"train.momentum": (None, 0.9)}),
        ({"momentum": None}, {}),
        ({"steps": 0, "epochs": False}, {"train.epochs": (None, False), "train.steps": (None, 0)}),
    ],
)
def test_differences_are_those_of_either_side_and_null_is_as_good_as_none(changes, expected):
    found = differing_settings(CONFIG, with_train(**changes))
    assert found == expected and list(found) == sorted(found)
    assert differing_settings(with_train(**changes), CONFIG) == {name: (b, a) for name, (a, b) in expected.items()}
