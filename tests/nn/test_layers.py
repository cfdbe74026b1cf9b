import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import offset_equivariant as oe
from offset_equivariant.nn import check_equivariance

CONVOLUTIONS = {1: oe.nn.Conv1d, 2: oe.nn.Conv2d, 3: oe.nn.Conv3d}
PLAIN = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


@st.composite
def convolutions(draw, dimensions):
    """Arguments of a convolution and a fitting input shape."""

    def axes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dimensions))

    offset_groups = draw(st.sampled_from([1, 2, 3, 31]))
    few = 1 if offset_groups == 31 or dimensions == 3 else 2
    groups = draw(st.sampled_from([1, 1, offset_groups, 2]))
    factor = 2 if groups == 2 and offset_groups % 2 else 1
    inputs, outputs = (offset_groups * factor * draw(st.integers(1, few)) for _ in range(2))
    mode = draw(st.sampled_from(["replicate", "reflect", "circular"]))
    kernel_size, dilation, padding = axes(1, 3), axes(1, 2), axes(0, 2)
    # Large enough for the kernel, and for reflection.
    size = tuple(max((k - 1) * d + 1, 3) + draw(st.integers(0, 2)) for k, d in zip(kernel_size, dilation, strict=True))
    return (
        (inputs, outputs, kernel_size),
        {
            "stride": axes(1, 3),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": draw(st.booleans()),
            "padding_mode": mode,
            "offset_groups": offset_groups,
            "constraint": draw(st.sampled_from(["parametrization", "projection"])),
        },
        (2, inputs, *size),
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_convolutions_are_equivariant(dimensions, data, assert_equivariant):
    arguments, options, shape = data.draw(convolutions(dimensions))
    layer = CONVOLUTIONS[dimensions](*arguments, **options)
    assert_equivariant(layer, shape, offset_groups=options["offset_groups"], magnitudes=(1.0, 1000.0))


@given(
    offset_groups=st.sampled_from([1, 2, 3, 31]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    bias=st.booleans(),
    constraint=st.sampled_from(["parametrization", "projection"]),
)
@settings(max_examples=40, deadline=None)
def test_linear_is_equivariant(offset_groups, inputs, outputs, bias, constraint, assert_equivariant):
    layer = oe.nn.Linear(
        inputs * offset_groups, outputs * offset_groups, bias, offset_groups=offset_groups, constraint=constraint
    )
    assert_equivariant(layer, (2, inputs * offset_groups), offset_groups=offset_groups)


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
@pytest.mark.parametrize("padding_mode", ["replicate", "reflect", "circular"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_compute_what_torchs_do(dimensions, padding_mode, constraint):
    options = {"stride": 2, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": padding_mode}
    layer = CONVOLUTIONS[dimensions](6, 9, 3, **options, constraint=constraint)
    plain = PLAIN[dimensions](6, 9, 3, **options)
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    x = torch.randn(2, 6, *(7, 6, 5)[:dimensions], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-6)


def test_signatures_follow_torchs():
    layer = oe.nn.Conv2d(6, 9, (3, 1), 2, "valid", 1, 3, False, "circular", "cpu", torch.float64, offset_groups=3)
    assert (layer.kernel_size, layer.stride, layer.groups, layer.bias) == ((3, 1), (2, 2), 3, None)
    assert (layer.padding_mode, layer.weight.dtype, tuple(layer.weight.shape)) == (
        "circular",
        torch.float64,
        (9, 2, 3, 1),
    )
    linear = oe.nn.Linear(6, 9, False, "cpu", torch.float64)
    assert (linear.bias, linear.weight.dtype, tuple(linear.weight.shape)) == (None, torch.float64, (9, 6))
    # torch's defaults, but for the padding mode, which has to use the input.
    assert (oe.nn.Conv2d(3, 3, 3).padding, oe.nn.Conv2d(3, 3, 3).padding_mode) == ((0, 0), "replicate")


def test_same_padding_is_equivariant(assert_equivariant):
    layer = oe.nn.Conv2d(3, 6, (2, 3), padding="same", dilation=(1, 2))
    assert layer(torch.zeros(1, 3, 5, 6)).shape == (1, 6, 5, 6)
    assert_equivariant(layer, (2, 3, 5, 6))


def test_a_linear_example_by_hand():
    layer = oe.nn.Linear(4, 2, offset_groups=2, constraint="projection")
    layer.load_state_dict({"weight": torch.tensor([[3.0, 1, 2, 4], [0, 2, 1, -1]]), "bias": torch.tensor([1.0, -1])})
    layer.project_()
    # Each pair of weights moves alike until it sums to 1 or 0.
    assert layer.weight.tolist() == [[1.5, -0.5, -1, 1], [-1, 1, 1.5, -0.5]]
    x = torch.tensor([[1.0, 2, 3, 4]])
    assert layer(x).tolist() == [[2.5, 2.5]]
    assert layer(x + torch.tensor([10.0, 10, 20, 20])).tolist() == [[12.5, 22.5]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oe.nn.Linear(10, 9), "in_features = 10 .* offset_groups = 3; .* 9 or 12"),
        (lambda: oe.nn.Linear(9, 16), "out_features = 16 .* offset_groups = 3; .* 15 or 18"),
        (lambda: oe.nn.Conv1d(2, 9, 3), "in_channels = 2 .* offset_groups = 3; .* is 3"),
        (lambda: oe.nn.Conv2d(3, 32, 3), "out_channels = 32 .* offset_groups = 3; .* 30 or 33"),
        (lambda: oe.nn.Conv3d(31, 40, 3, offset_groups=31), "out_channels = 40 .* offset_groups = 31; .* 31 or 62"),
        (lambda: oe.nn.Conv2d(3, 3, 3, padding=1, padding_mode="zeros"), "'zeros' would break .* replicate, reflect"),
        (lambda: oe.nn.Conv2d(6, 6, 3, constraint="eq17"), "'eq17' is not one of parametrization, projection"),
    ],
)
def test_errors_say_what_is_wrong_and_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("network", "shape", "breaking"),
    [
        (torch.nn.Sequential(torch.nn.ZeroPad2d(1), oe.nn.Conv2d(3, 3, 3)), (2, 3, 5, 5), "0"),
        (torch.nn.Sequential(oe.nn.Conv1d(3, 6, 1), torch.nn.Conv1d(6, 6, 1)), (2, 3, 5), "1"),
        (torch.nn.Linear(6, 6), (2, 6), ""),
    ],
)
def test_plain_layers_and_zero_padding_break_equivariance(network, shape, breaking):
    report = check_equivariance(network, shape)
    assert not report.equivariant
    assert report.worst() > 1e-2
    assert report.first_breaking == breaking


def test_printing_tells_groups_and_constraint():
    assert repr(oe.nn.Conv2d(6, 9, 3, constraint="projection")).endswith("offset_groups=3, constraint='projection')")
    assert "offset_groups=2, constraint='parametrization'" in repr(oe.nn.Linear(4, 2, offset_groups=2))
