"""Mixed precision: group means and offsets in single precision, products in low precision and free of offsets."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import offset_equivariant as oe
from offset_equivariant.groups import add_offset, group_mean
from offset_equivariant.models.cerberus import ColorCerberus
from offset_equivariant.models.resnet import Bottleneck, CifarResNet, ResNet
from offset_equivariant.nn import OffsetEquivariant, project_
from offset_equivariant.nn.constraint import constraint_error
from offset_equivariant.nn.precision import _tf32_is_allowed, past_low_precision, rounds_operands

LOW = (torch.bfloat16, torch.float16)
#: Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
LAYERS = {
    "Linear": (partial(oe.nn.Linear, 12, 9), (4, 12)),
    "Linear-positions": (partial(oe.nn.Linear, 12, 9), (4, 5, 12)),
    "Conv1d": (partial(oe.nn.Conv1d, 12, 9, 3, padding=1), (4, 12, 8)),
    "Conv2d": (partial(oe.nn.Conv2d, 12, 9, 3, padding=1), (4, 12, 8, 8)),
    "Conv2d-whole": (partial(oe.nn.Conv2d, 12, 9, 4), (4, 12, 4, 4)),
    "Conv2d-grouped": (partial(oe.nn.Conv2d, 12, 12, 3, padding=1, groups=12), (4, 12, 8, 8)),
    "Conv3d": (partial(oe.nn.Conv3d, 6, 9, 2), (4, 6, 4, 4, 4)),
    "ConvTranspose2d": (partial(oe.nn.ConvTranspose2d, 12, 9, 4, 2, 1), (4, 12, 5, 5)),
    "GroupLinear": (partial(oe.nn.GroupLinear, 12), (4, 12, 8, 8)),
    "OffsetAdapter": (lambda: oe.nn.OffsetAdapter(nn.Conv2d(12, 9, 3)), (4, 12, 8, 8)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
every_low_precision = pytest.mark.parametrize("dtype", LOW, ids=str)
OFFSET = torch.tensor([[1000.0, -700.0, 300.0]])


class Products(TorchDispatchMode):
    """Notes the types of what is convolved and multiplied as matrices, and the largest value among them."""

    NAMES = ("convolution", "mkldnn_convolution", "mm", "addmm", "bmm", "linear", "matmul")

    def __init__(self):
        super().__init__()
        self.dtypes, self.largest = [], 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.NAMES:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            self.dtypes += [x.dtype for x in tensors]
            self.largest = max(self.largest, *(x.abs().max().item() for x in tensors))
        return func(*args, **(kwargs or {}))


def with_offset(x, offset):
    """x + GΔ, of rows and images, and of rows of positions, whose channels come last."""
    if x.ndim == 3 and x.shape[2] % 3 == 0 and x.shape[1] % 3:
        return x + offset.repeat_interleave(x.shape[2] // 3, 1)
    return add_offset(x, offset.expand(len(x), -1))


@every_low_precision
@every_layer
def test_an_offset_passes_unharmed(make, shape, dtype):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", dtype):
            with Products() as products:
                moved = layer(with_offset(x, OFFSET))
            still = layer(x)
    assert moved.dtype == still.dtype == torch.float32
    # What is multiplied is in low precision, and far smaller than the offset.
    assert set(products.dtypes) == {dtype} and products.largest < 10
    # Two roundings of inputs, weights and results, each relative to the sum of the products' sizes, of the order of
    # the result's own; and two of the sum with the offset.
    scale = exact.abs().max().item()
    allowed = 8 * ROUNDOFF[dtype] * scale
    assert (still - exact).abs().max().item() <= allowed
    assert (moved - with_offset(still, OFFSET)).abs().max().item() <= allowed + 1000 * 2**-22


@every_low_precision
def test_layers_that_round_the_offset_lose_it(dtype):
    """The same convolution, given features with their offset, as torch's own would be."""
    torch.manual_seed(0)
    layer, x = oe.nn.Conv2d(12, 9, 3), torch.randn(4, 12, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        still, moved = (F.conv2d(y, layer.weight, layer.bias).float() for y in (x, with_offset(x, OFFSET)))
        ours = layer(with_offset(x, OFFSET)) - with_offset(layer(x), OFFSET)
    theirs = (moved - with_offset(still, OFFSET)).abs().max().item()
    assert theirs > 0.2 * ROUNDOFF[dtype] * 1000 > 10 * ours.abs().max().item()


@every_low_precision
def test_gradients_are_those_of_single_precision_but_for_rounding(dtype):
    torch.manual_seed(0)
    layer, x = oe.nn.Conv2d(12, 9, 3, padding=1), torch.randn(4, 12, 8, 8)
    direction = torch.randn(4, 9, 8, 8)
    gradients = []
    for low in (False, True):
        own, given = copy.deepcopy(layer), with_offset(x, OFFSET).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=low):
            found = own(given)
        (found * direction).sum().backward()
        gradients.append([given.grad, *(p.grad for p in own.parameters())])
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        # In single precision an offset of a thousand costs three digits of the weights' gradient.
        assert (found - exact).abs().max() <= (8 * ROUNDOFF[dtype] + 1000 * 2**-22) * exact.abs().max()


