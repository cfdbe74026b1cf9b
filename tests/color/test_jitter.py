import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from offset_equivariant.color import (
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)

OPERATIONS = {
    "brightness": (adjust_brightness, reference.adjust_brightness),
    "contrast": (adjust_contrast, reference.adjust_contrast),
    "saturation": (adjust_saturation, reference.adjust_saturation),
    "hue": (adjust_hue, reference.adjust_hue),
}


def example_images(n: int = 32) -> torch.Tensor:
    """Random colours, few-valued colours with many ties between channels, grey levels, black and white."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[4:16] = (images[4:16] * 2).round() / 2
    images[16:20] = images[16:20, :1]
    images[20], images[21] = 0, 1
    return images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvision_image_by_image(name, dtype):
    ours, theirs = OPERATIONS[name]
    images = example_images().to(dtype)
    factors = torch.rand(len(images), generator=torch.Generator().manual_seed(1))
    special = torch.tensor([0.0, 0.5, -0.5, 1 / 3]) if name == "hue" else torch.tensor([0.0, 1.0, 0.5, 3.0])
    factors = factors - 0.5 if name == "hue" else 2 * factors
    factors[:16] = special.repeat(4)
    before = images.clone()
    expected = torch.stack([theirs(image, factor.item()) for image, factor in zip(images, factors, strict=True)])
    result = ours(images, factors)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert torch.equal(images, before), "the input was changed in place"


@pytest.mark.parametrize(
    "jitter", [ColorJitter(0.4, 0.3, 1.5, 0.1), ColorJitter(brightness=0.5, hue=0.5), ColorJitter(contrast=0.7)]
)
def test_jitter_is_the_torchvision_operations_in_the_order_drawn(jitter):
    images = example_images()
    for seed in range(10):
        result = jitter(images, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(4, generator=generator).tolist()
        draws = torch.rand(4, len(images), generator=generator)
        expected = []
        for n, image in enumerate(images):
            for k in order:
                name = list(OPERATIONS)[k]
                strength = getattr(jitter, name)
                low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
                if strength > 0:
                    image = OPERATIONS[name][1](image, low + (high - low) * draws[k, n].item())
            expected.append(image)
        # Contrast and hue may amplify the rounding of what came before.
        torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_factors_are_independent_and_uniform(strength, low, high):
    images = torch.full((4000, 3, 1, 1), 0.4, dtype=torch.float64)
    factors = ColorJitter(brightness=strength)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] / 0.4
    width = high - low
    assert low <= factors.min() < low + 0.01 * width
    assert high - 0.01 * width < factors.max() <= high
    # Four standard errors of the mean of a uniform variable.
    assert abs(factors.mean().item() - (low + high) / 2) < 4 * width / math.sqrt(12 * 4000)
    assert len(factors.unique()) > 3900


def test_the_generator_decides_everything():
    images, jitter = example_images(), ColorJitter(0.4, 0.4, 0.4, 0.1)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    first, second = jitter(images, generator), jitter(images, generator)
    torch.manual_seed(1)
    assert torch.equal(jitter(images, torch.Generator().manual_seed(3)), first)
    assert not torch.equal(first, second)


def test_without_a_generator_torchs_global_random_numbers_decide():
    jitter, images = ColorJitter(0.4, 0.4, 0.4, 0.1), example_images()
    torch.manual_seed(5)
    first, second = jitter(images), jitter(images)
    assert not torch.equal(first, second)
    assert torch.equal(first, jitter(images, torch.Generator().manual_seed(5)))


def test_results_are_images():
    result = ColorJitter(2.0, 2.0, 2.0, 0.5)(example_images(), torch.Generator().manual_seed(0))
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.isfinite().all()


def test_no_strength_is_the_identity():
    images = example_images()
    assert torch.equal(ColorJitter()(images, torch.Generator()), images)


@pytest.mark.parametrize("field", dataclasses.fields(ColorJitter), ids=lambda field: field.name)
def test_strengths_out_of_range_are_refused(field):
    for value in (-0.1, math.nan, math.inf, *((0.51,) if field.name == "hue" else ())):
        with pytest.raises(ValueError, match=f"ColorJitter.{field.name} must be"):
            ColorJitter(**{field.name: value})


def test_bad_images_and_factors_are_refused():
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"floating-point tensor of shape \(N, 3, H, W\).*torch.uint8"):
        ColorJitter(0.1)((images * 255).byte(), torch.Generator())
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*\(3, 4, 4\)"):
        adjust_hue(images[0], torch.zeros(3))
    with pytest.raises(ValueError, match=r"factors must have shape \(2,\)"):
        adjust_contrast(images, torch.ones(3))
    with pytest.raises(ValueError, match=r"factors must be in \[0, inf\], but go from -1"):
        adjust_brightness(images, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"factors must be in \[-0.5, 0.5\]"):
        adjust_hue(images, torch.tensor([0.0, math.nan]))
