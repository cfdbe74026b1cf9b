"""What tests of several packages share: real images, configurations, the command line, a reader of W&B's files."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

# Before torch is imported: a process that is forked where it has computed with several threads cannot compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from offset_equivariant.data import LabelledImages, Split, cifar10, data_directories

ROOT = Path(__file__).resolve().parents[1]

#: A training of two epochs of 16 steps, that takes about a second.
TINY = (
    "train=smoke",
    "model.architecture=resnet8",
    "dataset.options.n_train=256",
    "dataset.options.n_test=64",
    "train.batch_size=16",
    "train.epochs=2",
    "train.log_every=2",
    "train.checkpoint_seconds=0",
    "logger=none",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.progress=false",
)


@pytest.fixture
def warnings_of_test(recwarn) -> Callable[[], list[Any]]:
    """Return the warnings so far, but for those of what earlier tests left, which Python may give at any moment."""
    return lambda: [warning for warning in recwarn if warning.category is not ResourceWarning]


@pytest.fixture(scope="session")
def real_cifar10() -> dict[Split, LabelledImages]:
    """Both splits of the real data set; skips where it is absent. Nothing is downloaded, and a damaged copy fails."""
    directories = data_directories()
    if not any((directory / source.folder).is_dir() for directory in directories for source in cifar10.SOURCES):
        pytest.skip(f"the real CIFAR-10 is not in {', '.join(map(str, directories))}")
    return {split: cifar10.load_cifar10(split, directories, download=False) for split in ("train", "test")}


def settings_of(*overrides: str) -> dict[str, Any]:
    """The settings that the command line would make of these words."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", list(overrides))
    return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., dict[str, Any]]:
    return settings_of


@pytest.fixture
def tiny_settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a tiny run below the test's own folder; words of the command line change them."""

    def make(*overrides: str) -> dict[str, Any]:
        experiment = (
            () if any(word.startswith("experiment=") for word in overrides) else ("experiment=table1_original",)
        )
        paths = (f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results")
        return settings_of(*experiment, *TINY, *paths, *overrides)

    return make


@dataclass
class Job:
    """A running command line."""

    pid: int
    output: Path
    wait: Callable[[], int]

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.output.read_text()


_SERVER = """
import json, os, runpy, sys, traceback
import offset_equivariant.__main__
import torch._dynamo
del sys.modules["offset_equivariant.__main__"]
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(job["folder"])
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.argv[1:] = job["words"]
        code = 0
        try:
            runpy.run_module("offset_equivariant", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking down a forked interpreter with all its modules takes longer than the run
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class CommandLine:
    """``python -m offset_equivariant`` in processes that can be killed.

    ``start`` forks a process that has imported everything already, which saves seconds at each; ``start_fresh`` starts
    a new interpreter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The server is started outside any test's folder and must find the package without an installation.
        # W&B leaves the address of its own process in the environment of a process that has used it.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self._environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self._server: subprocess.Popen[str] | None = None

    def start(self, *words: str, folder: Path) -> Job:
        if self._server is None:
            command = [sys.executable, "-c", _SERVER]
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
            )
        requests, answers = cast(IO[str], self._server.stdin), cast(IO[str], self._server.stdout)
        output = self._output()
        requests.write(json.dumps({"folder": str(folder), "output": str(output), "words": words}) + "\n")
        requests.flush()
        return Job(int(answers.readline()), output, lambda: int(answers.readline()))

    def start_fresh(self, *words: str, folder: Path, **environment: str) -> Job:
        output = self._output()
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "offset_equivariant", *words],
                cwd=folder,
                env=self._environment | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Job(process.pid, output, process.wait)

    def run(self, *words: str, folder: Path) -> tuple[int, str]:
        """Run to the end; return the exit code and what was said."""
        job = self.start(*words, folder=folder)
        return job.wait(), job.text

    def close(self) -> None:
        if self._server is not None:
            cast(IO[str], self._server.stdin).close()
            self._server.wait()

    def _output(self) -> Path:
        return self.folder / f"output-{time.monotonic_ns()}"


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    shared = CommandLine(tmp_path_factory.mktemp("command-line"))
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def tiny_words() -> tuple[str, ...]:
    """Words of the command line that make any experiment tiny."""
    return TINY


def _wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, pieces = path.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (rest := 32768 - position % 32768) < 7:
            position += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return
        pieces.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(pieces))
            pieces = []
            yield record


def _finished_run(path: Path) -> list[Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = list(_wandb_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.05)
    raise TimeoutError(f"{path}: the run was not written to its end")


@pytest.fixture(scope="session")
def finished_run() -> Callable[[Path], list[Any]]:
    """All records of a finished W&B run: wandb's own process may write the last after ``finish`` has returned."""
    return _finished_run


@pytest.fixture(scope="session")
def wandb_history() -> Callable[[list[Any]], list[dict[str, Any]]]:
    """What a W&B run logged, one dictionary a call of ``log``."""

    def history(records: list[Any]) -> list[dict[str, Any]]:
        return [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]

    return history


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """One of the scripts, as a module."""

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load
