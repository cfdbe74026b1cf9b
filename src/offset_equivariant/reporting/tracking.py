"""Mirroring a run to Weights & Biases, which never stops the run.

The run's own files are the truth; a tracker shows them elsewhere. ``wandb`` is imported only when asked for.
"""

import logging
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from offset_equivariant.storage import replace_file

logger = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")


class Tracker(Protocol):
    """Where a run's progress and results are shown."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars of optimisation step ``step``; steps must not decrease."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table of ``rows``, one value for each of ``columns``."""

    def curves(
        self, name: str, xs: Sequence[float], ys: Mapping[str, Sequence[float]], x_name: str, title: str
    ) -> None:
        """Log a plot of several curves, each of ``ys`` against the same ``xs``."""

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a picture of optimisation step ``step``, sRGB ``(H, W, 3)``."""

    def finish(self) -> None:
        """End the run; call it in a ``finally`` clause."""


class NullTracker:
    """A tracker that tracks nothing."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def curves(
        self, name: str, xs: Sequence[float], ys: Mapping[str, Sequence[float]], x_name: str, title: str
    ) -> None:
        """Do nothing."""

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class WandbTracker:
    """A tracker that writes to Weights & Biases.

    If ``wandb`` is missing or fails, the failure is logged once as a warning and the tracker falls silent.

    Args:
        project: Project name.
        name: Name of the run.
        group: Group of runs that it belongs to, or None.
        config: The run's configuration.
        directory: Folder below which wandb keeps its files; made if missing.
        identity: File of wandb's id of the run, made if missing: whoever gives it again goes on with the same run,
            offline in files of its own that ``wandb sync`` unites. None for a new run at every start.
        mode: "offline" (files only), "online" or "disabled".
    """

    def __init__(
        self,
        project: str,
        name: str,
        group: str | None,
        config: Mapping[str, Any],
        directory: Path,
        identity: Path | None = None,
        mode: str = "offline",
    ) -> None:
        self._run: Any = None
        self._wandb: Any = None
        self._attempt(lambda: self._start(project, name, group, dict(config), directory, identity, mode))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars of optimisation step ``step``; wandb drops steps lower than the last one."""
        if self._run is not None:
            self._attempt(lambda: self._run.log(dict(scalars), step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a ``wandb.Table``; columns may hold None, and mix types."""
        if self._run is not None:
            data = [list(row) for row in rows]
            self._attempt(
                lambda: self._run.log(
                    {name: self._wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)}
                )
            )

    def curves(
        self, name: str, xs: Sequence[float], ys: Mapping[str, Sequence[float]], x_name: str, title: str
    ) -> None:
        """Log one line-series plot."""
        if self._run is not None:
            series = [list(values) for values in ys.values()]
            self._attempt(
                lambda: self._run.log(
                    {name: self._wandb.plot.line_series(list(xs), series, keys=list(ys), title=title, xname=x_name)}
                )
            )

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Log a ``wandb.Image``."""
        if self._run is not None:
            self._attempt(lambda: self._run.log({name: self._wandb.Image(pixels)}, step=step))

    def finish(self) -> None:
        """End the run and close its files."""
        if self._run is not None:
            self._attempt(lambda: self._run.finish())
            self._run = None

    def _start(
        self,
        project: str,
        name: str,
        group: str | None,
        config: dict[str, Any],
        directory: Path,
        identity: Path | None,
        mode: str,
    ) -> None:
        import wandb

        self._wandb = wandb
        directory.mkdir(parents=True, exist_ok=True)
        # A multirun has several runs in one process, and the console belongs to the progress bar.
        settings = wandb.Settings(silent=True, console="off", reinit="create_new")
        self._run = self._wandb.init(
            project=project,
            name=name,
            group=group,
            config=config,
            dir=directory,
            id=None if identity is None else _kept_id(identity),
            resume=None if identity is None else "allow",
            mode=mode,
            settings=settings,
        )

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever goes wrong there, the training goes on
            logger.warning("Weights & Biases failed and is off for this run (%s: %s)", type(error).__name__, error)
            self._run = None


def _kept_id(path: Path) -> str:
    """Return the id that a file keeps, a new one where there is no file."""
    if not path.exists():
        replace_file(path, f"{uuid.uuid4().hex}\n".encode())
    return path.read_text().strip()


def make_tracker(
    kind: str,
    *,
    project: str,
    name: str,
    group: str | None,
    config: Mapping[str, Any],
    directory: Path,
    identity: Path | None = None,
    mode: str | None = None,
) -> Tracker:
    """Return the tracker of a given kind.

    Args:
        kind: "wandb" or "none".
        project: See :class:`WandbTracker`.
        name: See :class:`WandbTracker`.
        group: See :class:`WandbTracker`.
        config: See :class:`WandbTracker`.
        directory: See :class:`WandbTracker`.
        identity: See :class:`WandbTracker`.
        mode: None for wandb's own variable WANDB_MODE, and without it "online" if the user is logged in to wandb and
            "offline" otherwise.

    Raises:
        ValueError: If ``kind`` or ``mode`` is unknown.
    """
    if kind == "none":
        return NullTracker()
    if kind != "wandb":
        raise ValueError(f"kind of tracker must be one of wandb, none; got {kind!r}")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    chosen = mode or os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    return WandbTracker(project, name, group, config, directory, identity, chosen)


def logged_in() -> bool:
    """Whether the user has logged in to Weights & Biases: WANDB_API_KEY, or an entry of its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    try:
        return host in netrc.netrc(path).hosts
    except (netrc.NetrcParseError, OSError) as error:
        logger.warning("%s cannot be read (%s): Weights & Biases stays offline", path, error)
        return False
