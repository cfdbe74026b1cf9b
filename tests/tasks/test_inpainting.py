import math

import pytest
import torch
from torch import nn

from offset_equivariant.color import AbsoluteClipping, RelativeClipping, apply_illuminant, linear_to_srgb
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.data.batches import step_generator
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.tasks.inpainting import (
    HOLE_COLOUR,
    HoleFilling,
    InpaintingTraining,
    JointLoss,
    centre_of,
    random_crops_and_flips,
    visible_pixels,
    with_centre,
)

SRGB = Representation("srgb", (0.5,) * 3, (0.5,) * 3)
LOG_RGB = Representation("log_rgb", (1.4, 1.5, 1.7), (0.9, 0.8, 1.1), RelativeClipping(0.05))


@pytest.fixture(scope="module")
def photos():
    return drawn_facades("test", n_test=6)


@pytest.fixture(scope="module")
def linear(photos):
    return decode_srgb(photos.images)


def test_centre_and_visible_pixels_are_complementary():
    image = torch.arange(128.0 * 128).reshape(1, 1, 128, 128)
    centre, visible = centre_of(image), visible_pixels(image)
    assert centre.shape == (1, 1, 64, 64) and centre[0, 0, 0, 0] == 32 * 128 + 32
    assert visible.shape == (1, 1, 1, 128 * 128 - 64 * 64)
    assert torch.equal(torch.cat([centre.flatten(), visible.flatten()]).sort().values, image.flatten())
    changed = with_centre(image, torch.full((1, 1, 64, 64), -1.0))
    assert bool((centre_of(changed) == -1).all()) and torch.equal(visible_pixels(changed), visible)
    assert image[0, 0, 64, 64] == 64 * 128 + 64  # the original is as it was


def test_an_ordinary_network_is_shown_srgb_with_a_constant_hole(linear):
    inputs = HoleFilling(SRGB).inputs(linear)
    torch.testing.assert_close(visible_pixels(inputs), visible_pixels(2 * linear_to_srgb(linear) - 1))
    expected = 2 * torch.tensor(HOLE_COLOUR) - 1
    torch.testing.assert_close(centre_of(inputs), expected[:, None, None].expand(6, 3, 64, 64))


def test_the_hole_of_an_equivariant_network_is_the_mean_of_the_visible_log_pixels(linear):
    inputs = HoleFilling(LOG_RGB).inputs(linear)
    visible = linear[:, :, [(r < 32 or r >= 96) for r in range(128)]].flatten(2)
    sides = linear[:, :, 32:96][..., [(c < 32 or c >= 96) for c in range(128)]].flatten(2)
    pixels = torch.cat([visible, sides], 2)
    clipped = torch.maximum(pixels, 0.05 * pixels.mean(2, keepdim=True))
    mean, std = torch.tensor(LOG_RGB.mean), torch.tensor(LOG_RGB.std)
    expected = ((-clipped.log()).mean(2) - mean) / std
    torch.testing.assert_close(centre_of(inputs), expected[..., None, None].expand(6, 3, 64, 64))
    torch.testing.assert_close(inputs[:, :, 0, 0], ((-clipped[:, :, 0].log()) - mean) / std)


@pytest.mark.parametrize("representation", [SRGB, LOG_RGB])
def test_the_centre_is_not_looked_at(linear, representation):
    filling = HoleFilling(representation)
    other = with_centre(linear, torch.rand(6, 3, 64, 64))
    assert torch.equal(filling.inputs(other), filling.inputs(linear))


def test_a_change_of_the_light_offsets_the_input_of_an_equivariant_network(linear):
    filling = HoleFilling(LOG_RGB)
    gains = torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64)
    before = filling.inputs(linear.double())
    after = filling.inputs(apply_illuminant(linear.double(), gains))
    offset = -gains.log() / torch.tensor(LOG_RGB.std, dtype=torch.float64)
    torch.testing.assert_close(after, before + offset[:, None, None], rtol=0, atol=1e-12)


