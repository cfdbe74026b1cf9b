import functools
import io
import json
import math
import os
import runpy
import signal

import pytest
import torch
from torch import nn

from offset_equivariant import signals
from offset_equivariant.training import loop
from offset_equivariant.training.checkpoint import Checkpoints
from offset_equivariant.training.loop import (
    FitSettings,
    Journal,
    NonFiniteLossError,
    fit,
    last_means,
    merge_notes,
)
from offset_equivariant.training.stopping import TrainingInterruptedError


class Descent:
    """One weight w, loss w²/2 + a random number, momentum: everything that a checkpoint must hold takes part.

    ``events`` says what happens in a step besides, by its number counted from 1.
    """

    batch_size = 10

    def __init__(self, events=None):
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.module.weight)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0, momentum=0.5)
        self.events = events or {}
        self.factors = {}

    def modules(self):
        return {"network": self.module}

    def optimizers(self):
        return {"network": self.optimizer}

    def training_step(self, step, learning_rate_factor):
        self.factors[step] = learning_rate_factor
        self.optimizer.param_groups[0]["lr"] = learning_rate_factor
        self.optimizer.zero_grad()
        loss = self.module.weight.square().sum() / 2 + torch.rand(()) * self.module.weight.sum()
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        if (step + 1) in self.events:
            loss = self.events[step + 1](self, loss)
        return {"loss": loss, "step_squared": torch.tensor(float((step + 1) ** 2))}


def settings(steps=10, log_every=2, checkpoint_seconds=0.0, progress=False):
    return FitSettings(steps, lambda step: 0.1 / (step + 1), log_every, checkpoint_seconds, progress)


