"""The training loop: steps, progress, log, checkpoints, and a clean end whatever ends it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from offset_equivariant.storage import replace_file
from offset_equivariant.tasks.task import Trainable
from offset_equivariant.training.checkpoint import Checkpoints, restore_training_state, training_state
from offset_equivariant.training.ranks import any_rank, is_first, mean_over_ranks, ranks, wait_for_all
from offset_equivariant.training.schedules import Schedule
from offset_equivariant.training.stopping import StopRequest

_JOURNAL = "log.jsonl"
#: Scalars of the log that are no means of the steps.
_NO_MEANS = ("step", "images_per_second", "learning_rate_factor")


class NonFiniteLossError(RuntimeError):
    """A loss or a weight was NaN or infinite; the message names the step and the last good checkpoint."""


@dataclass(frozen=True)
class FitSettings:
    """How to run, as against what to learn.

    Args:
        total_steps: where training ends.
        schedule: factor on the learning rates at every step.
        log_every: steps between two lines of the log; losses are read from the device only then.
        checkpoint_seconds: least time between checkpoints, which are written at logged steps; 0 for one at each.
        progress: show a bar.
    """

    total_steps: int
    schedule: Schedule
    log_every: int = 50
    checkpoint_seconds: float = 120.0
    progress: bool = True


@dataclass
class FitState:
    """Where a run stands: what a checkpoint holds beside networks, optimisers and random states."""

    step: int = 0
    seconds: float = 0.0
    #: Of the caller, kept in every checkpoint: plain values only.
    notes: dict[str, Any] = field(default_factory=dict)


def fit(
    task: Trainable,
    directory: Path,
    settings: FitSettings,
    *,
    notes: Mapping[str, Any] | None = None,
    on_log: Callable[[dict[str, float], int], None] = lambda scalars, step: None,
) -> FitState:
    """Train to the last step, going on from the newest checkpoint in ``directory`` where there is one.

    Writes ``directory/checkpoints/step-*.pt`` and ``directory/log.jsonl``. Of several ranks, which take every step
    together, the first writes; all read the checkpoint, and their number may be another than when it was written.

    Args:
        task: what is learned.
        directory: of the run.
        settings: how to run.
        notes: put into the checkpoints; those of a checkpoint that is resumed come first, see :func:`merge_notes`.
        on_log: called on the first rank with every logged set of scalars and its step.

    Returns:
        the final state; nothing is trained if the run was complete already.

    Raises:
        NonFiniteLossError: at a NaN or infinite loss or weight. No checkpoint is written from then on.
        TrainingInterruptedError: after SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C, when the checkpoint is written. Where the
            caller had a handler of its own for the signal, that is called then, and training goes on if it returns.
    """
    checkpoints = Checkpoints(directory / "checkpoints")
    state = _resume(task, checkpoints, notes or {})
    journal = Journal(directory / _JOURNAL, state.step)
    meter = _Meter(task.batch_size)
    saved_at = time.monotonic()

    def save() -> None:
        if not is_first():
            return
        _require_finite_weights(task.modules(), state.step, checkpoints)
        checkpoints.save(
            state.step,
            {"step": state.step, "seconds": state.seconds, "notes": state.notes}
            | training_state(task.modules(), task.optimizers()),
        )

    bar = tqdm(
        total=settings.total_steps,
        initial=state.step,
        unit="step",
        disable=None if settings.progress and is_first() else True,
        dynamic_ncols=True,
    )
    stopping = False
    with StopRequest() as stop, bar:
        while state.step < settings.total_steps:
            started = time.perf_counter()
            meter.add(task.training_step(state.step, settings.schedule(state.step)))
            state.step += 1
            last = state.step == settings.total_steps
            # Ranks can only stop together, where they all read their losses.
            if last or (stop.requested and ranks() == 1) or state.step % settings.log_every == 0:
                stopping = any_rank(stop.requested)
                scalars = meter.read(state.step, checkpoints)
                scalars["learning_rate_factor"] = settings.schedule(state.step - 1)
                if is_first():
                    journal.write(state.step, scalars)
                    on_log(scalars, state.step)
                bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()}, refresh=False)
            state.seconds += time.perf_counter() - started
            bar.update()
            due = time.monotonic() - saved_at >= settings.checkpoint_seconds and not meter.pending
            if last or stopping or due:
                save()
                saved_at = time.monotonic()
            if stopping:
                # Once a process has ended, torchrun ends the others: the first must have written by then.
                wait_for_all()
                stop.answer(state.step)
                stopping = False
        # A signal may have come since the last step read its losses.
        if any_rank(stop.requested):
            stop.answer(state.step)
    return state


def _resume(task: Trainable, checkpoints: Checkpoints, notes: Mapping[str, Any]) -> FitState:
    saved = checkpoints.latest()
    if saved is None:
        return FitState(notes=dict(notes))
    restore_training_state(saved, task.modules(), task.optimizers())
    return FitState(int(saved["step"]), float(saved["seconds"]), merge_notes(saved["notes"], notes))


def merge_notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Unite the notes of a resumed run: lists are joined without repetition, truths or-ed, the rest is the newer."""
    merged = dict(old)
    for name, value in new.items():
        if isinstance(value, list):
            merged[name] = list(dict.fromkeys([*old.get(name, []), *value]))
        elif isinstance(value, bool):
            merged[name] = value or bool(old.get(name, False))
        else:
            merged[name] = value
    return merged


