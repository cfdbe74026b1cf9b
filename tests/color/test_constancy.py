import numpy as np
import pytest
import torch
from scipy import ndimage

from offset_equivariant.color import (
    BALANCING_METHODS,
    apply_illuminant,
    balance,
    balance_srgb,
    distort_srgb,
    grey_edge,
    grey_world,
    max_rgb,
    random_illuminants,
    shades_of_grey,
)


def grey_level_images(n: int = 6) -> torch.Tensor:
    """Images whose three channels are equal: under any illuminant, every statistic gives away its colour."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 9, dtype=torch.float64, generator=generator).expand(n, 3, 8, 9)


@pytest.mark.parametrize("method", BALANCING_METHODS)
def test_estimators_find_a_known_illuminant(method):
    illuminants = random_illuminants(0, range(6), 0.8)
    estimate = BALANCING_METHODS[method](apply_illuminant(grey_level_images(), illuminants))
    expected = illuminants / illuminants.norm(dim=1, keepdim=True)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 6.0, 7.5])
def test_shades_of_grey_is_the_minkowski_mean(p):
    images = torch.rand(4, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    means = (images.numpy() ** p).mean(axis=(2, 3)) ** (1 / p)
    expected = means / np.sqrt((means**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(shades_of_grey(images, p).numpy(), expected, rtol=1e-13)


def test_max_rgb_is_the_largest_value_of_each_channel():
    images = torch.tensor([[[0.1, 0.3]], [[0.0, 0.4]], [[0.0, -0.4]]])[None]
    torch.testing.assert_close(max_rgb(images), torch.tensor([[0.6, 0.8, 0.0]]))


@pytest.mark.parametrize("covered", [False, True])
def test_grey_edge_is_the_minkowski_mean_of_gaussian_gradients(covered):
    images = torch.rand(2, 3, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept = np.ones((24, 20), bool)
    if covered:
        images[:, :, 3:7, 11:13] = 0
        kept[:12, 6:18] = False  # five pixels around, the reach of the filters
    images[0, 2, 20, 3] = 0  # in one channel alone: a dark pixel of the scene
    sigma, p = 1.5, 4.0
    means = np.empty((2, 3))
    for index in np.ndindex(2, 3):
        plane = images.numpy()[index]
        gradients = [_gaussian_slope(plane, axis, sigma) for axis in (0, 1)]
        means[index] = (np.hypot(*gradients)[kept] ** p).mean() ** (1 / p)
    expected = means / np.sqrt((means**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(grey_edge(images, p, sigma).numpy(), expected, rtol=1e-12)


def _gaussian_slope(plane, axis, sigma):
    """The derivative along one axis; scaled so that a ramp has its own slope, which SciPy's cut-off filters miss."""
    order = [int(axis == number) for number in range(2)]
    ramp = np.broadcast_to(np.arange(41.0), (41, 41))
    unit = ndimage.gaussian_filter(ramp, sigma, order=(0, 1), mode="nearest", radius=5)[20, 20]
    return ndimage.gaussian_filter(plane, sigma, order=order, mode="nearest", radius=5) / unit


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf")])
def test_grey_edge_of_no_scale_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be finite and positive"):
        grey_edge(grey_level_images(), sigma=sigma)


def test_grey_world_is_the_mean_colour():
    images = torch.tensor([[[0.1, 0.3]], [[0.0, 0.8]], [[0.4, 0.4]]])[None]
    torch.testing.assert_close(grey_world(images), torch.tensor([[1 / 3, 2 / 3, 2 / 3]]))


def test_high_powers_of_a_dark_channel_do_not_underflow():
    images = grey_level_images().float()
    illuminant = torch.tensor([1.0, 1e-5, 1e-8])
    for p in (6.0, 100.0):
        estimate = shades_of_grey(apply_illuminant(images, illuminant), p)
        torch.testing.assert_close(estimate, illuminant.expand(6, 3), rtol=1e-4, atol=0)


