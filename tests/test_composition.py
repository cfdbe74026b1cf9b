"""From the words of a command line to a checked run."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from offset_equivariant.composition import checked_run, plain_settings
from offset_equivariant.config import ConfigError, experiment_config

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def composed_of(words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(words))


WRONG = {
    "family": (
        ("experiment=table1_original", "model.family=foo"),
        ["model.family = 'foo' must be one of conventional, offset_equivariant"],
    ),
    "saturation": (
        ("experiment=table1_original", "distortion=random_illuminant", "distortion.saturation=2"),
        ["saturations must lie in [0, 1], got [2.0]"],
    ),
    "no saturation": (
        ("experiment=table1_original", "distortion=random_illuminant"),
        ["setting distortion.saturation has no value; give distortion.saturation="],
    ),
    "balancing": (
        ("experiment=table1_original", "strategy.balancing=nope"),
        ["strategy.balancing = 'nope' is not one of grey_world, shades_of_grey, max_rgb, grey_edge"],
    ),
    "family option's value": (
        ("experiment=table1_equivariant", "model.family_options.offset_groups=0"),
        ["offset_groups must be a whole number of at least 1, got 0"],
    ),
    "family option's type": (
        ("experiment=table1_equivariant", "model.family_options.offset_groups=3.0"),
        ["model.family_options.offset_groups = 3.0 must be a whole number"],
    ),
    "family option's name": (
        ("experiment=table1_equivariant", "+model.family_options.gain=2"),
        ["unknown setting model.family_options.gain; valid ones are offset_groups, constraint, shortcut_padding"],
    ),
    "schedule option's name": (
        ("experiment=table1_original", "+train.schedule.options.warmup=0.2"),
        ["unknown setting train.schedule.options.warmup; valid ones are warmup_fraction"],
    ),
    "data option's value": (
        ("experiment=table1_original", "train=smoke", "dataset.options.n_train=-5"),
        ["n_train must be at least 1, got -5"],
    ),
    "data option's type": (
        ("experiment=table1_original", "train=smoke", "dataset.options.n_train=abc"),
        ["dataset.options.n_train = 'abc' must be a whole number"],
    ),
    "data option's name": (
        ("experiment=table1_original", "train=smoke", "+dataset.options.progress=1"),
        ["unknown setting dataset.options.progress; valid ones are n_train, n_test, classes, size, seed"],
    ),
    "classes": (("experiment=table1_original", "dataset.classes=9"), ["dataset.classes = 9, but cifar10 has 10"]),
    "batch of more images than there are": (
        ("experiment=table1_original", "train.batch_size=60000"),
        ["train.batch_size = 60000", "do not fit the 50000 training images of cifar10"],
    ),
    "batch of unequal parts": (
        ("experiment=table1_original", "train.batch_size=128", "train.accumulate=3"),
        ["train.batch_size = 128 must be divisible by train.accumulate = 3"],
    ),
    "no images left to train on": (
        ("experiment=table1_original", "dataset.validation_images=49999"),
        ["dataset.validation_images = 49999 do not fit the 50000 training images of cifar10"],
    ),
    "no data folder": (("experiment=table1_original", "paths.data=''"), ["names no folder"]),
    "statistics of another space": (
        ("experiment=table1_equivariant", "model.representation.statistics=srgb"),
        ["'srgb' is not of space = log_rgb; choose one of log_rgb_absolute, log_rgb_relative"],
    ),
    "statistics of two channels": (
        ("experiment=table1_original", "dataset.statistics.srgb.mean=[0.5,0.5]"),
        ["dataset.statistics.srgb = ", "must have three numbers each for mean and std"],
    ),
    "name of no experiment": (
        ("experiment=table1_original", "name=mine"),
        ["name = 'mine' is no experiment of conf/experiment; give table=null"],
    ),
    "option": (
        ("experiment=table1_equivariant", "model.family_options.constraint=hard"),
        ["model.family_options.constraint = 'hard' must be one of parametrization, projection"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named_before_any_work(case, tmp_path, monkeypatch):
    words, expected = WRONG[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        checked_run(composed_of(words))
    for text in expected:
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def preset_of(words):
    experiment = [] if "experiment=" in words else ["experiment=table1_original"]
    return plain_settings(composed_of([*experiment, *words.split()]))["train"]["preset"]


CHANGES = (
    "train.epochs=3",
    "train.epochs=4",
    "train=paper train.schedule.options.factor=0.2",
    "experiment=search_original train.epochs=9",
    "experiment=search_original model.architecture=resnet32",
    "experiment=search_original strategy=augmentation",
    "experiment=search_original dataset.validation_images=400",
    "experiment=search_original row=equivariant",
    "experiment=search_jitter model=resnet20_equivariant",
    "experiment=search_jitter strategy.illuminant_saturation=0.5",
    "experiment=search_nus_original train.momentum=0.5",
    "experiment=search_inpainting_original train.inpainting.adversarial_weight=0.5",
    "strategy=augmentation",
    "model=resnet20_equivariant",
    "dataset=synthetic",
    "dataset.validation_images=5000",
    "row=equivariant",
)


#: Searches whose names say what was changed.
SEARCHES = {
    "experiment=search_original": "search",
    "experiment=search_original train.learning_rate=0.2 train.weight_decay=1e-4 train.log_every=7": "search",
    "experiment=search_illuminants strategy.illuminant_saturation=0.5": "search_illuminants",
    "experiment=search_jitter strategy.jitter.hue=0.1 strategy.jitter.brightness=0.4": "search_jitter",
    "experiment=search_jitter strategy.jitter={brightness:0,contrast:0,saturation:0,hue:0}": "search_jitter",
    "experiment=search_nus_original train.batch_size=16 train.epochs=9 train.smallest_crop=0.5": "search",
    "experiment=search_nus_equivariant_filled model.family_options.constraint=projection": "search",
    "experiment=search_inpainting_original +model.options.initial_gain=0.5": "search",
    "experiment=search_inpainting_original train.inpainting.discriminator_learning_rate=1e-5": "search",
    "experiment=search_inpainting_equivariant_relative model.options.initial_gain=0.5 train.epochs=9": "search",
}


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        ("", "fast"),
        ("train.log_every=7 dataset.download=false distortion.saturations=[0.5] runtime.threads=1", "fast"),
        ("train=paper", "paper"),
        *[(words, preset) for words, preset in SEARCHES.items()],
        ("experiment=search_equivariant train.learning_rate=0.1", "search"),
        ("train=smoke train.epochs=1", "smoke"),
        ("train.preset=mine train.epochs=1", "mine"),
        ("train.preset=paper", "paper_changed_[0-9a-f]{6}"),
        *[(words, "(fast|paper|search|search_jitter)_changed_[0-9a-f]{6}") for words in CHANGES],
    ],
)
def test_a_training_that_is_not_its_experiments_has_another_presets_name(words, preset):
    assert re.fullmatch(preset, preset_of(words))


def test_different_changes_have_different_names():
    assert len({preset_of(words) for words in CHANGES}) == len(CHANGES)


def test_an_experiment_of_a_table_has_the_name_of_its_file(make_settings):
    for name in EXPERIMENTS:
        settings = make_settings(f"experiment={name}")
        assert settings["table"] is None or settings["name"] == name


def test_other_evaluations_of_the_same_training_have_records_of_their_own(make_settings):
    names = {
        (): "table1_original",
        ("distortion.requantize=true",): "table1_original_requantized",
        ("distortion.seed=3",): "table1_original_hues3",
    }
    for words, name in names.items():
        config = experiment_config(make_settings("experiment=table1_original", *words))
        assert (config.experiment, config.record_name) == ("table1_original", name)
