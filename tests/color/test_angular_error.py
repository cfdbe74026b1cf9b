import math

import pytest
import torch

from offset_equivariant.color import as_light, recovery_angular_error, reproduction_angular_error


def arccos_degrees(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return math.degrees(math.acos(dot / (math.hypot(*a) * math.hypot(*b))))


def eq_29(estimate: list[float], truth: list[float]) -> float:
    """Eq. 29 as printed, on Python floats."""
    ratios = [e / t for e, t in zip(estimate, truth, strict=True)]
    return math.degrees(math.acos(sum(ratios) / math.sqrt(3 * sum(ratio**2 for ratio in ratios))))


def random_illuminants(seed: int) -> torch.Tensor:
    return torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1


def test_equals_the_scalar_formulas():
    estimate, truth = random_illuminants(0), random_illuminants(1)
    rows = list(zip(estimate.tolist(), truth.tolist(), strict=True))
    for result, expected in (
        (reproduction_angular_error(estimate, truth), [eq_29(e, t) for e, t in rows]),
        (reproduction_angular_error(estimate, truth, ratio="truth_over_estimate"), [eq_29(t, e) for e, t in rows]),
        (recovery_angular_error(estimate, truth), [arccos_degrees(e, t) for e, t in rows]),
    ):
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_two_ratios_differ():
    estimate, truth = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    # (1, 1, 2) and (1, 1, 1/2), each against (1, 1, 1).
    printed = math.degrees(math.acos(4 / math.sqrt(18)))
    finlayson = math.degrees(math.acos(2.5 / math.sqrt(3 * 2.25)))
    assert reproduction_angular_error(estimate, truth).item() == pytest.approx(printed, rel=1e-6)
    other = reproduction_angular_error(estimate, truth, ratio="truth_over_estimate")
    assert other.item() == pytest.approx(finlayson, rel=1e-6)


def test_known_angles():
    x, y = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    white = torch.ones(1, 3)
    assert recovery_angular_error(x, y).item() == pytest.approx(90)
    assert recovery_angular_error(x, x + y).item() == pytest.approx(45)
    assert recovery_angular_error(x, -x).item() == pytest.approx(180)
    assert reproduction_angular_error(x, white).item() == pytest.approx(54.735610317245346)
    assert reproduction_angular_error(white * 7, white).item() == 0


@pytest.mark.parametrize("error", [reproduction_angular_error, recovery_angular_error])
def test_intensity_does_not_matter_even_at_the_ends_of_float32(error):
    estimate, truth = random_illuminants(0).float(), random_illuminants(1).float()
    expected = error(estimate, truth)
    for scale in (1e-15, 1e-25, 1e15, 1e25):
        torch.testing.assert_close(error(estimate * scale, truth), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "angle", "tolerance"), [(torch.float64, 1e-9, 1e-6), (torch.float32, 1e-4, 2e-3)])
def test_small_angles_keep_their_digits(dtype, angle, tolerance):
    # Orthogonal to white and of length tan(angle) relative to it; the arc cosine would give 0 or noise.
    shift = math.tan(angle) * math.sqrt(3) * torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    estimate, truth = (1 + shift).to(dtype)[None], torch.ones(1, 3, dtype=dtype)
    for error in (reproduction_angular_error, recovery_angular_error):
        assert error(estimate, truth).item() == pytest.approx(math.degrees(angle), rel=tolerance)


def test_gradients():
    truth = random_illuminants(1)[:5]
    estimate = random_illuminants(0)[:5].requires_grad_()
    assert torch.autograd.gradcheck(reproduction_angular_error, (estimate, truth))
    assert torch.autograd.gradcheck(recovery_angular_error, (estimate, truth))
    perfect = truth.clone().requires_grad_()
    (reproduction_angular_error(perfect, truth) + recovery_angular_error(perfect, truth)).sum().backward()
    assert perfect.grad.isfinite().all()


def test_mixed_precision_is_computed_in_the_higher():
    estimate, truth = random_illuminants(0).float(), random_illuminants(1)
    assert torch.equal(recovery_angular_error(estimate, truth), recovery_angular_error(estimate.double(), truth))


def test_bad_rows_are_named():
    good = torch.ones(4, 3)
    bad = good.clone()
    bad[1, 2] = 0
    bad[3, 0] = -1
    with pytest.raises(ValueError, match="truth has components that are not strictly positive in 2 of 4 rows: 1, 3"):
        reproduction_angular_error(good, bad)
    with pytest.raises(ValueError, match="estimate has components that are not strictly positive in 2 of 4 rows"):
        reproduction_angular_error(bad, good, ratio="truth_over_estimate")
    assert reproduction_angular_error(bad, good)[1].item() == pytest.approx(math.degrees(math.acos(2 / math.sqrt(6))))
    for value in (0.0, math.nan, math.inf):
        bad = good.clone()
        bad[2] = value
        with pytest.raises(ValueError, match=r"estimate has no direction .* in 1 of 4 rows: 2\."):
            reproduction_angular_error(bad, good)
        with pytest.raises(ValueError, match=r"truth has no direction .* in 1 of 4 rows: 2\."):
            recovery_angular_error(good, bad)


def test_bad_shapes_and_ratio_are_refused():
    with pytest.raises(ValueError, match=r"estimate must have shape \(N, 3\), but its shape is \(3,\)"):
        recovery_angular_error(torch.ones(3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="2 estimates, but 1 true illuminants"):
        reproduction_angular_error(torch.ones(2, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="choose estimate_over_truth or truth_over_estimate"):
        reproduction_angular_error(torch.ones(1, 3), torch.ones(1, 3), ratio="finlayson")


def test_any_colours_as_lights():
    given = torch.tensor([[0.2, 0.4, 0.1], [1.0, 0.0, -3.0], [0.0, 0.0, 0.0], [-1.0, -2.0, 0.0]], dtype=torch.float64)
    expected = [[0.2, 0.4, 0.1], [1.0, 1e-6, 1e-6], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(as_light(given), torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_what_is_not_a_number_is_no_light():
    estimate = as_light(torch.tensor([[1.0, 1.0, 1.0], [1.0, math.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"estimate has no direction .* in 1 of 2 rows: 1"):
        reproduction_angular_error(estimate, torch.ones(2, 3))
