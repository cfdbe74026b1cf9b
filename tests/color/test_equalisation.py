import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.autograd import gradcheck

from offset_equivariant.color import (
    apply_illuminant,
    code_input,
    equalise_histogram,
    gradient_directions,
    random_illuminants,
    sobel_gradients,
)


def images(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equalised_by_loops(values, bins):
    """One image, number by number."""
    counts = [0] * bins
    for value in values:
        counts[int(np.floor(value * (bins - 2)))] += 1
    counts[0] = 0
    total = max(1, sum(counts))
    shares = [sum(counts[: k + 1]) / total for k in range(bins)]
    found = []
    for value in values:
        k = int(np.floor(value * (bins - 2)))
        rest = value * (bins - 2) - k
        found.append((1 - rest) * shares[k] + rest * shares[k + 1])
    return found


@pytest.mark.parametrize("bins", [3, 64])
def test_equalisation_equals_a_plain_loop(bins):
    values = images(3, 1, 8, 9) ** torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64)[:, None, None, None]
    values[1, 0, 0, :2] = torch.tensor([0.0, 1.0])
    expected = [equalised_by_loops(one.flatten().tolist(), bins) for one in values]
    found = equalise_histogram(values, bins)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=0, atol=1e-13)


def test_large_images_of_few_digits_are_counted_to_the_last_pixel():
    values = torch.randint(129, (1, 300, 300), generator=torch.Generator().manual_seed(0)) / 128  # exact in bfloat16
    found = equalise_histogram(values.bfloat16(), bins=66)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), equalise_histogram(values.double(), bins=66), rtol=2**-7, atol=2**-9)


def test_equalised_values_are_spread_evenly_and_keep_their_order():
    values = images(1, 60, 60) ** 3
    found = equalise_histogram(values)[0].flatten()
    order = values.flatten().argsort()
    assert (found[order].diff() >= 0).all() and found.min() >= 0 and found.max() <= 1
    # A share of the pixels a bin wide at most, and the lowest bin's share, lie between a value and its rank.
    counts = torch.bincount((values.flatten() * 62).long(), minlength=64) / 3600
    ranks = torch.arange(1, 3601, dtype=torch.float64) / 3600
    assert (found[order] - ranks).abs().max() <= 2 * counts.max()


def test_a_common_change_of_the_light_alters_the_intensity_by_its_bins_alone():
    values = images(1, 60, 60) + 0.2
    values = values / values.max()
    change = (equalise_histogram(0.6 * values**1.2) - equalise_histogram(values)).abs().max()
    counts = torch.bincount((0.6 * values**1.2 * 62).long().flatten(), minlength=64) / 3600
    assert 0 < change < 2 * counts.max() < 0.1


def test_values_outside_count_as_the_ends_and_black_stays_black():
    values = torch.tensor([[-0.5, 0.0, 0.5, 1.0, 1.5], [0.0, 0.0, 0.0, 0.0, 0.01]])
    expected = equalise_histogram(torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))
    found = equalise_histogram(values)
    torch.testing.assert_close(found[:1], expected, rtol=0, atol=0)
    assert torch.equal(found[1], torch.zeros(5))
    torch.testing.assert_close(equalise_histogram(torch.ones(1, 4)), torch.ones(1, 4), rtol=0, atol=0)


def test_images_are_equalised_one_by_one():
    batch = images(4, 1, 6, 6)
    alone = torch.cat([equalise_histogram(one[None]) for one in batch])
    torch.testing.assert_close(equalise_histogram(batch), alone, rtol=0, atol=0)


def test_gradients_are_those_of_sobel():
    batch = images(2, 3, 7, 5)
    for n, c in np.ndindex(2, 3):
        plane = batch[n, c].numpy()
        for direction, axis in enumerate((1, 0)):
            expected = ndimage.sobel(plane, axis, mode="constant")
            np.testing.assert_allclose(sobel_gradients(batch)[n, c, direction].numpy(), expected, atol=1e-14)
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    assert torch.equal(sobel_gradients(ramp)[0, 0, :, 2, 2], torch.tensor([8.0, 0.0]))


def test_directions_are_gradients_of_unit_length():
    batch = images(2, 3, 7, 5)
    gradients = sobel_gradients(batch)
    expected = (gradients / torch.linalg.vector_norm(gradients, dim=2, keepdim=True)).flatten(1, 2)
    torch.testing.assert_close(gradient_directions(batch), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_where_nothing_changes_there_is_no_direction(scale):
    flat = scale * torch.tensor([0.3, 0.7, 0.9])[None, :, None, None].expand(1, 3, 6, 6)
    directions = gradient_directions(flat)
    assert torch.equal(directions[..., 1:-1, 1:-1], torch.zeros(1, 6, 4, 4))
    # Towards the zeros around the image there is one.
    torch.testing.assert_close(directions[0, :, 2, 0], torch.tensor([1.0, 0.0] * 3))


@pytest.mark.parametrize("saturation", [0.5, 0.95])
def test_directions_do_not_see_a_von_kries_illuminant(saturation):
    batch = images(6, 3, 8, 8)
    lit = apply_illuminant(batch, random_illuminants(0, range(6), saturation))
    torch.testing.assert_close(gradient_directions(lit), gradient_directions(batch), rtol=0, atol=1e-12)


def test_the_code_is_intensity_then_directions():
    batch = images(2, 3, 8, 8)
    coded = code_input(batch)
    assert coded.shape == (2, 7, 8, 8)
    intensity = batch.numpy().mean(1)
    for n in range(2):
        expected = 2 * np.array(equalised_by_loops(intensity[n].ravel(), 64)) - 1
        np.testing.assert_allclose(coded[n, 0].flatten().numpy(), expected, atol=1e-12)
    assert torch.equal(coded[:, 1:], gradient_directions(batch))


@pytest.mark.parametrize("function", [lambda x: equalise_histogram(x, 10), gradient_directions, code_input])
def test_derivatives(function):
    batch = images(2, 3, 4, 4, seed=5).requires_grad_()
    assert gradcheck(function, batch)


def test_derivatives_exist_where_there_is_no_gradient():
    flat = torch.full((1, 3, 5, 5), 0.5, requires_grad=True)
    code_input(flat).sum().backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("function", "given", "error", "message"),
    [
        (equalise_histogram, torch.zeros(1, 4, dtype=torch.uint8), TypeError, "values must be a floating-point tensor"),
        (equalise_histogram, torch.tensor([[0.0, float("nan")]]), ValueError, "values must be finite"),
        (lambda x: equalise_histogram(x, 2), torch.zeros(1, 4), ValueError, "bins must be at least 3, but is 2"),
        (gradient_directions, torch.zeros(3, 4, 4), ValueError, r"must have shape \(N, C, H, W\)"),
        (code_input, torch.zeros(1, 4, 4, 4), ValueError, r"must have shape \(N, 3, H, W\), but its shape is"),
    ],
)
def test_wrong_images_are_refused(function, given, error, message):
    with pytest.raises(error, match=message):
        function(given)
