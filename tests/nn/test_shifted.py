import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import offset_equivariant as oe
from offset_equivariant.groups import add_offset, group_mean
from offset_equivariant.nn.shifted import GlobalAveragePool, ShiftedFeatures, TakeOutOffset, without_offset


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_features(*shape, border=0, seed=0, groups=3):
    """Values, shift and offset, none of them zero, and the whole as one tensor."""
    values = random_tensor(*shape, seed=seed)
    shift, offset = random_tensor(*shape[:2], seed=seed + 10), random_tensor(shape[0], groups, seed=seed + 20)
    padded = F.pad(values, (border,) * 4, mode="replicate") if border else None
    return ShiftedFeatures(values, shift, offset, padded), add_offset(values + shift[..., None, None], offset)


def test_parts_are_those_of_the_definition():
    x = add_offset(random_tensor(2, 6, 4, 5), 1e3 * random_tensor(2, 3, seed=1))
    features = TakeOutOffset()(x)
    torch.testing.assert_close(features.offset, group_mean(x, 3), rtol=1e-12, atol=0)
    torch.testing.assert_close(group_mean(features.values, 3), torch.zeros(2, 3, dtype=x.dtype), rtol=0, atol=1e-12)
    assert not features.shift.any()
    torch.testing.assert_close(features.joined(), x, rtol=1e-12, atol=0)
    assert (features.shape, features.border) == (x.shape, 0)


def test_joining_adds_shift_and_offset_to_every_pixel():
    features, joined = random_features(2, 6, 3, 4)
    torch.testing.assert_close(features.joined(), joined, rtol=0, atol=1e-12)
    torch.testing.assert_close(GlobalAveragePool()(features), joined.mean((2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(GlobalAveragePool()(joined), joined.mean((2, 3)), rtol=0, atol=1e-12)


def test_half_precision_keeps_offset_and_shift_precise():
    x = random_tensor(2, 6, 4, 4).to(torch.bfloat16)
    features = without_offset(x, 3)
    assert [part.dtype for part in list(features)[:3]] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(features.offset, group_mean(x.float(), 3), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2, "bias": False},
        {"padding": 2, "dilation": 2},
        {"padding": 0},
        {"padding": (1, 0)},
        {"padding": 1, "groups": 3},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "constraint": "projection"},
    ],
    ids=str,
)
def test_convolutions_of_shifted_features(options, border):
    torch.manual_seed(0)
    layer = oe.nn.Conv2d(6, 9, 3, **options).double()
    oe.nn.project_(layer)
    features, joined = random_features(2, 6, 5, 6, border=border)
    result = layer(features)
    assert result.offset is features.offset
    torch.testing.assert_close(result.joined(), layer(joined), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["inside_groups", "end"])
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (2, 6, 5, 3)])
def test_shortcuts_of_shifted_features(padding, shape):
    shortcut = oe.nn.OptionAShortcut(6, 12, 2, padding=padding)
    features, joined = random_features(*shape, border=1)
    result = shortcut(features)
    assert result.border == 0
    torch.testing.assert_close(result.joined(), shortcut(joined), rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_max_pooling_of_shifted_features(memory_format, border):
    pooling = oe.nn.MaxPool2d(3, 2, 1)
    features, _ = random_features(2, 6, 5, 6, border=border)
    values = features.values.to(memory_format=memory_format).requires_grad_()
    features = features._replace(values=values, shift=features.shift.requires_grad_())
    result, joined = pooling(features), features.joined().detach().requires_grad_()
    assert (result.border, result.shape) == (0, (2, 6, 3, 3))
    assert result.offset is features.offset
    expected = torch.nn.MaxPool2d(3, 2, 1)(joined)
    torch.testing.assert_close(result.joined(), expected, rtol=0, atol=1e-12)
    weights = random_tensor(*expected.shape, seed=5)
    (expected * weights).sum().backward()
    (result.joined() * weights).sum().backward()
    assert torch.equal(values.grad, joined.grad)
    torch.testing.assert_close(features.shift.grad, joined.grad.sum((2, 3)), rtol=0, atol=1e-12)


def test_max_pooling_has_no_indices_of_shifted_features():
    pooling = oe.nn.MaxPool2d(2, return_indices=True)
    features, joined = random_features(2, 6, 4, 4)
    assert [part.shape for part in pooling(joined)] == [(2, 6, 2, 2)] * 2
    with pytest.raises(ValueError, match=r"return_indices=True .* ShiftedFeatures; pass on \.joined\(\)"):
        pooling(features)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"channels = 4 .* offset_groups = 3; .* 3 or 6"):
        TakeOutOffset()(torch.zeros(2, 4, 3, 3))
    with pytest.raises(ValueError, match="offset_groups must be a whole number"):
        TakeOutOffset(offset_groups=0)


