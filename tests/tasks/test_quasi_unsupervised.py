import math

import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.color import apply_illuminant, code_input, grey_world, random_illuminants
from offset_equivariant.color.achromatic import NOISE
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator
from offset_equivariant.data.synthetic import synthetic_images
from offset_equivariant.evaluation.sweep import sweep
from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised
from offset_equivariant.tasks.quasi_unsupervised import ConstancyEvaluation, QuasiUnsupervisedTraining


@pytest.fixture(scope="module")
def photos():
    return synthetic_images("train", n_train=40)


class Linear(nn.Module):
    """A weight that is linear in the seven channels."""

    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(-0.5, 1.0, 7))

    def forward(self, coded):
        self.seen = coded
        return (coded * self.factors[:, None, None]).sum(1, keepdim=True).sigmoid()


@pytest.mark.parametrize(("flip", "noise"), [(True, NOISE), (False, 0.0)])
def test_step_is_gradient_descent_on_the_cosine(photos, flip, noise):
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    options = {"batch_size": 8, "seed": 3, "flip": flip, "channels_last": True} | ({} if noise else {"noise": 0.0})
    task = QuasiUnsupervisedTraining(network, optimizer, photos, **options)
    assert task.steps_per_epoch == 5
    found = task.training_step(6, 0.5)
    chosen = photos.images[EpochOrder(40, 8, 3).indices(6)]
    linear = decode_srgb(random_crop_and_flip(chosen, 0, flip, step_generator(3, 6, stream=1)))
    torch.testing.assert_close(network.seen, code_input(linear), rtol=0, atol=0)
    assert network.seen.is_contiguous(memory_format=torch.channels_last)
    factors = torch.linspace(-0.5, 1.0, 7).double().requires_grad_()
    linear = linear.double()
    weights = (code_input(linear) * factors[:, None, None]).sum(1, keepdim=True).sigmoid()
    draws = torch.randn(8, 3, generator=step_generator(3, 6, stream=2)).double()
    colours = (linear * weights).mean((2, 3)) + noise * draws
    cosines = colours.sum(1) / (3 * colours.square().sum(1)).sqrt()
    loss = (1 - cosines).mean()
    loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert found["degrees_to_grey"].item() == pytest.approx(cosines.arccos().rad2deg().mean().item(), rel=1e-4)
    assert found["mean_weight"].item() == pytest.approx(weights.mean().item(), rel=1e-5)
    expected = torch.linspace(-0.5, 1.0, 7).double() - 0.1 * 0.5 * factors.grad
    torch.testing.assert_close(network.factors.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert not any(value.requires_grad for value in found.values())


def test_training_finds_the_grey_pixels():
    """In every image the left half is coloured, and the right half, whose stripes lie otherwise, is grey."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.randint(60, 250, (64, 1, 8, 1), generator=generator)
    left = (brightness.expand(-1, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.3])[None, :, None, None]).to(torch.uint8)
    right = torch.randint(60, 250, (64, 1, 1, 8), generator=generator).expand(-1, 3, 8, 8).to(torch.uint8)
    images = torch.cat([left, right], dim=3)
    images = torch.cat([images, images], dim=2)
    torch.manual_seed(0)
    network = QuasiUnsupervised(3, width=8, image_size=16)
    data = type("Photos", (), {"images": images, "__len__": lambda self: 64})()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    task = QuasiUnsupervisedTraining(network, optimizer, data, batch_size=32, seed=0, flip=False, channels_last=True)
    losses = [task.training_step(step, 1.0)["loss"].item() for step in range(40)]
    assert losses[-1] < losses[0] / 3
    network.eval()
    with torch.no_grad():
        weights = network(code_input(decode_srgb(images)))
    assert weights[..., 10:].mean() > 2 * weights[..., :6].mean()


def test_errors_are_angles_to_the_illuminant(photos):
    evaluation = ConstancyEvaluation(grey_world, photos)
    found = sweep(evaluation, [0.0, 0.7], seed=4, batch_size=15)
    for saturation in (0.0, 0.7):
        light = random_illuminants(4, range(40), saturation)
        mean = apply_illuminant(decode_srgb(photos.images), light).mean((2, 3)).double().numpy()
        for name, truth, estimate in (
            ("recovery", light.numpy(), mean),
            ("reproduction", np.ones((40, 3)), mean / light.numpy()),
        ):
            dot = (truth * estimate).sum(1) / np.linalg.norm(truth, axis=1) / np.linalg.norm(estimate, axis=1)
            degrees = np.degrees(np.arccos(dot))
            np.testing.assert_allclose(found.outcomes[f"{name}_error_degrees"][saturation], degrees, atol=1e-3)
            median = found.metrics[f"median_{name}_error_degrees"][saturation]
            assert median == pytest.approx(np.median(degrees), abs=1e-3)
    assert found.images == 40 and not math.isclose(*found.metrics["mean_recovery_error_degrees"].values())


def test_an_estimate_without_light_counts_as_grey_and_a_saturated_light_has_an_error(photos):
    evaluation = ConstancyEvaluation(lambda linear: torch.zeros(len(linear), 3), photos)
    batch = evaluation.open_batch(torch.arange(2))
    found = evaluation.measure(batch, torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    angle = math.degrees(math.acos(1 / math.sqrt(3)))
    np.testing.assert_allclose(found["recovery_error_degrees"], [0, angle], atol=1e-3)
