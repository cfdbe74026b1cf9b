import numpy as np
import pytest
import torch

import offset_equivariant as oe
from offset_equivariant.groups import (
    add_offset,
    assignment_matrix,
    channels_per_group,
    expand_groups,
    group_mean,
    nearest_multiple,
    split_groups,
)


@pytest.mark.parametrize(
    ("channels", "offset_groups", "expected"),
    [
        (16, 3, 15),
        (32, 3, 33),
        (64, 3, 63),
        (128, 3, 129),
        (400, 3, 399),
        (1, 3, 3),
        (5, 2, 6),
        (64, 31, 62),
        (9, 6, 12),
    ],
)
def test_nearest_multiple(channels, offset_groups, expected):
    assert nearest_multiple(channels, offset_groups) == expected


def test_assignment_matrix_is_that_of_eq_25():
    expected = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert assignment_matrix(6, 3).tolist() == expected
    assert assignment_matrix(6, 3, dtype=torch.float64).dtype == torch.float64
    assert torch.equal(assignment_matrix(31, 31), torch.eye(31))
    assert torch.equal(assignment_matrix(4, 1), torch.ones(4, 1))


@pytest.mark.parametrize(
    ("channels", "offset_groups", "message"),
    [
        (16, 3, r"width = 16 .* offset_groups = 3; the nearest valid number of channels is 15 or 18$"),
        (30, 31, r"width = 30 .* offset_groups = 31; the nearest valid number of channels is 31$"),
        (0, 3, r"width = 0 .* offset_groups = 3; the nearest valid number of channels is 3$"),
        (-4, 3, r"width = -4 .* offset_groups = 3; the nearest valid number of channels is 3$"),
        (6, 0, r"offset_groups must be a whole number of at least 1, got 0$"),
        (6, 3.0, r"offset_groups must be a whole number of at least 1, got 3.0$"),
        (6, True, r"offset_groups must be a whole number of at least 1, got True$"),
    ],
)
def test_channels_that_the_groups_do_not_divide(channels, offset_groups, message):
    with pytest.raises(ValueError, match=message):
        channels_per_group(channels, offset_groups, "width")


def test_channels_per_group():
    assert [channels_per_group(n, g) for n, g in [(15, np.int64(3)), (31, 31), (8, 1)]] == [5, 1, 8]


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("offset_groups", [1, 2, 3])
def test_means_expansion_and_offsets_are_the_matrix_products_of_the_paper(spatial, offset_groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *spatial, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, offset_groups, generator=generator, dtype=torch.float64)
    G = assignment_matrix(6, offset_groups, dtype=torch.float64)
    pixels = x.reshape(2, 6, -1)

    expected_mean = torch.einsum("cg,ncp->ng", G, pixels) / (6 // offset_groups * pixels.shape[2])
    torch.testing.assert_close(group_mean(x, offset_groups), expected_mean, rtol=0, atol=1e-15)
    torch.testing.assert_close(expand_groups(offset, 6), offset @ G.T, rtol=0, atol=0)
    moved = (pixels + (offset @ G.T)[:, :, None]).reshape(x.shape)
    torch.testing.assert_close(add_offset(x, offset), moved, rtol=0, atol=0)
    same = (pixels + (G @ offset[0])[None, :, None]).reshape(x.shape)
    torch.testing.assert_close(add_offset(x, offset[0]), same, rtol=0, atol=0)
    assert torch.equal(split_groups(x, offset_groups)[:, -1], x[:, -(6 // offset_groups) :])


def test_the_group_mean_follows_an_offset():  # Eq. 18
    x = torch.arange(24, dtype=torch.float64).reshape(1, 6, 2, 2)
    assert group_mean(x, 3).tolist() == [[3.5, 11.5, 19.5]]
    assert group_mean(add_offset(x, torch.tensor([[1.0, -2.0, 0.5]])), 3).tolist() == [[4.5, 9.5, 20.0]]


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected a batch with channels, \(N, C, \.\.\.\), got .* \(6,\)"):
        split_groups(torch.zeros(6), 3)
    with pytest.raises(ValueError, match=r"channels = 7 .* offset_groups = 3; .* 6 or 9"):
        group_mean(torch.zeros(2, 7), 3)
    with pytest.raises(ValueError, match=r"channels = 7 .* offset_groups = 3"):
        add_offset(torch.zeros(2, 7), torch.zeros(3))
    with pytest.raises(ValueError, match=r"offset of shape \(3, 3\) does not fit a batch of shape \(2, 6\)"):
        add_offset(torch.zeros(2, 6), torch.zeros(3, 3))


def test_what_traces_is_told_of_the_layers():
    with pytest.raises(TypeError, match=r"got Proxy; to torch\.fx give the classes in nn\.LEAF_MODULES as leaf"):
        torch.fx.symbolic_trace(torch.nn.Sequential(oe.nn.ReLU()))