def test_what_cannot_be_taken_says_what_to_do():
    features, joined = random_features(2, 6, 4, 4)
    for add in (lambda: features + features, lambda: features + joined, lambda: joined + features):
        with pytest.raises(TypeError, match=r"call BatchNormReLU\(input, shortcut\)"):
            add()
    for multiply in (lambda: features * 2, lambda: 2 * features):
        with pytest.raises(TypeError, match=r"are not multiplied.*\.joined\(\)"):
            multiply()
    for layer in (oe.nn.Linear(6, 6), oe.nn.ConvTranspose2d(6, 6, 3), oe.nn.AvgPool2d(2)):
        with pytest.raises(TypeError, match=r"expected a tensor, got ShiftedFeatures, .* pass on \.joined\(\)"):
            layer(features)


def test_new_values_have_no_border_of_the_old_ones():
    features, _ = random_features(2, 6, 4, 5, border=1)
    halved = features._replace(values=features.values / 2)
    assert halved.border == 0
    layer = oe.nn.Conv2d(6, 6, 3, padding=1).double()
    expected = layer(ShiftedFeatures(features.values / 2, features.shift, features.offset))
    torch.testing.assert_close(layer(halved).joined(), expected.joined(), rtol=0, atol=1e-12)
    assert features._replace(shift=features.shift + 1).border == 1
    assert features._replace(values=features.values, padded=features.padded).border == 1


def test_feature_maps_have_no_index_and_are_a_tuple_otherwise():
    features, joined = random_features(2, 6, 4, 5, border=1)
    for index in (0, slice(1), -1):
        with pytest.raises(TypeError, match=r"have no index: .* take \.joined\(\)\[\.\.\.\] for images"):
            features[index]
    values, shift, offset, padded = features
    assert values is features.values and padded is features.padded and features._asdict()["shift"] is shift
    leaves, structure = torch.utils._pytree.tree_flatten(features)
    copies = [
        torch.utils._pytree.tree_unflatten(leaves, structure),
        pickle.loads(pickle.dumps(features)),
        copy.deepcopy(features),
    ]
    for copied in copies:
        assert isinstance(copied, ShiftedFeatures)
        torch.testing.assert_close(copied.joined(), joined, rtol=0, atol=1e-12)
    assert torch.equal(copies[1].offset, offset)


def test_compiled_parts_take_and_give_feature_maps():
    features, joined = random_features(2, 6, 4, 5)
    layer = oe.nn.Conv2d(6, 6, 3, padding=1).double()
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(features).joined(), layer(joined), rtol=0, atol=1e-12)


def test_joining_in_a_sequence():
    features, joined = random_features(2, 6, 4, 5)
    torch.testing.assert_close(oe.nn.Joined()(features), joined, rtol=0, atol=1e-12)
    assert oe.nn.Joined()(joined) is joined
    network = torch.nn.Sequential(TakeOutOffset(), oe.nn.Conv2d(6, 6, 3), oe.nn.Joined(), oe.nn.AvgPool2d(2)).double()
    expected = F.avg_pool2d(network[1](joined), 2)
    torch.testing.assert_close(network(joined), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        oe.nn.BatchNorm2d(6, pooling=oe.nn.GroupLinear(6)),
        oe.nn.GroupLinear(6),
        oe.nn.ReLU(),
        oe.nn.LeakyReLU(pooling="max"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_take_tensors_only_say_so(layer):
    features, _ = random_features(2, 6, 4, 5)
    with pytest.raises(TypeError, match=r"expected a tensor, got ShiftedFeatures, .*; pass on \.joined\(\)"):
        layer.double()(features)


@pytest.mark.parametrize(
    "call",
    [
        torch.nn.Conv2d(3, 8, 1),
        torch.nn.Conv2d(3, 8, 3, padding="same"),
        torch.nn.Conv3d(3, 8, 1),
        torch.nn.Linear(4, 4),
        torch.nn.GELU(),
        torch.nn.GroupNorm(3, 3),
        lambda z: F.interpolate(z, scale_factor=2),
        lambda z: torch.rand(2).view(z),
    ],
    ids=["conv2d", "same", "conv3d", "linear", "gelu", "group_norm", "interpolate", "view"],
)
def test_torchs_own_functions_say_so_too(call):
    """Some of them would end the process, since they look for the first part of what they take for a tuple of sizes."""
    with pytest.raises(TypeError, match=r"takes tensors, got ShiftedFeatures.*pass on \.joined\(\)"):
        call(TakeOutOffset()(torch.rand(1, 3, 4, 4)))


def test_whole_numbers_are_no_features():
    with pytest.raises(TypeError, match=r"floating-point features, such as log RGB, got torch\.uint8"):
        TakeOutOffset()(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
