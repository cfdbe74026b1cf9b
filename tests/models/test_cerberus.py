import pytest
import torch
from torch.nn import functional as F

from offset_equivariant.groups import add_offset
from offset_equivariant.models.cerberus import ColorCerberus
from offset_equivariant.nn import OffsetEquivariant, check_equivariance, project_


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def random_images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(network):
    """After a few steps towards noise, large enough to move every weight."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.003)
    images = random_images(8, 3, network.image_size, network.image_size).float()
    target = random_images(*network(images).shape).float()
    for _ in range(4):
        optimiser.zero_grad()
        F.mse_loss(network(images), target).backward()
        optimiser.step()
        project_(network)
    return network


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
def test_parameter_counts_of_table_3(constraint):
    assert parameters(ColorCerberus()) == 203_939
    assert parameters(ColorCerberus(estimates=3)) == 206_345
    assert parameters(ColorCerberus(OffsetEquivariant(3, constraint))) == 196_668


@pytest.mark.parametrize("estimates", [1, 3])
def test_the_original_equals_an_independent_implementation(estimates):
    torch.manual_seed(0)
    network = trained(ColorCerberus(estimates=estimates)).double()
    state = list(network.state_dict().values())
    x = random_images(2, 3, 64, 64)
    y = torch.cat([x, x.mean((2, 3), keepdim=True) + torch.zeros_like(x)], 1)
    for layer in range(4):
        y = F.conv2d(y, state[2 * layer], state[2 * layer + 1], padding=1).clamp_min(0)
        y = y.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    y = torch.einsum("nchw,oc->nohw", y, state[8][:, :, 0, 0]) + state[9][:, None, None]
    y = (y.clamp_min(0).flatten(1) @ state[10].T + state[11]).clamp_min(0) @ state[12].T + state[13]
    expected = y if estimates == 1 else y.reshape(2, 3, 3)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("estimates", [1, 3])
@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
def test_the_estimate_moves_with_the_light(constraint, estimates):
    torch.manual_seed(0)
    network = trained(ColorCerberus(OffsetEquivariant(3, constraint), estimates, image_size=32))
    report = check_equivariance(network, (2, 3, 32, 32))
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"
    network = network.double()
    project_(network)
    images, light = random_images(4, 3, 32, 32), 3 * random_images(4, 3)
    moved = network(add_offset(images, light)) - network(images)
    expected = light if estimates == 1 else light[:, :, None].expand(-1, -1, 3)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)
    assert (network(images)[0] - network(images)[1]).abs().max() > 1e-3


def test_the_original_does_not_move_with_the_light():
    report = check_equivariance(ColorCerberus(image_size=16), (2, 3, 16, 16))
    assert not report.equivariant
    assert report.first_breaking == "concatenate"


def test_other_numbers_of_offset_groups():
    network = ColorCerberus(OffsetEquivariant(1), image_size=16)
    report = check_equivariance(network, (2, 3, 16, 16), offset_groups=1)
    assert report.equivariant, f"\n{report}"


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N, 3, 64, 64\), but their shape is \(1, 3, 32, 64\); resize them"):
        ColorCerberus()(torch.zeros(1, 3, 32, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 40}, "image_size = 40 is not a positive multiple of 16"),
        ({"image_size": 0}, "image_size = 0 is not a positive multiple of 16"),
        ({"estimates": 0}, "estimates = 0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ColorCerberus(**arguments)
