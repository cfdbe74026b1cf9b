import colorsys

import matplotlib.colors
import numpy as np
import pytest
import scipy.stats
import torch

from offset_equivariant.color import (
    IlluminantAugmentation,
    apply_illuminant,
    distort_srgb,
    hsv_to_rgb,
    random_hues,
    random_illuminants,
)


def random_hsv(n: int) -> torch.Tensor:
    hsv = torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The corners of the six segments, and full and no saturation.
    hsv[:6, 0] = torch.arange(6) / 6
    hsv[:12:2, 1] = 1
    hsv[1:12:2, 1] = 0
    return hsv


def test_hsv_to_rgb_equals_colorsys_and_matplotlib():
    hsv = random_hsv(500)
    rgb = hsv_to_rgb(*hsv.unbind(-1))
    expected = np.array([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()])
    np.testing.assert_allclose(rgb.numpy(), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(rgb.numpy(), matplotlib.colors.hsv_to_rgb(hsv.numpy()), rtol=0, atol=1e-14)


def test_hsv_to_rgb_broadcasts_and_keeps_the_precision_of_scalars():
    hues = torch.tensor([[0.0, 1 / 3], [2 / 3, 0.5]], dtype=torch.float64)
    rgb = hsv_to_rgb(hues, 0.9, 0.7)
    low = 0.7 * (1 - 0.9)
    expected = [[[0.7, low, low], [low, 0.7, low]], [[low, low, 0.7], [low, 0.7, 0.7]]]
    torch.testing.assert_close(rgb, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    # Nor does a hue's own turn count.
    torch.testing.assert_close(hsv_to_rgb(hues + 3, 0.9, 0.7), rgb, rtol=0, atol=1e-14)


@pytest.mark.parametrize("saturation", [-0.1, 1.01, float("nan"), float("inf")])
def test_saturation_outside_the_unit_interval_is_refused(saturation):
    with pytest.raises(ValueError, match=r"saturation must be in \[0, 1\]"):
        random_illuminants(0, [0], saturation)
    with pytest.raises(ValueError, match=r"saturation must be in \[0, 1\]"):
        hsv_to_rgb(torch.zeros(2), torch.tensor([0.5, saturation]), 1.0)


def test_hues_are_frozen():
    # These decide every test illuminant that was ever reported; they must not change with a version of numpy.
    frozen = [0.6369616873214543, 0.8897387912781343, 0.08082403917318748, 0.6761714419164468]
    assert random_hues(0, [0, 1, 2, 9999]).tolist() == frozen
    assert random_hues(7, [0, 123456]).tolist() == [0.625095466604667, 0.5485306792925199]


def test_a_hue_depends_on_seed_and_index_alone():
    everything = random_hues(3, range(100))
    assert everything.dtype == torch.float64
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(random_hues(3, order), everything[order])
    batches = [random_hues(3, range(start, min(start + 7, 100))) for start in range(0, 100, 7)]
    assert torch.equal(torch.cat(batches), everything)
    assert not (random_hues(4, range(100)) == everything).any()


def test_hues_are_uniform():
    assert scipy.stats.kstest(random_hues(0, range(5000)).numpy(), "uniform").pvalue > 0.01


def test_no_indices_give_no_hues():
    assert random_hues(0, []).shape == (0,)
    assert random_illuminants(0, [], 0.5).shape == (0, 3)


def test_negative_seed_and_index_are_refused():
    with pytest.raises(ValueError, match="seed must not be negative, but is -1"):
        random_hues(-1, [0])
    with pytest.raises(ValueError, match="indices must not be negative, but the smallest is -2"):
        random_hues(0, [3, -2])


@pytest.mark.parametrize("saturation", [0.0, 0.3, 0.9, 1.0])
def test_random_illuminants_have_value_one_the_given_saturation_and_their_hue(saturation):
    illuminants = random_illuminants(5, range(200), saturation)
    assert illuminants.dtype == torch.float64
    assert (illuminants.amax(1) == 1).all()
    assert (illuminants.amin(1) == 1 - saturation).all()
    if saturation > 0:
        hues = [colorsys.rgb_to_hsv(*row)[0] for row in illuminants.tolist()]
        np.testing.assert_allclose(hues, random_hues(5, range(200)).numpy(), rtol=0, atol=1e-12)


def test_von_kries_multiplies_each_channel_of_each_image():
    images = torch.rand(2, 3, 4, 5)
    illuminants = torch.tensor([[1.0, 0.5, 0.25], [0.1, 1.0, 0.0]], dtype=torch.float64)
    lit = apply_illuminant(images, illuminants)
    assert lit.dtype == torch.float32
    for n in range(2):
        for c in range(3):
            torch.testing.assert_close(lit[n, c], images[n, c] * illuminants[n, c].item())
    assert torch.equal(apply_illuminant(images, illuminants[0]), apply_illuminant(images, illuminants[[0, 0]]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"illuminant must have shape \(3,\) or \(4, 3\).*\(2, 3\)"):
        apply_illuminant(torch.rand(4, 3, 2, 2), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\).*\(3, 8, 8\)"):
        apply_illuminant(torch.rand(3, 8, 8), torch.rand(3))


def test_whole_numbers_are_refused():
    with pytest.raises(TypeError, match="hue must be a floating-point tensor"):
        hsv_to_rgb(torch.tensor(0), 0.5, 1.0)
    with pytest.raises(TypeError, match="linear must be a floating-point tensor"):
        apply_illuminant(torch.ones(1, 3, 2, 2, dtype=torch.int32), torch.tensor([1.0, 0.5, 0.5]))


def distort_pixel(value: float, gain: float) -> float:
    linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
    linear *= gain
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def test_distortion_equals_the_scalar_formula():
    images = torch.rand(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    illuminants = random_illuminants(0, [0, 1], 0.9)
    gains = illuminants[..., None, None].expand_as(images)
    pairs = zip(images.flatten().tolist(), gains.flatten().tolist(), strict=True)
    expected = torch.tensor([distort_pixel(*pair) for pair in pairs], dtype=torch.float64).reshape(images.shape)
    torch.testing.assert_close(distort_srgb(images, illuminants), expected, rtol=0, atol=1e-14)
    eight_bit = (expected * 255).round() / 255
    torch.testing.assert_close(distort_srgb(images, illuminants, requantize=True), eight_bit, rtol=0, atol=1e-14)


def test_distortion_by_a_neutral_illuminant_changes_nothing_and_only_requantisation_clips():
    images = torch.arange(256, dtype=torch.float64).reshape(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    torch.testing.assert_close(distort_srgb(images, random_illuminants(0, [0], 0.0)), images, rtol=0, atol=1e-12)
    bright = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    assert distort_srgb(images, bright).max() > 1.3
    assert distort_srgb(images, bright, requantize=True).max() == 1


def test_augmentation_draws_hue_and_saturation_uniformly():
    white = torch.ones(4000, 3, 1, 2, dtype=torch.float64)
    lit = IlluminantAugmentation(0.8)(white, torch.Generator().manual_seed(3))
    assert torch.equal(lit[..., 0], lit[..., 1])
    hsv = matplotlib.colors.rgb_to_hsv(lit[:, :, 0, 0].numpy())
    assert scipy.stats.kstest(hsv[:, 0], "uniform").pvalue > 0.01
    assert scipy.stats.kstest(hsv[:, 1] / 0.8, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(hsv[:, 0], hsv[:, 1])[0, 1]) < 0.05
    np.testing.assert_allclose(hsv[:, 2], 1)


def test_augmentation_multiplies_channels():
    images = torch.rand(3, 3, 5, 4)
    light = IlluminantAugmentation()(torch.ones(3, 3, 1, 1), torch.Generator().manual_seed(0))
    lit = IlluminantAugmentation()(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(lit, images * light)


def test_augmentation_without_a_generator_draws_from_torchs_global_random_numbers():
    white = torch.ones(2, 3, 1, 1)
    torch.manual_seed(5)
    first, second = IlluminantAugmentation()(white), IlluminantAugmentation()(white)
    assert not torch.equal(first, second)
    assert torch.equal(first, IlluminantAugmentation()(white, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("saturation", [0.0, 1.1])
def test_augmentation_refuses_other_saturations(saturation):
    with pytest.raises(ValueError, match=rf"largest_saturation must be in \(0, 1\], but is {saturation}"):
        IlluminantAugmentation(saturation)
