import inspect
import math

import pytest
import torch
from torch import nn

import offset_equivariant as oe
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn import FAMILIES, Conventional, LayerFamily, OffsetEquivariant, constraint_error
from offset_equivariant.nn.equivariance import check_equivariance
from offset_equivariant.nn.families import PlainOffsetEquivariant, UnconstrainedOffsetEquivariant
from offset_equivariant.nn.pooling import GroupLinear


def test_both_families_supply_every_layer_with_the_same_arguments():
    methods = {name: method for name, method in vars(LayerFamily).items() if not name.startswith("_")}
    assert isinstance(methods.pop("folds"), property)
    assert len(methods) == 18
    for family in FAMILIES.values():
        for name, method in methods.items():
            assert inspect.signature(getattr(family, name)) == inspect.signature(method), name
    named = ["conventional", "offset_equivariant", "offset_equivariant_plain", "offset_equivariant_unconstrained"]
    assert list(FAMILIES) == named
    assert [family.folds for family in FAMILIES.values()] == [True, True, False, False]


def test_widths_and_scores():
    assert [Conventional().width(n) for n in (16, 32, 64)] == [16, 32, 64]
    assert [OffsetEquivariant().width(n) for n in (16, 32, 64)] == [15, 33, 63]
    assert [OffsetEquivariant(offset_groups=31).width(n) for n in (16, 32, 64)] == [31, 31, 62]
    assert (Conventional().score_features(10), OffsetEquivariant().score_features(10)) == (10, 30)
    scores = torch.arange(6.0)[None]
    assert Conventional().scores()(scores).tolist() == scores.tolist()
    assert OffsetEquivariant().scores()(scores).tolist() == [[2, 3]]


def test_the_layers_of_the_conventional_family():
    family = Conventional()
    assert repr(family.conv2d(4, 8, 3, 2, 1, False)) == repr(nn.Conv2d(4, 8, 3, 2, 1, bias=False))
    assert repr(family.linear(4, 2, False)) == repr(nn.Linear(4, 2, False))
    assert [repr(layer) for layer in (family.relu(), family.leaky_relu(0.2), family.dropout(0.3))] == [
        "ReLU()",
        "LeakyReLU(negative_slope=0.2)",
        "Dropout(p=0.3, inplace=False)",
    ]
    transposed = family.conv_transpose2d(4, 8, 4, 2, 1, False)
    assert repr(transposed) == repr(nn.ConvTranspose2d(4, 8, 4, 2, 1, bias=False))
    for norm in (family.batch_norm2d(4), family.batch_norm(4)):
        assert isinstance(norm, nn.BatchNorm2d) and norm.extra_repr() == nn.BatchNorm2d(4).extra_repr()
    assert repr(family.max_pool2d(3, 2, 1)) == repr(nn.MaxPool2d(3, 2, 1))
    assert isinstance(family.shortcut(4, 4, 1), nn.Identity)
    assert family.shortcut(4, 6, 2)(torch.ones(1, 4, 4, 4)).sum() == 16


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
@pytest.mark.parametrize("offset_groups", [1, 3])
def test_the_layers_of_the_equivariant_family_are_equivariant(offset_groups, constraint, assert_equivariant):
    family = OffsetEquivariant(offset_groups, constraint)
    image, features = (2, 6, 6, 5), (2, 6)
    layers = [
        (family.conv2d(6, 9, 3, 2, 1, False), image),
        (family.linear(6, 3, False), features),
        (family.batch_norm_relu(6), image),
        (family.relu(), features),
        (family.leaky_relu(0.2), image),
        (family.dropout(0.3), image),
        (family.shortcut(6, 9, 2), image),
        (family.shortcut(6, 6, 1), image),
        (family.batch_norm(6), image),
        (family.max_pool2d(3, 2, 1), image),
    ]
    for layer, shape in layers:
        assert_equivariant(layer, shape, offset_groups=offset_groups)
    assert_equivariant(family.concatenate(), image, (2, 3, 6, 5), offset_groups=offset_groups)
    assert (layers[0][0].constraint, layers[1][0].constraint) == (constraint, constraint)
    assert (layers[0][0].bias, layers[1][0].bias) == (None, None)
    assert (layers[4][0].module.negative_slope, layers[5][0].module.p) == (0.2, 0.3)
    pooling = layers[-1][0]
    assert (pooling.kernel_size, pooling.stride, pooling.padding) == (3, 2, 1)


