"""Locks between processes."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import filelock
import pytest

from offset_equivariant.storage import locked

# The lock is not lost with a worker process that is forked meanwhile and ends, either way.
HOLD = """
import multiprocessing, os, sys, time
from pathlib import Path
from offset_equivariant.storage import locked
with locked(Path(sys.argv[1])):
    for end in (sys.exit, os._exit):
        worker = multiprocessing.get_context("fork").Process(target=end, args=(0,))
        worker.start()
        worker.join()
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a lock in a folder that was not there, and the lock's path."""
    path = tmp_path / "new" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process, path
        process.kill()


def test_a_lock_is_waited_for_and_ends_with_the_process_that_is_killed(other, caplog):
    process, path = other
    caplog.set_level(logging.INFO)
    held = threading.Event()

    def wait():
        with locked(path):
            held.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + 30
    while not caplog.messages and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held.wait(0.5)
    assert caplog.messages == [f"waiting for the process that holds {path}"]
    os.kill(process.pid, signal.SIGKILL)
    assert held.wait(30)
    waiting.join()
    with locked(path):  # released, and the file is still there
        pass
    assert path.exists() and caplog.messages == [f"waiting for the process that holds {path}"]


def test_a_lock_is_released_by_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    with locked(tmp_path / "a"):
        pass


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def missing(descriptor):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", missing)
    with pytest.raises(OSError, match="no locks here"), locked(tmp_path / "a"):
        pass


def test_the_package_needs_no_module_of_one_system():
    """As on Windows, which has no fcntl and no resource; only performance/measuring.py, of the benchmarks, does."""
    modules = ", ".join(f"offset_equivariant.{name}" for name in ("__main__", "correct", "inpaint"))
    code = f"import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
