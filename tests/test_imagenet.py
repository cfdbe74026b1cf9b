"""Recognition of images that are files: from configuration to record, on drawn images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offset_equivariant import building
from offset_equivariant.building import recognition
from offset_equivariant.building.recognition_images import load_split, training_batches, worker_count
from offset_equivariant.color import srgb_to_linear
from offset_equivariant.composition import CONFIGURATION, checked_run, composed_words
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.cropping import RandomCrops
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFileError
from offset_equivariant.data.imagenet_synthetic import load_imagenet_synthetic
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.records import read_record, record_path
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run
from offset_equivariant.tasks.recognition import RecognitionTraining
from offset_equivariant.training.schedules import make_schedule

CPU = torch.device("cpu")
TINY = (
    "train=imagenet_smoke",
    "model.options.width=0.0625",
    "dataset.options={n_train: 40, n_test: 26, shorter_side: 36, size: 32}",
    "train.batch_size=8",
    "train.epochs=1",
    "distortion.saturations=[0,0.9]",
    "logger=none",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.progress=false",
)


@pytest.fixture
def tiny(make_settings, tmp_path):
    """Settings of a tiny run of an experiment on files."""

    def make(experiment, *words):
        paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results")
        return make_settings(f"experiment=table2_imagenette_{experiment}", *TINY, *paths, *words)

    return make


def test_paper_preset_is_he_et_als_recipe(make_settings):
    config = experiment_config(make_settings("experiment=table2_original"))
    train, crops = config.train, config.train.random_resized_crop
    assert crops is not None
    assert (config.dataset.name, config.dataset.classes, train.preset) == ("ilsvrc12", 1000, "paper")
    assert (config.dataset.options["shorter_side"], config.dataset.options["size"]) == (256, 224)
    assert (train.epochs, train.batch_size, train.peak_learning_rate, train.weight_decay) == (90, 256, 0.1, 1e-4)
    assert (train.momentum, train.nesterov, train.label_smoothing, train.flip) == (0.9, False, 0.0, True)
    assert (crops.area, crops.aspect_ratio) == ([0.08, 1.0], [0.75, 4 / 3])
    per_epoch = 1_281_167 // 256
    schedule = make_schedule(train.schedule.name, train.total_steps(per_epoch), **train.schedule.options)
    changes = [step for step in range(1, 90 * per_epoch) if schedule(step) != schedule(step - 1)]
    assert changes == [30 * per_epoch, 60 * per_epoch]
    assert [schedule(step) for step in (0, *changes)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize(("batch", "rate"), [(256, 0.1), (48, 0.01875), (1024, 0.4)])
def test_the_learning_rate_grows_with_the_batch(make_settings, batch, rate):
    config = experiment_config(make_settings("experiment=table2_equivariant", f"train.batch_size={batch}"))
    optimizer = building.common.build_optimizer(config, torch.nn.Linear(1, 1))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_rows_of_table_2_differ_in_their_strategy_alone(make_settings):
    for dataset in ("", "imagenette_"):
        rows = {
            row: experiment_config(make_settings(f"experiment=table2_{dataset}{row}"))
            for row in (
                "original",
                "augmentation",
                "preprocessing_quasi_unsupervised",
                "equivariant",
                "equivariant_relative",
            )
        }
        original = rows["original"]
        for row, config in rows.items():
            assert (config.train, config.dataset) == (original.train, original.dataset)
            assert (config.model == original.model) == (not row.startswith("equivariant"))


def test_a_batch_is_cropped_in_the_workers_and_coloured_on_the_device(tiny):
    config = experiment_config(tiny("augmentation"))
    images = load_split(config, "train")
    task = building.plan_training(config, building.build_network(config), images).task
    found, labels = task.batch(3)

    indices = EpochOrder(40, 8, 0).indices(3)
    crops = RandomCrops((0.35, 1.0), (0.75, 4 / 3))
    drawn = crops.draw(8, step_generator(0, 3, stream=2))
    bytes_ = torch.stack(
        [crops.apply(decode_image_file(images.path(i)), 32, d) for i, d in zip(indices.tolist(), drawn, strict=True)]
    )
    augmentation, pipeline = recognition.build_augmentation(config), recognition.build_pipeline(config)
    jittered = augmentation.jitter(bytes_.float() / 255, step_generator(0, 3, stream=1))
    torch.testing.assert_close(found, pipeline(srgb_to_linear(jittered)))
    assert (found - pipeline.from_srgb_bytes(bytes_)).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(labels, images.labels[indices])


def test_a_run_from_files_to_record(tiny):
    run = Run(tiny("equivariant_relative", "runtime.workers=1", "runtime.evaluation_batch_size=10"))
    record = run_experiment(run, NullTracker())
    assert record is not None and record.complete
    assert (record.n, record.steps, record.dataset) == (26, 5, "imagenet_synthetic")
    errors, top5 = record.metrics["error_percent"], record.metrics["top5_error_percent"]
    assert errors["0.0"] == errors["0.9"]  # neither the clipping nor the network sees the light
    assert all(top5[saturation] < errors[saturation] for saturation in errors)
    assert record.data_sha256 == {
        split: load_imagenet_synthetic(split, [], n_train=40, n_test=26).sha256 for split in ("train", "test")
    }


def test_the_record_says_which_copy_of_the_images_was_evaluated(tiny, monkeypatch):
    run = Run(tiny("original", "mode=both", "train.epochs=0.2", "distortion.saturations=[0]"))
    record = run_experiment(run, NullTracker())
    assert record is not None and "images" not in record.environment  # of drawn images there is one copy
    monkeypatch.setattr(
        "offset_equivariant.experiment.load_split",
        lambda config, split: replace(load_split(config, split), note="Imagenette, images of 128px"),
    )
    settings = tiny("original", "mode=evaluate", "train.epochs=0.2", "distortion.saturations=[0]")
    record = run_experiment(Run(settings), NullTracker())
    assert record is not None and record.environment["images"] == "Imagenette, images of 128px"
    path = record_path(Path(settings["paths"]["results"]), record.experiment, 0)
    assert read_record(path).environment == record.environment


def test_a_training_that_was_killed_ends_with_the_same_weights(tiny, tmp_path, monkeypatch):
    def weights_of(*words):
        run = Run(tiny("augmentation", "mode=train", "train.log_every=1", "train.checkpoint_seconds=0", *words))
        run_experiment(run, NullTracker())
        return load_file(run.weights_path)

    whole = weights_of(f"paths.runs={tmp_path}/whole")
    step = RecognitionTraining.training_step

    def killed(task, number, factor):
        if number == 3:
            raise KeyboardInterrupt
        return step(task, number, factor)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecognitionTraining, "training_step", killed)
        weights_of("runtime.workers=1")
    resumed = weights_of("runtime.workers=1")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())


def test_validation_images_are_held_out_of_the_training_files(tiny):
    config = experiment_config(tiny("original", "dataset.validation_images=15"))
    parts = [load_split(config, split) for split in ("train", "evaluation")]
    assert [len(part) for part in parts] == [25, 15]
    assert [part.split for part in parts] == ["train", "validation"]
    names = np.concatenate([part.names for part in parts])
    assert sorted(names) == sorted(load_imagenet_synthetic("train", [], n_train=40, n_test=26).names)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_ends_the_training_and_is_named(tiny, workers, tmp_path):
    config = experiment_config(tiny("original", f"runtime.workers={workers}"))
    images = load_split(config, "train")
    # A copy: the drawn ones are those of other tests too.
    for index in range(len(images)):
        copy = tmp_path / "copy" / images.names[index].decode()
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = images.path(index).read_bytes()
        copy.write_bytes(content[: len(content) // 2] if index == 11 else content)
    images = replace(images, folder=tmp_path / "copy")
    task = building.plan_training(config, building.build_network(config), images).task
    with pytest.raises(ImageFileError, match=rf"^{images.path(11)} cannot be decoded as an image"):
        for step in range(5):
            task.batch(step)


WRONG = {
    "crops": (["train.random_resized_crop=null"], "train.random_resized_crop = None does not fit .* needs it"),
    "padding": (["train.crop_padding=4"], "train.crop_padding = 4 is not for dataset imagenet_synthetic"),
    "area": (["train.random_resized_crop.area=[0.5,2]"], r"area = \(0.5, 2.0\) must be two parts of the image"),
    "size": (["dataset.options.size=64"], "shorter_side must be at least size, which is 64, got 36"),
    "workers": (["runtime.workers=-1"], "runtime.workers = -1 must not be negative"),
    "reference": (["train.reference_batch_size=0"], "train.reference_batch_size = 0 must be positive"),
    "batch": (["train.batch_size=41"], "do not fit the 40 training images of imagenet_synthetic"),
    "classes": (["dataset.classes=9"], "dataset.classes = 9, but imagenet_synthetic has 10"),
    "sample": (["+dataset.options.sample=3"], "unknown setting dataset.options.sample; valid ones are n_train"),
}


@pytest.mark.parametrize(("given", "meant"), [("paper", "paper"), ("fast", "fast"), ("brief", "fast")])
def test_a_preset_for_images_in_memory_is_refused_and_that_for_files_named(given, meant):
    with pytest.raises(ConfigError, match=rf"does not fit dataset ilsvrc12, .*; give train=imagenet_{meant}$"):
        checked_run(composed_words(["experiment=table2_equivariant", f"train={given}"]))
    assert (CONFIGURATION / "train" / f"imagenet_{meant}.yaml").exists()


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_run_is_refused(tiny, case):
    words, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        building.check_components(experiment_config(tiny("original", *words)))


def test_the_network_that_balances_reads_folders_of_photos(make_settings):
    config = experiment_config(make_settings("experiment=quasi_unsupervised", "dataset.name=imagenette"))
    with pytest.raises(ConfigError, match="imagenette is not for quasi_unsupervised: give dataset=photo_folder"):
        building.check_components(config)


def test_crops_of_files_are_not_for_images_in_memory(make_settings):
    words = (
        "experiment=table1_original",
        "train=smoke",
        "train.random_resized_crop={area: [0.5, 1], aspect_ratio: [1, 1]}",
    )
    with pytest.raises(ConfigError, match=r"does not fit dataset synthetic, which is kept whole in memory; give null"):
        building.check_components(experiment_config(make_settings(*words)))


def test_a_part_of_the_classes_must_be_said(tiny):
    settings = tiny("original", "dataset.name=imagenette", "dataset.classes=3")
    settings["dataset"]["options"] = {"shorter_side": 36, "size": 32, "subset": True}
    building.check_components(experiment_config(settings))  # it is known when the files are
    settings["dataset"]["options"]["subset"] = False
    with pytest.raises(ConfigError, match=r"dataset\.classes = 3, but imagenette has 10"):
        building.check_components(experiment_config(settings))


def test_workers(tiny, monkeypatch):
    config = experiment_config(tiny("original"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    gpu = torch.device("cuda")
    assert (worker_count(config, CPU), worker_count(config, gpu)) == (0, 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count(config, gpu) == 1
    chosen = experiment_config(tiny("original", "runtime.workers=3"))
    assert (worker_count(chosen, CPU), worker_count(chosen, gpu)) == (3, 3)


def test_the_last_batch_is_the_last_step(tiny):
    config = experiment_config(tiny("original", "train.epochs=2"))
    images = load_split(config, "train")
    batches = training_batches(
        config, images, recognition.build_pipeline(config), recognition.build_augmentation(config), CPU
    )
    assert batches.steps_per_epoch == 5 and len(batches.batch(9)[1]) == 8
    with pytest.raises(IndexError, match="step = 10 is not in 0 to 9"):
        batches.batch(10)
