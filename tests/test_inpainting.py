"""Inpainting from configuration to record, on drawn building fronts."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from offset_equivariant import building
from offset_equivariant.building import inpainting
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run
from offset_equivariant.tasks.inpainting import InpaintingTraining, centre_of
from offset_equivariant.training.checkpoint import Checkpoints

#: Six steps of a tiny network, a checkpoint and a look after each.
SHORT = (
    "train=inpainting_smoke",
    "train.epochs=3",
    "train.batch_size=4",
    "dataset.options.n_train=8",
    "dataset.options.n_test=4",
    "model.options.width=0.0625",
    "model.options.bottleneck=30",
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
    def make(*words, row="small_equivariant_relative"):
        paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results")
        return make_settings(f"experiment=table4_facades_{row}", *SHORT, *paths, *words)

    return make


class Pictures(NullTracker):
    """Keeps the pictures that it is shown."""

    def __init__(self):
        self.pictures = {}

    def picture(self, name, pixels, step):
        self.pictures[name, step] = pixels


def test_training_to_record(settings):
    tracker = Pictures()
    run = Run(settings())
    record = run_experiment(run, tracker)
    assert (record.table, record.row, record.dataset, record.n) == (
        4,
        "small_equivariant_relative",
        "inpainting_synthetic",
        4,
    )
    assert record.data_sha256 == {
        "train": drawn_facades("train", n_train=8).sha256,
        "test": drawn_facades("test", n_test=4).sha256,
    }
    # Equivariant through hole and clipping: nothing but rounding.
    assert record.metrics["largest_fill_change_levels"]["0.9"] < 0.01
    undone = record.metrics["psnr_undone_db"]
    assert undone["0.9"] == pytest.approx(undone["0.0"], abs=1e-3)
    lines = [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() >= {"loss", "reconstruction_loss", "adversarial_loss", "discriminator_loss"}
    # Samples of each of the three epochs of two steps, in the run's directory and at the tracker's.
    drawn = sorted(path.name for path in (run.directory / "samples").iterdir())
    assert drawn == ["step-00000002.png", "step-00000004.png", "step-00000006.png"]
    with Image.open(run.directory / "samples" / drawn[-1]) as picture:
        assert np.array_equal(np.asarray(picture), tracker.pictures["train/samples", 6])


def test_a_checkpoint_holds_both_networks_and_both_optimisers(settings):
    run = Run(settings("mode=train"))
    run_experiment(run, NullTracker())
    saved = Checkpoints(run.directory / "checkpoints").latest()
    assert saved["modules"].keys() == saved["optimizers"].keys() == {"network", "discriminator"}
    rates = {name: state["param_groups"][0] for name, state in saved["optimizers"].items()}
    assert rates["network"]["lr"] / rates["discriminator"]["lr"] == pytest.approx(200)
    assert rates["network"]["betas"] == rates["discriminator"]["betas"] == (0.5, 0.999)


@pytest.mark.parametrize("row", ["small_original", "small_equivariant_relative"])
def test_a_killed_training_ends_with_the_same_bits(row, settings, tmp_path, monkeypatch):
    whole = Run(settings("mode=train", f"paths.runs={tmp_path}/whole", row=row))
    run_experiment(whole, NullTracker())
    step = InpaintingTraining.training_step
    taken = []

    def killed(self, number, factor):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(number)
        return step(self, number, factor)

    with monkeypatch.context() as patch:
        patch.setattr(InpaintingTraining, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(Run(settings("mode=train", row=row)), NullTracker())
    resumed = Run(settings("mode=train", row=row))
    run_experiment(resumed, NullTracker())
    ends = [Checkpoints(run.directory / "checkpoints").latest() for run in (whole, resumed)]
    for name in ("network", "discriminator"):
        first, second = (end["modules"][name] for end in ends)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        first, second = (end["optimizers"][name] for end in ends)
        assert first["param_groups"] == second["param_groups"] and first["state"].keys() == second["state"].keys()
        for number, moments in first["state"].items():
            assert all(torch.equal(moments[key], second["state"][number][key]) for key in moments)
    samples = [sorted(path.name for path in (run.directory / "samples").iterdir()) for run in (whole, resumed)]
    assert samples[0] == samples[1]
    first, second = load_file(whole.weights_path), load_file(resumed.weights_path)
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [
        [
            {name: value for name, value in json.loads(line).items() if name != "images_per_second"}
            for line in (run.directory / "log.jsonl").read_text().splitlines()
        ]
        for run in (whole, resumed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def test_a_collapsed_discriminator_is_said(settings, monkeypatch, caplog):
    step = InpaintingTraining.training_step

    def collapsed(self, number, factor):
        return step(self, number, factor) | {"discriminator_loss": torch.tensor(1e-4)}

    monkeypatch.setattr(InpaintingTraining, "training_step", collapsed)
    with caplog.at_level(logging.WARNING):
        run_experiment(Run(settings("mode=train")), NullTracker())
    said = [message for message in caplog.messages if "discriminator's loss is 0.0001" in message]
    assert len(said) == 1 and said[0].startswith("step 1:")


def test_a_method_that_learns_nothing_is_evaluated_without_training(make_settings, tmp_path):
    settings = make_settings(
        "experiment=table4_facades_mean_colour",
        "dataset.name=inpainting_synthetic",
        "+dataset.options.n_test=4",
        "distortion.saturations=[0]",
        "logger=none",
        "runtime.progress=false",
        f"paths.runs={tmp_path}/runs",
        f"paths.results={tmp_path}/results",
    )
    record = run_experiment(Run(settings), NullTracker())
    assert (record.parameters, record.total_steps, record.n) == (0, 0, 4)
    assert not (tmp_path / "runs" / "table4_facades_mean_colour" / "seed=0" / "weights.safetensors").exists()


def test_networks_in_a_file_fill_what_they_do_in_their_run(settings):
    run = Run(settings("mode=train"))
    run_experiment(run, NullTracker())
    network = building.build_network(run.config)
    run.find_weights(network)
    images = building.load_split(run.config, "evaluation")
    linear = decode_srgb(images.images)
    expected = building.build_evaluation(run.config, network, images)._filler(linear)
    fill = inpainting.load_filler(run.weights_path)(linear)
    assert torch.equal(fill, expected) and fill.shape == centre_of(linear).shape
    with pytest.raises(FileNotFoundError, match="no weights at"):
        inpainting.load_filler(run.directory / "other.safetensors")


def test_validation_photos_are_middles_of_training_photos(settings):
    config = experiment_config(settings("dataset.validation_images=3"))
    held_out, kept = building.load_split(config, "evaluation"), building.load_split(config, "train")
    photos = drawn_facades("train", n_train=8)
    assert (len(held_out), len(kept), held_out.split) == (3, 5, "validation")
    assert set(held_out.names) | set(kept.names) == set(photos.names)
    first = photos.images[photos.names.index(held_out.names[0])]
    assert torch.equal(held_out.images[0], first[:, 8:-8, 8:-8])
    assert held_out.sha256 != kept.sha256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.architecture=resnet20"], "model.architecture = resnet20 does not fit dataset inpainting_synthetic"),
        (["train.inpainting=null"], "train.inpainting is missing; give a recipe for inpainting"),
        (["train.inpainting.adversarial_weight=1.5"], r"adversarial_weight = 1.5 must lie in \[0, 1\]"),
        (["train.inpainting.border=33"], r"train.inpainting.border = 33 must lie in \[0, 32\] pixels"),
        (["train.inpainting.border_weight=0"], "train.inpainting.border_weight = 0.0 must be positive"),
        (["train.inpainting.discriminator_learning_rate=-1"], "discriminator_learning_rate = -1.0 must be positive"),
        (["train.inpainting.sample_epochs=0"], "train.inpainting.sample_epochs = 0.0 must be positive"),
        (["train.crop_padding=4"], "train.crop_padding = 4 is not for inpainting; give 0"),
        (["train.momentum=1.0"], "train.optimizer = adam takes train.momentum, its beta 1, below 1"),
        (["dataset.cross_validation=folds"], "dataset.cross_validation = folds is not for inpainting_synthetic"),
        (["strategy=preprocessing_grey_world"], "strategy = preprocessing_grey_world is not for inpainting"),
        (["distortion.requantize=true"], "distortion.requantize = True is not for inpainting"),
        (["train.epochs=null", "train.steps=0"], "train.steps must be 0 for image_statistics, classical_inpainting"),
        (["train.batch_size=1"], "train.batch_size = 1 must be at least 2: context_encoder normalises a single pixel"),
        (["model.options.width=0"], "model: width = 0 must be positive"),
        (["+model.options.depth=3"], "unknown setting model.options.depth; valid ones are width, widths, bottleneck"),
        (["model.options.initial_gain=0"], "model: initial_gain = 0 must be positive"),
        (["+dataset.options.size=64"], "unknown setting dataset.options.size; valid ones are n_train, n_test"),
        (["dataset.options.shorter_side=100"], "shorter_side"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(settings, words, message):
    with pytest.raises(ConfigError, match=message):
        building.check_components(experiment_config(settings(*words)))


def test_an_ordinary_network_needs_the_range_of_tanh(settings):
    with pytest.raises(ConfigError, match=r"must be 0\.5 in sRGB"):
        building.check_components(
            experiment_config(settings("dataset.statistics.srgb_unit.std=[0.2,0.2,0.2]", row="small_original"))
        )


def test_batches_larger_than_the_training_set_are_refused(settings):
    config = experiment_config(settings("train.batch_size=9"))
    network = building.build_network(config)
    with pytest.raises(ConfigError, match=r"train\.batch_size = 9, but there are only 8 training images"):
        building.plan_training(config, network, building.load_split(config, "train"))


def test_other_tasks_refuse_the_recipe_of_inpainting(make_settings):
    words = ("experiment=table3_original", "train=inpainting_fast", "train.optimizer=adam")
    with pytest.raises(ConfigError, match=r"train\.inpainting = InpaintingConfig.* is not for illuminant_estimation"):
        experiment_config(make_settings(*words))


def test_a_truncated_photo_ends_the_command_with_its_name(command_line, tmp_path):
    for number, split in enumerate(("train", "test", "test")):
        folder = tmp_path / "photos" / "facades" / split
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (160, 150, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.jpg")
    damaged = folder / "2.jpg"  # of the test photos: found before the training, all the same
    damaged.write_bytes(damaged.read_bytes()[:5000])
    words = ("experiment=table4_facades_small_original", f"paths.data={tmp_path}/photos", "logger=none")
    code, said = command_line.run(*words, "runtime.progress=false", folder=tmp_path)
    assert code == 2 and f"{damaged} cannot be read as a photo" in said
    assert "Traceback" not in said and not list(tmp_path.rglob("log.jsonl"))
