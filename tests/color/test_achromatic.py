import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from offset_equivariant.color import (
    apply_illuminant,
    balance,
    cosine_loss,
    random_illuminants,
    usable_pixels,
    weighted_estimate,
)
from offset_equivariant.color.achromatic import NOISE


def random_values(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_estimate_is_the_weighted_sum_of_colours():
    linear = torch.tensor([[[[0.1, 0.8]], [[0.2, 0.4]], [[0.3, 0.6]]]])
    weights = torch.tensor([[[[1.0, 0.5]]]])
    total = np.array([0.1 + 0.4, 0.2 + 0.2, 0.3 + 0.3])
    np.testing.assert_allclose(weighted_estimate(linear, weights)[0], total / np.linalg.norm(total), rtol=1e-6)


def test_noise_is_that_of_the_original_on_sums():
    linear, weights, draws = random_values(2, 3, 256, 256), random_values(2, 1, 256, 256, seed=1), random_values(2, 3)
    sums = (linear * weights).sum((2, 3)) + 100 * draws
    expected = sums / sums.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weighted_estimate(linear, weights, NOISE * draws), expected, rtol=0, atol=1e-12)


def test_weights_of_grey_pixels_find_the_light():
    linear = random_values(4, 3, 6, 6)
    linear[:, :, :2] = random_values(4, 1, 2, 6, seed=3)
    weights = torch.zeros(4, 1, 6, 6, dtype=torch.float64)
    weights[:, :, :2] = random_values(4, 1, 2, 6, seed=4)
    light = random_illuminants(0, range(4), 0.9)
    found = weighted_estimate(apply_illuminant(linear, light), weights)
    torch.testing.assert_close(found, light / light.norm(dim=1, keepdim=True), rtol=0, atol=1e-12)


def test_nothing_weighed_is_no_light_and_leaves_the_image_as_it_is():
    linear = random_values(1, 3, 4, 4)
    for image, weights in ((linear, torch.zeros(1, 1, 4, 4)), (0 * linear, torch.ones(1, 1, 4, 4))):
        estimate = weighted_estimate(image, weights.double())
        assert torch.equal(estimate, torch.zeros(1, 3, dtype=torch.float64))
        assert torch.equal(balance(image, estimate), image)


def test_pixels_without_light_in_a_channel_do_not_count():
    linear = torch.ones(3, 3, 1, 3)
    linear[0, 0, 0, 0] = 0  # one pixel without red
    linear[0, 2, 0, 2] = -0.1  # below the black level
    linear[1, 1] = 0  # no green in the whole image
    linear[1, 0, 0, 1] = 0
    linear[2] = torch.eye(3)[:, None]  # every pixel lacks something
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert torch.equal(usable_pixels(linear)[:, 0, 0], expected)
    assert usable_pixels(linear.double()).dtype == torch.float64


def test_a_channel_without_light_keeps_the_gain_1_and_the_others_are_balanced():
    linear = random_values(1, 3, 4, 4) * 0.5
    linear[:, 1] = 0
    estimate = weighted_estimate(linear, usable_pixels(linear))
    balanced = balance(linear, estimate)
    red, _, blue = linear.mean((0, 2, 3)).tolist()
    assert estimate[0, 1] == 0 and torch.equal(balanced[:, 1], linear[:, 1])
    expected = linear.clone()
    expected[:, 0] *= (blue / red) ** 0.5
    expected[:, 2] *= (red / blue) ** 0.5
    assert expected.max() < 1
    torch.testing.assert_close(balanced, expected, rtol=0, atol=1e-12)


def test_a_channel_that_saturates_is_cut_at_1():
    linear = torch.tensor([0.9, 0.1, 0.3])[None, :, None, None].expand(1, 3, 2, 2)
    estimate = torch.tensor([[0.1, 0.3, 0.9]])
    gains = 0.3 / np.array([0.1, 0.3, 0.9])
    expected = np.minimum(1, gains * [0.9, 0.1, 0.3])
    assert expected[0] == 1
    np.testing.assert_allclose(balance(linear, estimate)[0, :, 0, 0], expected, rtol=1e-6)


def test_loss_is_1_minus_the_cosine():
    estimate = torch.nn.functional.normalize(random_values(5, 3), dim=1)
    target = torch.nn.functional.normalize(random_values(5, 3, seed=1), dim=1)
    for given, truth in ((None, np.ones((5, 3)) / np.sqrt(3)), (target, target.numpy())):
        expected = np.mean([1 - np.dot(e, t) for e, t in zip(estimate.numpy(), truth, strict=True)])
        assert cosine_loss(estimate, given).item() == pytest.approx(expected, abs=1e-14)


def test_derivatives():
    linear, weights = random_values(2, 3, 3, 3).requires_grad_(), random_values(2, 1, 3, 3, seed=1).requires_grad_()
    noise = 0.1 * random_values(2, 3, seed=2)
    assert gradcheck(lambda x, w: cosine_loss(weighted_estimate(x, w, noise)), (linear, weights))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\) and \(N, 1, H, W\), but theirs are"):
        weighted_estimate(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 5))
