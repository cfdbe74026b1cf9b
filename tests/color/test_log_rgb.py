import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offset_equivariant.color import (
    AbsoluteClipping,
    FilledClipping,
    RelativeClipping,
    apply_illuminant,
    linear_to_log_rgb,
    log_rgb_to_linear,
    make_clipping,
)


def images_with_deep_shadows(seed: int = 0) -> torch.Tensor:
    """Linear values over many decades, with exact zeros: every clipping has something to clip."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=generator) ** 12
    images[:, :, 0, :4] = 0
    return images


def equivariance_error(clipping, illuminant: torch.Tensor) -> float:
    """Largest deviation from Eq. 24."""
    images = images_with_deep_shadows()
    plain = linear_to_log_rgb(images, clipping)
    lit = linear_to_log_rgb(apply_illuminant(images, illuminant), clipping)
    return (lit - (plain - illuminant.log()[..., None, None])).abs().max().item()


illuminants = st.lists(st.floats(0.1, 1.0), min_size=12, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64).reshape(4, 3)
)


@settings(deadline=None, max_examples=50)
@given(illuminants, st.sampled_from([1e-4, 1e-3, 0.1]))
def test_relative_clipping_is_equivariant(illuminant, fraction):
    clipping = RelativeClipping(fraction)
    assert (clipping(images_with_deep_shadows()) != images_with_deep_shadows()).any()
    assert equivariance_error(clipping, illuminant) < 1e-12


def test_absolute_clipping_is_not_equivariant():
    illuminant = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    # A black pixel stays at epsilon, so it misses the whole offset.
    assert equivariance_error(AbsoluteClipping(), illuminant) == pytest.approx(math.log(10), abs=1e-12)


def test_log_rgb_is_the_logarithm_of_the_reciprocal():
    linear = torch.tensor([1.0, 0.5, 2e-4, 1e-4, 0.0], dtype=torch.float64)
    expected = [0.0, math.log(2), math.log(5000), math.log(5000), math.log(5000)]
    result = linear_to_log_rgb(linear, AbsoluteClipping(2e-4))
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_round_trip_gives_the_clipped_image():
    images = images_with_deep_shadows()
    for clipping in (AbsoluteClipping(), RelativeClipping()):
        result = log_rgb_to_linear(linear_to_log_rgb(images, clipping))
        torch.testing.assert_close(result, clipping(images), rtol=1e-13, atol=0)


def test_relative_threshold_is_the_fraction_of_each_channels_own_mean():
    images = torch.tensor([[[[0.0, 0.8]], [[0.02, 0.38]], [[0.5, 0.5]]], [[[0.0, 0.08]], [[1.0, 1.0]], [[0.3, 0.1]]]])
    expected = torch.tensor(
        [[[[0.04, 0.8]], [[0.02, 0.38]], [[0.5, 0.5]]], [[[0.004, 0.08]], [[1.0, 1.0]], [[0.3, 0.1]]]]
    )
    torch.testing.assert_close(RelativeClipping(fraction=0.1)(images), expected)


def test_negative_values_count_as_zero_in_the_mean():
    images = torch.tensor([-5.0, 1.0]).reshape(1, 1, 1, 2)
    expected = torch.tensor([0.005, 1.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(RelativeClipping(fraction=0.01)(images), expected)


def test_an_extinguished_channel_becomes_the_zero_value_and_leaves_the_others_alone():
    images = images_with_deep_shadows()
    clipping = RelativeClipping(zero_value=3e-4)
    expected = clipping(images)
    images[1, 2] = 0
    expected[1, 2] = 3e-4
    assert torch.equal(clipping(images), expected)
    assert linear_to_log_rgb(images, clipping).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0, -1e-3, math.nan, math.inf, "2e-4"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("absolute", "epsilon"),
        ("relative", "fraction"),
        ("relative", "zero_value"),
        ("filled", "fraction"),
        ("filled", "zero_value"),
    ],
)
def test_parameters_out_of_range_are_refused(name, field, value):
    with pytest.raises(ValueError, match=f"{field} must be a number strictly between 0 and 1"):
        make_clipping(name, **{field: value})


def test_make_clipping():
    assert make_clipping("absolute") == AbsoluteClipping(2e-4)
    assert make_clipping("relative", fraction=0.01) == RelativeClipping(0.01, 2e-4)
    assert make_clipping("filled", fraction=0.01) == FilledClipping(0.01, 2e-4)
    with pytest.raises(ValueError, match="Unknown clipping 'relativ'; choose one of absolute, relative, filled"):
        make_clipping("relativ")
    with pytest.raises(ValueError, match="'relative' has no parameter epsilon; it takes fraction, zero_value"):
        make_clipping("relative", epsilon=1e-4)


@pytest.mark.parametrize("clipping", [RelativeClipping(), FilledClipping()])
def test_an_unbatched_image_is_refused(clipping):
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\).*\(3, 8, 8\)"):
        clipping(torch.rand(3, 8, 8))


def covered_image():
    """An image with a covered chart, a pixel that is black in one channel, and a very dark valid one."""
    image = 0.05 + 0.9 * torch.rand(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    image[:, :, :2, :2] = 0
    image[0, 1, 3, 3] = 0
    image[1, 2, 4, 4] = 1e-9
    return image


@pytest.mark.parametrize("fraction", [1e-3, 0.5])
def test_filled_clipping_is_equivariant_where_relative_clipping_fills_nothing(fraction):
    images = covered_image()
    light = torch.tensor([[1.0, 0.3, 0.01], [0.2, 1.0, 0.7]], dtype=torch.float64)
    clipping = FilledClipping(fraction, 2e-4)
    moved = linear_to_log_rgb(images * light[:, :, None, None], clipping) - linear_to_log_rgb(images, clipping)
    torch.testing.assert_close(moved, -light.log()[:, :, None, None].expand_as(moved), rtol=0, atol=1e-12)


def test_filled_clipping_by_hand():
    images = covered_image()
    found = FilledClipping(1e-2, 2e-4)(images)
    for image, before in zip(found.numpy(), images.numpy(), strict=True):
        valid = (before > 0).all(0)
        for channel, values in zip(image, before, strict=True):
            clipped = np.maximum(values[valid], 1e-2 * values[valid].mean())
            np.testing.assert_allclose(channel[valid], clipped, rtol=1e-13)
            np.testing.assert_allclose(channel[~valid], np.exp(np.log(clipped).mean()), rtol=1e-13)
    assert (images == 0).sum() == 25 and (found > 0).all()


def test_filled_clipping_of_channels_and_images_without_light():
    images = covered_image()
    without = images.clone()
    without[:, 2] = 0
    found, expected = (FilledClipping(1e-3, 2e-4)(x) for x in (without, images[:, :2]))
    torch.testing.assert_close(found[:, :2], expected, rtol=1e-13, atol=0)
    assert (found[:, 2] == 2e-4).all()
    black = torch.zeros(1, 3, 2, 2)
    assert (FilledClipping()(black) == torch.tensor(2e-4)).all()
    never = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(1, 2, 2).reshape(1, 2, 1, 2) * 0.5
    assert (FilledClipping()(never) == torch.tensor(2e-4)).all()


@pytest.mark.parametrize("clipping", [AbsoluteClipping(), RelativeClipping(), FilledClipping()])
def test_whole_numbers_are_refused(clipping):
    bytes_of_images = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"linear must be a floating-point tensor .*; divide 8-bit values by 255"):
        linear_to_log_rgb(bytes_of_images, clipping)
    with pytest.raises(TypeError, match="linear must be a floating-point tensor"):
        clipping(bytes_of_images)


@pytest.mark.parametrize("clipping", [RelativeClipping(), FilledClipping()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dark_images_in_half_precision_have_a_logarithm(clipping, dtype):
    """A thousandth of a mean of 3e-5 is less than float16 has numbers for."""
    linear = (3e-5 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    linear[0, :, 0, 0] = 0
    assert (clipping(linear) > 0).all()
    log_rgb = linear_to_log_rgb(linear, clipping)
    assert log_rgb.dtype == dtype
    expected = linear_to_log_rgb(linear.double(), clipping)
    torch.testing.assert_close(log_rgb.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
