import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.training import checkpoint
from offset_equivariant.training.checkpoint import (
    Checkpoints,
    random_states,
    restore_random_states,
    restore_training_state,
    seed_everything,
    training_state,
)


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def steps_of_training(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    return network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def test_the_newest_two_are_kept_and_temporary_files_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None and checkpoints.paths() == []
    for step in (9, 10, 100):
        checkpoints.save(step, {"step": step})
    (checkpoints.directory / "step-00000200.tmp").write_bytes(b"half a checkpoint")
    assert [path.name for path in checkpoints.paths()] == ["step-00000010.pt", "step-00000100.pt"]
    assert checkpoints.latest() == {"step": 100}


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        path = checkpoints.save(step, {"step": step, "weights": torch.ones(1000)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            state = checkpoints.latest()
        assert state is not None and state["step"] == 1
        assert path.name in caplog.text and "step-00000001" not in caplog.text

    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"none of the checkpoints .* can be read; remove the folder"):
        checkpoints.latest()


@pytest.mark.parametrize("error", [PermissionError("denied"), OSError("stale file handle"), MemoryError()])
def test_what_says_nothing_of_a_checkpoint_is_no_damage(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        checkpoints.latest()


def test_a_checkpoint_that_carries_code_is_not_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    torch.save({"step": 2, "code": pytest.raises}, tmp_path / "step-00000002.pt")
    state = checkpoints.latest()
    assert state == {"step": 1}


def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def crash(state, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(2, {"step": 2})
    assert [path.name for path in checkpoints.paths()] == ["step-00000001.pt"]
    assert checkpoints.latest() == {"step": 1}


@pytest.mark.parametrize("pending_gauss", [False, True])
def test_random_states_come_back_through_a_file(tmp_path, pending_gauss):
    seed_everything(3)
    if pending_gauss:  # of a pair of normal numbers, the second is kept for the next call
        random.gauss(0, 1)
        np.random.randn()
    Checkpoints(tmp_path).save(0, {"random": random_states()})
    expected = draws()
    assert draws() != expected
    state = Checkpoints(tmp_path).latest()
    assert state is not None
    restore_random_states(state["random"])
    assert draws() == expected


class Gpus:
    """Stands for ``torch.cuda``: some GPUs, of which one is current, and a generator on each."""

    def __init__(self, count, current=0):
        self.generators = [torch.tensor([10 * index]) for index in range(count)]
        self.current = current

    def is_available(self):
        return bool(self.generators)

    def current_device(self):
        return self.current

    def get_rng_state(self):
        return self.generators[self.current]

    def set_rng_state(self, state):
        self.generators[self.current] = state

    def get_rng_state_all(self):
        return list(self.generators)

    def set_rng_state_all(self, states):
        for index, state in enumerate(states):
            self.generators[index] = state  # as torch's: an error where there are fewer


def gpu_states(gpus):
    return [int(state) for state in gpus.generators]


def test_random_states_of_a_gpu_come_back_on_machines_with_other_numbers_of_them(monkeypatch):
    monkeypatch.setattr(torch, "cuda", Gpus(4, current=2))
    saved = random_states()
    for count, current, expected in ((4, 2, [0, 10, 20, 30]), (1, 0, [20]), (2, 1, [0, 20]), (0, 0, [])):
        monkeypatch.setattr(torch, "cuda", Gpus(count, current))
        restore_random_states(saved)
        assert gpu_states(torch.cuda) == expected


def test_older_checkpoints_have_the_random_states_of_all_gpus(monkeypatch):
    saved = random_states() | {"cuda": [torch.tensor([1]), torch.tensor([2])]}
    for count, current, expected in ((2, 1, [0, 2]), (1, 0, [1]), (3, 2, [0, 10, 1])):
        monkeypatch.setattr(torch, "cuda", Gpus(count, current))
        restore_random_states(saved)
        assert gpu_states(torch.cuda) == expected


def test_seed_decides_all_generators():
    seed_everything(5)
    first = draws()
    seed_everything(5)
    assert draws() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    seed_everything(0)
    network, optimizer = learner()
    steps_of_training(network, optimizer, 3)
    Checkpoints(tmp_path).save(3, training_state({"n": network}, {"n": optimizer}))
    steps_of_training(network, optimizer, 3)

    seed_everything(1)
    other, its_optimizer = learner()
    steps_of_training(other, its_optimizer, 1)
    state = Checkpoints(tmp_path).latest()
    assert state is not None
    restore_training_state(state, {"n": other}, {"n": its_optimizer})
    steps_of_training(other, its_optimizer, 3)
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(("saved_in", "resumed_in"), [LAYOUTS, LAYOUTS[::-1]])
def test_training_goes_on_in_another_memory_layout(saved_in, resumed_in):
    gradients = torch.linspace(-1, 1, 2 * 3 * 4 * 2 * 2).sin().reshape(2, 3, 4, 2, 2)

    def adam(layout, fused):
        network = nn.Conv2d(4, 3, 2, bias=False)
        nn.init.ones_(network.weight)
        network.to(memory_format=layout)
        return network, torch.optim.Adam(network.parameters(), lr=0.1, fused=fused)

    def step(network, optimizer, gradient):
        network.weight.grad = torch.empty_like(network.weight).copy_(gradient)
        optimizer.step()

    first, of_first = adam(saved_in, fused=True)
    step(first, of_first, gradients[0])
    second, of_second = adam(resumed_in, fused=True)
    restore_training_state(training_state({"n": first}, {"n": of_first}), {"n": second}, {"n": of_second})
    step(second, of_second, gradients[1])

    expected, unfused = adam(saved_in, fused=False)
    for gradient in gradients:
        step(expected, unfused, gradient)
    assert second.weight.is_contiguous(memory_format=resumed_in)
    torch.testing.assert_close(second.weight, expected.weight)
