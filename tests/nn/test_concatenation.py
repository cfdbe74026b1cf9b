import pytest
import torch

from offset_equivariant.nn import Concatenation
from offset_equivariant.nn.concatenation import ConventionalConcatenation


def numbered(channels, first):
    return torch.arange(first, first + channels, dtype=torch.float64)[None, :, None].expand(2, -1, 5)


def test_channels_are_interleaved_by_group():
    joined = Concatenation()(numbered(3, 0), numbered(6, 10))
    assert joined.shape == (2, 9, 5)
    assert joined[1, :, 4].tolist() == [0, 10, 11, 1, 12, 13, 2, 14, 15]
    assert ConventionalConcatenation()(numbered(3, 0), numbered(2, 10))[0, :, 0].tolist() == [0, 1, 2, 10, 11]


@pytest.mark.parametrize("offset_groups", [1, 3, 31])
def test_is_equivariant(offset_groups, assert_equivariant):
    shapes = [(2, factor * offset_groups, 4, 3) for factor in (1, 2, 1)]
    assert_equivariant(Concatenation(offset_groups=offset_groups), *shapes, offset_groups=offset_groups)


def test_one_behind_the_other_is_not_equivariant(assert_equivariant):
    with pytest.raises(AssertionError):
        assert_equivariant(ConventionalConcatenation(), (2, 3, 4, 3), (2, 3, 4, 3))


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"channels = 4 .* offset_groups = 3; .* 3 or 6"):
        Concatenation()(numbered(3, 0), numbered(4, 0))