def test_balancing_leaves_only_the_geometric_mean_of_the_illuminant():
    images = grey_level_images() * 0.5
    illuminants = random_illuminants(0, range(6), 0.7)
    balanced = balance(apply_illuminant(images, illuminants), illuminants * 3)
    brightness = illuminants.prod(dim=1) ** (1 / 3)
    torch.testing.assert_close(balanced, images * brightness[:, None, None, None], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", BALANCING_METHODS)
def test_the_gain_makes_coloured_light_darkness_and_nothing_else(method):
    """Why the error of balanced images rises with S; the estimates need not be right for it."""
    images = 0.05 * torch.rand(6, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = images * torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)[:, None, None]  # not grey; too dark to clip
    illuminants = random_illuminants(0, range(6), 0.7)
    estimate = BALANCING_METHODS[method]
    lit = apply_illuminant(images, illuminants)
    brightness = illuminants.prod(dim=1) ** (1 / 3)
    expected = balance(images, estimate(images)) * brightness[:, None, None, None]
    torch.testing.assert_close(balance(lit, estimate(lit)), expected, rtol=1e-9, atol=0)


def test_balanced_values_are_clipped():
    images = torch.full((1, 3, 1, 1), 0.9)
    # The geometric mean is 1: gains of 4, 1 and 1/4.
    balanced = balance(images, torch.tensor([[0.25, 1.0, 4.0]]))
    torch.testing.assert_close(balanced.flatten(), torch.tensor([1.0, 0.9, 0.225]))


def test_with_a_brightness_the_light_leaves_no_trace():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lights = torch.tensor([[1.0, 1.0, 1.0], [0.9, 0.2, 0.1], [0.05, 0.5, 0.8], [1e-3, 0.1, 1.0]], dtype=torch.float64)
    found = []
    for light in lights:
        lit = apply_illuminant(images, light.expand(4, 3))
        found.append(balance(lit, grey_world(lit), brightness=0.25))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)
    srgb = distort_srgb(images.float(), lights.float(), requantize=False)
    same = balance_srgb(images.float(), "grey_world", brightness=0.25)
    torch.testing.assert_close(balance_srgb(srgb, "grey_world", brightness=0.25), same, rtol=1e-4, atol=1e-4)
    dim = 0.2 * images  # nothing is clipped, and every channel has the mean itself
    balanced = balance(dim, grey_world(dim), brightness=0.25)
    torch.testing.assert_close(balanced.mean((2, 3)), torch.full((4, 3), 0.25, dtype=torch.float64))
    black = torch.zeros(1, 3, 2, 2)
    assert torch.equal(balance(black, grey_world(black), brightness=0.25), black)
    with pytest.raises(ValueError, match="brightness must be positive, but is 0"):
        balance(images, lights, brightness=0)


def test_a_channel_with_zero_estimate_keeps_gain_one():
    images = torch.full((1, 3, 1, 1), 0.3)
    # Geometric mean of 1 and 4, without the zero: 2.
    balanced = balance(images, torch.tensor([[1.0, 0.0, 4.0]]))
    torch.testing.assert_close(balanced.flatten(), torch.tensor([0.6, 0.3, 0.15]))


@pytest.mark.parametrize("method", BALANCING_METHODS)
def test_black_and_extinguished_channels_stay_black(method):
    images = grey_level_images().clone()
    images[0] = 0
    images[1, 2] = 0
    assert torch.equal(BALANCING_METHODS[method](images)[0], torch.zeros(3, dtype=torch.float64))
    balanced = balance_srgb(images, method)
    torch.testing.assert_close(balanced[0], images[0], rtol=0, atol=0)
    # The other two channels agree already.
    torch.testing.assert_close(balanced[1:], images[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", BALANCING_METHODS)
def test_balancing_srgb_removes_the_distortion(method):
    distorted = distort_srgb(grey_level_images(), random_illuminants(2, range(6), 0.9))
    assert (distorted[:, 0] - distorted[:, 1]).abs().max() > 0.1
    balanced = balance_srgb(distorted, method)
    torch.testing.assert_close(balanced, balanced[:, :1].expand_as(balanced), rtol=0, atol=1e-12)
    # Not by blackening: light is scaled by the illuminant's geometric mean alone, at least (0.1 * 0.1)^(1/3).
    assert balanced.amax(dim=(1, 2, 3)).min() > 0.45


def test_bad_input_is_refused():
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="Unknown balancing method 'gray_world'; choose one of grey_world, shades_of_"):
        balance_srgb(images, "gray_world")
    for p in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="p must be finite and at least 1"):
            shades_of_grey(images, p)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*\(3, 4, 4\)"):
        grey_world(images[0])
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="illuminant must be finite and not negative"):
            balance(images, torch.tensor([value, 1.0, 1.0]))
