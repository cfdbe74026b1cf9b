import pytest
import torch
from torch import nn

from offset_equivariant.models.context_encoder import ContextEncoder, Discriminator, initialise_, start_at_mean_
from offset_equivariant.nn import OffsetEquivariant, check_equivariance, constraint_error, project_
from offset_equivariant.nn.constraint import ConstrainedWeight

PAPER_WIDTHS = (63, 63, 126, 252, 504)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts():
    """With the meta device: no memory for 70 million numbers."""
    with torch.device("meta"):
        assert parameters(ContextEncoder()) == 71_130_531
        assert parameters(Discriminator()) == 2_766_529
        nearest = ContextEncoder(OffsetEquivariant(3))  # every width rounded by itself: not the paper's
        assert parameters(nearest) == 71_233_743
    assert parameters(ContextEncoder(OffsetEquivariant(3), widths=PAPER_WIDTHS, bottleneck=3999)) == 69_917_493


@pytest.mark.parametrize("constraint", ["projection", "parametrization"])
def test_generator_is_equivariant(constraint):
    torch.manual_seed(0)
    network = ContextEncoder(OffsetEquivariant(3, constraint), width=0.1, bottleneck=48)
    initialise_(network)
    network.double()
    project_(network)
    # Trained a little, so that statistics and weights are not the initial ones.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        network(torch.randn(4, 3, 128, 128).double()).square().mean().backward()
        optimizer.step()
        project_(network)
    network.eval()
    assert check_equivariance(network, (2, 3, 128, 128)).worst() < 1e-12
    assert network(torch.randn(2, 3, 128, 128).double()).shape == (2, 3, 64, 64)


def test_stride_of_the_first_transposed_layer_does_not_matter_to_the_original():
    first = ContextEncoder(width=0.1, bottleneck=40).decoder[0]
    other = nn.ConvTranspose2d(40, first.out_channels, 4)
    other.load_state_dict(first.state_dict())
    x = torch.randn(3, 40, 1, 1)
    torch.testing.assert_close(first(x), other(x))


def test_initial_weights():
    torch.manual_seed(0)
    for network in (ContextEncoder(width=0.25, bottleneck=400), Discriminator()):
        initialise_(network)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        large = [m for m in convolutions if m.weight.numel() > 20_000]
        assert all(abs(m.weight.std().item() - 0.02) < 5e-4 and not m.bias.any() for m in large)
        norms = [m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert abs(torch.cat(norms).mean().item() - 1) < 0.01 and abs(torch.cat(norms).std().item() - 0.02) < 4e-3
    network = ContextEncoder(OffsetEquivariant(3), width=0.25, bottleneck=399)
    initialise_(network)
    assert abs(network.encoder[2].weight.std().item() - 0.02) < 2e-3
    assert constraint_error(network.encoder[2].weight, 3) < 1e-5
    assert all(not m.bias.any() for m in network.modules() if isinstance(m, ConstrainedWeight))
    network = ContextEncoder(width=0.25, bottleneck=400, initial_gain=0.03)
    initialise_(network)
    gains = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert abs(gains.mean().item() - 0.03) < 3e-4 and abs(gains.std().item() - 0.0006) < 1.2e-4


def test_first_outputs_have_the_mean_of_the_inputs():
    torch.manual_seed(0)
    network = ContextEncoder(OffsetEquivariant(3, "parametrization"), width=0.1, bottleneck=48)
    initialise_(network)
    inputs = torch.randn(8, 3, 128, 128) + torch.tensor([-1.0, 0.0, 2.0])[:, None, None]
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start_at_mean_(network, inputs)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"decoder.{len(network.decoder) - 1}.bias"]
    outputs = network.train()(inputs)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), inputs.mean((0, 2, 3)), rtol=0, atol=1e-4)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 3, 128, 128\), but their shape is \(1, 3, 64, 64\)"):
        ContextEncoder(width=0.1, bottleneck=40)(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"widths = \[8, 8, 8, 8\] must be five numbers"):
        ContextEncoder(widths=(8, 8, 8, 8), bottleneck=40)
    for make in (ContextEncoder, Discriminator):
        with pytest.raises(ValueError, match="width = 0 must be positive"):
            make(width=0)
    assert Discriminator(0.25)(torch.zeros(5, 3, 64, 64)).shape == (5,)
