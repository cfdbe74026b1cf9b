import time

import pytest
import torch
from torch import nn

from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn import OffsetEquivariant
from offset_equivariant.nn.constraint import ConstrainedWeight
from offset_equivariant.nn.families import PlainOffsetEquivariant
from offset_equivariant.nn.fused import BatchNormReLU
from offset_equivariant.performance import subjects
from offset_equivariant.performance.measuring import (
    interleaved,
    operator_times,
    peak_resident_megabytes,
    training_floor,
    training_memory,
)
from offset_equivariant.performance.settings import Setting
from offset_equivariant.performance.subjects import NETWORKS, Size, bare_step_of, family_of, training_step

CPU = torch.device("cpu")
EAGER = Setting(channels_last=True, compile=False)


def test_subjects_are_timed_in_turn():
    calls = []
    subjects = {"a": lambda: (calls.append("a"), time.sleep(0.002)), "b": lambda: (calls.append("b"), time.sleep(0.02))}
    times = interleaved(subjects, CPU, rounds=3, warm_up=1)
    assert calls == ["a", "b"] + 3 * ["a", "b"]
    assert 2 <= times["a"]["min"] <= times["a"]["median"] <= times["a"]["max"]
    assert times["b"]["min"] >= 20 > times["a"]["min"]


def test_floor_counts_the_arithmetic_and_the_feature_maps():
    limits = {"gemm_gflops": 100.0, "copy_gb_per_s": 10.0}
    floor = training_floor("original", Size(batch=2, side=8), limits, CPU)
    # Convolutions (input x output channels x 9 taps x pixels) forward, and twice backward but for the images' gradient.
    stages = [(16, 64, 6), (32, 16, 5), (64, 4, 5)]
    macs = sum(c * c * 9 * pixels * count for c, pixels, count in stages) + 16 * 32 * 9 * 16 + 32 * 64 * 9 * 4
    flops = 2 * 2 * (3 * (macs + 640) + 2 * 3 * 16 * 9 * 64)
    assert floor["gflop"] * 1e9 == pytest.approx(flops)
    plain, fused = (training_floor(n, Size(batch=2, side=8), limits, CPU) for n in ("plain", "equivariant"))
    assert plain["traffic_gb"] == fused["traffic_gb"] > 0
    maps = 2 * (16 * 64 * 7 + 32 * 16 * 6 + 64 * 4 * 6)  # of convolutions, and as many of rectifiers
    assert floor["traffic_gb"] * 1e9 == 5 * 4 * 2 * maps
    assert floor["arithmetic_ms"] == pytest.approx(floor["gflop"] / 100 * 1000)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("training", [True, False])
def test_the_whole_network_has_the_plain_ones_outputs_gradients_and_statistics(training, dtype, tolerance):
    """By reparametrisation: what a projection would take from a gradient is not the same in the two."""
    found = []
    for kind in (OffsetEquivariant, PlainOffsetEquivariant):
        torch.manual_seed(0)
        network = CifarResNet(8, 10, kind(3, "parametrization")).to(dtype).train(training)
        if found:
            names = {name.replace(".norm.module.", "."): name for name in network.state_dict()}
            network.load_state_dict({names[name]: tensor for name, tensor in found[0][0].items()})
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        scores = network(images)
        nn.functional.cross_entropy(scores, torch.arange(6)).backward()
        after = {name.replace(".norm.module.", "."): value for name, value in network.named_buffers()}
        gradients = {name.replace(".norm.module.", "."): p.grad for name, p in network.named_parameters()}
        found.append((state, {"scores": scores} | gradients | after))
    assert not any(isinstance(module, BatchNormReLU) for module in network.modules())
    fused, plain = found[0][1], found[1][1]
    assert fused.keys() == plain.keys()
    largest = max(value.abs().max().item() for name, value in plain.items() if name in gradients)
    for name, expected in plain.items():
        scale = largest if name in gradients else max(expected.abs().max().item(), 1e-3)
        difference = (fused[name] - expected).abs().max().item()
        assert difference <= tolerance * scale, name


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bare_step_learns(network, monkeypatch):
    built = []

    def keeping(*arguments):
        module = build(*arguments)
        built.append((module, {name: value.detach().clone() for name, value in module.named_parameters()}))
        return module

    build = subjects.build
    monkeypatch.setattr(subjects, "build", keeping)
    step = bare_step_of(network, Size(batch=4, side=8), EAGER, CPU)
    ((module, before),) = built
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    step()
    assert family_of(network).width(16) in (15, 16)
    for name, value in module.named_parameters():
        assert value.grad is not None and not torch.equal(value, before[name]), name


def test_a_bare_step_is_gradient_descent_on_the_cross_entropy():
    torch.manual_seed(0)
    module, images, labels = nn.Linear(5, 10), torch.rand(4, 5), torch.arange(4)
    weight, bias = (value.detach().clone() for value in module.parameters())
    step = training_step(module, torch.optim.SGD(module.parameters(), lr=0.5), images, labels)
    for _ in range(2):
        step()
        residual = ((images @ weight.T + bias).softmax(1) - torch.eye(10)[labels]) / 4
        weight, bias = weight - 0.5 * residual.T @ images, bias - 0.5 * residual.sum(0)
        torch.testing.assert_close(module.weight.detach(), weight)
        torch.testing.assert_close(module.bias.detach(), bias)


def test_a_bare_step_ends_with_the_constraint():
    torch.manual_seed(0)
    module = CifarResNet(8, 10, OffsetEquivariant(3, "projection"))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    training_step(module, optimizer, torch.rand(4, 3, 8, 8), torch.arange(4))()
    constrained = [layer for layer in module.modules() if isinstance(layer, ConstrainedWeight)]
    assert constrained and all(layer.constraint_error() < 1e-6 for layer in constrained)


def test_memory_is_that_of_the_step_alone():
    block = torch.ones(150_000_000)  # 600 MB that the measuring process has, and the measured one has not
    small, large = (training_memory("original", Size(batch=n, side=32), EAGER, CPU) for n in (8, 64))
    assert peak_resident_megabytes() > 600 and block.sum() > 0
    assert 0 < small < large < 400


def test_memory_of_another_device_than_asked_for_is_not_measured():
    assert training_memory("original", Size(batch=8, side=32), EAGER, torch.device("mps")) is None


def test_operators_times_add_up_to_the_run(monkeypatch):
    a = torch.randn(600, 600)
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)  # and not chosen
        found = operator_times(lambda: a @ a, CPU, rounds=3, shown=2)
    assert next(iter(found)) == "aten::mm" and len(found) == 3 and found["others"] >= 0
    assert found["aten::mm"] > sum(found.values()) / 2
