import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.training.schedules import make_schedule

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "train").glob("*.yaml"))


@pytest.fixture(scope="module")
def settings(make_settings) -> dict[str, Any]:
    return make_settings("experiment=table1_equivariant")


def changed(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(settings)
    *groups, name = path.split(".")
    group = result
    for part in groups:
        group = group[part]
    group[name] = value
    return result


#: Experiments by how their names begin, and how the names of their presets begin.
PREFIXES = {"table1_": "", "ablation_": "", "search_": "", "table2_": "imagenet_"}
PREFIXES |= {"table3_": "nus_", "search_nus_": "nus_"}
PREFIXES |= {"table4_": "inpainting_", "search_inpainting_": "inpainting_", "quasi_unsupervised": "quasi_"}


def prefix_of(name: str, prefixes: Iterable[str]) -> str:
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid_with_every_preset(make_settings, experiment):
    prefix = PREFIXES[prefix_of(experiment, PREFIXES)]
    groups = [name for name in PRESETS if prefix_of(name, PREFIXES.values()) == prefix]
    assert len(groups) >= 3
    for group in groups:
        preset = group.removeprefix(prefix)
        config = experiment_config(make_settings(f"experiment={experiment}", f"train={group}"))
        assert config.train.preset == preset
        if experiment.startswith("table"):
            suffix = "" if preset == "fast" else f"_{preset}"
            assert config.experiment == experiment + suffix
            number, row = experiment.removeprefix("table").split("_", 1)
            assert (config.table, config.row) == (int(number), row.removeprefix("facades_").removeprefix("imagenette_"))


@pytest.mark.parametrize("experiment", ["table4_original", "table4_equivariant", "table4_equivariant_relative"])
def test_paris_is_trained_by_pathak_et_als_recipe(make_settings, experiment):
    config = experiment_config(make_settings(f"experiment={experiment}"))
    train, joint = config.train, config.train.inpainting
    assert joint is not None
    assert (config.dataset.name, config.dataset.options) == ("paris_street_view", {"shorter_side": 350})
    assert (train.preset, train.epochs, train.batch_size, train.flip) == ("paper", 500, 64, True)
    assert (train.optimizer, train.momentum, train.weight_decay) == ("adam", 0.5, 0)
    assert (train.learning_rate, joint.discriminator_learning_rate) == (2e-3, 2e-4)
    assert (joint.adversarial_weight, joint.border, joint.border_weight) == (0.001, 4, 10)
    schedule = make_schedule(train.schedule.name, 1000, **train.schedule.options)
    assert {schedule(step) for step in range(1000)} == {1}


def test_paper_preset_is_he_et_als_recipe(make_settings):
    train = experiment_config(make_settings("experiment=table1_original", "train=paper")).train
    assert (train.steps, train.epochs, train.batch_size, train.crop_padding, train.flip) == (64000, None, 128, 4, True)
    assert (train.learning_rate, train.momentum, train.nesterov, train.weight_decay) == (0.1, 0.9, False, 1e-4)
    assert train.schedule.name == "multi_step"
    assert train.schedule.options == {"milestones": [32000, 48000], "factor": 0.1}
    assert train.total_steps(390) == 64000


def test_search_preset_keeps_to_validation_images_and_results_of_its_own(make_settings):
    config = experiment_config(make_settings("experiment=search_equivariant", "train=search"))
    assert (config.dataset.validation_images, config.dataset_label) == (5000, "cifar10_validation")
    assert config.distortion.values() == [0.0, 0.5, 0.9]
    assert (config.paths.results, config.table) == ("results/search", None)


def test_smoke_preset_is_on_synthetic_images(make_settings):
    config = experiment_config(make_settings("experiment=table1_equivariant", "train=smoke"))
    assert (config.dataset.name, config.dataset.download) == ("synthetic", False)


def test_rows_of_table_1_differ_in_their_strategy_alone(make_settings):
    def config(row):
        return experiment_config(make_settings(f"experiment=table1_{row}"))

    original, equivariant, relative = config("original"), config("equivariant"), config("equivariant_relative")
    methods = ("grey_world", "shades_of_grey", "max_rgb", "grey_edge", "quasi_unsupervised")
    for row in ("augmentation", *(f"preprocessing_{method}" for method in methods)):
        other = config(row)
        assert (other.model, other.train, other.dataset) == (original.model, original.train, original.dataset)
        assert other.strategy != original.strategy and other.strategy.name == row
    assert original.model.family == "conventional" and original.model.representation.space == "srgb"
    assert equivariant.model.family == "offset_equivariant"
    assert equivariant.model.representation.clipping_options == {"epsilon": 2e-4}
    assert equivariant.model.family_options == relative.model.family_options
    assert (equivariant.model.representation.clipping, relative.model.representation.clipping) == (
        "absolute",
        "relative",
    )


def test_steps_from_epochs(settings):
    train = experiment_config(changed(settings, "train.epochs", 2.5)).train
    assert train.total_steps(390) == 975
    assert experiment_config(changed(settings, "train.epochs", 1e-6)).train.total_steps(390) == 1


def test_saturations(make_settings, settings):
    assert experiment_config(settings).distortion.values() == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    one = make_settings("experiment=table1_original", "distortion=random_illuminant", "distortion.saturation=1")
    assert experiment_config(one).distortion.values() == [1.0]


@pytest.mark.parametrize("held_out", [0, 5000])
def test_label_of_the_evaluated_images(settings, held_out):
    config = experiment_config(changed(settings, "dataset.validation_images", held_out))
    assert config.dataset_label == ("cifar10_validation" if held_out else "cifar10")


WRONG = [
    ("mode", "trian", r"mode = 'trian' must be one of train, evaluate, both"),
    *(("name", name, "name = .* must be able to name a folder") for name in ("a/b", "../../b", "", "..", "a b", "a\n")),
    ("train.preset", "../b", "train.preset = '../b' must be able to name a folder"),
    ("seed", -1, "seed = -1 must not be negative"),
    ("seed", 2**63, r"seed = 9223372036854775808 must be below 2\*\*63"),
    ("seed", "0", "seed = '0' must be a whole number"),
    ("seed", 1.5, "seed = 1.5 must be a whole number"),
    ("seed", True, "seed = True must be a whole number"),
    ("weights", "x.safetensors", "is for mode = evaluate, but mode = both"),
    ("dataset.name", "cifar100", "dataset.name = 'cifar100' must be one of cifar10, synthetic"),
    ("dataset.classes", 0, "dataset.classes = 0 must be positive"),
    ("dataset.download", "yes", "dataset.download = 'yes' must be true or false"),
    ("dataset.validation_images", -5, "must not be negative"),
    (
        "dataset.statistics",
        {},
        "dataset cifar10 has no statistics 'log_rgb_absolute'.*scripts/compute_statistics.py cifar10, and put them",
    ),
    ("dataset.statistics.srgb.mean", [0.5, "x"], r"dataset.statistics.srgb.mean\[1\] = 'x' must be a number"),
    ("dataset.statistics.srgb.mean", 0.5, "dataset.statistics.srgb.mean = 0.5 must be a list"),
    ("model.architecture", "resnet21", "one of resnet8, resnet20, resnet32"),
    ("model.family", "foo", "model.family = 'foo' must be one of conventional, offset_equivariant"),
    ("model.representation.space", "lab", "one of srgb, linear, log_rgb"),
    ("model.representation.clipping", "soft", "one of absolute, relative"),
    ("model.representation", "srgb", "model.representation must be a group of settings, got 'srgb'"),
    (
        "strategy.balancing",
        "nope",
        "'nope' is not one of grey_world, shades_of_grey, max_rgb, grey_edge",
    ),
    ("strategy.brightness", 0.25, "strategy.brightness = 0.25 does not fit strategy.balancing = None: .* and null"),
    ("strategy.jitter", {"hue": 0.1}, "setting strategy.jitter.brightness is missing"),
    ("distortion.saturations", [0.0, 2.0], r"saturations must lie in \[0, 1\], got \[0.0, 2.0\]"),
    ("distortion.saturations", [], r"saturations must lie in"),
    ("distortion.saturations", None, "give either saturations .* or saturation"),
    ("distortion.saturation", 0.5, "give either saturations .* or saturation"),
    ("distortion.seed", -1, "distortion.seed = -1 must not be negative"),
    ("train.batch_size", 0, "train.batch_size = 0 must be positive"),
    ("train.steps", 10, "give either epochs or steps"),
    ("train.epochs", None, "give either epochs or steps"),
    ("train.epochs", float("inf"), "train.epochs = inf must be a finite number"),
    ("train.learning_rate", float("nan"), "train.learning_rate = nan must be a finite number"),
    ("train.learning_rate", 0.0, "train.learning_rate = 0.0 must be positive"),
    ("train.momentum", 0.0, "nesterov = True needs a train.momentum above 0"),
    ("train.weight_decay", -1e-4, "must not be negative"),
    ("train.label_smoothing", 1.0, r"must lie in \[0, 1\)"),
    ("train.log_every", 0, "train.log_every = 0 must be positive"),
    ("train.schedule.name", "cosine", "one of one_cycle, multi_step"),
    ("train.flip", None, "train.flip = None must be true or false"),
    ("runtime.device", "gpu", "one of auto, cuda, mps, cpu"),
    ("train.autocast", "fp8", "one of bfloat16, float16"),
    ("runtime.threads", 0, "runtime.threads = 0 must be positive"),
    ("runtime.evaluation_batch_size", -1, "must be positive"),
    ("logger.kind", "tensorboard", "one of wandb, none"),
    ("paths.runs", None, "paths.runs = None must be text"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_wrong_values_are_named_with_the_valid_ones(settings, path, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment_config(changed(settings, path, value))


def test_names_with_numbers_and_the_largest_seed_are_valid(settings):
    for path, value in (("name", "hue0.5_lr1e-05_x=1,+2"), ("seed", 2**63 - 1)):
        assert getattr(experiment_config(changed(settings, path, value)), path) == value


UNUSED_STRATEGIES = {
    "balancing": "grey_world",
    "weights": "x.safetensors",
    "brightness": 0.2,
    "jitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1},
    "illuminant_saturation": 1.0,
}


@pytest.mark.parametrize("name", UNUSED_STRATEGIES)
@pytest.mark.parametrize(
    ("experiment", "task"),
    [
        ("table3_original", "illuminant_estimation"),
        ("table4_original", "inpainting"),
        ("quasi_unsupervised", "colour_constancy"),
    ],
)
def test_colour_strategies_are_for_recognition_alone(make_settings, experiment, task, name):
    given = changed(make_settings(f"experiment={experiment}"), f"strategy.{name}", UNUSED_STRATEGIES[name])
    with pytest.raises(ConfigError, match=rf"strategy\.{name} = .* is not for {task}; give null"):
        experiment_config(given)


def test_unknown_and_missing_settings(settings):
    with pytest.raises(ConfigError, match=r"unknown setting train\.lr; valid ones are preset, .*learning_rate"):
        experiment_config(changed(settings, "train.lr", 0.1))
    with pytest.raises(ConfigError, match="unknown setting sede; valid ones are name, table, row, seed"):
        experiment_config({**settings, "sede": 1})
    without = copy.deepcopy(settings)
    del without["train"]["momentum"]
    with pytest.raises(ConfigError, match=r"setting train\.momentum is missing"):
        experiment_config(without)


def test_whole_numbers_do_for_numbers(settings):
    config = experiment_config(changed(settings, "train.learning_rate", 1))
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
