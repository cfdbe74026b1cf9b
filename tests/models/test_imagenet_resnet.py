import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import RESNETS, BasicBlock, Bottleneck, CifarResNet, ResNet
from offset_equivariant.nn import Conventional, OffsetEquivariant, check_equivariance, constraint_error, project_
from offset_equivariant.nn.constraint import ConstrainedWeight
from offset_equivariant.nn.families import PlainOffsetEquivariant
from offset_equivariant.nn.fused import BatchNormOfShortcut, BatchNormReLU

IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def random_images(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def small(block=Bottleneck, family=None, stages=3, **options):
    """One block a stage, of 15, 30 and 60 channels, and for bottlenecks four times as many between them."""
    return ResNet(block, (1,) * stages, 4, family, width=15 / 64, **options)


def train_(network, steps=4, side=24):
    """A few steps of SGD on noise, large enough to move every weight."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    images, labels = random_images(8, 3, side, side, dtype=torch.float32), torch.arange(8) % 4
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
        project_(network)


def counted(stem, outputs, inner):
    """Parameters of ResNet-50 with these widths, each convolution's and normalisation's summed up by hand."""
    total, width = 3 * stem * 49 + 2 * stem, stem
    for out, mid, blocks in zip(outputs, inner, (3, 4, 6, 3), strict=True):
        total += width * out + 2 * out  # the first block's shortcut
        for block in range(blocks):
            total += (out if block else width) * mid + 9 * mid * mid + mid * out + 2 * (mid + mid + out)
        width = out
    return total + width * 3000 + 3000


def test_parameter_counts_of_table_2():
    """On the meta device, without memory, of the original; constrained weights are projected when they are made."""
    with torch.device("meta"):
        assert parameters(RESNETS["resnet50"]()) == 25_557_032
    equivariant = RESNETS["resnet50"](family=OffsetEquivariant())
    assert parameters(equivariant) == counted(63, [252, 504, 1008, 2016], [63, 126, 252, 504]) == 28_831_107
    closest = counted(63, [255, 513, 1023, 2049], [63, 129, 255, 513])  # of three, for the width of every layer
    assert closest == 29_664_567  # not the paper's 28.8 million
    stages = (equivariant.layer1, equivariant.layer2, equivariant.layer3, equivariant.layer4)
    assert [stage[0].conv2.out_channels for stage in stages] == [63, 126, 252, 504]
    assert [stage[0].downsample[0].out_channels for stage in stages] == [252, 504, 1008, 2016]
    assert (equivariant.fc.in_features, equivariant.fc.out_features) == (2016, 3000)


@pytest.mark.parametrize("name", IMAGENET)
def test_state_dictionaries_are_torchvisions(name):
    with torch.device("meta"):
        own, theirs = RESNETS[name](), getattr(torchvision.models, name)(weights=None)
    shapes = [(key, value.shape) for key, value in theirs.state_dict().items()]
    assert [(key, value.shape) for key, value in own.state_dict().items()] == shapes
    assert parameters(own) == parameters(theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_original_computes_what_torchvisions_does(name, training):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).double()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    own = RESNETS[name]().double()
    own.load_state_dict(theirs.state_dict())
    images = random_images(2, 3, 64, 48)
    expected = theirs.train(training)(images)
    found = own.train(training)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    for (key, value), other in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("constraint", ["projection", "parametrization"])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_small_networks_are_equivariant(block, constraint, trained):
    torch.manual_seed(0)
    network = small(block, OffsetEquivariant(constraint=constraint))
    if trained:
        train_(network)
        assert network.layer2[0].downsample[1].running_var.sub(1).abs().max() > 1e-2
    report = check_equivariance(network, (4, 3, 27, 24), output="mean")
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"
    for layer in network.modules():
        if isinstance(layer, ConstrainedWeight):
            assert constraint_error(layer.weight, 3) < 1e-5


@pytest.mark.parametrize("constraint", ["projection", "parametrization"])
def test_resnet_50_is_equivariant(constraint):
    """In single and double precision, training and evaluation mode, as all such tests."""
    torch.manual_seed(0)
    network = RESNETS["resnet50"](classes=10, family=OffsetEquivariant(constraint=constraint))
    report = check_equivariance(network, (2, 3, 64, 64), output="mean", magnitudes=(1.0, 1000.0))
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"


def test_posterior_probabilities_depend_on_the_image_and_not_on_its_offset():
    torch.manual_seed(0)
    network = small(family=OffsetEquivariant())
    train_(network)
    network = network.double().eval()
    project_(network)
    images, offsets = random_images(4, 3, 32, 32), 10 * random_images(4, 3)
    posterior = network(images).softmax(1)
    torch.testing.assert_close(network(add_offset(images, offsets)).softmax(1), posterior, rtol=0, atol=1e-12)
    assert (posterior[0] - posterior[1]).abs().max() > 1e-3


def test_the_original_is_not_equivariant():
    report = check_equivariance(small(), (2, 3, 24, 24), output="mean")
    assert report.worst() > 0.01
    assert report.first_breaking == "conv1"


def plain_copy(network, stages):
    """The same network of the plain compositions of Eq. 19, 21 and 27, which pass tensors."""
    plain = small(type(network.layer1[0]), PlainOffsetEquivariant(constraint="parametrization"), stages)
    plain = plain.to(network.fc.bias.dtype)
    inside = {BatchNormReLU: "norm.module", BatchNormOfShortcut: "module"}
    state = {}
    for key, value in network.state_dict().items():
        owner, _, name = key.rpartition(".")
        path = inside.get(type(network.get_submodule(owner)))
        state[key if path is None else f"{owner}.{path}.{name}"] = value.clone()
    plain.load_state_dict(state)
    return plain


# In float32 gradients of the first layer come through some hundred roundings, in an order that the threads decide.
@pytest.mark.parametrize(("dtype", "tolerance", "stages"), [(torch.float32, 5e-5, 2), (torch.float64, 1e-10, 3)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_equals_the_network_of_plain_compositions(block, training, dtype, tolerance, stages):
    """Reparametrised: the gradient of a weight that is held by projection has a part that the projection takes."""
    torch.manual_seed(0)
    network = small(block, OffsetEquivariant(constraint="parametrization"), stages)
    train_(network)
    network = network.to(dtype)
    project_(network)
    plain = plain_copy(network, stages)
    results = []
    for candidate in (network.train(training), plain.train(training)):
        candidate.zero_grad()
        images = add_offset(random_images(4, 3, 27, 24), 3 * random_images(4, 3)).to(dtype).requires_grad_()
        scores = candidate(images)
        (scores * random_images(*scores.shape, dtype=dtype)).sum().backward()
        gradients = [parameter.grad for parameter in candidate.parameters()]
        results.append([scores, images.grad, *gradients, *candidate.buffers()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * (1e-3 + expected.abs().max().item()))
    assert len(results[0]) > 30


def test_the_merge_subtracts_one_group_mean_of_the_projected_shortcut():
    """Eq. 27 written out, with the parts of the block."""
    torch.manual_seed(0)
    network = small(family=OffsetEquivariant()).double().eval()
    block = network.layer2[0]
    x = network.maxpool(network.bn1(network.conv1(network.entrance(random_images(2, 3, 24, 24)))))
    x = network.layer1(x)
    norm = block.bn3
    branch = block.conv3(block.bn2(block.conv2(block.bn1(block.conv1(x))))).joined()
    shortcut = block.downsample(x).joined()

    def group_means(y):
        return y.unflatten(1, (3, -1)).mean((2, 3, 4), keepdim=True).expand(-1, -1, y.shape[1] // 3, 1, 1).flatten(1, 2)

    centred = branch - group_means(branch)
    normalised = F.batch_norm(centred, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    merged = normalised + group_means(branch) + shortcut - group_means(shortcut)
    expected = torch.maximum(merged, group_means(merged))
    torch.testing.assert_close(block(x).joined(), expected, rtol=0, atol=1e-10)
    assert group_means(shortcut).abs().max() > 0.01


@pytest.mark.parametrize("family", [Conventional(), OffsetEquivariant()], ids=["conventional", "equivariant"])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_start_as_their_shortcuts_where_that_is_asked_for(block, family):
    for asked in (False, True):
        torch.manual_seed(0)
        network = small(block, family, zero_init_last=asked)
        norms = {
            name: module.weight.detach()
            for name, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }
        last = {f"layer{stage}.0.{'bn3' if block is Bottleneck else 'bn2'}" for stage in (1, 2, 3)}
        assert last < set(norms)
        for name, weight in norms.items():
            assert torch.equal(weight, torch.full_like(weight, 0.0 if asked and name in last else 1.0)), name


def test_initial_convolutions_have_he_et_als_variance():
    torch.manual_seed(0)
    for family in (Conventional(), OffsetEquivariant()):
        convolution = ResNet(Bottleneck, (1, 1), family=family).layer2[0].conv2
        weight = convolution.weight.detach()
        assert weight.square().mean().item() == pytest.approx(2 / weight[0].numel(), rel=0.03)
        assert convolution.bias is None


def test_shapes_of_stages():
    network, shapes = small(family=OffsetEquivariant()), []
    for part in (network.bn1, network.maxpool, network.layer1, network.layer2, network.layer3):
        part.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert network(torch.zeros(2, 3, 65, 64)).shape == (2, 4)
    assert shapes == [(2, 15, 33, 32), (2, 15, 17, 16), (2, 60, 17, 16), (2, 120, 9, 8), (2, 240, 5, 4)]


@pytest.mark.parametrize("offset_groups", [1, 5])
def test_other_numbers_of_offset_groups(offset_groups):
    network = ResNet(Bottleneck, (1, 2), 4, OffsetEquivariant(offset_groups), offset_groups, width=10 / 64)
    report = check_equivariance(network, (2, offset_groups, 16, 16), offset_groups=offset_groups, output="mean")
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"


def test_every_architecture_by_its_name():
    names = [f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 110)]
    assert list(RESNETS) == [*names, *IMAGENET]
    with torch.device("meta"):
        for name, make in RESNETS.items():
            network = make(classes=7)
            assert isinstance(network, CifarResNet if name in names else ResNet)
            convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
            assert len(convolutions) + 1 == int(name.removeprefix("resnet"))
            assert network.fc.out_features == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": ()}, r"counts = \(\) must be one positive number of blocks a stage"),
        ({"counts": (1, 0)}, r"counts = \(1, 0\) must be one positive number of blocks a stage"),
        ({"width": 0.0}, "width = 0.0 leaves no channel of the 64 of the first stage"),
        ({"width": -1.0}, "width = -1.0 leaves no channel of the 64"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"block": Bottleneck, "counts": (1, 1), **arguments})
