import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import offset_equivariant as oe
from offset_equivariant.groups import add_offset
from offset_equivariant.nn import check_equivariance, constraint_error


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Avg", "Max"])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_window_pooling_is_equivariant(kind, dimensions, data, assert_equivariant):
    kernel_size = data.draw(st.integers(1, 4))
    stride = data.draw(st.one_of(st.none(), st.integers(1, 3)))
    padding = data.draw(st.integers(0, kernel_size // 2))
    pooling = getattr(oe.nn, f"{kind}Pool{dimensions}d")(
        kernel_size, stride, padding, ceil_mode=data.draw(st.booleans())
    )
    assert_equivariant(pooling, (2, 6, *(7, 6, 5)[:dimensions]), magnitudes=(1.0, 1000.0))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Avg", "Max"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_adaptive_pooling_is_equivariant(kind, dimensions, size, assert_equivariant):
    pooling = getattr(oe.nn, f"Adaptive{kind}Pool{dimensions}d")(size)
    assert_equivariant(pooling, (2, 6, *(7, 6, 5)[:dimensions]))


def test_average_pooling_leaves_the_padding_out():
    x = torch.tensor([[[1.0, 2, 3, 4]]])
    assert oe.nn.AvgPool1d(3, 2, 1)(x).tolist() == [[[1.5, 3]]]  # torch by default: [[[1, 3]]]
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    assert oe.nn.AvgPool2d(2, 2, 1)(x).tolist() == [[[[1, 2.5], [5.5, 7]]]]
    ones = torch.ones(1, 1, 4, 4, 4)
    assert torch.equal(oe.nn.AvgPool3d(3, 2, 1, ceil_mode=True)(ones), torch.ones(1, 1, 3, 3, 3))


@pytest.mark.parametrize("padding", [1, (0, 1)])
def test_counting_padded_zeros_is_refused(padding):
    with pytest.raises(ValueError, match="count_include_pad=True averages padded zeros"):
        oe.nn.AvgPool2d(3, padding=padding, count_include_pad=True)
    # Without padding there is nothing to count, so torch's default does no harm.
    assert oe.nn.AvgPool2d(3, padding=(0, 0), count_include_pad=True)(torch.ones(1, 3, 3, 3)).tolist() == [[[[1]]] * 3]


def test_counting_padded_zeros_is_detected():
    network = torch.nn.Sequential(oe.nn.MaxPool2d(2, 1), torch.nn.AvgPool2d(3, 1, 1), oe.nn.Conv2d(3, 3, 1))
    report = check_equivariance(network, (2, 3, 6, 6))
    assert not report.equivariant
    assert report.first_breaking == "1"


def test_group_poolings_by_hand():
    x = torch.tensor([[[1.0, 2], [3, 6], [-1, 0], [5, 8]]])  # two groups of two channels of two pixels
    assert oe.nn.GroupMean(2)(x).tolist() == [[3, 3]]
    assert oe.nn.GroupMax(2)(x).tolist() == [[6, 8]]
    assert oe.nn.GroupMin(2)(x).tolist() == [[1, -1]]
    learned = oe.nn.GroupLinear(4, 2)
    assert learned(x).tolist() == [[3, 3]]  # starts as the average
    learned.combination.weight = torch.tensor([[2.0, -1, 0, 0], [0, 0, 0.25, 0.75]])
    assert learned(x).tolist() == [[2 * 1.5 - 4.5, 0.25 * -0.5 + 0.75 * 6.5]]


@pytest.mark.parametrize("spatial", [(), (4,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("offset_groups", [1, 2, 3, 31])
@pytest.mark.parametrize("kind", ["GroupMean", "GroupMax", "GroupMin", "GroupLinear"])
def test_group_poolings_satisfy_eq_18(kind, offset_groups, spatial, randomised):
    channels = 2 * offset_groups
    arguments = (channels, offset_groups) if kind == "GroupLinear" else (offset_groups,)
    pooling = randomised(getattr(oe.nn, kind)(*arguments).double())
    x, offset = random_input(2, channels, *spatial), 1000 * random_input(2, offset_groups)
    pooled = pooling(x)
    assert pooled.shape == (2, offset_groups)
    torch.testing.assert_close(pooling(add_offset(x, offset)), pooled + offset, rtol=1e-12, atol=1e-12 * 1000)


def test_the_learned_pooling_learns_within_the_constraint():
    pooling = oe.nn.GroupLinear(6, 3, constraint="projection").double()
    x = random_input(4, 6, 3, 3)
    pooling(x).square().sum().backward()
    gradient = pooling.combination.weight.grad
    assert gradient.shape == (3, 6)
    with torch.no_grad():
        pooling.combination.weight.sub_(0.1 * gradient)
    oe.nn.project_(pooling)
    assert constraint_error(pooling.combination.weight, 3) < 1e-14
    assert (pooling.combination.weight - 0.5 * torch.eye(3).repeat_interleave(2, 1)).abs().max() > 1e-3


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"channels = 7 .* offset_groups = 3; .* 6 or 9"):
        oe.nn.GroupLinear(7)
    with pytest.raises(ValueError, match=r"channels = 7 .* offset_groups = 3; .* 6 or 9"):
        oe.nn.GroupMax()(torch.zeros(2, 7))
