"""Worker processes that make batches: torch's loader, and how its workers meet signals and the end of their process."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from offset_equivariant.data.image_files import ImageFileError
from offset_equivariant.signals import STOP_SIGNALS

_PREFETCHED = 2  # batches a worker makes ahead
_MASKS = hasattr(signal, "pthread_sigmask")  # Windows has none, and ends processes at once


def usable_cores() -> int:
    """Return how many cores this process may use, where the system says it, else how many there are."""
    # macOS and Windows do not say it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Loader:
    """Runs a data set whose items are batches of tensors through torch's loader, on to the device."""

    def __init__(self, workers: int, device: torch.device) -> None:
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        self._workers = workers
        self._device = device

    def run(self, batches: Dataset[Any], numbers: range) -> Iterator[Any]:
        ending = RawValue(ctypes.c_bool, False)
        loader = DataLoader(
            _Caught(batches),
            batch_size=None,
            sampler=numbers,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=partial(_leave_signals, ending),
            prefetch_factor=_PREFETCHED if self._workers else None,
            # The loader draws a seed for its workers, which do not use it: not from the global generator, whose state
            # a training that is taken up again must find as it was.
            generator=torch.Generator(),
        )
        # Where this is not over when the process ends: multiprocessing then sends SIGTERM to the workers and waits.
        end = Finalize(None, setattr, (ending, "value", True), exitpriority=0)
        try:
            with _held_back():
                iterator = iter(loader)
            for batch in iterator:
                if isinstance(batch, ImageFileError):
                    raise batch
                yield tuple(part.to(self._device, non_blocking=True) for part in batch)
        finally:
            end()


class _Caught(Dataset[Any]):
    """Gives the error in place of a batch: raised in a worker, its message would be buried in a traceback."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Any:
        try:
            return self._batches[number]
        except ImageFileError as error:
            return error


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals that ask for a stop back from this thread, and from what it starts until that deals with them."""
    if not _MASKS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(ending: Any, _: int) -> None:
    """Leave signals that ask for a stop to the process that trains, which ends its workers when it has saved.

    They come to all processes: Ctrl-C from a terminal, SIGTERM from ``torchrun``, any of them from Slurm. A worker
    would otherwise be ended by them, or call what handlers its parent had: submitit's puts the job back into the queue.

    Where that process is killed, the worker ends, too: torch's own check of it fails in workers that only start then.

    Args:
        ending: shared with the parent; its value is true when a SIGTERM is to end the worker.
    """
    if _MASKS:
        # Blocked for good, and a SIGTERM kept until the thread takes it. A handler in Python would run when the main
        # thread is next in the interpreter, which may wait five seconds for its next batch.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        Thread(target=_await_ending, args=(ending,), daemon=True).start()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _await_ending(ending: Any) -> None:
    while True:
        signal.sigwait({signal.SIGTERM})
        if ending.value:
            os._exit(0)


def _unchanged(batch: Any) -> Any:
    return batch
