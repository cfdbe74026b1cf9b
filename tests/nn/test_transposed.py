"""Transposed convolutions: equivariance for every setting, against torch's own layer inside, and by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.nn import (
    Conventional,
    ConvTranspose1d,
    ConvTranspose2d,
    OffsetEquivariant,
    check_equivariance,
    project_,
)
from offset_equivariant.nn.constraint import _phases_of_taps, project_transposed_weight

ONE = [
    (size, stride, padding, extra, dilation)
    for size, stride, padding, extra, dilation in product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1, 2), (1, 2, 3))
    if extra < max(stride, dilation) and len({t * dilation % stride for t in range(size)}) == stride
]


def torchs(kind, layer, *arguments, **options):
    """torch's layer with the same weights."""
    other = kind(*arguments, **options).double()
    other.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    return other


@pytest.mark.parametrize(("size", "stride", "padding", "extra", "dilation"), ONE)
def test_equivariant_and_of_torchs_size_whatever_the_setting(size, stride, padding, extra, dilation):
    arguments = (6, 9, size, stride, padding, extra)
    layer = ConvTranspose1d(*arguments, dilation=dilation).double()
    project_(layer)
    length = 14
    plain = torchs(nn.ConvTranspose1d, layer, *arguments, dilation=dilation)
    x = torch.randn(2, 6, length, dtype=torch.float64)
    expected, found = plain(x), layer(x)
    assert found.shape == expected.shape
    assert check_equivariance(layer, (2, 6, length)).worst() < 1e-12
    # Where all taps of torch's layer meet an input, the two are the same.
    whole = nn.ConvTranspose1d(*arguments, dilation=dilation, bias=False).double()
    nn.init.ones_(whole.weight)
    taps = whole(torch.ones(1, 6, length, dtype=torch.float64))[0, 0] / 6
    phases = torch.bincount(torch.arange(size) * dilation % stride, minlength=stride)
    inside = taps == phases[(torch.arange(len(taps)) + padding) % stride]
    assert inside.any()
    torch.testing.assert_close(found[..., inside], expected[..., inside], rtol=1e-12, atol=1e-12)


def test_the_border_is_that_of_an_input_that_goes_on():
    layer = ConvTranspose2d(3, 6, (4, 3), (2, 1), (1, 0), dilation=(1, 2)).double()
    plain = torchs(nn.ConvTranspose2d, layer, 3, 6, (4, 3), (2, 1), (1, 0), dilation=(1, 2))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    wide = plain(nn.functional.pad(x, (8, 8, 8, 8), mode="replicate"))
    found = layer(x)
    torch.testing.assert_close(found, wide[:, :, 16 : 16 + found.shape[2], 8 : 8 + found.shape[3]])


@pytest.mark.parametrize("groups", [1, 3])
def test_two_dimensions_and_torchs_groups(groups):
    layer = ConvTranspose2d(9, 6, 4, 2, 1, groups=groups).double()
    project_(layer)
    assert check_equivariance(layer, (2, 9, 5, 4)).worst() < 1e-12
    assert layer(torch.zeros(1, 9, 5, 4, dtype=torch.float64)).shape == (1, 6, 10, 8)


def test_from_one_pixel_to_a_block_every_output_has_its_own_tap():
    torch.manual_seed(0)
    layer = ConvTranspose2d(6, 3, 4, stride=4).double()
    project_(layer)
    x = torch.randn(2, 6, 1, 1, dtype=torch.float64)
    plain = torchs(nn.ConvTranspose2d, layer, 6, 3, 4)  # of stride 1: the same, of one pixel
    torch.testing.assert_close(layer(x), plain(x))
    assert check_equivariance(layer, (2, 6, 1, 1)).worst() < 1e-12 and layer(x).std((2, 3)).min() > 0.01


def test_output_size_can_be_asked_for():
    layer = ConvTranspose2d(3, 3, 3, 2, 1)
    x = torch.randn(1, 3, 4, 4)
    assert layer(x).shape[2:] == (7, 7) and layer(x, output_size=(8, 7)).shape[2:] == (8, 7)
    torch.testing.assert_close(layer(x, output_size=(8, 8))[..., :7, :7], layer(x))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=(12, 7))


