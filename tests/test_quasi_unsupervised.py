"""Quasi-unsupervised colour constancy from configuration to record, and as a strategy of image recognition."""

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from offset_equivariant import building
from offset_equivariant.building import recognition
from offset_equivariant.building.classifier import load_classifier
from offset_equivariant.color import apply_illuminant, balance, grey_edge, max_rgb
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.composition import checked_run, composed_words
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.data.synthetic import synthetic_images
from offset_equivariant.experiment import run_experiment
from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised, estimate_illuminants
from offset_equivariant.provenance import file_sha256
from offset_equivariant.reporting.records import find_records
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run, RunDirectoryError
from offset_equivariant.tasks.recognition import RecognitionTraining
from offset_equivariant.training.weights import read_facts, save_weights

SHORT = (
    "train=quasi_smoke",
    "dataset=synthetic",
    "dataset.options.n_train=48",
    "dataset.options.n_test=16",
    "train.log_every=1",
    "train.checkpoint_seconds=0",
    "distortion.saturations=[0,0.9]",
    "model.options.width=4",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.progress=false",
    "logger=none",
)


@pytest.fixture
def settings(make_settings, tmp_path):
    def make(*words):
        paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results")
        return make_settings("experiment=quasi_unsupervised", *SHORT, *paths, *words)

    return make


def test_it_learns_from_the_training_images_of_cifar10(make_settings):
    config = experiment_config(make_settings("experiment=quasi_unsupervised"))
    building.check_components(config)
    assert (config.task, config.dataset.name, config.table) == ("colour_constancy", "cifar10", None)
    assert config.experiment == "quasi_unsupervised"
    network = building.build_network(config)
    assert sum(p.numel() for p in network.parameters()) == 1_044_481
    # The data set's own task stays what it was.
    assert experiment_config(make_settings("experiment=table1_original")).task == "recognition"


def test_the_photo_experiment_is_the_authors(make_settings):
    settings = make_settings("experiment=quasi_unsupervised_photos", "dataset.options.folder=photos")
    config = experiment_config(settings)
    assert (config.train.total_steps(10), config.train.batch_size, config.train.learning_rate) == (350_000, 16, 1e-4)
    assert (config.train.optimizer, config.train.momentum, config.train.weight_decay) == ("adam", 0.9, 1e-5)
    assert config.model.options == {"levels": 8, "width": 64, "image_size": 256}


def test_record_of_a_training(settings):
    run = Run(settings())
    record = run_experiment(run, NullTracker())
    assert (record.row, record.n, record.total_steps, record.complete) == ("quasi_unsupervised", 16, 3, True)
    assert record.data_sha256["train"] == synthetic_images("train", n_train=48, n_test=16).sha256
    network = QuasiUnsupervised(5, 4, 32)
    network.load_state_dict(load_file(run.weights_path))
    linear = decode_srgb(synthetic_images("test", n_train=48, n_test=16).images)
    grey = np.ones(3) / np.sqrt(3)
    angles = np.degrees(np.arccos(np.clip(estimate_illuminants(network, linear).double().numpy() @ grey, -1, 1)))
    assert record.metrics["median_recovery_error_degrees"]["0.0"] == pytest.approx(np.median(angles), abs=0.02)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(9):
        pixels = generator.integers(0, 256, (40 + number, 64, 3), dtype=np.uint8)
        path = folder / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_any_folder_of_photos_can_be_learned_from(photos, command_line, tmp_path):
    words = ["experiment=quasi_unsupervised", "dataset=photo_folder", f"dataset.options.folder={photos}"]
    words += ["dataset.options.size=32", "dataset.validation_images=2", "train.batch_size=4", "train.epochs=2"]
    machinery = ["model.options.width=4", "distortion.saturations=[0,0.9]", "logger=none"]
    machinery += ["runtime.device=cpu", "runtime.threads=1", "runtime.progress=false", "train.checkpoint_seconds=0"]
    config = checked_run(composed_words([*words, *machinery])).config
    training, test = building.load_split(config, "train"), building.load_split(config, "evaluation")
    assert isinstance(training, PhotoImages) and training.images.shape == (7, 3, 32, 32)
    assert test.split == "validation" and not set(training.names) & set(test.names)
    assert set(training.names) | set(test.names) == {f"{number % 2}/{number}.png" for number in range(9)}

    code, said = command_line.run(*words, *machinery, folder=tmp_path)
    assert code == 0, said
    (record,) = find_records(tmp_path / "runs" / "results")
    assert record.experiment.startswith("quasi_unsupervised_fast_changed_")  # not the numbers of the experiment itself
    assert (record.n, record.dataset, record.total_steps) == (2, "photo_folder_validation", 2)
    assert record.data_sha256 == {"train": training.sha256, "validation": test.sha256}

    with pytest.raises(ConfigError, match=r"photo_folder has no test images: give dataset.validation_images"):
        checked_run(composed_words([*words, "dataset.validation_images=0"]))
    with pytest.raises(ConfigError, match="validation_images = 9, but photo_folder has only 9"):
        building.load_split(checked_run(composed_words([*words, "dataset.validation_images=9"])).config, "train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batch_size=1"], "batch_size = 1 must be at least 2: quasi_unsupervised normalises a single pixel"),
        (["model.options.levels=1"], "model: levels = 1 must be at least 2"),
        (["model.options.image_size=64"], "image_size = 64, but the images of synthetic have 32 pixels a side"),
        (["+model.options.depth=1"], "unknown setting model.options.depth; valid ones are levels, width, image_size"),
        (["model.family=offset_equivariant"], "model.family must be conventional"),
        (["train.crop_padding=4"], "train.crop_padding = 4 is not for colour_constancy; give 0"),
        (["strategy=preprocessing_grey_world"], "strategy = preprocessing_grey_world is not for colour_constancy"),
        (["dataset.name=facades", "dataset.classes=null"], "does not fit dataset facades, whose task is inpainting"),
    ],
)
def test_wrong_settings_are_an_error(settings, words, message):
    with pytest.raises(ConfigError, match=message):
        building.check_components(experiment_config(settings(*words)))


