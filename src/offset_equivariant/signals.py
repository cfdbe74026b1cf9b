"""Which signals ask a process to stop."""

import signal

#: Batch systems announce the end of a job's time, or its preemption, by one of the first three. Windows lacks two.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name)
)