def lines(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def checkpoint_steps(directory):
    return [int(path.stem.removeprefix("step-")) for path in Checkpoints(directory / "checkpoints").paths()]


def test_last_means_weigh_the_logs_late_lines_by_their_steps(tmp_path):
    assert last_means(tmp_path, 100) == {}
    log = [
        {"step": 90, "loss": 7.0, "images_per_second": 1.0, "learning_rate_factor": 0.2},
        {"step": 96, "loss": 1.0, "images_per_second": 2.0, "learning_rate_factor": 0.1},
        {"step": 100, "loss": 2.0, "images_per_second": 3.0, "learning_rate_factor": 0.0},
        {"step": 110, "loss": 9.0, "images_per_second": 3.0, "learning_rate_factor": 0.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert last_means(tmp_path, 100) == {"loss": (6 * 1.0 + 4 * 2.0) / 10}
    assert last_means(tmp_path, 100, share=0.5) == {"loss": float(f"{(90 * 7.0 + 6 * 1.0 + 4 * 2.0) / 100:.4g}")}


def test_last_means_of_a_log_that_ends_early_or_changes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 50, "loss": 1.0}\n')
    assert last_means(tmp_path, 100) == {}
    path.write_text('{"step": 99, "loss": 1.0}\n{"step": 100, "loss": 3.0, "error": 1.0}\n')
    assert last_means(tmp_path, 100) == {"loss": float(f"{(99 * 1.0 + 3.0) / 100:.4g}")}


def fitted(directory, *args, **kwargs):
    torch.manual_seed(0)
    task = Descent()
    fit(task, directory, settings(*args, **kwargs))
    return task.module.weight.item()


class CrashError(Exception):
    pass


def crash(task, loss):
    raise CrashError


def send(number):
    def event(task, loss):
        os.kill(os.getpid(), number)
        return loss

    return event


def test_log_holds_the_means_since_the_line_before(tmp_path):
    logged = []
    fit(
        Descent(), tmp_path, settings(steps=5, log_every=2), on_log=lambda scalars, step: logged.append((step, scalars))
    )
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 4, 5]
    assert [line["step_squared"] for line in found] == [(1 + 4) / 2, (9 + 16) / 2, 25]
    assert [line["learning_rate_factor"] for line in found] == pytest.approx([0.1 / 2, 0.1 / 4, 0.1 / 5])
    assert all(line["images_per_second"] > 0 for line in found)
    assert [{"step": step, **scalars} for step, scalars in logged] == found


class Clock:
    """Time that passes where it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def passing(self, seconds):
        def event(task, loss):
            self.now += seconds
            return loss

        return event


def test_rate_and_time_are_those_of_the_clock(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    task = Descent({step: clock.passing(seconds) for step, seconds in enumerate((1.0, 3.0, 2.0, 6.0, 5.0), 1)})
    state = fit(task, tmp_path, settings(steps=5, log_every=2, checkpoint_seconds=1e6))
    # Ten images a step.
    assert [line["images_per_second"] for line in lines(tmp_path)] == [20 / 4, 20 / 8, 10 / 5]
    assert state.seconds == 17.0


def test_every_step_gets_the_schedules_factor(tmp_path):
    task = Descent()
    fit(task, tmp_path, settings(steps=4))
    assert task.factors == {step: 0.1 / (step + 1) for step in range(4)}


def test_checkpoints_at_logged_steps_or_when_their_time_has_come(tmp_path):
    fitted(tmp_path / "often", steps=7, log_every=2, checkpoint_seconds=0)
    assert checkpoint_steps(tmp_path / "often") == [6, 7]
    fitted(tmp_path / "seldom", steps=7, log_every=2, checkpoint_seconds=3600)
    assert checkpoint_steps(tmp_path / "seldom") == [7]
    torch.load(tmp_path / "often" / "checkpoints" / "step-00000006.pt", weights_only=True)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 10])
def test_resumed_after_a_crash_is_as_if_there_had_been_none(tmp_path, step):
    expected = fitted(tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        fit(Descent({step: crash}), tmp_path / "crashed", settings())
    # Without a checkpoint the caller's seed starts it anew; with one the seed must not matter.
    torch.manual_seed(0 if step <= 2 else 99)
    task = Descent()
    fit(task, tmp_path / "crashed", settings())
    assert task.module.weight.item() == expected
    assert min(task.factors) == (step - 1) // 2 * 2
    unlike = ("images_per_second",)
    whole, crashed = (
        [{name: value for name, value in line.items() if name not in unlike} for line in lines(tmp_path / run)]
        for run in ("whole", "crashed")
    )
    assert crashed == whole


def test_log_is_cut_back_to_the_step_that_is_resumed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    Journal(path, 4).write(6, {"loss": 0.25})
    assert lines(tmp_path) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 6, "loss": 0.25}]
    Journal(path, 2)
    assert lines(tmp_path) == [{"step": 2, "loss": 1.0}]


def test_complete_run_takes_no_step(tmp_path):
    expected = fitted(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    task = Descent()
    state = fit(task, tmp_path, settings())
    assert (state.step, task.factors, task.module.weight.item()) == (10, {}, expected)
    assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [5, 6])
def test_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_good_checkpoints(tmp_path, value, step):
    task = Descent({step: lambda task, loss: loss * value})
    with pytest.raises(NonFiniteLossError, match=rf"loss of step {step} is {value}; .*step-00000004\.pt"):
        fit(task, tmp_path, settings())
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    state = Checkpoints(tmp_path / "checkpoints").latest()
    assert state is not None and state["modules"]["network"]["weight"].isfinite().all()
    # The good checkpoint is that of an undisturbed run, not one overwritten later.
    torch.manual_seed(0)
    fit(clean := Descent(), tmp_path, settings())
    assert min(clean.factors) == 4


def test_every_loss_must_be_finite(tmp_path):
    class Adversarial(Descent):
        def training_step(self, step, learning_rate_factor):
            scalars = super().training_step(step, learning_rate_factor)
            return {**scalars, "discriminator_loss": torch.tensor(math.nan if step == 4 else 1.0)}

    with pytest.raises(NonFiniteLossError, match=r"the discriminator loss of step 5 is nan; .*step-00000004\.pt"):
        fit(Adversarial(), tmp_path, settings())


def test_loss_that_is_not_finite_before_the_first_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"loss of step 1 is nan; .*none, the run had not saved one yet"):
        fit(Descent({1: lambda task, loss: loss * math.nan}), tmp_path, settings())
    assert checkpoint_steps(tmp_path) == []


def test_weights_that_the_last_step_has_spoilt_are_not_saved(tmp_path):
    def spoil(task, loss):
        with torch.no_grad():
            task.module.weight.fill_(math.nan)
        return loss

    with pytest.raises(NonFiniteLossError, match=r"weight of the network is not finite after step 6; .*00000004\.pt"):
        fit(Descent({6: spoil}), tmp_path, settings())
    assert checkpoint_steps(tmp_path) == [2, 4]


SIGNALS = signals.STOP_SIGNALS


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [3, 4, 10])
def test_signal_is_answered_at_the_end_of_the_step(tmp_path, number, step):
    expected = fitted(tmp_path / "whole")
    handlers = [signal.getsignal(n) for n in SIGNALS]
    torch.manual_seed(0)
    with pytest.raises(TrainingInterruptedError, match=f"stopped by {number.name} at step {step};"):
        fit(Descent({step: send(number)}), tmp_path / "stopped", settings(checkpoint_seconds=3600))
    assert checkpoint_steps(tmp_path / "stopped") == [step]
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    task = Descent()
    fit(task, tmp_path / "stopped", settings())
    assert task.module.weight.item() == expected


class Requeued(BaseException):
    """What a batch system's handler ends its process with."""


@pytest.fixture
def handled(tmp_path):
    """Handlers of somebody else's: they note signal and checkpoints, and the one of SIGUSR2 ends the process."""
    calls = []

    def handler(number, frame):
        calls.append((number, checkpoint_steps(tmp_path)))
        if number == signal.SIGUSR2:
            raise Requeued

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield calls, handler
    for number, old in before.items():
        signal.signal(number, old)


def test_handler_that_was_there_before_has_its_turn_after_the_checkpoint(tmp_path, handled):
    calls, handler = handled
    expected = fitted(tmp_path / "whole")
    torch.manual_seed(0)
    # Of two signals, the handler of the first returns and the training goes on.
    task = Descent({3: send(signal.SIGTERM), 5: send(signal.SIGTERM), 7: send(signal.SIGUSR2)})
    with pytest.raises(Requeued):
        fit(task, tmp_path, settings(checkpoint_seconds=3600))
    assert calls == [(signal.SIGTERM, [3]), (signal.SIGTERM, [3, 5]), (signal.SIGUSR2, [5, 7])]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == [handler] * 2
    task = Descent()
    fit(task, tmp_path, settings())
    assert task.module.weight.item() == expected


def test_every_handler_whose_signal_came_in_one_step_has_its_turn(tmp_path, handled):
    calls, _ = handled

    def preempted(task, loss):  # as submitit does; the last one to come only bypasses
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.raises(Requeued):
        fit(Descent({3: preempted}), tmp_path, settings(checkpoint_seconds=3600))
    assert (signal.SIGUSR2, [3]) in calls


def test_a_signal_during_the_last_checkpoint_is_answered(tmp_path, handled, monkeypatch):
    calls, _ = handled
    save = Checkpoints.save

    def interrupted(self, step, state):
        save(self, step, state)
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(Requeued):
        fit(Descent(), tmp_path, settings(checkpoint_seconds=3600))
    assert [number for number, _ in calls] == [signal.SIGUSR2]


def twice(number):
    def event(task, loss):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        return loss

    return event


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_second_signal_does_not_forestall_the_checkpoint(tmp_path, number):
    before = signal.signal(number, signal.SIG_DFL)
    task = Descent({3: twice(number)})
    try:
        with pytest.raises(TrainingInterruptedError, match=f"stopped by {number.name} at step 3;"):
            fit(task, tmp_path, settings(checkpoint_seconds=3600))
    finally:
        signal.signal(number, before)
    assert checkpoint_steps(tmp_path) == [3]


def test_signals_that_a_system_does_not_have_are_done_without(monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.delattr(signal, "SIGUSR2")
    assert runpy.run_path(signals.__file__)["STOP_SIGNALS"] == (signal.SIGTERM, signal.SIGINT)


def test_second_ctrl_c_interrupts_at_once(tmp_path):
    # A process started in the background of a shell ignores Ctrl-C, and tests may be run in one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Descent({3: twice(signal.SIGINT)}), tmp_path, settings())
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint_steps(tmp_path) == [2]


def test_notes_are_kept_and_united_on_resumption(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        fit(Descent({5: crash}), tmp_path, settings(), notes={"commits": ["a"], "dirty": True, "data": "x"})
    state = fit(Descent(), tmp_path, settings(), notes={"commits": ["b", "a"], "dirty": False, "data": "x"})
    assert state.notes == {"commits": ["a", "b"], "dirty": True, "data": "x"}
    assert merge_notes({}, {"commits": ["a"], "dirty": False}) == {"commits": ["a"], "dirty": False}
    assert merge_notes({"dirty": False, "n": 1}, {"dirty": True, "n": 2}) == {"dirty": True, "n": 2}


def test_seconds_add_up_over_resumptions(tmp_path):
    with pytest.raises(CrashError):
        fit(Descent({5: crash}), tmp_path, settings())
    path = Checkpoints(tmp_path / "checkpoints").paths()[-1]
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"seconds": 1000.0}, path)
    assert 1000 < fit(Descent(), tmp_path, settings()).seconds < 1100


def test_bar_shows_loss_rate_and_time_left(tmp_path, monkeypatch):
    shown = io.StringIO()
    bar = functools.partial(loop.tqdm, file=shown)
    monkeypatch.setattr(loop, "tqdm", lambda **options: bar(**options | {"disable": False, "mininterval": 0}))
    fit(Descent(), tmp_path, settings(steps=4, log_every=1))
    last = shown.getvalue().split("\r")[-1]
    assert "4/4 [" in last and "<00:00" in last
    for scalar in ("loss=", "images_per_second=", "learning_rate_factor="):
        assert scalar in last
