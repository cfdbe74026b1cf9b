"""Where data sets lie on this machine, and what may be wrong with them."""

import os
from pathlib import Path

DATA_DIR_VARIABLE = "OEN_DATA_DIR"
DEFAULT_DATA_DIR = "data"


class DataNotFoundError(FileNotFoundError):
    """A data set is in none of the data directories and could not be downloaded.

    The message says what was tried, why each attempt failed, and what to put where.
    """


class DataError(ValueError):
    """A data set that is there cannot be used; the message names the file or image and says what is wrong."""


def data_directories(setting: str | None = None) -> list[Path]:
    """The folders to look for data sets in, in order; downloads go into the first.

    Args:
        setting: one folder, or several separated by `os.pathsep` as in PATH. Without it the environment variable
            OEN_DATA_DIR is taken, and without that ``"data"``. Empty entries are dropped, ``~`` is expanded.

    Raises:
        ValueError: when no folder is named.
    """
    if setting is not None:
        origin = "the data directory setting"
    elif DATA_DIR_VARIABLE in os.environ:
        origin, setting = f"the environment variable {DATA_DIR_VARIABLE}", os.environ[DATA_DIR_VARIABLE]
    else:
        origin, setting = "the default", DEFAULT_DATA_DIR
    directories = [Path(entry.strip()).expanduser() for entry in setting.split(os.pathsep) if entry.strip()]
    if not directories:
        raise ValueError(
            f"{origin} names no folder ({setting!r}); give one folder or several separated by {os.pathsep!r}, "
            f"or leave it unset to use {DEFAULT_DATA_DIR!r}"
        )
    return directories