def test_a_single_image_a_batch_does_where_no_single_pixel_is_normalised(settings):
    config = experiment_config(settings("train.batch_size=1", "model.options.levels=4"))
    building.check_components(config)
    plan = building.plan_training(config, building.build_network(config), building.load_split(config, "train"))
    assert math.isfinite(plan.task.training_step(0, 1.0)["loss"])


@pytest.mark.parametrize(("method", "estimator"), [("max_rgb", max_rgb), ("grey_edge", grey_edge)])
def test_rows_that_learn_nothing_balance_by_their_method(make_settings, tiny_words, method, estimator):
    config = experiment_config(make_settings(f"experiment=table1_preprocessing_{method}", *tiny_words))
    building.check_components(config)
    pipeline = recognition.build_pipeline(config)
    linear = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pipeline(linear), pipeline.representation(balance(linear, estimator(linear))))


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = QuasiUnsupervised(4, 2, 16).eval()
    path = tmp_path / "constancy.safetensors"
    options = {"levels": 4, "width": 2, "image_size": 16}
    save_weights(network, path, {"config": {"model": {"architecture": "quasi_unsupervised", "options": options}}})
    return network, path


def learned(make_settings, tiny_words, tmp_path, path):
    paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results", f"strategy.weights={path}")
    return make_settings("experiment=table1_preprocessing_quasi_unsupervised", *tiny_words, *paths)


def test_training_and_test_images_are_balanced_by_the_network(make_settings, tiny_words, tmp_path, weights):
    network, path = weights
    config = experiment_config(learned(make_settings, tiny_words, tmp_path, path))
    building.check_components(config)
    images = building.load_split(config, "train")
    task = building.plan_training(config, building.build_network(config), images).task
    assert isinstance(task, RecognitionTraining)
    pipeline = recognition.build_pipeline(config)
    linear = decode_srgb(images.images)
    light = torch.tensor([1.0, 0.4, 0.2])
    for shown, given in (
        (task._batches._images, linear),
        (pipeline(apply_illuminant(linear, light)), linear * light[:, None, None]),
    ):
        expected = pipeline.representation(balance(given, estimate_illuminants(network, given)))
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-5)


def test_the_record_names_the_network_that_balanced(make_settings, tiny_words, tmp_path, weights):
    settings = learned(make_settings, tiny_words, tmp_path, weights[1])
    settings["distortion"]["saturations"] = [0.0, 1.0]  # at 1, channels without light
    record = run_experiment(Run(settings), NullTracker())
    assert record.data_sha256["balancing_weights"] == file_sha256(weights[1])
    assert record.data_sha256["balancing_weights"] == hashlib.sha256(weights[1].read_bytes()).hexdigest()


def test_another_network_than_in_training_is_refused(make_settings, tiny_words, tmp_path, weights):
    run = Run(learned(make_settings, tiny_words, tmp_path, weights[1]))
    before = run_experiment(run, NullTracker())
    assert read_facts(run.weights_path)["balancing_weights"] == before.data_sha256["balancing_weights"]
    posteriors = load_classifier(run.weights_path)
    with torch.no_grad():
        next(weights[0].parameters()).add_(0.5)
    save_weights(weights[0], weights[1], read_facts(weights[1]))
    again = Run(learned(make_settings, tiny_words, tmp_path, weights[1]))
    with pytest.raises(RunDirectoryError, match="learned from images that another network balanced"):
        run_experiment(again, NullTracker())
    again.settings["mode"] = "evaluate"
    again.settings["weights"] = str(run.weights_path)
    with pytest.raises(RunDirectoryError, match="learned from images that another network balanced"):
        run_experiment(Run(again.settings), NullTracker())
    assert posteriors is not None
    with pytest.raises(ValueError, match="learned from images that another network balanced"):
        load_classifier(run.weights_path)


def test_weights_must_be_there_and_of_that_network(make_settings, tiny_words, tmp_path, weights):
    config = experiment_config(learned(make_settings, tiny_words, tmp_path, tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nothing; train them with experiment=quasi_unsuperv"):
        building.plan_training(config, building.build_network(config), building.load_split(config, "train"))
    save_weights(weights[0], weights[1], {"config": {"model": {"architecture": "cerberus"}}})
    config = experiment_config(learned(make_settings, tiny_words, tmp_path, weights[1]))
    with pytest.raises(ValueError, match="holds no network of the architecture quasi_unsupervised"):
        recognition.build_pipeline(config)
    for words in (("strategy.weights=null",), ("strategy.balancing=grey_world",)):
        with pytest.raises(ConfigError, match=r"does not fit strategy.balancing"):
            experiment_config(make_settings("experiment=table1_preprocessing_quasi_unsupervised", *tiny_words, *words))