def test_outputs_go_back_to_linear_and_to_srgb():
    outputs = torch.tensor([0.3, -0.7, 1.2]).view(1, 3, 1, 1)
    inputs = torch.full((1, 3, 4, 4), -5.0)
    log = HoleFilling(LOG_RGB)
    expected = torch.tensor(
        [math.exp(-(o * s + m)) for o, s, m in zip([0.3, -0.7, 1.2], LOG_RGB.std, LOG_RGB.mean, strict=True)]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(log.linear(outputs, inputs), expected)
    torch.testing.assert_close(log.srgb(outputs, inputs), linear_to_srgb(expected))
    ordinary = HoleFilling(SRGB)
    torch.testing.assert_close(ordinary.srgb(outputs, inputs), (torch.tanh(outputs) + 1) / 2)
    torch.testing.assert_close(linear_to_srgb(ordinary.linear(outputs, inputs)), ordinary.srgb(outputs, inputs))


def test_outputs_in_log_rgb_are_cut_at_the_brightest_input(linear):
    filling = HoleFilling(LOG_RGB)
    inputs = filling.inputs(linear)
    outputs = torch.full((6, 3, 64, 64), -30.0, requires_grad=True)
    filled = filling.linear(outputs, inputs)
    brightest = visible_pixels(linear).amax((2, 3), keepdim=True)
    torch.testing.assert_close(filled, brightest.expand_as(filled), rtol=1e-4, atol=0)
    filled.sum().backward()
    # d exp(-(o s + m)) / do at the cut value, not at the output's own, where it would be e**20 times as large
    expected = -brightest * torch.tensor(LOG_RGB.std)[:, None, None]
    torch.testing.assert_close(outputs.grad, expected.expand_as(filled), rtol=1e-4, atol=0)


def test_representations_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="space = 'linear' is not for inpainting; choose srgb or log_rgb"):
        HoleFilling(Representation("linear", (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match=r"std = \(0.2, 0.2, 0.2\) must be 0.5 in sRGB"):
        HoleFilling(Representation("srgb", (0.5,) * 3, (0.2,) * 3))


def test_joint_loss_by_hand():
    truth = torch.zeros(2, 3, 64, 64)
    centre = truth.clone()
    centre[0, 0, 0, 5] = 2.0  # on the border
    centre[1, 1, 4, 4] = 1.0  # the first pixel inside
    loss = JointLoss(0.25, border=4, border_weight=10)
    logits = torch.tensor([0.0, 2.0])
    parts = loss.generator(centre, truth, logits)
    squared = (10 * 4.0 + 1.0) / truth.numel()
    adversarial = (math.log(2) + math.log1p(math.exp(-2.0))) / 2
    assert parts["reconstruction_loss"].item() == pytest.approx(squared)
    assert parts["adversarial_loss"].item() == pytest.approx(adversarial)
    assert parts["loss"].item() == pytest.approx(0.75 * squared + 0.25 * adversarial)
    real, filled = torch.tensor([3.0]), torch.tensor([-1.0])
    expected = (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(-1.0))) / 2
    assert loss.discriminator(real, filled).item() == pytest.approx(expected)


def test_crops_are_squares_of_the_image_and_half_of_them_flipped():
    height, width, size = 20, 30, 12
    image = torch.arange(height * width, dtype=torch.int32).view(1, 1, height, width).expand(400, 1, -1, -1)
    crops = random_crops_and_flips(image, size, True, step_generator(0, 0, stream=1))[:, 0]
    flipped = crops[:, 0, 0] > crops[:, 0, 1]
    upright = torch.where(flipped[:, None, None], crops.flip(2), crops)
    top, left = upright[:, 0, 0] // width, upright[:, 0, 0] % width
    for crop, row, column in zip(upright, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(crop, image[0, 0, row : row + size, column : column + size])
    assert {0, height - size} <= {*top.tolist()} and {0, width - size} <= {*left.tolist()}
    assert 150 < int(flipped.sum()) < 250
    upright_only = random_crops_and_flips(image, size, False, step_generator(0, 0, stream=1))[:, 0]
    assert bool((upright_only[:, 0, 0] < upright_only[:, 0, 1]).all())


class Painter(nn.Module):
    """Every pixel of the centre is the same learned value."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value.expand(len(x), 3, 64, 64)


class Judge(nn.Module):
    """The mean of the centre, times a learned gain."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, centre):
        return centre.mean((1, 2, 3)) * self.gain


def test_a_step_improves_the_discriminator_first_and_then_the_network():
    images = drawn_facades("train", n_train=2, shorter_side=128)
    painter, judge = Painter(0.1), Judge()
    optimizers = (torch.optim.SGD(painter.parameters(), lr=0.2), torch.optim.SGD(judge.parameters(), lr=0.3))
    training = InpaintingTraining(
        painter, judge, optimizers, images, HoleFilling(SRGB), JointLoss(0.1, 0, 1), batch_size=2, seed=0, flip=False
    )
    assert training.steps_per_epoch == 1
    losses = training.training_step(0, learning_rate_factor=0.5)

    truth = centre_of(images.images).double() / 127.5 - 1
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    softplus = nn.functional.softplus
    judged = (softplus(-gain * truth.mean((1, 2, 3))).mean() + softplus(gain * value.detach().tanh())) / 2
    (slope,) = torch.autograd.grad(judged, gain)
    better = 0.5 - 0.5 * 0.3 * slope
    adversarial = softplus(-better * value.tanh())
    joint = 0.9 * (value.tanh() - truth).square().mean() + 0.1 * adversarial
    (pull,) = torch.autograd.grad(joint, value)

    assert losses["discriminator_loss"].item() == pytest.approx(judged.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(joint.item(), rel=1e-5)
    assert judge.gain.item() == pytest.approx(better.item(), rel=1e-5)
    assert painter.value.item() == pytest.approx(0.1 - 0.5 * 0.2 * pull.item(), rel=1e-5)


def test_what_is_learned_is_constrained_after_each_step():
    """Weights that are kept by projection satisfy Eq. 16 after a step."""
    from offset_equivariant.models.context_encoder import ContextEncoder, Discriminator
    from offset_equivariant.nn import OffsetEquivariant
    from offset_equivariant.nn.constraint import constraint_error

    network = ContextEncoder(OffsetEquivariant(3, constraint="projection"), width=0.05, bottleneck=30)
    judge = Discriminator(0.05)
    optimizers = tuple(torch.optim.Adam(m.parameters(), lr=1e-2) for m in (network, judge))
    images = drawn_facades("train", n_train=4, shorter_side=128)
    representation = Representation("log_rgb", LOG_RGB.mean, LOG_RGB.std, AbsoluteClipping())
    training = InpaintingTraining(
        network, judge, optimizers, images, HoleFilling(representation), JointLoss(0.001, 4, 10), batch_size=4, seed=0
    )
    before = network.encoder[0].weight.detach().clone()
    training.training_step(0, 1.0)
    assert not torch.equal(before, network.encoder[0].weight)
    assert constraint_error(network.encoder[0].weight.detach(), 3) < 1e-6
