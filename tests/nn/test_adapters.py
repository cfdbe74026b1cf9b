import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import offset_equivariant as oe
from offset_equivariant.groups import assignment_matrix


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class PixelwiseMLP(nn.Module):
    """Nothing equivariant about it: mixes, bends and squares the channels of every pixel."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, 5), nn.Tanh(), nn.Linear(5, outputs))

    def forward(self, x):
        return self.layers(x.movedim(1, -1)).movedim(-1, 1).square()


def group_pooling(kind, channels, offset_groups):
    return oe.nn.GroupLinear(channels, offset_groups) if kind == "linear" else kind


KINDS = ["mean", "max", "min", "linear"]


@given(
    offset_groups=st.sampled_from([1, 2, 3, 31]),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    spatial=st.sampled_from([(), (3,), (2, 3), (2, 2, 2)]),
    subtract=st.sampled_from(KINDS),
    add=st.sampled_from([*KINDS, None]),
)
@settings(max_examples=30, deadline=None)
def test_the_adapter_makes_any_module_equivariant(offset_groups, sizes, spatial, subtract, add, assert_equivariant):
    inputs, outputs = (offset_groups * size for size in sizes)
    adapter = oe.nn.OffsetAdapter(
        PixelwiseMLP(inputs, outputs),
        offset_groups,
        group_pooling(subtract, inputs, offset_groups),
        group_pooling(add, inputs, offset_groups),
    )
    assert_equivariant(adapter, (2, inputs, *spatial), offset_groups=offset_groups, magnitudes=(1.0, 1000.0))


@pytest.mark.parametrize("add", ["min", None])
def test_the_adapter_is_eq_19_with_matrices(add):
    f = PixelwiseMLP(6, 3).double()
    x = random_input(2, 6, 4)
    G_m, G_n = assignment_matrix(6, 3, dtype=x.dtype), assignment_matrix(3, 3, dtype=x.dtype)
    grouped = x.reshape(2, 3, -1)
    phi_1, phi_2 = grouped.amax(2), grouped.amin(2) if add else grouped.amax(2)
    expected = f(x - (phi_1 @ G_m.T)[:, :, None]) + (phi_2 @ G_n.T)[:, :, None]
    torch.testing.assert_close(oe.nn.OffsetAdapter(f, 3, "max", add)(x), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("pooling", ["mean", "max", "min"])
def test_relu_is_the_maximum_of_eq_21(pooling):
    x = random_input(2, 6, 4, 3)
    phi = getattr(x.reshape(2, 3, -1), {"mean": "mean", "max": "amax", "min": "amin"}[pooling])(2)
    expected = torch.maximum(x, phi.repeat_interleave(2, 1)[:, :, None, None])
    torch.testing.assert_close(oe.nn.ReLU(pooling=pooling)(x), expected, rtol=0, atol=1e-15)


def test_leaky_relu_bends_at_the_group_mean():
    x = torch.tensor([[1.0, 5, -2, 0]])  # group means 3 and -1
    leaky = oe.nn.LeakyReLU(0.5, offset_groups=2)
    assert leaky(x).tolist() == [[2, 5, -1.5, 0]]
    assert leaky(x + 10).tolist() == [[12, 15, 8.5, 10]]


def test_dropped_features_fall_to_the_group_mean():
    dropout = oe.nn.Dropout(0.25)
    x = random_input(4, 6, 10, 10) + 5
    mean = x.reshape(4, 3, -1).mean(2).repeat_interleave(2, 1)[:, :, None, None].expand_as(x)
    torch.manual_seed(0)
    y = dropout(x)
    dropped = torch.isclose(y, mean, rtol=0, atol=1e-12)
    assert 0.2 < dropped.double().mean() < 0.3
    torch.testing.assert_close(y[~dropped], (mean + (x - mean) / 0.75)[~dropped], rtol=0, atol=1e-12)
    torch.testing.assert_close(dropout.eval()(x), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("layer", "shape"), [(oe.nn.BatchNorm1d, (8, 6)), (oe.nn.BatchNorm1d, (4, 6, 5))])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_1d_normalises_the_centred_features(layer, shape, training, randomised):
    norm = randomised(layer(6).double()).train(training)
    inner = norm.module
    x = random_input(*shape) * 3 + 7
    phi = x.reshape(len(x), 3, -1).mean(2).repeat_interleave(2, 1).reshape(len(x), 6, *(1,) * (x.ndim - 2))
    centred = x - phi
    axes = [0, *range(2, x.ndim)]
    mean, variance = inner.running_mean.clone(), inner.running_var.clone()
    if training:
        mean, variance = centred.mean(axes), centred.var(axes, correction=0)
    parts = [part.reshape(6, *(1,) * (x.ndim - 2)) for part in (mean, variance, inner.weight, inner.bias)]
    expected = (centred - parts[0]) / (parts[1] + 1e-5).sqrt() * parts[2] + parts[3] + phi
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


def test_batch_norm_takes_torchs_arguments():
    for layer, plain in [(oe.nn.BatchNorm1d, nn.BatchNorm1d), (oe.nn.BatchNorm2d, nn.BatchNorm2d)]:
        inner = layer(6, 1e-3, None, False, False).module
        assert isinstance(inner, plain)
        assert inner.extra_repr() == plain(6, 1e-3, None, False, False).extra_repr()


LAYERS = [
    (lambda g: oe.nn.BatchNorm1d(2 * g, offset_groups=g), lambda g: (4, 2 * g)),
    (lambda g: oe.nn.BatchNorm1d(2 * g, offset_groups=g), lambda g: (3, 2 * g, 5)),
    (lambda g: oe.nn.BatchNorm2d(2 * g, offset_groups=g), lambda g: (3, 2 * g, 4, 3)),
    (lambda g: oe.nn.BatchNorm2d(g, affine=False, offset_groups=g), lambda g: (2, g, 4, 3)),
    (lambda g: oe.nn.ReLU(offset_groups=g), lambda g: (2, 2 * g, 4, 3)),
    (lambda g: oe.nn.ReLU(offset_groups=g, pooling="max"), lambda g: (2, 2 * g)),
    (lambda g: oe.nn.ReLU(offset_groups=g, pooling=oe.nn.GroupLinear(2 * g, g)), lambda g: (2, 2 * g, 3)),
    (lambda g: oe.nn.LeakyReLU(0.2, offset_groups=g), lambda g: (2, 2 * g, 4)),
    (lambda g: oe.nn.LeakyReLU(0.2, offset_groups=g, pooling="min"), lambda g: (2, 2 * g, 2, 2, 2)),
    (lambda g: oe.nn.Dropout(0.4, offset_groups=g), lambda g: (2, 2 * g, 4)),
    (lambda g: oe.nn.Maxout(2, offset_groups=g), lambda g: (2, 4 * g, 3, 3)),
    (lambda g: oe.nn.Maxout(1, offset_groups=g), lambda g: (2, g)),
]


@pytest.mark.parametrize("offset_groups", [1, 2, 3, 31])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_layers_are_equivariant(make, shape, offset_groups, assert_equivariant):
    assert_equivariant(make(offset_groups), shape(offset_groups), offset_groups=offset_groups)


def test_maxout_by_hand():
    x = torch.tensor([[1.0, 3, 2, 0, -1, -2, 5, 4]])
    assert oe.nn.Maxout(2, offset_groups=2)(x).tolist() == [[3, 2, -1, 5]]
    assert oe.nn.Maxout(4, offset_groups=2)(x).tolist() == [[3, 5]]
    with pytest.raises(ValueError, match=r"pieces = 3 does not divide the 4 channels of a group; .* 1, 2, 4"):
        oe.nn.Maxout(3, offset_groups=2)(x)
    with pytest.raises(ValueError, match="pieces must be at least 1, got 0"):
        oe.nn.Maxout(0)


@pytest.mark.parametrize("offset_groups", [1, 2, 3, 31])
def test_the_invariant_head_averages_over_groups(offset_groups, assert_equivariant):
    head = oe.nn.InvariantHead(offset_groups=offset_groups)
    scores = random_input(2, offset_groups * 5)
    expected = sum(scores[:, 5 * g : 5 * (g + 1)] for g in range(offset_groups)) / offset_groups
    torch.testing.assert_close(head(scores), expected, rtol=0, atol=1e-15)
    # All scores of an image move alike, which its posterior probabilities do not notice.
    assert_equivariant(head, (2, offset_groups * 5), offset_groups=offset_groups, output="mean")
    posterior = nn.Sequential(head, nn.Softmax(1))
    assert_equivariant(posterior, (2, offset_groups * 5), offset_groups=offset_groups, output="invariant")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oe.nn.BatchNorm1d(16), "num_features = 16 .* offset_groups = 3; .* 15 or 18"),
        (lambda: oe.nn.BatchNorm2d(32, offset_groups=31), "num_features = 32 .* offset_groups = 31; .* 31 or 62"),
        (lambda: oe.nn.ReLU()(torch.zeros(1, 16)), "channels = 16 .* offset_groups = 3; .* 15 or 18"),
        (lambda: oe.nn.Dropout()(torch.zeros(1, 4)), "channels = 4 .* offset_groups = 3; .* 3 or 6"),
        (
            lambda: oe.nn.InvariantHead()(torch.zeros(1, 10)),
            r"10 scores, .*_groups = 3 .* let Linear give 3 \* k",
        ),
        (lambda: oe.nn.ReLU(pooling="median"), "group pooling 'median' is not one of mean, max, min"),
        (lambda: oe.nn.OffsetAdapter(nn.Identity(), add="sum"), "group pooling 'sum' is not one of mean, max, min"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_activations_take_torchs_arguments_and_never_overwrite_their_input():
    for layer, plain in [
        (oe.nn.ReLU(True), oe.nn.ReLU()),
        (oe.nn.LeakyReLU(0.1, True), oe.nn.LeakyReLU(0.1)),
        (oe.nn.Dropout(0.1, True).eval(), oe.nn.Dropout(0.1).eval()),
    ]:
        x = torch.randn(2, 6, 3, requires_grad=True)
        before, expected = x.detach().clone(), plain(x)
        y = layer(x)
        assert torch.equal(y, expected) and torch.equal(x, before) and layer.module.inplace
        (found,), (wanted,) = (torch.autograd.grad(of.square().sum(), x) for of in (y, expected))
        torch.testing.assert_close(found, wanted)
    assert oe.nn.BatchNorm2d(6, device="meta", dtype=torch.float64).module.weight.is_meta


@pytest.mark.parametrize("offset_groups", [0, -3, 1.5, True])
@pytest.mark.parametrize(
    "make",
    [
        oe.nn.ReLU,
        lambda **groups: oe.nn.ReLU(pooling=nn.Flatten(), **groups),
        oe.nn.LeakyReLU,
        oe.nn.Dropout,
        lambda **groups: oe.nn.Maxout(2, **groups),
        oe.nn.InvariantHead,
        oe.nn.GroupMax,
        oe.nn.Concatenation,
        oe.nn.ResidualMerge,
    ],
)
def test_what_is_no_number_of_groups_is_refused_when_a_layer_is_made(make, offset_groups):
    with pytest.raises(ValueError, match=f"offset_groups must be a whole number of at least 1, got {offset_groups}"):
        make(offset_groups=offset_groups)