@every_low_precision
def test_group_means_of_low_precision_are_in_single_precision(dtype):
    x = (torch.randn(2, 6, 50, 50) + 5).to(dtype)
    found = group_mean(x, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double().unflatten(1, (3, 2)).mean((2, 3, 4)), rtol=1e-6, atol=0)
    assert group_mean(x.double(), 3).dtype == torch.float64
    # Only the sum is rounded.
    offset = torch.tensor([[1 / 3, 2 / 3, 1.0]]).expand(2, -1)
    expected = (x.float() + offset.repeat_interleave(2, 1)[..., None, None]).to(dtype)
    assert torch.equal(add_offset(x, offset), expected)


@every_low_precision
@pytest.mark.parametrize("make", [oe.nn.BatchNorm2d, oe.nn.BatchNormReLU], ids=lambda make: make.__name__)
def test_statistics_of_low_precision_are_in_single_precision(make, dtype):
    torch.manual_seed(0)
    norm, x = make(6, momentum=1.0), (torch.randn(4, 6, 16, 16) + 3).to(dtype)
    with torch.autocast("cpu", dtype):
        norm(x)
    buffers = dict(norm.named_buffers())
    (mean,) = (value for name, value in buffers.items() if name.endswith("running_mean"))
    (variance,) = (value for name, value in buffers.items() if name.endswith("running_var"))
    wide = x.double()
    centred = add_offset(wide, -group_mean(wide, 3))
    # What is centred is rounded once more where batch normalisation is torch's.
    tolerance = 1e-5 if make is oe.nn.BatchNormReLU else ROUNDOFF[dtype] / 10
    torch.testing.assert_close(mean.double(), centred.mean((0, 2, 3)), rtol=0, atol=tolerance)
    torch.testing.assert_close(variance.double(), centred.var((0, 2, 3)), rtol=10 * tolerance, atol=0)


@every_low_precision
def test_the_projection_is_not_rounded(dtype):
    layer = oe.nn.Conv2d(12, 12, 3, groups=4)
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    with torch.autocast("cpu", dtype):
        weight = layer.weight
        assert constraint_error(weight, 3, groups=4) < 1e-5
    assert torch.equal(weight, layer.weight)


def small_bottlenecks():
    return ResNet(Bottleneck, (1, 1), 8, OffsetEquivariant(), width=12 / 64)


@pytest.mark.parametrize(
    "make", [partial(CifarResNet, 20, 10, OffsetEquivariant()), small_bottlenecks], ids=["basic", "bottleneck"]
)
def test_networks(make):
    torch.manual_seed(0)
    network = make().double()
    project_(network)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    offset = torch.tensor([[30.0, -20.0, 10.0]], dtype=torch.float64).expand(4, -1)
    network(x)  # for running statistics
    network.eval()
    scale = network(x).std(1).mean().item()

    def error(dtype, low=None):
        converted = copy.deepcopy(network).to(dtype)
        with torch.no_grad(), torch.autocast("cpu", low, enabled=low is not None):
            still, moved = (converted(y.to(dtype)).double() for y in (x, add_offset(x, offset)))
        return (moved - still - offset.mean(1, keepdim=True)).abs().max().item() / scale

    bfloat16, float16 = (error(torch.float32, low) for low in LOW)
    assert error(torch.float64) < 1e-10
    assert error(torch.float32) < 1e-4
    # The offset leaves its own rounding in the input, 2⁻²⁴ of it, and a few values fall to the other side of one of the
    # low precision's, of which there are up to forty on the way.
    assert bfloat16 < 64 * ROUNDOFF[torch.bfloat16] and float16 < 64 * ROUNDOFF[torch.float16]
    # All in low precision, the input and the result hold the offset, and are rounded relative to it.
    assert error(torch.bfloat16) > 3 * bfloat16 and error(torch.float16) > 3 * float16