def test_projection_is_the_nearest_weight_with_all_phases_right():
    rng = np.random.default_rng(0)
    weight, stride, dilation = rng.normal(size=(6, 3, 5)), 2, 3
    found = project_transposed_weight(torch.from_numpy(weight), 3, (stride,), (dilation,)).numpy()
    rows, targets = [], []
    for output, group, phase in product(range(3), range(3), range(stride)):
        row = np.zeros_like(weight)
        taps = [tap for tap in range(5) if tap * dilation % stride == phase]
        row[2 * group : 2 * group + 2, output, taps] = 1
        rows.append(row.ravel())
        targets.append(float(output == group))
    a = np.array(rows)
    expected = weight.ravel() - np.linalg.pinv(a) @ (a @ weight.ravel() - targets)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-12)
    again = project_transposed_weight(torch.from_numpy(found), 3, (stride,), (dilation,))
    np.testing.assert_allclose(again.numpy(), found, atol=1e-14)


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
def test_learns_and_stays_equivariant(constraint):
    torch.manual_seed(0)
    layer = ConvTranspose2d(3, 6, 4, 2, 1, constraint=constraint).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, target = torch.randn(4, 3, 4, 4).double(), torch.randn(4, 6, 8, 8).double()
    losses = []
    for _ in range(20):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        project_(layer)
        losses.append(loss.item())
    assert losses[-1] < losses[0] and check_equivariance(layer, (2, 3, 4, 4)).worst() < 1e-12
    other = ConvTranspose2d(3, 6, 4, 2, 1, constraint="projection").double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 6, 1, 2), {}, "kernel_size = 1 with stride = 2 and dilation = 1 leaves outputs that no input reaches"),
        ((3, 6, 4, 2), {"dilation": 2}, "let dilation and stride have no common divisor"),
        ((4, 6, 4, 2), {}, "in_channels = 4 cannot be split evenly into offset_groups = 3"),
        ((6, 6, 4, 2), {"groups": 4}, "in_channels = 6 cannot be split evenly into groups = 4"),
        ((3, 6, 4, 2, -1), {}, "padding = -1 must not be negative"),
        ((3, 6, 4, 2, 1, -1), {}, "output_padding = -1 must be at least 0 and below the larger of stride = 2"),
        ((3, 6, 4, 2, 1, 2), {}, "output_padding = 2 must be at least 0 and below the larger of stride = 2"),
        ((3, 6, 3, 1, 0, 1), {}, "output_padding = 1 must be at least 0 and below the larger of stride = 1"),
    ],
)
def test_what_cannot_be_equivariant_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ConvTranspose2d(*arguments, **options)
    with pytest.raises(ValueError, match="expected a batch"):
        ConvTranspose2d(3, 3, 2)(torch.zeros(3, 4, 4))


class UNet(nn.Module):
    """Down and up with a skip, on any family of layers."""

    def __init__(self, family, upsampling):
        super().__init__()
        width = family.width(9)
        self.down1 = nn.Sequential(family.conv2d(3, width, 3, padding=1), family.batch_norm2d(width), family.relu())
        self.down2 = nn.Sequential(family.conv2d(width, width, 4, 2, 1), family.leaky_relu(0.2))
        self.up = (
            nn.Upsample(scale_factor=2, mode=upsampling)
            if upsampling
            else family.conv_transpose2d(width, width, 4, 2, 1)
        )
        self.concatenate = family.concatenate()
        self.last = family.conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x):
        skip = self.down1(x)
        return self.last(self.concatenate(skip, self.up(self.down2(skip))))


@pytest.mark.parametrize("upsampling", [None, "nearest", "bilinear", "bicubic"])
def test_a_unet_of_these_layers_is_equivariant(upsampling):
    torch.manual_seed(0)
    network = UNet(OffsetEquivariant(3), upsampling).double()
    project_(network)
    network.eval()
    assert check_equivariance(network, (2, 3, 12, 8)).worst() < 1e-12
    ordinary = UNet(Conventional(), upsampling).double().eval()
    assert ordinary(torch.zeros(2, 3, 12, 8).double()).shape == (2, 3, 12, 8)
    assert check_equivariance(ordinary, (2, 3, 12, 8)).worst() > 0.1


@pytest.mark.parametrize("size", range(1, 7))
def test_phases_are_the_taps_of_one_remainder(size):
    for stride, dilation in product(range(1, 6), range(1, 6)):
        by_remainder: dict[int, list[int]] = {}
        for tap in range(size):
            by_remainder.setdefault(tap * dilation % stride, []).append(tap)
        found = [list(range(size)[taps]) for taps in _phases_of_taps(size, stride, dilation)]
        assert sorted(found) == sorted(by_remainder.values())


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layer_says_how_far_its_phases_are_from_the_constraint(groups):
    layer = ConvTranspose2d(6, 6, 4, 2, 1, groups=groups, constraint="projection").double()
    assert layer.constraint_error() < 1e-6
    project_(layer)
    assert layer.constraint_error() < 1e-14
    with torch.no_grad():
        layer.weight[0, 1, 2, 3] += 0.25
    assert layer.constraint_error() == pytest.approx(0.25)
