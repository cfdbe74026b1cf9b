"""Signals that ask a training to stop: it is checkpointed before anything else happens."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from offset_equivariant.signals import STOP_SIGNALS


class TrainingInterruptedError(RuntimeError):
    """A signal to stop came; the run was checkpointed and can be taken up again.

    Attributes:
        exit_status: what a process that the signal ended is expected to return, 128 and the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


#: Handlers that nobody has chosen; None is one that was not set from Python.
_DEFAULT_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


class StopRequest:
    """Turns signals into a request, answered at the end of a step, however many come. A second Ctrl-C is as usual.

    Handlers that were there before, such as submitit's, which puts its job back into the queue and ends the process,
    have their turn when the checkpoint is written: all whose signals came, since a batch system sends several at once.

    Attributes:
        numbers: of the signals that came and were not answered, in their order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came that was not answered."""
        return bool(self.numbers)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._previous:
            self._restore(number)

    def answer(self, step: int) -> None:
        """Do what the signals ask for, now that the run is checkpointed at ``step``; return to go on training.

        Raises:
            TrainingInterruptedError: if there was no handler of one of them before, or none came to this rank.
        """
        came, self.numbers = list(dict.fromkeys(self.numbers)), []
        unhandled = [number for number in came if self._previous.get(number) in _DEFAULT_HANDLERS]
        for number in came:
            if number not in unhandled:
                self._previous[number](number, None)
        if unhandled or not came:
            name = signal.Signals(unhandled[0]).name if unhandled else "another rank"
            raise TrainingInterruptedError(
                f"stopped by {name} at step {step}; the same command goes on from there",
                unhandled[0] if unhandled else int(signal.SIGTERM),
            )

    def _request(self, number: int, _: FrameType | None) -> None:
        self.numbers.append(number)
        # The others may well come twice, from a launcher and from the batch system, while the step still computes.
        if number == signal.SIGINT and self._previous[number] in _DEFAULT_HANDLERS:
            self._restore(number)

    def _restore(self, number: int) -> None:
        # One that was not set from Python cannot be set again; for it, the default is the nearest there is.
        handler = self._previous[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
