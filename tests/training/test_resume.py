"""A run that is killed and started again ends exactly as one that was not: real processes, real signals."""

import contextlib
import functools
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from offset_equivariant.training.stopping import StopRequest

#: Experiment and further words of the command line; the directory that they name.
VARIANTS = {
    "projection": ("experiment=table1_equivariant", "name=tiny"),
    "parametrization": (
        "experiment=table1_equivariant_relative",
        "name=tiny",
        "model.family_options.constraint=parametrization",
        "train.schedule.name=multi_step",
        "~train.schedule.options.warmup_fraction",
        "+train.schedule.options.milestones=[10,20]",
    ),
    # Checkpoints are rarer than lines of the log here, so a log is ahead of its run and has to be cut back.
    "original": ("experiment=table1_augmentation", "name=tiny", "train.nesterov=false", "train.checkpoint_seconds=0.3"),
}
STEPS = 32


def run_directory(folder: Path) -> Path:
    return folder / "runs" / "tiny_smoke" / "seed=0"


def log_of(folder: Path) -> list[dict[str, float]]:
    path = run_directory(folder) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learned(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """The log but for its times."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def facts_of(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["facts"])


def assert_same_weights(folder: Path, reference: Path) -> None:
    ours, theirs = (run_directory(place) / "weights.safetensors" for place in (folder, reference))
    a, b = load_file(ours), load_file(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    times = ("train_seconds",)
    facts = [{k: v for k, v in facts_of(path).items() if k not in times} for path in (ours, theirs)]
    assert facts[0] == facts[1]
    assert facts[0]["steps"] == facts[0]["total_steps"] == STEPS


def wait_for_lines(job, folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    path = run_directory(folder) / "log.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, job.text
        time.sleep(0.001)


@pytest.fixture(scope="module")
def words(tiny_words):
    return {
        name: (*chosen[:1], *tiny_words, *chosen[1:], "table=null", "mode=train") for name, chosen in VARIANTS.items()
    }


@pytest.fixture(scope="module")
def uninterrupted(command_line, words, tmp_path_factory):
    """From a variant's name to the folder where it ran without interruption."""

    @functools.cache
    def folder_of(variant: str) -> Path:
        folder = tmp_path_factory.mktemp(f"uninterrupted-{variant}")
        code, text = command_line.run(*words[variant], folder=folder)
        assert code == 0, text
        assert [line["step"] for line in log_of(folder)] == list(range(2, STEPS + 1, 2))
        return folder

    return folder_of


def kill_until_complete(start, folder: Path, rng: random.Random, kills: int) -> None:
    """Kill a run at random moments, always later ones than the last, and then let it go to its end.

    It may be there before it is killed, but for the first time.
    """
    for number in range(kills):
        job = start()
        done = len(log_of(folder))
        wait_for_lines(job, folder, min(done + rng.randint(1, 3), STEPS // 2 - 2))
        time.sleep(rng.uniform(0, 0.03))
        with contextlib.suppress(ProcessLookupError):
            job.kill(signal.SIGKILL)
        status = job.wait()
        if number > 0 and status == 0:
            return
        assert status == -signal.SIGKILL, job.text
        assert not (run_directory(folder) / "weights.safetensors").exists()
    job = start()
    assert job.wait() == 0, job.text


@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_9_at_random_moments_leaves_no_trace(variant, command_line, words, uninterrupted, tmp_path):
    reference = uninterrupted(variant)
    start = functools.partial(command_line.start, *words[variant], folder=tmp_path)
    kill_until_complete(start, tmp_path, random.Random(variant), kills=3)
    assert_same_weights(tmp_path, reference)
    assert learned(log_of(tmp_path)) == learned(log_of(reference))
    checkpoints = sorted(path.name for path in (run_directory(tmp_path) / "checkpoints").glob("step-*.pt"))
    assert checkpoints[-1] == "step-00000032.pt" and len(checkpoints) <= 2


def test_kill_9_of_a_fresh_interpreter(command_line, words, uninterrupted, tmp_path):
    start = functools.partial(command_line.start_fresh, *words["projection"], folder=tmp_path)
    kill_until_complete(start, tmp_path, random.Random(0), kills=1)
    assert_same_weights(tmp_path, uninterrupted("projection"))


@pytest.mark.parametrize(("variant", "number"), [("projection", signal.SIGINT), ("original", signal.SIGTERM)])
def test_signal_checkpoints_and_exits_with_its_status(variant, number, command_line, words, uninterrupted, tmp_path):
    words = words[variant]
    # Checkpoints are an hour apart: the one that is found afterwards is the signal's.
    job = command_line.start(*words, "train.checkpoint_seconds=3600", folder=tmp_path)
    wait_for_lines(job, tmp_path, 3)
    job.kill(number)
    assert job.wait() == 128 + number, job.text

    directory = run_directory(tmp_path)
    stopped = int(log_of(tmp_path)[-1]["step"])
    assert 6 <= stopped < STEPS
    assert f"stopped by {number.name} at step {stopped}" in job.text
    assert [path.name for path in (directory / "checkpoints").iterdir()] == [f"step-{stopped:08d}.pt"]
    assert not (directory / "FAILED").exists() and not (directory / "weights.safetensors").exists()

    code, text = command_line.run(*words, folder=tmp_path)
    assert code == 0, text
    assert_same_weights(tmp_path, uninterrupted(variant))
    assert [line["step"] for line in log_of(tmp_path)] == sorted({*range(2, STEPS + 1, 2), stopped})


def test_damaged_newest_checkpoint(command_line, words, uninterrupted, tmp_path):
    words = words["projection"]
    job = command_line.start(*words, folder=tmp_path)
    wait_for_lines(job, tmp_path, 4)
    job.kill(signal.SIGTERM)
    assert job.wait() == 143, job.text
    checkpoints = run_directory(tmp_path) / "checkpoints"
    before, newest = sorted(checkpoints.glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:2000])
    (checkpoints / "step-00000031.tmp").write_bytes(b"half a checkpoint")

    code, text = command_line.run(*words, folder=tmp_path)
    assert code == 0, text
    assert f"{newest.name} cannot be read" in text and "trying the one before it" in text
    assert before.name not in text
    assert_same_weights(tmp_path, uninterrupted("projection"))
    steps = [line["step"] for line in log_of(tmp_path)]
    assert sorted({*steps}) == steps and {*range(2, STEPS + 1, 2)} <= {*steps}


def test_a_handler_that_was_not_set_from_python_becomes_the_default():
    number = signal.SIGTERM
    stop = StopRequest()
    before = signal.getsignal(number)
    try:
        with stop:
            stop._previous[number] = None  # what signal.signal returns of one that a C library has set
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
