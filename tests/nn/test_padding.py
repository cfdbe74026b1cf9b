import pytest
import torch
from torch.nn import functional as F

from offset_equivariant.nn.padding import PADDING_MODES, _replicate, pad

PADDINGS = [((2, 5), (2, 1)), ((2, 3, 5, 4), (1, 2, 0, 3)), ((2, 3, 4, 2, 3), (0, 1, 2, 0, 1, 1))]


def random_input(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("shape", "padding"), PADDINGS)
def test_replication_for_the_compiler_equals_torchs(shape, padding):
    x = random_input(shape)
    padded, expected = _replicate(x, padding), F.pad(x, padding, "replicate")
    assert torch.equal(padded, expected)
    weight = torch.randn_like(expected)
    gradient, expected_gradient = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (padded, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_every_mode_is_torchs(mode):
    x = random_input((2, 3, 5, 4))
    assert torch.equal(pad(x, (1, 2, 0, 3), mode), F.pad(x, (1, 2, 0, 3), mode))
    assert pad(x, (0, 0, 0, 0), mode) is x


def test_constants_are_refused():
    with pytest.raises(ValueError, match="padding mode 'constant' is not one of replicate, reflect, circular"):
        pad(torch.zeros(1, 3, 4), (1, 1), "constant")