def test_the_padding_of_the_shortcut_is_the_familys():
    assert OffsetEquivariant().shortcut(3, 6, 2).padding == "inside_groups"
    assert OffsetEquivariant(shortcut_padding="end").shortcut(3, 6, 2).padding == "end"


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
@pytest.mark.parametrize("init_gain", [1.0, 0.5])
@pytest.mark.parametrize("taps", [1, 3])
def test_equivariant_weights_start_with_the_variance_asked_for(taps, init_gain, constraint):
    torch.manual_seed(0)
    family = OffsetEquivariant(3, constraint, init_gain=init_gain)
    conv, linear = family.conv2d(6, 1500, taps), family.linear(12, 3000)
    family.initialise_(nn.Sequential(conv, linear))
    for layer, variance in [(conv, init_gain**2 * 2 / (6 * taps**2)), (linear, 1 / 3 / 12)]:
        weight = layer.weight.detach()
        n, fan_in = len(weight), weight[0].numel()
        assert constraint_error(weight, 3) < 1e-5
        # Beside the averaging filter that the constraint prescribes.
        box = torch.eye(3).repeat_interleave(n // 3, 0).repeat_interleave(fan_in // 3, 1) * 3 / fan_in
        spread = (weight.reshape(n, fan_in) - box).square().mean().item()
        assert spread == pytest.approx(variance, rel=5 * math.sqrt(2 / weight.numel()) * 1.5)
        assert layer.bias.count_nonzero() == 0


def test_transposed_convolutions_start_with_the_taps_of_an_output():
    torch.manual_seed(0)
    layer = OffsetEquivariant().conv_transpose2d(60, 300, 4, 2, 1, bias=False)
    OffsetEquivariant().initialise_(layer)
    with torch.no_grad():
        x = torch.randn(20, 60, 8, 8)
        x = x - x.mean((1, 2, 3), keepdim=True)
        share = layer(x).square().mean() / x.square().mean()
    assert share.item() == pytest.approx(2, rel=0.1)  # He et al.: twice, of which a rectifier leaves half


@pytest.mark.parametrize(
    "layer",
    [
        oe.nn.Conv2d(48, 4800, 3, groups=48),  # one offset group an output
        oe.nn.Conv2d(12, 6000, 3, groups=4),  # one or two
        oe.nn.Conv2d(6, 3000, 3, groups=2),  # two
        oe.nn.ConvTranspose2d(12, 6000, 6, 3, groups=4),
        oe.nn.Conv2d(12, 3000, 1, groups=2),
    ],
)
def test_grouped_convolutions_start_with_the_variance_asked_for(layer):
    torch.manual_seed(0)
    OffsetEquivariant().initialise_(layer)
    assert layer.constraint_error() < 1e-5
    fan_in = layer.in_channels // layer.groups * math.prod(layer.kernel_size) / math.prod(layer.stride)
    # Beside the averaging filter that the constraint prescribes.
    box = layer._projection(torch.zeros_like(layer.weight))
    of_outputs = (layer.weight - box).detach().square()
    if isinstance(layer, nn.ConvTranspose2d):
        of_outputs = of_outputs.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    for part in of_outputs.flatten(1).mean(1).chunk(6):  # which see other offset groups
        assert part.mean().item() == pytest.approx(2 / fan_in, rel=0.06)


def test_one_channel_a_group_and_one_tap_leave_nothing_to_draw():
    family = OffsetEquivariant()
    layer = family.conv2d(3, 6, 1)
    family.initialise_(layer)
    expected = torch.eye(3).repeat_interleave(2, 0)
    torch.testing.assert_close(layer.weight[:, :, 0, 0].detach(), expected, rtol=0, atol=1e-6)


def test_conventional_convolutions_start_as_he_et_al_say():
    torch.manual_seed(0)
    network = nn.Sequential(Conventional().conv2d(16, 500, 3), nn.Linear(4, 4))
    linear = network[1].weight.detach().clone()
    Conventional().initialise_(network)
    assert network[0].weight.square().mean().item() == pytest.approx(2 / 144, rel=0.03)
    assert network[0].bias.count_nonzero() == 0
    assert torch.equal(network[1].weight, linear)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"in_channels = 3 .* offset_groups = 31; .* is 31"):
        oe.nn.OffsetEquivariant(offset_groups=31).conv2d(3, 31, 3)


