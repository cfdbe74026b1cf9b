import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.color import (
    AbsoluteClipping,
    RelativeClipping,
    distort_srgb,
    random_illuminants,
    srgb_to_linear,
)
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.data import synthetic_images
from offset_equivariant.evaluation.sweep import SATURATIONS, sweep
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.constraint import project_
from offset_equivariant.nn.families import Conventional, OffsetEquivariant
from offset_equivariant.tasks.recognition import InputPipeline
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation

LOG_STATISTICS = ((1.9, 1.9, 2.2), (1.4, 1.4, 1.5))
SRGB = Representation("srgb", (0.5, 0.5, 0.4), (0.25, 0.25, 0.25))


class Recorder:
    """An evaluation that notes the illuminants it is given."""

    images = 10
    kept_outcomes = ("number",)

    def __init__(self):
        self.summaries = {"mean_red": ("red", lambda red: float(red.mean()))}
        self.opened = 0

    def open_batch(self, indices):
        self.opened += len(indices)
        return indices

    def measure(self, batch, illuminants):
        assert len(batch) == len(illuminants)
        return {"number": batch.float(), "red": illuminants[:, 0], "illuminants": illuminants}


def illuminants_seen(batch_size, saturations=(0.0, 0.3, 1.0), seed=4):
    class Keeper(Recorder):
        kept_outcomes = ("number", "illuminants")

    task = Keeper()
    found = sweep(task, saturations, seed=seed, batch_size=batch_size)
    assert task.opened == 10  # each image once, however many saturations there are
    assert found.images == 10
    for saturation in saturations:
        assert found.outcomes["number"][saturation].tolist() == list(range(10))
    return found.outcomes["illuminants"]


def test_an_images_light_does_not_depend_on_the_batches():
    whole = illuminants_seen(10)
    for batch_size in (1, 3, 500):
        for saturation, values in illuminants_seen(batch_size).items():
            np.testing.assert_array_equal(values, whole[saturation])
    for saturation, values in whole.items():
        np.testing.assert_array_equal(values, random_illuminants(4, range(10), saturation).numpy())
    # One saturation alone: the same hues.
    np.testing.assert_array_equal(illuminants_seen(3, (0.3,))[0.3], whole[0.3])
    assert not np.array_equal(illuminants_seen(10, seed=5)[0.3], whole[0.3])


def test_hue_is_the_same_at_all_saturations():
    seen = illuminants_seen(10)
    # 1 - rgb = S · (drop of the hue): proportional to the saturation.
    np.testing.assert_allclose((1 - seen[0.3]) / 0.3, 1 - seen[1.0], atol=1e-12)
    assert (seen[0.0] == 1).all()


def test_only_kept_outcomes_are_returned_and_metrics_are_over_all_images():
    found = sweep(Recorder(), [0.0, 0.5], batch_size=3)
    assert set(found.outcomes) == {"number"} and set(found.metrics) == {"mean_red"}
    red = random_illuminants(0, range(10), 0.5)[:, 0]
    assert found.metrics["mean_red"] == {0.0: 1.0, 0.5: pytest.approx(red.mean().item(), abs=1e-12)}


def test_default_saturations_are_the_papers_and_wrong_ones_refused():
    assert SATURATIONS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    with pytest.raises(ValueError, match="saturations is empty"):
        sweep(Recorder(), [])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        sweep(Recorder(), [1.5])


def network(family, seed=0):
    """Random weights whose posteriors are far from uniform."""
    torch.manual_seed(seed)
    built = CifarResNet(8, 10, family).eval()
    with torch.no_grad():
        built.fc.weight.mul_(1 if isinstance(family, OffsetEquivariant) else 3)
    return built


@pytest.fixture(scope="module")
def images():
    """Synthetic images with black and nearly black pixels, as photographs have them."""
    data = synthetic_images("test", n_test=24)
    data.images[:, :, :6] //= 16
    data.images[:, :, 0] = 0
    return data


ORIGINAL = (Conventional(), SRGB)
ABSOLUTE = (OffsetEquivariant(), Representation("log_rgb", *LOG_STATISTICS, AbsoluteClipping(2e-4)))
RELATIVE = (OffsetEquivariant(), Representation("log_rgb", *LOG_STATISTICS, RelativeClipping(1e-3, 2e-4)))


