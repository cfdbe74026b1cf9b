"""What is timed of a strategy is what an experiment runs."""

import pytest
import torch

from offset_equivariant.building import build_network
from offset_equivariant.composition import checked_run, composed_words
from offset_equivariant.performance import strategies
from offset_equivariant.performance.subjects import random_images


@pytest.fixture(scope="module")
def images():
    return random_images(32, 256, torch.device("cpu"))


def subject(name, images):
    words = [f"experiment=table1_{name}", "model.architecture=resnet8", "train.batch_size=16", "runtime.compile=false"]
    return strategies.subject_of(checked_run(composed_words(words)).config, images)


def test_balancing_is_timed_where_training_images_are_balanced(images, monkeypatch):
    monkeypatch.setattr(strategies, "BATCH", 8)
    original = subject("original", images)
    assert original.balance is None and not original.learned_balancing
    balanced = subject("preprocessing_quasi_unsupervised", images)
    assert balanced.learned_balancing and balanced.balance().shape == (8, 3, 32, 32)
    assert balanced.parameters - original.parameters == 1_044_481
    assert (balanced.steps, balanced.training_images) == (12 * (50_000 // 16), 50_000)


def test_inference_is_of_a_whole_batch_and_steps_go_on(images, monkeypatch):
    monkeypatch.setattr(strategies, "BATCH", 8)
    found = subject("equivariant", images)
    posteriors = found.inference()
    assert posteriors.shape == (8, 10)
    torch.testing.assert_close(posteriors.sum(1), torch.ones(8))
    losses = [float(found.training_step()["loss"]) for _ in range(2)]
    assert losses[0] != losses[1] and all(0 < loss < 20 for loss in losses)


def test_parameters_are_counted():
    config = checked_run(composed_words(["experiment=table1_original"])).config
    assert strategies.count_parameters(build_network(config)) == 270_410