def test_joined_feature_maps_keep_the_offset_under_autocast():
    x = torch.randn(2, 6, 4, 4)
    features = oe.nn.TakeOutOffset()(with_offset(x, OFFSET))
    low = features._replace(values=features.values.bfloat16())
    assert low.joined().dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        pooled = oe.nn.GlobalAveragePool()(low)
        joined = low.joined()
    assert pooled.dtype == joined.dtype == torch.float32
    torch.testing.assert_close(joined, with_offset(x, OFFSET), rtol=0, atol=2**-7)


def test_past_low_precision_is_the_layer_itself():
    layer, x = oe.nn.Conv2d(6, 9, 3).double(), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(past_low_precision(layer, x, 3), layer(x), rtol=0, atol=1e-12)
    plain = nn.Conv2d(6, 9, 3).double()
    assert (past_low_precision(plain, x, 3) - plain(x)).abs().max() > 1e-3


@every_low_precision
def test_folded_layers_that_pass_tensors_keep_the_offset(dtype):
    torch.manual_seed(0)
    network = nn.Sequential(oe.nn.Conv2d(3, 33, 3), oe.nn.BatchNormReLU(33))
    x = torch.randn(4, 3, 8, 8)
    network(3 * x + 1)
    folded = oe.nn.fuse_for_inference(network)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        still, moved = folded(x), folded(with_offset(x, OFFSET))
    allowed = 8 * ROUNDOFF[dtype] * still.abs().max().item() + 1000 * 2**-20
    assert (moved - with_offset(still, OFFSET)).abs().max().item() <= allowed


def test_shapes_can_be_had_without_computing():
    with torch.device("meta"):
        network = CifarResNet(8, 10, OffsetEquivariant())
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


class Tf32(TorchDispatchMode):
    """Rounds what is convolved and multiplied to the 10 stored bits of TF32, as tensor cores do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in Products.NAMES:
            args = [self.rounded(x) if isinstance(x, torch.Tensor) and x.ndim > 1 else x for x in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x):
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(
    ("make", "shape"),
    [*LAYERS.values(), (partial(ColorCerberus, OffsetEquivariant()), (2, 3, 64, 64))],
    ids=[*LAYERS, "ColorCerberus"],
)
def test_an_offset_passes_unharmed_by_tf32(make, shape, monkeypatch):
    torch.manual_seed(0)
    layer = make().eval()
    x = torch.randn(*shape)

    def error():
        with torch.no_grad(), Tf32():
            still, moved = layer(x), layer(with_offset(x, OFFSET))
        return (moved - with_offset(still, OFFSET)).abs().max().item() / still.abs().max().item()

    lost = error()
    # As on a GPU; here there is none.
    monkeypatch.setattr(oe.nn.layers, "rounds_operands", lambda x: True)
    monkeypatch.setattr(oe.nn.transposed, "rounds_operands", lambda x: True)
    kept = error()
    assert kept < 2e-2
    assert lost > 10 * kept or isinstance(layer, oe.nn.OffsetAdapter)  # which takes the offset out by nature


@pytest.fixture
def tf32_flags():
    """torch's flags of convolutions and products of matrices on GPUs, which are what they were afterwards."""
    flags = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [flag.fp32_precision for flag in flags]
    yield flags
    for flag, value in zip(flags, before, strict=True):
        flag.fp32_precision = value


def test_tf32_is_what_torchs_flags_say(tf32_flags):
    assert not rounds_operands(torch.zeros(1))  # not of a CPU
    assert torch.compile(lambda x: x + _tf32_is_allowed(), backend="eager", fullgraph=True)(torch.zeros(1)) == 1
    for *values, allowed in [("ieee", "ieee", False), ("tf32", "ieee", True), ("ieee", "tf32", True)]:
        for flag, value in zip(tf32_flags, values, strict=True):
            flag.fp32_precision = value
        assert _tf32_is_allowed() is allowed


def test_an_empty_batch_passes_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert oe.nn.Linear(6, 9)(torch.randn(0, 6)).shape == (0, 9)
