from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import BasicBlock, CifarResNet
from offset_equivariant.nn import Conventional, OffsetEquivariant, check_equivariance, constraint_error, project_
from offset_equivariant.nn.constraint import ConstrainedWeight
from offset_equivariant.nn.shifted import without_offset


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def random_images(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def train_(network, channels=3, steps=4):
    """A few steps of SGD on noise, large enough to move every weight."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    images, labels = random_images(8, channels, 8, 8, dtype=torch.float32), torch.arange(8)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
        project_(network)


@pytest.mark.parametrize("shortcut_padding", ["inside_groups", "end"])
@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
def test_parameter_counts_of_table_1(constraint, shortcut_padding):
    assert parameters(CifarResNet(20)) == 270_410
    family = OffsetEquivariant(3, constraint, shortcut_padding)
    assert parameters(CifarResNet(20, family=family)) == 267_294


@pytest.mark.parametrize("depth", [8, 32])
def test_parameter_count_of_any_depth(depth):
    blocks = (depth - 2) // 6

    def convolution(inputs, outputs):
        return 9 * inputs * outputs + outputs + 2 * outputs  # bias, and batch normalisation's two

    expected, channels = convolution(3, 16), 16
    for width in (16, 32, 64):
        expected += convolution(channels, width) + (2 * blocks - 1) * convolution(width, width)
        channels = width
    assert parameters(CifarResNet(depth, classes=7)) == expected + 64 * 7 + 7


def reference_resnet(state, x, depth, training):
    """ResNet of He et al., Section 4.2, with option-A shortcuts, from their description."""

    def conv(x, name, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)

    def norm(x, name):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        parts = (mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])
        mean, variance, weight, bias = (part[:, None, None] for part in parts)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = norm(conv(x, "conv1"), "bn1").clamp_min(0)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            y = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").clamp_min(0)
            y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
            shortcut = x[:, :, ::stride, ::stride]
            missing = y.shape[1] - shortcut.shape[1]
            shortcut = torch.cat([shortcut, shortcut.new_zeros(len(x), missing, *y.shape[2:])], 1)
            x = (y + shortcut).clamp_min(0)
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_the_original_equals_an_independent_implementation(training):
    torch.manual_seed(0)
    network = CifarResNet(20)
    train_(network)  # so that no statistic and no bias is zero
    network = network.double().train(training)
    x = random_images(3, 3, 12, 10)
    expected = reference_resnet({k: v.clone() for k, v in network.state_dict().items()}, x, 20, training)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("family", [Conventional(), OffsetEquivariant()], ids=["conventional", "equivariant"])
def test_a_seeds_initial_weights_are_those_of_its_layers_in_order(family):
    """Nothing else may draw random numbers: a seed's training would be another one."""
    torch.manual_seed(0)
    network, drawn = CifarResNet(14, 7, family), torch.rand(3)
    first, second, third = map(family.width, (16, 32, 64))
    shapes = [(3, first, 1), *[(first, first, 1)] * 4]
    shapes += [(first, second, 2), *[(second, second, 1)] * 3, (second, third, 2), *[(third, third, 1)] * 3]
    torch.manual_seed(0)
    layers = nn.ModuleList(family.conv2d(inputs, outputs, 3, stride, 1) for inputs, outputs, stride in shapes)
    layers.append(family.linear(third, family.score_features(7)))
    family.initialise_(layers)
    assert torch.equal(torch.rand(3), drawn)
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, expected in zip(found, layers, strict=True):
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)


RELEASED = Path(__file__).resolve().parents[2] / "results" / "checkpoints"


def test_released_weights_of_the_original_give_the_scores_of_the_independent_implementation():
    state = load_file(RELEASED / "table1_original-seed0.safetensors")
    network = CifarResNet(20)
    assert set(network.state_dict()) == set(state)
    network.load_state_dict(state)
    images = random_images(4, 3, 32, 32)
    expected = reference_resnet({name: value.double() for name, value in state.items()}, images, 20, training=False)
    found = network.double().eval()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["table1_equivariant", "table1_equivariant_relative"])
