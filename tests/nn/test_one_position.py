import pytest
import torch
from torch import nn
from torch.nn import functional as F

import offset_equivariant as oe
from offset_equivariant.nn import one_position
from offset_equivariant.nn.one_position import pixel_to_whole, whole_to_pixel

LAYOUTS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_whole_image_to_a_pixel_is_the_convolution(layout, bias):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4, 3).double().to(memory_format=layout).requires_grad_()
    weight = torch.randn(9, 6, 4, 3).double().to(memory_format=layout).requires_grad_()
    b = torch.randn(9).double() if bias else None
    found, expected = whole_to_pixel(x, weight, b), F.conv2d(x, weight, b)
    assert found.shape == expected.shape == (5, 9, 1, 1)
    assert_same_with_gradients(found, expected, x, weight)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_pixel_to_a_whole_image_is_the_transposed_convolution(layout, bias):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 1, 1).double().requires_grad_()
    weight = torch.randn(6, 9, 4, 3).double().to(memory_format=layout).requires_grad_()
    b = torch.randn(9).double() if bias else None
    found, expected = pixel_to_whole(x, weight, b), F.conv_transpose2d(x, weight, b)
    assert found.shape == expected.shape == (5, 9, 4, 3)
    assert_same_with_gradients(found, expected, x, weight)


def assert_same_with_gradients(found, expected, *variables):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, variables, direction),
        torch.autograd.grad(expected, variables, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


CONVOLUTIONS = [  # size of the input, then what torch's layer takes; those of one position first
    (4, {"kernel_size": 4}),
    (4, {"kernel_size": 4, "stride": 2}),
    (1, {"kernel_size": 1}),
    (5, {"kernel_size": 4}),
    (2, {"kernel_size": 4, "padding": 1}),
    (3, {"kernel_size": 3, "padding": "same"}),
    (4, {"kernel_size": 4, "groups": 3}),
    (7, {"kernel_size": 4, "dilation": 2}),
]


@pytest.mark.parametrize(("size", "options"), CONVOLUTIONS)
def test_the_conventional_convolution_is_torchs(size, options):
    torch.manual_seed(0)
    ours, torchs = one_position.Conv2d(6, 9, **options).double(), nn.Conv2d(6, 9, **options).double()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, size, size).double()
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "options"), [(s, o) for s, o in CONVOLUTIONS if o.get("padding") != "same"])
def test_the_equivariant_convolution_is_torchs_inside_the_border(size, options):
    torch.manual_seed(0)
    padding = options.get("padding", 0)
    ours = oe.nn.Conv2d(6, 9, **options).double()
    x = torch.randn(2, 6, size, size).double()
    expected = F.conv2d(
        F.pad(x, (padding,) * 4, "replicate"),
        ours.weight,
        ours.bias,
        **{name: value for name, value in options.items() if name in ("stride", "groups", "dilation")},
    )
    torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, {"kernel_size": 4}),
        (1, {"kernel_size": 4, "stride": 4}),
        (1, {"kernel_size": 4, "output_padding": 1, "stride": 2}),
        (1, {"kernel_size": 4, "padding": 1}),
        (1, {"kernel_size": 3, "dilation": 2}),
        (1, {"kernel_size": 4, "groups": 3}),
        (2, {"kernel_size": 4}),
    ],
)
def test_the_conventional_transposed_convolution_is_torchs(size, options):
    torch.manual_seed(0)
    ours, torchs = one_position.ConvTranspose2d(6, 9, **options).double(), nn.ConvTranspose2d(6, 9, **options).double()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, size, size).double()
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-10, atol=1e-10)


def test_an_output_size_is_torchs_to_grant():
    layer = one_position.ConvTranspose2d(6, 9, 4, 2)
    assert layer(torch.randn(1, 6, 1, 1), output_size=(5, 4)).shape == (1, 9, 5, 4)
