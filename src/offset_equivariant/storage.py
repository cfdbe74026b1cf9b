"""Writing a file in one step, and having it to oneself."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step: a reader sees the old file or the new one, never a part.

    Missing folders are made. The temporary file lies beside ``path`` and is removed if writing fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what :func:`replace_file` left in a folder where a process was killed; no other may be writing there."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if missing), waiting for other processes that hold it.

    The operating system releases the lock when the process ends, however it ends. The file stays: were it removed, a
    waiting process and a new one could hold locks on two different files of that name.

    Raises:
        OSError: if the file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where a file system has no locks, filelock would make do with the file's existence, which outlives its process.
    lock = FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for the process that holds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
