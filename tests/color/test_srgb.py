import pytest
import torch

from offset_equivariant.color import linear_to_srgb, srgb_lookup_table, srgb_to_linear


def decode(value: float) -> float:
    """IEC 61966-2-1 on one Python float."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def encode(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


GRID = [i / 1000 for i in range(1001)] + [0.04045, 0.040451, 0.0031308, 0.0031309, 1e-8, 1.5, -0.1]


@pytest.mark.parametrize(("function", "scalar"), [(srgb_to_linear, decode), (linear_to_srgb, encode)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-7)])
def test_equals_the_scalar_formula(function, scalar, dtype, tolerance):
    values = torch.tensor(GRID, dtype=dtype)
    expected = torch.tensor([scalar(value) for value in values.tolist()], dtype=torch.float64)
    result = function(values)
    assert result.dtype == dtype
    # Relative above 1, where the last place counts for more; absolute where the curve's subtraction cancels.
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_known_values():
    values = torch.tensor([0.0, 0.5, 188 / 255, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.21404114048223255, 0.502886458033, 1.0], dtype=torch.float64)
    torch.testing.assert_close(srgb_to_linear(values), expected, rtol=0, atol=1e-12)


def test_round_trip():
    values = torch.rand(2, 3, 50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The standard's two rounded thresholds disagree by 6e-8 in encoded units, hence no better than 1e-7.
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)
    eight_bit = torch.arange(256)
    encoded = linear_to_srgb(srgb_lookup_table())
    assert torch.equal((encoded * 255).round().long(), eight_bit)


@pytest.mark.parametrize(("function", "slope"), [(srgb_to_linear, 1 / 12.92), (linear_to_srgb, 12.92)])
def test_gradient_is_the_slope_of_the_linear_segment_at_and_below_zero(function, slope):
    values = torch.tensor([-1.0, -0.06, 0.0, 1e-4], dtype=torch.float64, requires_grad=True)
    function(values).sum().backward()
    torch.testing.assert_close(values.grad, torch.full_like(values, slope))


@pytest.mark.parametrize("function", [srgb_to_linear, linear_to_srgb])
def test_gradient_on_the_curve(function):
    values = torch.linspace(0.05, 1.2, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, values)


def test_lookup_table_is_the_float64_formula_rounded_once():
    expected = torch.tensor([decode(i / 255) for i in range(256)], dtype=torch.float64)
    torch.testing.assert_close(srgb_lookup_table(dtype=torch.float64), expected, rtol=1e-15, atol=0)
    assert srgb_lookup_table().dtype == torch.float32
    assert torch.equal(srgb_lookup_table(), srgb_lookup_table(dtype=torch.float64).float())


@pytest.mark.parametrize(("function", "name"), [(srgb_to_linear, "srgb"), (linear_to_srgb, "linear")])
def test_integer_input_is_refused(function, name):
    with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor.*torch.uint8"):
        function(torch.zeros(3, dtype=torch.uint8))
