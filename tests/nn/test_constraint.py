import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import offset_equivariant as oe
from offset_equivariant.groups import assignment_matrix
from offset_equivariant.nn import constraint_error, project_, project_weight, remove_parametrizations_

G = 3


def random_weight(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def constraint_system(shape, offset_groups, groups=1):
    """Eq. 16 as A·vec(W) = b, written out weight by weight."""
    n, visible, *taps = shape
    m = visible * groups
    A = torch.zeros(n, offset_groups, n, visible, math.prod(taps), dtype=torch.float64)
    b = torch.zeros(n, offset_groups, dtype=torch.float64)
    for i in range(n):
        b[i, i // (n // offset_groups)] = 1
        for c in range(visible):
            channel = i // (n // groups) * visible + c
            A[i, channel // (m // offset_groups), i, c] = 1
    return A.reshape(n * offset_groups, -1), b.reshape(-1)


def nearest_by_kkt(weight, A, b):
    """Minimise ‖w - weight‖² under A w = b by the generic stationarity system."""
    occurring = A.abs().sum(1) > 0
    assert torch.all(b[~occurring] == 0)
    A, b = A[occurring], b[occurring]
    size, rows = weight.numel(), len(b)
    kkt = torch.zeros(size + rows, size + rows, dtype=torch.float64)
    kkt[:size, :size] = torch.eye(size)
    kkt[:size, size:], kkt[size:, :size] = A.T, A
    return torch.linalg.solve(kkt, torch.cat([weight.reshape(-1), b]))[:size].reshape(weight.shape)


SHAPES = [  # weight, offset groups, torch's groups
    ((6, 9), 3, 1),
    ((4, 6, 3), 2, 1),
    ((3, 6, 3, 2), 3, 1),
    ((2, 3, 2, 1, 2), 1, 1),
    ((6, 3, 3), 3, 2),  # torch's groups cut the second offset group in two
    ((6, 1, 3), 3, 6),  # depthwise
    ((12, 1, 2), 3, 6),  # depthwise with two outputs a channel
    ((6, 2, 2, 2), 3, 3),
    ((12, 3, 3), 3, 4),
    ((6, 1, 1), 3, 6),  # one weight an output: nothing is free
]


@pytest.mark.parametrize(("shape", "offset_groups", "groups"), SHAPES)
def test_the_projection_is_the_nearest_point_of_the_constraint(shape, offset_groups, groups):
    weight = random_weight(*shape)
    A, b = constraint_system(shape, offset_groups, groups)
    projected = project_weight(weight, offset_groups, groups)
    torch.testing.assert_close(projected, nearest_by_kkt(weight, A, b), rtol=0, atol=1e-13)
    assert (A @ projected.reshape(-1) - b).abs().max() < 1e-14
    torch.testing.assert_close(project_weight(projected, offset_groups, groups), projected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("shape", "offset_groups", "groups"), SHAPES)
def test_constraint_error_is_the_largest_violation(shape, offset_groups, groups):
    weight = random_weight(*shape)
    A, b = constraint_system(shape, offset_groups, groups)
    expected = (A @ weight.reshape(-1) - b).abs().max().item()
    assert constraint_error(weight, offset_groups, groups) == pytest.approx(expected, rel=1e-13)
    assert constraint_error(project_weight(weight, offset_groups, groups), offset_groups, groups) < 1e-14


def test_the_projection_of_a_linear_layer_is_eq_11():
    W = random_weight(6, 9)
    G_m, G_n = assignment_matrix(9, G, dtype=W.dtype), assignment_matrix(6, G, dtype=W.dtype)
    eq_11 = W - (W @ G_m - G_n) @ torch.linalg.pinv(G_m)
    torch.testing.assert_close(project_weight(W, G), eq_11, rtol=0, atol=1e-14)
    torch.testing.assert_close(project_weight(W, G) @ G_m, G_n, rtol=0, atol=1e-14)  # Eq. 10


def test_the_projection_of_a_convolution_with_matrices():
    W = random_weight(6, 9, 3, 3)
    G_m, G_n = assignment_matrix(9, G, dtype=W.dtype), assignment_matrix(6, G, dtype=W.dtype)
    S = W.sum((2, 3))
    expected = W - ((S @ G_m - G_n) @ torch.linalg.pinv(G_m))[:, :, None, None] / 9
    torch.testing.assert_close(project_weight(W, G), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(project_weight(W, G).sum((2, 3)) @ G_m, G_n, rtol=0, atol=1e-14)  # Eq. 16


def test_eq_17_as_printed_meets_the_constraint_but_is_no_projection():
    W = random_weight(6, 9, 3, 3)
    G_m, G_n = assignment_matrix(9, G, dtype=W.dtype), assignment_matrix(6, G, dtype=W.dtype)
    pinv = torch.linalg.pinv(G_m)

    def eq_17(W):
        taps = W.permute(2, 3, 0, 1)
        return ((taps - (taps @ G_m - G_n) @ pinv) / 9).permute(2, 3, 0, 1)

    once = eq_17(W)
    assert constraint_error(once, G) < 1e-14
    nearest = project_weight(W, G)
    assert (once - W).norm() > 2 * (nearest - W).norm()
    # What is left of the weights beside an averaging filter shrinks ninefold each time.
    box = ((G_n @ pinv)[:, :, None, None] / 9).expand_as(W)
    repeated, distance = once, (once - box).norm().item()
    assert distance > 1
    for _ in range(5):
        repeated, previous = eq_17(repeated), distance
        distance = (repeated - box).norm().item()
        assert distance == pytest.approx(previous / 9, rel=1e-6)
    assert constraint_error(repeated, G) < 1e-14


@given(
    offset_groups=st.integers(1, 6),
    groups=st.integers(1, 6),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_grouping_that_divides_the_channels_is_feasible(offset_groups, groups, inputs, outputs):
    least = math.lcm(offset_groups, groups)
    weight = random_weight(outputs * least, inputs * least // groups, 2)
    A, b = constraint_system(weight.shape, offset_groups, groups)
    projected = project_weight(weight, offset_groups, groups)
    assert (A @ projected.reshape(-1) - b).abs().max() < 1e-13


def test_weights_that_do_not_fit_are_refused():
    for function in (project_weight, constraint_error):
        with pytest.raises(ValueError, match=r"out_channels = 7 .* offset_groups = 3; .* 6 or 9"):
            function(torch.zeros(7, 6), 3)
        with pytest.raises(ValueError, match=r"in_channels = 8 .* offset_groups = 3; .* 6 or 9"):
            function(torch.zeros(6, 4, 3), 3, groups=2)
        with pytest.raises(ValueError, match=r"out_channels = 3 must be divisible by groups = 2"):
            function(torch.zeros(3, 3, 3), 3, groups=2)
    with pytest.raises(ValueError, match=r"constraint = 'none' is not one of parametrization, projection"):
        oe.nn.Linear(6, 6, constraint="none")


def effective_weights(optimiser, steps=20):
    """Weights after each step of the same training, held in both ways."""
    torch.manual_seed(0)
    layers = [oe.nn.Conv2d(6, 3, 3, padding=1, constraint=c).double() for c in ("parametrization", "projection")]
    # A starting weight with a part that the projection takes away.
    start = random_weight(3, 6, 3, 3)
    with torch.no_grad():
        layers[0].parametrizations.weight.original.copy_(start)
        layers[1].weight.copy_(start)
        layers[1].bias.copy_(layers[0].bias)
    project_(layers[1])
    optimisers = [optimiser(layer.parameters()) for layer in layers]
    x, target = random_weight(4, 6, 5, 5), random_weight(4, 3, 5, 5) + 1
    history = []
    for _ in range(steps):
        for layer, steps_of in zip(layers, optimisers, strict=True):
            steps_of.zero_grad()
            (layer(x) - target).square().mean().backward()
            steps_of.step()
        project_(layers[1])
        history.append([torch.cat([layer.weight.flatten(), layer.bias]).detach().clone() for layer in layers])
    return history


def test_under_sgd_both_ways_take_the_same_path():
    history = effective_weights(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    assert (history[-1][0] - history[0][0]).abs().max() > 0.1
    for parametrized, projected in history:
        torch.testing.assert_close(parametrized, projected, rtol=0, atol=1e-10)


def test_under_adam_they_differ():
    history = effective_weights(lambda p: torch.optim.Adam(p, lr=0.01))
    assert (history[-1][0] - history[-1][1]).abs().max() > 1e-3


def test_project_reaches_every_layer_and_only_those():
    network = torch.nn.Sequential(
        oe.nn.Conv1d(6, 6, 3, constraint="projection"),
        torch.nn.Conv1d(6, 6, 3),
        oe.nn.OffsetAdapter(torch.nn.Sequential(oe.nn.Conv1d(6, 3, 1, constraint="projection"))),
    )
    plain = network[1].weight.detach().clone()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1)
    project_(network)
    assert constraint_error(network[0].weight, G) < 1e-6
    assert constraint_error(network[2].module[0].weight, G) < 1e-6
    assert torch.equal(network[1].weight, plain + 0.1)


def test_project_restores_the_constraint_in_double_precision():
    layer = oe.nn.Linear(9, 6, constraint="projection").double()
    assert constraint_error(layer.weight, G) > 1e-9
    layer.project_()
    assert constraint_error(layer.weight, G) < 1e-15


def test_the_parametrization_holds_whatever_the_free_weight():
    layer = oe.nn.Conv1d(6, 6, 3).double()
    free = layer.parametrizations.weight.original
    with torch.no_grad():
        free.add_(random_weight(*free.shape))
    assert constraint_error(free, G) > 0.1
    assert constraint_error(layer.weight, G) < 1e-14
    torch.testing.assert_close(layer.weight, project_weight(free, G), rtol=0, atol=0)


def test_assigning_a_weight_to_a_parametrised_layer_projects_it():
    layer, weight = oe.nn.Linear(6, 3).double(), random_weight(3, 6)
    layer.weight = weight
    torch.testing.assert_close(layer.weight, project_weight(weight, G), rtol=0, atol=0)


def test_removing_the_parametrization_keeps_the_function():
    network = torch.nn.Sequential(oe.nn.Conv1d(6, 6, 3, padding=1), oe.nn.ReLU(), oe.nn.Conv1d(6, 3, 1)).double()
    with torch.no_grad():
        network[0].parametrizations.weight.original.add_(0.3)
    plain = copy.deepcopy(network)
    free = plain[0].parametrizations.weight.original
    remove_parametrizations_(plain)
    assert [name for name, _ in plain.named_parameters()] == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert [layer.constraint for layer in (plain[0], plain[2])] == ["projection", "projection"]
    x = random_weight(2, 6, 7)
    assert torch.equal(plain(x), network(x))
    assert plain[0].weight is free and free.requires_grad
    assert type(plain[0]) is oe.nn.Conv1d
    assert constraint_error(plain[0].weight, G) < 1e-14


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
@pytest.mark.parametrize("make", [partial(oe.nn.Linear, 6, 9), partial(oe.nn.ConvTranspose1d, 6, 9, 4, 2)])
def test_parameters_that_are_drawn_anew_are_constrained(make, constraint):
    torch.manual_seed(0)
    layer = make(constraint=constraint)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.reset_parameters()
    assert (layer.weight - before).abs().max() > 0.1 and (layer.bias - bias).abs().max() > 0.01
    assert layer.constraint_error() < 1e-6
    torch.manual_seed(0)
    torch.testing.assert_close(make(constraint=constraint).weight, before)


@pytest.mark.parametrize("constraint", ["parametrization", "projection"])
@pytest.mark.parametrize(
    ("kind", "arguments"), [("Linear", (6, 9)), ("Conv1d", (6, 9, 3)), ("Conv2d", (6, 9, 3)), ("Conv3d", (6, 9, 2))]
)
def test_a_new_layer_has_the_projection_of_torchs_weight(kind, arguments, constraint):
    torch.manual_seed(0)
    drawn = getattr(torch.nn, kind)(*arguments)
    torch.manual_seed(0)
    layer = getattr(oe.nn, kind)(*arguments, constraint=constraint)
    assert constraint_error(drawn.weight, G) > 0.5
    assert layer.constraint_error() < 1e-6
    torch.testing.assert_close(layer.weight, project_weight(drawn.weight, G))
    assert torch.equal(layer.bias, drawn.bias)


def test_an_unconstrained_weight_that_was_loaded_is_measured_and_mended():
    layer = oe.nn.Conv2d(6, 9, 3, constraint="projection")
    layer.load_state_dict(torch.nn.Conv2d(6, 9, 3).state_dict())
    assert layer.constraint_error() == constraint_error(layer.weight, G) > 0.5
    project_(layer)
    assert layer.constraint_error() < 1e-6


def test_parametrisations_of_others_are_not_removed():
    class Halved(torch.nn.Module):
        def forward(self, x):
            return x / 2

    for name in ("bias", "weight"):
        layer = oe.nn.Conv1d(6, 6, 3)
        torch.nn.utils.parametrize.register_parametrization(layer, name, Halved())
        x = torch.randn(2, 6, 5)
        expected = layer(x)
        with pytest.raises(ValueError, match=f"Conv1d has parametrisations of .*{name} beside the constraint"):
            remove_parametrizations_(layer)
        assert torch.equal(layer(x), expected)


WITHOUT_FREEDOM = {
    "pointwise": lambda: oe.nn.Conv2d(3, 33, 1),
    "depthwise": lambda: oe.nn.Conv2d(6, 6, 1, groups=6),
    "linear": lambda: oe.nn.Linear(3, 9, constraint="projection"),
    "family": lambda: oe.nn.OffsetEquivariant().conv2d(3, 6, 1),
    "learned pooling": lambda: oe.nn.GroupLinear(3).combination,
    "all groups": lambda: oe.nn.Conv1d(6, 12, 1, groups=2, offset_groups=6),
    "transposed": lambda: oe.nn.ConvTranspose2d(6, 6, 2, 2, groups=6),
    "transposed and dilated": lambda: oe.nn.ConvTranspose1d(3, 6, 3, 3, dilation=2),
}


@pytest.mark.parametrize("make", WITHOUT_FREEDOM.values(), ids=WITHOUT_FREEDOM)
def test_layers_whose_weights_can_learn_nothing_warn(make):
    with pytest.warns(UserWarning, match="has weights that can learn nothing: .* give it a larger kernel") as warned:
        layer = make()
    assert warned[0].filename == __file__
    assert ((layer.weight.abs() < 1e-6) | ((layer.weight - 1).abs() < 1e-6)).all()
    with torch.no_grad():
        layer._free_weight().normal_()
    layer.project_()
    assert ((layer.weight.abs() < 1e-6) | ((layer.weight - 1).abs() < 1e-6)).all()


WITH_FREEDOM = {
    "kernel": lambda: oe.nn.Conv2d(3, 33, (1, 2)),
    "channels": lambda: oe.nn.Conv2d(6, 33, 1),
    "fewer groups": lambda: oe.nn.Conv2d(6, 6, 1, groups=2),
    "straddling groups": lambda: oe.nn.Conv2d(12, 12, 1, groups=4, offset_groups=6),
    "transposed": lambda: oe.nn.ConvTranspose2d(6, 6, 3, 2, groups=6),
    "learned pooling": lambda: oe.nn.families.PlainOffsetEquivariant(normalisation_pooling="linear").linear(6, 6),
    "meta": lambda: oe.nn.Conv2d(6, 6, 1, groups=2, device="meta"),
}


@pytest.mark.parametrize("make", WITH_FREEDOM.values(), ids=WITH_FREEDOM)
def test_layers_whose_weights_can_learn_do_not_warn(make, warnings_of_test):
    layer = make()
    assert not warnings_of_test()
    if not layer.weight.is_meta:
        drawn = []
        for _ in range(2):
            layer.reset_parameters()
            drawn.append(layer.weight.detach().clone())
        assert (drawn[0] - drawn[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda: nn.utils.parametrizations.spectral_norm(oe.nn.Conv2d(3, 6, 3)),
        lambda: nn.utils.spectral_norm(oe.nn.Conv2d(3, 6, 3, constraint="projection")),
        lambda: prune.random_unstructured(oe.nn.Conv2d(3, 6, 3, constraint="projection"), "weight", 0.5),
    ],
    ids=["parametrisation", "hook", "pruned"],
)
def test_weights_that_something_else_computes_are_not_projected(change):
    layer = change()
    with pytest.raises(ValueError, match=r"the weight of .*Conv2d is computed by something other than its constraint"):
        project_(nn.Sequential(layer))


def test_clipping_gradients_parts_the_two_ways_under_sgd():
    """The norm that is clipped counts what the projection takes away."""
    layers = [oe.nn.Linear(6, 6, constraint=kind).double() for kind in ("projection", "parametrization")]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        layer(x + 3).square().sum().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        project_(layer)
    assert (layers[0].weight - layers[1].weight).abs().max() > 1e-4
