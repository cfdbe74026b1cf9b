import pytest
import torch
from torch.nn import functional as F

from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn import BatchNormReLU, OffsetEquivariant, fuse_for_inference, layers
from offset_equivariant.nn.constraint import project_
from offset_equivariant.nn.padding import PADDING_MODES, _replicate, pad
from offset_equivariant.nn.shifted import ShiftedFeatures

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


def offset_padded(stride=1, kernel_size=3, **options):
    torch.manual_seed(0)
    return layers.Conv2d(6, 9, kernel_size, stride, kernel_size // 2, padding_mode="offset", **options).double()


def test_offset_padding_of_a_tensor_is_its_group_means():
    x, layer = random_input((2, 6, 5, 4)), offset_padded()
    level = x.detach().unflatten(1, (3, 2)).mean((2, 3, 4)).repeat_interleave(2, 1)[..., None, None]
    expected = F.conv2d(F.pad(x - level, (1, 1, 1, 1)), layer.weight, layer.bias)
    expected = expected + level[:, ::2].repeat_interleave(3, 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "kernel_size"), [(1, 3), (2, 3), (2, 5)])
def test_offset_padding_keeps_equivariance_and_pads_values_with_zeros(stride, kernel_size):
    x, layer = random_input((2, 6, 7, 6)).detach(), offset_padded(stride, kernel_size)
    offset = torch.tensor([[3.0, -5.0, 7.0], [100.0, 0.0, -1.0]], dtype=torch.float64)
    moved = layer(add_offset(x, offset))
    torch.testing.assert_close(moved, add_offset(layer(x), offset), rtol=0, atol=1e-12)
    shift = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shifted = ShiftedFeatures(x, shift, offset)
    values = F.conv2d(x, layer.weight, None, stride, kernel_size // 2)
    torch.testing.assert_close(layer(shifted).values, values, rtol=0, atol=1e-12)
    assert torch.equal(layer(shifted).offset, offset)


def test_equivariant_network_with_offset_padding_folds_to_the_same():
    torch.manual_seed(0)
    network = CifarResNet(8, 10, OffsetEquivariant(padding="offset")).double().eval()
    project_(network)  # again, in double precision
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    images = random_input((2, 3, 32, 32)).detach()
    scores = network(images)
    torch.testing.assert_close(fuse_for_inference(network)(images), scores, rtol=1e-9, atol=1e-9)
    offset = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(network(add_offset(images, offset)), scores + 1, rtol=0, atol=1e-9)
    replicated = CifarResNet(8, 10, OffsetEquivariant()).double().eval()
    replicated.load_state_dict(network.state_dict())
    assert not torch.allclose(replicated(images), scores, atol=1e-3)


def test_offset_padding_of_tensors_folds_to_the_same():
    torch.manual_seed(0)
    network = torch.nn.Sequential(offset_padded(), BatchNormReLU(9), layers.Conv2d(9, 6, 3), BatchNormReLU(6)).double()
    for norm in (network[1], network[3]):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    network.eval()
    project_(network)
    x = random_input((2, 6, 7, 6)).detach() + 3
    torch.testing.assert_close(fuse_for_inference(network)(x), network(x), rtol=1e-9, atol=1e-9)
