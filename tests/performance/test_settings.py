import copy
import json

import pytest
import torch
from torch import nn

from offset_equivariant.building import recognition
from offset_equivariant.config import experiment_config
from offset_equivariant.performance.settings import (
    UNMEASURED,
    CompiledOrEager,
    Setting,
    benchmark_path,
    device_slug,
    fastest_setting,
)

CPU = torch.device("cpu")


def row(channels_last, compile, milliseconds, seconds=0.0, family="conventional"):
    times = {"median": milliseconds, "min": milliseconds, "max": milliseconds}
    return {
        "family": family,
        "channels_last": channels_last,
        "compile": compile,
        "step_ms": times,
        "compile_seconds": seconds,
    }


@pytest.fixture
def results(tmp_path):
    """Compiled: 40 s and 180 ms a step; eager: 200 ms a step, or 300 in the other layout."""
    path = benchmark_path(tmp_path, CPU)
    path.parent.mkdir()
    settings = [row(False, False, 300.0), row(True, False, 200.0), row(True, True, 180.0, 40.0)]
    path.write_text(json.dumps({"settings": settings}))
    return tmp_path


@pytest.mark.parametrize(("steps", "compiled"), [(0, False), (1999, False), (2001, True)])
def test_compiling_has_to_pay_over_the_training(results, steps, compiled):
    assert fastest_setting("conventional", steps, CPU, results) == Setting(True, compiled)


def test_what_is_decided_already_is_kept(results):
    def fastest(**decided):
        return fastest_setting("conventional", 10**6, CPU, results, **decided)

    assert fastest(compile=False) == Setting(True, False) and fastest(channels_last=False) == Setting(False, False)
    assert fastest(channels_last=False, compile=True) == Setting(False, True)  # which was not measured


def test_a_training_asks_the_table_unless_it_is_told(results, make_settings, monkeypatch):
    monkeypatch.setattr(recognition, "repository_root", lambda: results.parent)
    results.rename(results.parent / "results")

    def setting(*words):
        config = experiment_config(make_settings("experiment=table1_original", *words))
        return recognition.runtime_setting(config, CPU)

    assert setting() == Setting(True, True) and setting("train.epochs=1") == Setting(True, False)
    assert setting("mode=evaluate") == setting("runtime.compile=false") == Setting(True, False)
    assert setting("runtime.channels_last=false") == Setting(False, False)


def test_what_was_not_measured_has_the_default(results, tmp_path):
    assert fastest_setting("offset_equivariant", 10**6, CPU, results) == UNMEASURED
    assert fastest_setting("conventional", 10**6, CPU, tmp_path / "elsewhere") == UNMEASURED == Setting(True, False)


def test_a_device_has_a_name_for_a_file():
    slug = device_slug(CPU)
    assert slug.startswith("cpu-") and slug.endswith(f"-{torch.get_num_threads()}t")
    assert slug == slug.lower() and "/" not in slug and " " not in slug


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_compiler_that_fails_is_done_without_and_said_once(caplog, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend=failing))
    network = CompiledOrEager(Doubling())
    for _ in range(3):
        assert torch.equal(network(torch.ones(2)), 2 * torch.ones(2))
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "torch.compile failed" in warning.message and "no compiler here" in warning.message


def test_a_compiler_that_fails_at_the_gradients_is_done_without_before_any_step(caplog, monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    def failing(graph, inputs):
        raise AssertionError("wrong strides")

    torch.compiler.reset()
    compile, backend = torch.compile, aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=failing)
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend=backend))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    x, state, before = torch.randn(5, 3), torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    found = CompiledOrEager(module)(x)
    found.sum().backward()
    assert "wrong strides" in caplog.text
    module.load_state_dict(before)
    torch.set_rng_state(state)
    torch.testing.assert_close(module(x), found)


@pytest.mark.parametrize("works", [True, False])
def test_the_trial_leaves_buffers_and_random_numbers_as_one_step_does(works, monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    def failing(graph, inputs):
        raise AssertionError("wrong strides")

    torch.compiler.reset()
    compile, backend = torch.compile, aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=failing)
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend="eager" if works else backend))
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()), torch.randn(5, 3)
    tried = copy.deepcopy(plain)
    drawn = []
    for network in (plain, CompiledOrEager(tried)):
        torch.manual_seed(1)
        network(x)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    buffers, expected = dict(tried.named_buffers()), dict(plain.named_buffers())
    assert expected["1.num_batches_tracked"] == 1 and expected.keys() == buffers.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected[name])


def test_a_compiled_network_computes_the_same(monkeypatch):
    torch.compiler.reset()
    compile, calls = torch.compile, []

    def counting(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend=counting))
    network = CompiledOrEager(Doubling())
    assert torch.equal(network(torch.ones(2)), 2 * torch.ones(2)) and len(calls) == 1


def test_errors_of_the_network_itself_are_not_swallowed():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("mine")

    network = CompiledOrEager(Failing())
    with pytest.raises(ValueError, match="mine"):
        network(torch.ones(2))