@pytest.mark.parametrize(
    "poolings", [("mean", "mean"), ("max", "mean"), ("min", "linear"), ("linear", "linear")], ids="-".join
)
def test_plain_networks_are_equivariant_with_every_group_pooling(poolings):
    torch.manual_seed(0)
    names = dict(zip(("normalisation_pooling", "rectifier_pooling"), poolings, strict=True))
    network = CifarResNet(8, 10, PlainOffsetEquivariant(constraint="parametrization", **names))
    report = check_equivariance(network, (2, 3, 16, 16), output="mean", magnitudes=(1.0,))
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"


def test_without_the_constraint_the_network_is_the_same_but_for_its_weights():
    torch.manual_seed(0)
    free, held = CifarResNet(8, 10, UnconstrainedOffsetEquivariant()), CifarResNet(8, 10, PlainOffsetEquivariant())
    assert sum(p.numel() for p in free.parameters()) == sum(p.numel() for p in held.parameters())
    assert check_equivariance(free, (2, 3, 16, 16), output="mean", magnitudes=(1.0,)).worst(torch.float64) > 0.01
    oe.nn.project_(free)
    kernels = [m.weight for m in free.modules() if isinstance(m, nn.Conv2d)]
    assert len(kernels) == 7 and min(constraint_error(kernel, 3) for kernel in kernels) > 0.01  # nothing to project
    oe.nn.remove_parametrizations_(held)
    free.load_state_dict(held.state_dict())
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(free.eval()(images), held.eval()(images), rtol=1e-5, atol=1e-5)


def test_linear_group_pooling_starts_as_the_mean_and_then_differs():
    torch.manual_seed(0)
    poolings = {"normalisation_pooling": "linear", "rectifier_pooling": "linear"}
    linear = CifarResNet(8, 10, PlainOffsetEquivariant(constraint="projection", **poolings))
    poolings = [module for module in linear.modules() if isinstance(module, GroupLinear)]
    assert len(poolings) == 14  # of seven normalisations and seven rectifiers
    mean = CifarResNet(8, 10, PlainOffsetEquivariant())
    mean.load_state_dict({name: value for name, value in linear.state_dict().items() if "combination" not in name})
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear.eval()(images), mean.eval()(images), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        poolings[1].combination.weight.add_(torch.randn(poolings[1].combination.weight.shape))
    poolings[1].combination.project_()
    assert not torch.allclose(linear(images), mean(images), atol=1e-3)


def test_extremes_in_the_rectifier_leave_nothing_or_rectify_nothing():
    x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    largest = x.unflatten(1, (3, 2)).amax((2, 3, 4)).repeat_interleave(2, 1)[..., None, None]
    assert torch.equal(oe.nn.ReLU(pooling="max")(x), largest.expand_as(x))
    torch.testing.assert_close(oe.nn.ReLU(pooling="min")(x), x, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="rectifier_pooling = 'max' is not one of mean, linear"):
        PlainOffsetEquivariant(rectifier_pooling="max")
    with pytest.raises(ValueError, match="group pooling 'average' is not one of mean, max, min"):
        PlainOffsetEquivariant(normalisation_pooling="average")


def test_padding_of_the_family_is_that_of_its_convolutions():
    family = OffsetEquivariant(padding="offset")
    assert family.conv2d(3, 3, 3, 1, 1).padding_mode == "offset" and family.batch_norm_relu(3, border=1).border == 0
    assert OffsetEquivariant().conv2d(3, 3, 3, 1, 1).padding_mode == "replicate"
    with pytest.raises(ValueError, match="padding = 'zeros' is not one of replicate, offset"):
        OffsetEquivariant(padding="zeros")
