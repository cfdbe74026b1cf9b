"""Illuminant estimation from configuration to record, on made-up scenes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from offset_equivariant import building
from offset_equivariant.building import illuminant_estimation
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data.illuminant_images import IlluminantDataError
from offset_equivariant.data.nus import CAMERAS
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run
from offset_equivariant.tasks.illuminant_estimation import EstimationTraining
from offset_equivariant.training.cross_validation import CrossValidated, CrossValidationTraining

#: Two steps a fold.
SHORT = (
    "train=nus_smoke",
    "train.epochs=1",
    "dataset.options.images=99",
    "train.log_every=1",
    "train.checkpoint_seconds=0",
    "distortion.saturations=[0,0.9]",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.progress=false",
    "logger=none",
)


@pytest.fixture
def settings(make_settings, tmp_path):
    def make(*words, row="equivariant_filled"):
        paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results")
        return make_settings(f"experiment=table3_{row}", *SHORT, *paths, *words)

    return make


def plan_of(settings):
    config = experiment_config(settings)
    building.check_components(config)
    network = building.build_network(config)
    return config, network, building.plan_training(config, network, building.load_split(config, "train"))


def test_each_network_is_trained_on_the_folds_of_the_others(settings):
    config, network, plan = plan_of(settings())
    assert isinstance(network, CrossValidated) and isinstance(plan.task, CrossValidationTraining)
    scenes = synthetic_scenes(99)
    for fold, training in enumerate(plan.task._folds):
        assert isinstance(training, EstimationTraining) and training.network is network.networks[fold]
        assert torch.equal(training._images, scenes.images[scenes.folds != fold])
        assert training.optimizer.param_groups[0]["lr"] == config.train.learning_rate
    assert plan.total_steps == 3 * (66 // 32)
    assert len(building.load_split(config, "evaluation")) == 99


def test_cameras_are_folds_where_they_are_asked_for(settings):
    _, network, plan = plan_of(settings(row="original_unseen_camera"))
    assert len(network.networks) == 9 and plan.total_steps == 9 * (88 // 32)
    scenes = synthetic_scenes(99)
    for fold, camera in enumerate(sorted(CAMERAS)):
        others = [number for number, name in enumerate(scenes.cameras) if name != camera]
        assert torch.equal(plan.task._folds[fold]._images, scenes.images[others])


def test_validation_images_make_one_network(settings):
    config, network, plan = plan_of(settings("dataset.validation_images=20"))
    assert len(network.networks) == 1 and len(plan.task._folds[0]._images) == 46
    held_out = building.load_split(config, "evaluation")
    assert (len(held_out), held_out.split, config.dataset_label) == (20, "validation", "nus_synthetic_validation")


def test_a_killed_training_ends_with_the_same_bits(settings, tmp_path, monkeypatch):
    whole = Run(settings("mode=train", f"paths.runs={tmp_path}/whole"))
    run_experiment(whole, NullTracker())
    step = EstimationTraining.training_step
    taken = []

    def killed(self, number, factor):
        if len(taken) == 3:  # in the second fold
            raise KeyboardInterrupt
        taken.append(number)
        return step(self, number, factor)

    with monkeypatch.context() as patch:
        patch.setattr(EstimationTraining, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(Run(settings("mode=train")), NullTracker())
    assert taken == [0, 1, 0]
    resumed = Run(settings("mode=train"))
    run_experiment(resumed, NullTracker())
    first, second = load_file(whole.weights_path), load_file(resumed.weights_path)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [json.loads(line)["step"] for line in (resumed.directory / "log.jsonl").read_text().splitlines()] == [
        *range(1, 7)
    ]


def test_record_of_a_cross_validation(settings):
    record = run_experiment(Run(settings()), NullTracker())
    assert (record.table, record.row, record.n, record.parameters) == (3, "equivariant_filled", 99, 196_668)
    assert record.data_sha256["train"] == record.data_sha256["test"] == synthetic_scenes(99).sha256
    medians = [record.metrics[f"median_reproduction_error_degrees_fold{fold}"]["0.0"] for fold in range(3)]
    assert min(medians) <= record.metrics["median_reproduction_error_degrees"]["0.0"] <= max(medians)
    assert record.metrics["reproduction_error_change_degrees"]["0.9"] < 0.01


def test_networks_on_their_own_estimate_what_they_do_together(settings):
    run = Run(settings("mode=train"))
    run_experiment(run, NullTracker())
    config = run.config
    network = building.build_network(config)
    run.find_weights(network)
    images = building.load_split(config, "evaluation")
    together = building.build_evaluation(config, network, images)._estimator
    with torch.no_grad():
        expected = together(images.images[:6], images.folds[:6])
        alone, size = illuminant_estimation.load_estimators(run.weights_path)
        assert size == 64
        for i, fold in enumerate(images.folds[:6].tolist()):
            torch.testing.assert_close(alone[fold](images.images[i : i + 1])[0], expected[i])
    with pytest.raises(FileNotFoundError, match="no weights at"):
        illuminant_estimation.load_estimators(run.directory / "other.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=resnet20_original"], "model.architecture = resnet20 does not fit dataset nus.*cerberus, image_stat"),
        (["train.crop_padding=4"], "train.crop_padding = 4 is not for illuminant_estimation; give 0"),
        (["dataset.cross_validation=null"], "dataset nus_synthetic has no test images"),
        (["dataset.cross_validation=images"], "must be one of folds, cameras"),
        (["strategy=preprocessing_grey_world"], "strategy = preprocessing_grey_world is not for illuminant_estimation"),
        (["train.epochs=null", "train.steps=0"], "train.steps must be 0 for image_statistics"),
        (["train.smallest_crop=1.5"], r"train.smallest_crop = 1.5 must lie in \(0, 1\]"),
        (["+model.options.estimates=3"], "model.options.estimates = 3: only one estimate can be trained"),
        (["+model.options.depth=3"], "unknown setting model.options.depth; valid ones are estimates, image_size"),
        (["+dataset.options.scenes=3"], "unknown setting dataset.options.scenes; valid ones are images, size, seed"),
        (["dataset.options.size=32"], "dataset.options.size = 32, but model.options.image_size = 64"),
        (["dataset.options.images=5"], "dataset.options: images must be at least 9, got 5"),
        (["train.momentum=0.9"], "train.optimizer = adamw has no momentum of that kind"),
        (["dataset.classes=10"], "dataset.classes = 10 does not fit illuminant_estimation"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(settings, words, message):
    with pytest.raises(ConfigError, match=message):
        building.check_components(experiment_config(settings(*words)))


def test_recognition_refuses_what_is_not_its_own(make_settings):
    for words, message in (
        (["model=cerberus_original"], "model.architecture = cerberus does not fit dataset cifar10"),
        (["train.smallest_crop=0.5"], "train.smallest_crop = 0.5 is not for recognition; give None"),
        (["dataset.cross_validation=folds"], "dataset.cross_validation = folds is not for cifar10"),
        (["+model.options.estimates=1"], r"unknown setting model.options.estimates; valid ones are \(none\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            building.check_components(experiment_config(make_settings("experiment=table1_original", *words)))


def test_weights_for_a_method_that_learns_nothing_are_refused(make_settings):
    words = ("experiment=table3_grey_world", "mode=evaluate")
    assert experiment_config(make_settings(*words)).train.steps == 0
    with pytest.raises(ConfigError, match="weights = 'x' does not fit image_statistics, which learns nothing"):
        experiment_config(make_settings(*words, "weights=x"))


def test_a_method_that_learns_nothing_needs_a_name_that_is_known(make_settings):
    with pytest.raises(ConfigError, match="model: method 'guess' is not one of grey_world"):
        building.check_components(
            experiment_config(make_settings("experiment=table3_max_rgb", "model.options.method=guess"))
        )


def test_batches_larger_than_a_fold_are_refused(settings):
    with pytest.raises(ConfigError, match=r"train\.batch_size = 200, but a fold has only 66 training images"):
        plan_of(settings("train.batch_size=200"))


def test_missing_cameras_are_named(settings, monkeypatch):
    scenes = synthetic_scenes(99)
    fewer = scenes.subset([i for i, camera in enumerate(scenes.cameras) if camera != "SonyA57"])
    monkeypatch.setitem(illuminant_estimation._DATASETS, "nus_synthetic", lambda **options: fewer)
    config = experiment_config(settings(row="original_unseen_camera"))
    with pytest.raises(IlluminantDataError, match="nus_synthetic has 8 cameras, not 9"):
        building.load_split(config, "train")
