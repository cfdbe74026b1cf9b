import time

import pytest
import torch

from offset_equivariant.nn.fused import BatchNormReLU
from offset_equivariant.performance.measuring import (
    interleaved,
    operator_times,
    peak_resident_megabytes,
    training_floor,
    training_memory,
)
from offset_equivariant.performance.settings import Setting
from offset_equivariant.performance.subjects import NETWORKS, Size, bare_step_of, build, family_of

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
    maps = 2 * (16 * 64 * 7 + 32 * 16 * 6 + 64 * 4 * 6)  # of convolutions, and as many of rectifiers
    assert floor["traffic_gb"] * 1e9 == 5 * 4 * 2 * maps
    assert floor["arithmetic_ms"] == pytest.approx(floor["gflop"] / 100 * 1000)


def test_the_plain_network_computes_what_the_fused_one_does():
    size = Size(batch=4, side=8)
    fused, plain = (build(network, size, EAGER, CPU) for network in ("equivariant", "plain"))
    assert not any(isinstance(module, BatchNormReLU) for module in plain.modules())
    names = {name.replace(".norm.module.", "."): name for name in plain.state_dict()}
    plain.load_state_dict({names[name]: tensor for name, tensor in fused.state_dict().items()})
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bare_step_learns(network):
    step = bare_step_of(network, Size(batch=4, side=8), EAGER, CPU)
    step()
    assert family_of(network).width(16) in (15, 16)


def test_memory_is_that_of_the_step_alone():
    before = peak_resident_megabytes()
    block = torch.ones(50_000_000)  # 200 MB that the measuring process has, and the measured one has not
    small, large = (training_memory("original", Size(batch=n, side=32), EAGER, CPU) for n in (8, 64))
    assert peak_resident_megabytes() >= before + 100 and block.sum() > 0
    assert 0 < small < large < 400


def test_operators_times_add_up_to_the_run():
    a = torch.randn(600, 600)
    found = operator_times(lambda: a @ a, rounds=3, shown=2)
    assert next(iter(found)) == "aten::mm" and len(found) == 3 and found["others"] >= 0
    assert found["aten::mm"] > sum(found.values()) / 2
