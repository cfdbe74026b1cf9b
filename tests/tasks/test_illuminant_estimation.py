import math

import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.color import FilledClipping, random_illuminants
from offset_equivariant.color.representation import Representation
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.evaluation.sweep import sweep
from offset_equivariant.models.cerberus import ColorCerberus
from offset_equivariant.nn import OffsetEquivariant
from offset_equivariant.tasks.illuminant_estimation import (
    CHANGE,
    EstimationEvaluation,
    EstimationTraining,
    decode_estimate,
    network_estimator,
    random_crops,
    random_flips_and_transpositions,
    statistical_estimator,
)

LINEAR = Representation("linear", (0.3, 0.3, 0.3), (0.2, 0.2, 0.2))
LOG_RGB = Representation("log_rgb", (1.5, 1.2, 1.7), (0.9, 0.8, 1.1), FilledClipping())


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(18, size=16)


class Means(nn.Module):
    """The mean of each channel, times a learned gain."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.0, 0.8, 1.3]))

    def forward(self, x):
        return x.mean((2, 3)) * self.gain


def angle(a, b):
    cosine = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.degrees(np.arccos(cosine))


def test_estimates_are_decoded_to_linear_rgb():
    outputs = torch.tensor([[0.5, -1.0, 2.0]])
    expected = [math.exp(-(o * s + m)) for o, s, m in zip([0.5, -1.0, 2.0], LOG_RGB.std, LOG_RGB.mean, strict=True)]
    torch.testing.assert_close(decode_estimate(LOG_RGB, outputs), torch.tensor([expected]))
    assert decode_estimate(LINEAR, outputs) is outputs


def test_orientations_are_the_eight_of_a_square():
    image = torch.arange(27.0).reshape(1, 3, 3, 3)
    turned = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    possible = [x for turn in turned for x in (turn, turn.flip(3))]
    found = random_flips_and_transpositions(image.expand(800, -1, -1, -1), torch.Generator().manual_seed(0))
    counts = [(found == other).all(1).all(1).all(1).sum().item() for other in possible]
    assert sum(counts) == 800 and min(counts) > 60


def test_crops_are_squares_of_the_image_without_mixed_pixels():
    image = torch.arange(3 * 20 * 20.0).reshape(1, 3, 20, 20)
    found = random_crops(image.expand(500, -1, -1, -1), 0.5, torch.Generator().manual_seed(0))
    assert found.shape == (500, 3, 20, 20) and torch.isin(found, image).all()
    first = found[:, 0]  # of the first channel, 20 * row + column
    rows, columns = first // 20, first % 20
    assert (rows == rows[:, :, :1]).all() and (columns == columns[:, :1]).all()
    heights, widths = (x.flatten(1).amax(1) - x.flatten(1).amin(1) + 1 for x in (rows, columns))
    assert ((heights - widths).abs() <= 1).all() and heights.min() <= 11 and heights.max() >= 19
    assert heights.min() >= 10 and rows.min() == 0 and rows.max() == 19
    assert torch.equal(random_crops(image, 1.0, torch.Generator().manual_seed(0)), image)


def test_a_step_shows_crops_and_whole_images(scenes):
    class Seeing(Means):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    for smallest, flip in ((None, False), (0.5, False)):
        network = Seeing()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        options = {"smallest_crop": smallest, "flip": flip, "batch_size": 6, "seed": 3, "channels_last": True}
        EstimationTraining(network, optimizer, scenes, LINEAR, **options).training_step(1, 0.5)
        expected = scenes.images[EpochOrder(18, 6, 3).indices(1)]
        if smallest is not None:
            expected = random_crops(expected, smallest, step_generator(3, 1, stream=2))
        torch.testing.assert_close(network.seen, (expected - 0.3) / 0.2)
        assert network.seen.is_contiguous(memory_format=torch.channels_last)


def test_a_method_must_be_known():
    with pytest.raises(ValueError, match="method 'guess' is not one of grey_world, shades_of_grey, max_rgb, grey_edge"):
        statistical_estimator("guess")


def test_step_is_gradient_descent_on_eq_29(scenes):
    network = Means()
    task = EstimationTraining(
        network, torch.optim.SGD(network.parameters(), lr=0.1), scenes, LINEAR, batch_size=6, seed=3
    )
    assert task.steps_per_epoch == 3
    found = task.training_step(1, 0.5)
    indices = EpochOrder(18, 6, 3).indices(1)
    shown = random_flips_and_transpositions(scenes.images[indices], step_generator(3, 1, stream=1)).double()
    gain = torch.tensor([1.0, 0.8, 1.3], dtype=torch.float64, requires_grad=True)
    ratio = ((shown - 0.3) / 0.2).mean((2, 3)) * gain / scenes.illuminants[indices]
    cosine = ratio.sum(1) / (3 * ratio.square().sum(1)).sqrt()
    loss = torch.rad2deg(torch.arccos(cosine)).mean()
    loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    expected = torch.tensor([1.0, 0.8, 1.3], dtype=torch.float64) - 0.1 * 0.5 * gain.grad
    torch.testing.assert_close(network.gain.detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert not found["loss"].requires_grad


def test_errors_by_hand(scenes):
    evaluation = EstimationEvaluation(network_estimator(Means(), LINEAR), scenes)
    found = sweep(evaluation, (0.0, 0.6), seed=4, batch_size=7)
    lights = random_illuminants(4, range(18), 0.6).numpy()
    images = scenes.images.double().numpy() * lights[:, :, None, None]
    estimate = ((images - 0.3) / 0.2).mean((2, 3)) * [1.0, 0.8, 1.3]
    largest = estimate.max(1, keepdims=True)
    assert (largest <= 0).any() and (largest > 0).any()  # no light at all counts as grey
    estimate = np.where(largest > 0, np.maximum(estimate, 1e-6 * largest), 1)
    truth = scenes.illuminants.numpy() * lights
    errors = {
        "reproduction_error_degrees": angle(estimate / truth, np.ones(3)),
        "recovery_error_degrees": angle(estimate, truth),
    }
    for name, expected in errors.items():
        np.testing.assert_allclose(found.outcomes[name][0.6], expected, rtol=0, atol=1e-3)
        assert found.metrics[f"median_{name}"][0.6] == pytest.approx(np.median(expected), abs=1e-3)
        assert found.metrics[f"mean_{name}"][0.6] == pytest.approx(expected.mean(), abs=1e-3)
    finlayson = angle(truth / estimate, np.ones(3)).mean()
    assert found.metrics["mean_reproduction_error_finlayson_degrees"][0.6] == pytest.approx(finlayson, abs=1e-3)
    assert set(found.outcomes) == {"reproduction_error_degrees", "recovery_error_degrees"}
    change = np.abs(np.subtract(*(found.outcomes["reproduction_error_degrees"][s].astype(float) for s in (0.6, 0.0))))
    assert found.metrics[CHANGE] == {0.0: 0.0, 0.6: pytest.approx(change.max(), abs=1e-4)}
    of_camera = [i for i, camera in enumerate(scenes.cameras) if camera == "SonyA57"]
    of_fold = np.flatnonzero(scenes.folds.numpy() == 1)
    for part, chosen in (("SonyA57", of_camera), ("fold1", of_fold)):
        metric = found.metrics[f"median_reproduction_error_degrees_{part}"][0.6]
        assert metric == pytest.approx(np.median(errors["reproduction_error_degrees"][chosen]), abs=1e-3)
    assert len(found.metrics) == 3 * 6 + 9 + 3 + 1


def test_a_perfect_estimator_has_no_error_under_any_light(scenes):
    class Knowing(EstimationEvaluation):
        def _errors(self, batch, illuminants):
            self._estimator = lambda linear, folds: 7 * batch.truth * illuminants
            return super()._errors(batch, illuminants)

    found = sweep(Knowing(statistical_estimator("grey_world"), scenes), (0.0, 0.5, 1.0))
    assert max(value for by_saturation in found.metrics.values() for value in by_saturation.values()) < 1e-3


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
def test_error_of_the_equivariant_network_does_not_depend_on_the_light(scenes, constraint):
    torch.manual_seed(0)
    network = ColorCerberus(OffsetEquivariant(3, constraint), image_size=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    task = EstimationTraining(network, optimizer, scenes, LOG_RGB, batch_size=6, seed=0)
    losses = [task.training_step(step, 1.0)["loss"].item() for step in range(40)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    found = sweep(EstimationEvaluation(network_estimator(network, LOG_RGB), scenes), (0.0, 0.3, 0.9))
    # The recovery error changes even when the estimate follows the light: it is no angle of the corrected image.
    errors = found.outcomes["reproduction_error_degrees"]
    assert max(np.abs(errors[s] - errors[0.0]).max() for s in (0.3, 0.9)) < 0.01
    assert found.outcomes["reproduction_error_degrees"][0.0].std() > 0.1


def test_classical_methods_are_estimators_too(scenes):
    found = sweep(EstimationEvaluation(statistical_estimator("grey_world"), scenes), (0.0, 0.8))
    np.testing.assert_allclose(
        found.outcomes["reproduction_error_degrees"][0.8],
        found.outcomes["reproduction_error_degrees"][0.0],
        rtol=0,
        atol=1e-3,
    )