def _require_finite_weights(modules: Mapping[str, nn.Module], step: int, checkpoints: Checkpoints) -> None:
    """Refuse to save what a last step has spoilt: its own loss, taken before the update, may still be finite."""
    for name, module in modules.items():
        for key, values in module.state_dict().items():
            if not bool(values.isfinite().all()):
                raise NonFiniteLossError(
                    f"{key} of the {name} is not finite after step {step}; {_last_good(checkpoints)}. "
                    "Lower the learning rate"
                )


def _last_good(checkpoints: Checkpoints) -> str:
    paths = checkpoints.paths()
    return f"the last good checkpoint is {paths[-1] if paths else 'none, the run had not saved one yet'}"


class _Meter:
    """Gathers the scalars of steps on the device, and reads them all at once, averaged over the ranks."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps: list[dict[str, Tensor]] = []
        self._since = time.perf_counter()

    @property
    def pending(self) -> bool:
        """Whether there are steps whose losses were not looked at yet."""
        return bool(self._steps)

    def add(self, scalars: dict[str, Tensor]) -> None:
        self._steps.append(scalars)

    def read(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        """Return the means since the last reading, and the rate; refuse any loss that is not finite."""
        names = list(self._steps[0])
        values = mean_over_ranks(torch.stack([torch.stack([s[name].float() for name in names]) for s in self._steps]))
        for name in (name for name in names if name.endswith("loss")):
            losses = values[:, names.index(name)].tolist()
            for before, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
                if not math.isfinite(loss):
                    raise NonFiniteLossError(
                        f"the {name.replace('_', ' ')} of step {step - before} is {loss}; {_last_good(checkpoints)}. "
                        "Lower the learning rate, or look at the batch of that step"
                    )
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        now = time.perf_counter()
        means["images_per_second"] = len(self._steps) * self._batch_size / (now - self._since)
        self._since = now
        self._steps.clear()
        return means


class Journal:
    """A log of JSON lines, cut back on resumption to the step that is resumed, so that no step stands twice."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if not is_first():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(line) + "\n" for line in journal_lines(path.parent, step)]
        replace_file(path, "".join(kept).encode())

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")


def journal_lines(directory: Path, step: int) -> list[dict[str, Any]]:
    """Return what the log of a run's directory says up to a step."""
    lines = [json.loads(line) for line in _whole_lines(directory / _JOURNAL)]
    return [line for line in lines if line["step"] <= step]


def last_means(directory: Path, step: int, share: float = 0.05) -> dict[str, float]:
    """Return the means of the logged scalars over the last ``share`` of the steps up to ``step``, to four digits.

    A line of the log that begins before counts whole. Of a cross-validation they are of its last network. Empty where
    the log has nothing of these steps; scalars that some of its lines lack are left out.
    """
    lines = [{"step": 0}, *journal_lines(directory, step)]
    late = [(line, line["step"] - old["step"]) for old, line in pairwise(lines) if line["step"] > (1 - share) * step]
    total = sum(steps for _, steps in late)
    names = [n for n in lines[-1] if n not in _NO_MEANS and all(n in line for line, _ in late)] if late else []
    return {name: float(f"{sum(line[name] * steps for line, steps in late) / total:.4g}") for name in names}


def _whole_lines(path: Path) -> list[str]:
    """The lines of a log; a last one without an end was cut off by a crash and does not count."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