def test_released_equivariant_weights_have_the_networks_names(name):
    network = CifarResNet(20, family=OffsetEquivariant(constraint="projection"))
    state = load_file(RELEASED / f"{name}-seed0.safetensors")
    assert {key: value.shape for key, value in network.state_dict().items()} == {k: v.shape for k, v in state.items()}
    network.load_state_dict(state)
    report = check_equivariance(network, (2, 3, 32, 32), output="mean", magnitudes=(1.0,))
    assert report.equivariant, f"\n{report}"


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "family",
    [
        OffsetEquivariant(),
        OffsetEquivariant(constraint="parametrization"),
        OffsetEquivariant(shortcut_padding="end"),
    ],
    ids=lambda family: f"{family.constraint}-{family.shortcut_padding}",
)
def test_resnet_20_is_equivariant(family, trained):
    torch.manual_seed(0)
    network = CifarResNet(20, family=family)
    fresh = network.fc.weight.detach().clone()
    if trained:
        train_(network)
        assert (network.fc.weight - fresh).abs().max() > 1e-3
        assert network.bn1.running_var.sub(1).abs().max() > 1e-2
    report = check_equivariance(network, (2, 3, 16, 16), output="mean")
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"
    for layer in network.modules():
        if isinstance(layer, ConstrainedWeight):
            assert constraint_error(layer.weight, 3) < 1e-5


def test_posterior_probabilities_depend_on_the_image_and_not_on_its_offset():
    torch.manual_seed(0)
    network = CifarResNet(20, family=OffsetEquivariant())
    train_(network)
    network = network.double().eval()
    project_(network)
    images = random_images(4, 3, 16, 16)
    offsets = 10 * random_images(4, 3)
    posterior = network(images).softmax(1)
    torch.testing.assert_close(network(add_offset(images, offsets)).softmax(1), posterior, rtol=0, atol=1e-12)
    assert (posterior[0] - posterior[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("offset_groups", "in_channels", "widths"), [(1, 1, (4, 6, 8)), (31, 31, (16, 32, 64))])
def test_other_numbers_of_offset_groups(offset_groups, in_channels, widths):
    family = OffsetEquivariant(offset_groups)
    network = CifarResNet(8, 5, family, in_channels, widths)
    assert network.fc.weight.shape == (5 * offset_groups, family.width(widths[-1]))
    train_(network := CifarResNet(8, 8, family, in_channels, widths), in_channels)
    report = check_equivariance(network, (2, in_channels, 8, 8), offset_groups=offset_groups, output="mean")
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"


def test_the_original_is_not_equivariant():
    report = check_equivariance(CifarResNet(8), (2, 3, 8, 8), output="mean")
    assert report.worst() > 0.01
    assert report.first_breaking == "conv1"


class Joining(torch.nn.Module):
    """An ordinary layer among those that pass on offsets beside their features."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return without_offset(self.layer(x.joined()), 3)


@pytest.mark.parametrize("name", ["conv2", "bn1"])
def test_a_conventional_layer_in_the_equivariant_network_is_found(name):
    network = CifarResNet(8, family=OffsetEquivariant())
    block, ordinary = network.stages[1][0], BasicBlock(15, 33, 2, Conventional())
    setattr(block, name, Joining(getattr(ordinary, name)))
    report = check_equivariance(network, (2, 3, 8, 8), output="mean")
    assert not report.equivariant
    assert report.first_breaking == f"stages.1.0.{name}.layer"


def test_shapes_of_stages():
    network, shapes = CifarResNet(20, family=OffsetEquivariant()), []
    for stage in network.stages:
        stage.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert network(torch.zeros(2, 3, 33, 32)).shape == (2, 10)
    assert shapes == [(2, 15, 33, 32), (2, 33, 17, 16), (2, 63, 9, 8)]


@pytest.mark.parametrize("depth", [-4, 2, 18, 21])
def test_an_impossible_depth_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth = {depth} is not 6n \\+ 2; choose 20, 32, 44, 56 or 110"):
        CifarResNet(depth)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"in_channels = 4 .* offset_groups = 3; .* 3 or 6"):
        CifarResNet(8, family=OffsetEquivariant(), in_channels=4)
