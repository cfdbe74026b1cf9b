"""What downloads have in common."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

_SOCKET_TIMEOUT = 15.0  # seconds without an answer


@contextmanager
def impatient_sockets() -> Iterator[None]:
    """Let no socket wait for ever.

    torchvision sets no timeout: where packets are dropped, its downloads would hang for minutes or for ever.
    """
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
