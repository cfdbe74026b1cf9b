import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from offset_equivariant.color import code_input
from offset_equivariant.models import quasi_unsupervised
from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised, estimate_illuminants


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_count_of_the_original():
    with torch.device("meta"):
        network = QuasiUnsupervised()
        assert parameters(network) == 54_420_481
        assert network(torch.rand(2, 7, 256, 256)).shape == (2, 1, 256, 256)


@pytest.mark.parametrize(("levels", "dropouts"), [(8, 3), (6, 1), (5, 0)])
def test_the_innermost_layers_are_left_out_with_their_dropout(levels, dropouts):
    with torch.device("meta"):
        network, original = QuasiUnsupervised(levels), QuasiUnsupervised()
    assert sum(isinstance(layer, nn.Dropout2d) for layer in network.modules()) == dropouts
    shapes = {name: p.shape for name, p in network.named_parameters()}
    outer = {name: p.shape for name, p in original.named_parameters()}
    assert all(outer[name] == shape for name, shape in shapes.items() if name.startswith("down"))
    for up in range(1, levels):  # the innermost has nothing beside it
        assert repr(network.up[-up]) == repr(original.up[-up])


def by_hand(network, x, levels):
    """The U-Net from the inside out, by torch's functions, on the weights of the network."""
    weights = network.state_dict()

    def normalised(x, name):
        statistics = [weights[f"{name}.running_{moment}"] for moment in ("mean", "var")]
        return F.batch_norm(x, *statistics, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def level(number, x):
        down, up = f"down.{number}", f"up.{levels - 1 - number}"
        inside = F.conv2d(x, weights[f"{down}.0.weight"], weights[f"{down}.0.bias"], stride=2, padding=1)
        inside = F.leaky_relu(normalised(inside, f"{down}.1") if number else inside, 0.2)
        if number + 1 < levels:
            inside = torch.cat([inside, level(number + 1, inside)], 1)
        last = "" if number == 0 else ".0"
        inside = F.conv_transpose2d(inside, weights[f"{up}{last}.weight"], weights[f"{up}{last}.bias"], 2, 1)
        return F.relu(normalised(inside, f"{up}.1")) if number else inside.sigmoid()

    return level(0, x)


@pytest.mark.parametrize("levels", [2, 6])
def test_the_network_equals_an_independent_implementation(levels):
    torch.manual_seed(0)
    network = QuasiUnsupervised(levels, width=4, image_size=64).double()
    batch = code_input(images(5, 3, 64, 64).double())
    network(batch)  # running statistics of their own
    network.eval()
    torch.testing.assert_close(network(batch), by_hand(network, batch, levels), rtol=0, atol=1e-12)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return QuasiUnsupervised(3, width=4, image_size=16).double()


def test_the_estimate_is_the_mean_colour_by_the_weights(network):
    batch = images(4, 3, 16, 16).double()
    batch[1, 0, :4] = 0  # without red: these pixels do not count
    found = estimate_illuminants(network, batch)
    assert not network.training and not found.requires_grad
    with torch.no_grad():
        weights = network(code_input(batch)).numpy()[:, 0]
    for n in range(4):
        total = np.zeros(3)
        for y, x in np.ndindex(16, 16):
            pixel = batch[n, :, y, x].numpy()
            total += weights[n, y, x] * pixel * bool((pixel > 0).all())
        np.testing.assert_allclose(found[n].numpy(), total / np.linalg.norm(total), rtol=0, atol=1e-12)


def test_images_of_another_size_are_resized_as_linear_rgb(network):
    batch = images(3, 3, 32, 48).double()
    small = F.interpolate(batch, (16, 16), mode="bilinear", antialias=True)
    expected = estimate_illuminants(network, small)
    torch.testing.assert_close(estimate_illuminants(network, batch), expected, rtol=0, atol=1e-12)


def test_images_are_estimated_in_parts(network, monkeypatch):
    batch = images(5, 3, 16, 16).double()
    whole = estimate_illuminants(network, batch)
    sizes = []
    network.register_forward_hook(lambda module, given, result: sizes.append(len(result)))
    monkeypatch.setattr(quasi_unsupervised, "_PIXELS_AT_A_TIME", 2 * 16**2)
    torch.testing.assert_close(estimate_illuminants(network, batch), whole, rtol=0, atol=1e-12)
    assert sizes == [2, 2, 1] and estimate_illuminants(network, batch[:0]).shape == (0, 3)


def test_every_parameter_learns():
    torch.manual_seed(0)
    network = QuasiUnsupervised(3, width=4).double()
    network(code_input(images(4, 3, 16, 24).double())).square().sum().backward()
    # A constant before batch normalisation is taken out again: biases of the convolutions before it have no effect.
    idle = {f"{part}.{number}.0.bias" for part, numbers in (("down", (1, 2)), ("up", (0, 1))) for number in numbers}
    still = {name for name, p in network.named_parameters() if p.grad.abs().max() < 1e-12}
    assert still == idle


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QuasiUnsupervised(1), "levels = 1 must be at least 2"),
        (lambda: QuasiUnsupervised(width=0), "width = 0 must be at least 1"),
        (lambda: QuasiUnsupervised(image_size=128), "image_size = 128 must be a positive multiple of 256"),
        (lambda: QuasiUnsupervised(3, 2)(images(1, 7, 16, 20)), "multiples of 8, but their shape"),
        (lambda: QuasiUnsupervised(3, 2)(images(1, 3, 16, 16)), r"must have shape \(N, 7, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
