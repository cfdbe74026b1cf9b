import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

import offset_equivariant as oe
from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from offset_equivariant.nn import (
    BatchNormReLU,
    Conv2d,
    Conventional,
    OffsetEquivariant,
    check_equivariance,
    fuse_for_inference,
    project_,
)
from offset_equivariant.nn.fused import ConventionalBatchNormReLU
from offset_equivariant.nn.plain import PlainBatchNormReLU

FAMILIES = {
    "conventional": Conventional(),
    "projection": OffsetEquivariant(constraint="projection"),
    "parametrization": OffsetEquivariant(constraint="parametrization"),
    "one group": OffsetEquivariant(1),
}


def random_images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def trained(family, depth=8):
    """A network with statistics and weights unlike the initial ones, one scale zero and one negative."""
    torch.manual_seed(0)
    return trained_(CifarResNet(depth, 5, family))


def trained_(network, side=12):
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(network(random_images(8, 3, side, side)), torch.arange(8) % 5).backward()
        optimiser.step()
        project_(network)
    with torch.no_grad():
        network.bn1.weight[:2] = torch.tensor([0.0, -0.7])
    return network.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_computes_the_same(family, memory_format, dtype, tolerance):
    network = trained(family).to(dtype)
    images = random_images(4, 3, 12, 10).to(dtype).to(memory_format=memory_format)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused = fuse_for_inference(network.train())
    with torch.no_grad():
        expected = network.eval()(images)
        scores = fused(images)
    assert (scores - expected).abs().max() <= tolerance * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not fused.training and not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_projected_shortcuts_are_folded_too(family, memory_format, block):
    torch.manual_seed(0)
    network = trained_(ResNet(block, (1, 1, 1, 1), 5, family, width=15 / 64), side=32)
    with torch.no_grad():
        network.layer2[0].downsample[1].weight[:2] = torch.tensor([0.0, -0.7])
    network = network.double()
    project_(network)
    images = random_images(4, 3, 40, 36).double().to(memory_format=memory_format)
    fused = fuse_for_inference(network)
    with torch.no_grad():
        expected, scores = network(images), fused(images)
    assert (scores - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    if not isinstance(family, Conventional):
        groups = family.offset_groups
        offsets = 10 * random_images(4, groups).double()
        moved = fused(add_offset(images, offsets)) - offsets.mean(1, keepdim=True)
        assert (moved - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_deep_networks_lose_no_digits(memory_format):
    """Values and shift must not grow from block to block and cancel."""
    torch.manual_seed(0)
    network = ResNet(Bottleneck, (3, 4, 6, 3), 5, OffsetEquivariant(), width=15 / 64)
    images = random_images(8, 3, 64, 64)
    with torch.no_grad():
        for _ in range(40):  # running statistics that fit the weights
            network(images)
        network.eval()
        exact = copy.deepcopy(network).double()
        project_(exact)
        expected = exact(images.double())
        project_(network)
        scores = fuse_for_inference(network)(images.to(memory_format=memory_format)).double()
        folded = fuse_for_inference(exact)(images.double())
    assert (scores - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (folded - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_torchs_own_batch_normalisation_is_folded_where_it_can_be():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).double()
    for _ in range(3):
        network(random_images(4, 3, 8, 8).double() * 2 + 1)
    fused, images = fuse_for_inference(network.eval()), random_images(2, 3, 8, 8).double()
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(images), network(images), rtol=0, atol=1e-12)
    for norm in (nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)):
        with pytest.raises(ValueError, match="nothing to fold"):
            fuse_for_inference(nn.Sequential(nn.Conv2d(3, 4, 3), norm))


def test_stays_equivariant():
    network = trained(OffsetEquivariant(), 20).double()
    project_(network)
    report = check_equivariance(fuse_for_inference(network), (2, 3, 16, 16), output="mean")
    # In the precision in which the weights satisfied the constraint when they were folded.
    assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
    assert report.equivariant, f"\n{report}"  # in single precision too


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_exported_program(family, imagenet):
    network = trained_(ResNet(Bottleneck, (1, 1), 5, family, width=6 / 64)) if imagenet else trained(family)
    fused, images = fuse_for_inference(network), random_images(3, 3, 12, 12)
    program = torch.export.export(fused, (images,), dynamic_shapes=({0: torch.export.Dim("images", min=2)},))
    more = random_images(5, 3, 12, 12)
    torch.testing.assert_close(program.module()(more), fused(more), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["conventional", "projection"])
def test_onnx(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    fused, images = fuse_for_inference(trained(FAMILIES[family])), random_images(3, 3, 12, 12)
    path = tmp_path / "network.onnx"
    shapes = ({0: torch.export.Dim("images", min=2)},)
    torch.onnx.export(fused, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    moved = add_offset(random_images(5, 3, 12, 12), random_images(5, 3))
    (scores,) = session.run(None, {session.get_inputs()[0].name: moved.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), fused(moved), rtol=0, atol=1e-4)


class Shared(nn.Module):
    """One convolution under two normalisations, and one that is called twice: neither can be folded."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = Conv2d(3, 3, 1), Conv2d(3, 3, 1)
        self.bn1, self.bn2, self.bn3 = BatchNormReLU(3), BatchNormReLU(3), BatchNormReLU(3)

    def forward(self, x):
        y = self.conv1(x)
        return self.bn3(self.conv2(self.bn1(y))) + self.bn2(y) + self.conv2(x)


def test_nothing_to_fold_is_refused():
    for network in (Shared(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())):
        with pytest.raises(ValueError, match="nothing to fold"):
            fuse_for_inference(network)
    mixed = nn.Sequential(Conv2d(3, 6, 1), ConventionalBatchNormReLU(6))
    with pytest.raises(ValueError, match="nothing to fold"):
        fuse_for_inference(mixed)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_named():
    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch\.fx"):
        fuse_for_inference(Branching())


class OfTensors(nn.Module):
    """Passes tensors, and names its arguments."""

    def __init__(self, family):
        super().__init__()
        self.conv1, self.bn1 = family.conv2d(3, 6, 3, padding=1), family.batch_norm_relu(6)
        self.conv2, self.bn2 = family.conv2d(6, 6, 3, padding=1), family.batch_norm_relu(6)

    def forward(self, x):
        y = self.bn1(input=self.conv1(x))
        return self.bn2(self.conv2(y), shortcut=y)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_networks_that_pass_tensors_are_folded_too(family):
    torch.manual_seed(0)
    network = OfTensors(family).double()
    project_(network)
    for _ in range(3):
        network(random_images(4, 3, 8, 8).double() * 2 + 1)
    network.eval()
    fused, images = fuse_for_inference(network), random_images(4, 3, 8, 8).double()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(images), network(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_networks_of_half_precision_run(family):
    torch.manual_seed(0)
    network = CifarResNet(8, 10, family).eval()
    images = torch.rand(2, 3, 16, 16)
    expected = network(images)
    for half in (network.bfloat16(), fuse_for_inference(network)):
        found = half(images.bfloat16())
        assert (
            found.dtype == torch.bfloat16 and (found.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.05
        )


def test_weights_that_a_convolution_does_not_own_are_left_alone():
    torch.manual_seed(0)
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    tied = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    tied[1].weight = tied[0].weight
    last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    network = nn.Sequential(normed, nn.BatchNorm2d(3), tied[0], nn.BatchNorm2d(3), tied[1], nn.BatchNorm2d(3), *last)
    network = network.double()
    for _ in range(3):
        network(random_images(4, 3, 8, 8).double() * 2 + 1)
    fused, images = fuse_for_inference(network.eval()), random_images(2, 3, 8, 8).double()
    torch.testing.assert_close(fused(images), network(images), rtol=0, atol=1e-12)
    assert [isinstance(module, nn.Identity) for module in fused] == [False] * 7 + [True]


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weights."""

    def __init__(self):
        super().__init__()
        self.encoder, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.last, self.last_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.last_norm(self.last(F.conv_transpose2d(self.norm(self.encoder(x)), self.encoder.weight)))


class Twice(nn.Module):
    """One result is both the input of a normalisation and its shortcut."""

    def __init__(self, family):
        super().__init__()
        self.first, self.norm = family.conv2d(3, 6, 3, padding=1), family.batch_norm_relu(6)
        self.last, self.last_norm = family.conv2d(6, 6, 3, padding=1), family.batch_norm_relu(6)

    def forward(self, x):
        y = self.first(x)
        return self.last_norm(self.last(self.norm(y, y)))


@pytest.mark.parametrize(
    ("make", "left"),
    [(Tied, "norm"), *((lambda family=family: Twice(family), "norm") for family in FAMILIES.values())],
    ids=["tied", *FAMILIES],
)
def test_what_is_read_elsewhere_or_twice_is_left_alone(make, left):
    torch.manual_seed(0)
    network = make().double()
    for _ in range(3):
        network(random_images(4, 3, 8, 8).double() * 2 + 1)
    fused, images = fuse_for_inference(network.eval()), random_images(2, 3, 8, 8).double()
    expected = network(images)
    torch.testing.assert_close(fused(images), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert isinstance(getattr(fused, left), nn.BatchNorm2d) and not isinstance(fused.last_norm, nn.BatchNorm2d)


def test_scales_that_half_precision_has_no_digits_for_are_refused():
    network = nn.Sequential(Conv2d(3, 6, 3), BatchNormReLU(6)).eval()
    with torch.no_grad():
        network[1].weight[2] = 1e-9
    images = random_images(2, 3, 8, 8)
    folded = fuse_for_inference(network)
    torch.testing.assert_close(folded(images), network(images), rtol=0, atol=1e-5)
    assert folded.bfloat16()(images.bfloat16()).isfinite().all()
    with pytest.raises(ValueError, match=r"scales are zero in torch\.float16: convert the network as it was before"):
        fuse_for_inference(network).half()
    half = network.half()
    assert half(images.half()).isfinite().all()
    with pytest.raises(ValueError, match=r"scales are zero in torch\.float16"):
        fuse_for_inference(half)


def test_every_layer_of_the_package_is_a_leaf_to_tracers():
    """All but the reparametrisation, which is no layer, and a composition of leaves."""
    found = set()
    for module in pkgutil.iter_modules(oe.nn.__path__, "offset_equivariant.nn."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.name:
                found.add(value)
    layers = {kind for kind in found if not issubclass(kind, oe.nn.OffsetConstraint | PlainBatchNormReLU)}
    assert len(layers) > 40
    assert [kind for kind in layers if not issubclass(kind, oe.nn.LEAF_MODULES)] == []


@pytest.mark.parametrize("family", [*FAMILIES.values(), oe.nn.FAMILIES["offset_equivariant_plain"]()], ids=str)
def test_features_of_inner_layers_are_extracted(family):
    network, images = CifarResNet(8, 5, family).eval(), random_images(2, 3, 12, 12)
    leaves = {"leaf_modules": list(oe.nn.LEAF_MODULES)}
    extract = create_feature_extractor(network, {"stages.1": "inner", "scores": "scores"}, tracer_kwargs=leaves)
    found = extract(images)
    expected = oe.nn.Joined()(nn.Sequential(*list(network)[:3], *network.stages[:2])(images))
    torch.testing.assert_close(oe.nn.Joined()(found["inner"]), expected)
    torch.testing.assert_close(found["scores"], network(images))


class Clamped(oe.nn.Conv2d):
    def forward(self, input):
        convolved = super().forward(input)
        return convolved._replace(values=convolved.values.clamp(min=-0.1))


class Halved(oe.nn.BatchNormReLU):
    def forward(self, input, shortcut=None):
        rectified = super().forward(input, shortcut)
        return rectified._replace(values=0.5 * rectified.values)


class Renamed(oe.nn.BatchNormReLU):
    pass


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, result: result._replace(values=2 * result.values))
    return layer


@pytest.mark.parametrize(
    ("convolution", "norm", "folds"),
    [
        (oe.nn.Conv2d, Renamed, True),
        (Clamped, oe.nn.BatchNormReLU, False),
        (oe.nn.Conv2d, Halved, False),
        (oe.nn.Conv2d, lambda channels: hooked(oe.nn.BatchNormReLU(channels)), False),
        (lambda *arguments: hooked(oe.nn.Conv2d(*arguments)), oe.nn.BatchNormReLU, False),
        (
            lambda *arguments: nn.utils.spectral_norm(oe.nn.Conv2d(*arguments, constraint="projection")),
            oe.nn.BatchNormReLU,
            False,
        ),
    ],
    ids=["renamed", "own convolution", "own normalisation", "hooked", "hooked convolution", "spectral norm"],
)
def test_layers_that_compute_something_else_are_left_alone(convolution, norm, folds):
    parts = [oe.nn.TakeOutOffset(), convolution(3, 6, 3), norm(6), oe.nn.Conv2d(6, 6, 1), oe.nn.BatchNormReLU(6)]
    torch.manual_seed(0)
    network = nn.Sequential(*parts, oe.nn.Joined()).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        network(3 * x)  # for running statistics of its own
    network.eval()
    fused = fuse_for_inference(network)
    assert (type(fused[2]) is not type(network[2])) == folds and type(fused[4]) is not type(network[4])
    with torch.no_grad():
        torch.testing.assert_close(fused(x), network(x), rtol=1e-10, atol=1e-10)


def test_gradients_of_folded_networks_are_refused():
    fused = fuse_for_inference(nn.Sequential(oe.nn.TakeOutOffset(), oe.nn.Conv2d(3, 6, 3), oe.nn.BatchNormReLU(6)))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="folded by fuse_for_inference has no gradients, and its input requires one"):
        fused(x)
    with torch.no_grad():
        fused(x)


def test_folded_networks_are_not_initialised():
    fused = fuse_for_inference(nn.Sequential(oe.nn.TakeOutOffset(), oe.nn.Conv2d(3, 6, 3), oe.nn.BatchNormReLU(6)))
    before = fused[1].weight.clone()
    with pytest.raises(ValueError, match="folded by fuse_for_inference has no initial weights"):
        oe.nn.OffsetEquivariant().initialise_(fused)
    assert torch.equal(fused[1].weight, before)