def test_values_against_a_loop_over_images_that_are_distorted_as_the_paper_says(images):
    family, representation = ORIGINAL
    classifier = network(family)
    saturations = (0.0, 0.4, 0.9)
    task = RecognitionEvaluation(classifier, images, InputPipeline(representation))
    found = sweep(task, saturations, seed=3, batch_size=7)

    mean, std = (torch.tensor(values)[:, None, None] for values in (representation.mean, representation.std))
    wrong = {saturation: [] for saturation in saturations}
    change = {saturation: [] for saturation in saturations}
    for index in range(len(images)):
        srgb = images.images[index : index + 1].float() / 255
        with torch.no_grad():
            plain = torch.softmax(classifier((srgb - mean) / std), 1)
            for saturation in saturations:
                (illuminant,) = random_illuminants(3, [index], saturation)
                posterior = torch.softmax(classifier((distort_srgb(srgb, illuminant) - mean) / std), 1)
                wrong[saturation].append(bool(posterior.argmax() != images.labels[index]))
                change[saturation].append((posterior - plain).abs().max().item())
    for saturation in saturations:
        assert found.outcomes["error"][saturation].dtype == bool
        assert found.outcomes["error"][saturation].tolist() == wrong[saturation]
        assert found.metrics["error_percent"][saturation] == pytest.approx(100 * np.mean(wrong[saturation]), abs=1e-9)
        assert found.metrics["posterior_change"][saturation] == pytest.approx(max(change[saturation]), abs=2e-5)
    assert len({tuple(errors) for errors in wrong.values()}) > 1  # the light changed some decision
    assert max(change[0.9]) > 0.1


@pytest.mark.parametrize(("family", "representation"), [ORIGINAL, ABSOLUTE, RELATIVE])
def test_without_saturation_it_is_a_plain_evaluation(images, family, representation):
    classifier = network(family)
    task = RecognitionEvaluation(classifier, images, InputPipeline(representation))
    found = sweep(task, [0.0], batch_size=10)
    with torch.no_grad():
        scores = classifier(representation(srgb_to_linear(images.images.float() / 255)))
    assert found.metrics["error_percent"][0.0] == (scores.argmax(1) != images.labels).double().mean().item() * 100
    assert found.metrics["posterior_change"][0.0] == 0


def posterior_change(images, family, representation, saturations=SATURATIONS[:-1]):
    task = RecognitionEvaluation(network(family), images, InputPipeline(representation))
    return max(sweep(task, saturations, batch_size=12).metrics["posterior_change"].values())


def test_relative_clipping_is_invariant_and_the_others_are_not(images):
    assert posterior_change(images, *RELATIVE) <= 1e-5
    assert posterior_change(images, *ABSOLUTE) > 1e-3
    assert posterior_change(images, *ORIGINAL) > 0.1


def double_posteriors(task, linear, illuminants):
    with torch.no_grad():
        return task.posteriors(task.distort(linear, illuminants))


@pytest.mark.parametrize(("setup", "invariant"), [(RELATIVE, True), (ABSOLUTE, False)])
def test_invariance_in_double_precision(images, setup, invariant):
    family, representation = setup
    classifier = network(family).double()
    project_(classifier)
    task = RecognitionEvaluation(classifier, images, InputPipeline(representation))
    linear = decode_srgb(images.images).double()
    reference = double_posteriors(task, linear, torch.ones(len(images), 3))
    changes = [
        (double_posteriors(task, linear, random_illuminants(0, range(len(images)), s)) - reference).abs().max().item()
        for s in (0.3, 0.6, 0.9)
    ]
    assert reference.std(1).max() > 0.01
    assert (max(changes) <= 1e-12) if invariant else (max(changes) > 1e-3)


def test_batch_size_does_not_change_the_numbers(images):
    family, representation = RELATIVE
    task = RecognitionEvaluation(network(family), images, InputPipeline(representation))
    one, all_ = (sweep(task, (0.0, 0.9), batch_size=size) for size in (1, 24))
    assert one.metrics["error_percent"] == all_.metrics["error_percent"]
    for saturation in (0.0, 0.9):
        np.testing.assert_array_equal(one.outcomes["error"][saturation], all_.outcomes["error"][saturation])


def test_training_mode_is_left_for_the_evaluation(images):
    """A network that is still in training mode would normalise by the test batch."""
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).train()
    task = RecognitionEvaluation(classifier, images, InputPipeline(SRGB))
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    sweep(task, [0.0, 0.5], batch_size=5)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
