"""Two processes that train and evaluate together, started by torchrun, on the CPU."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offset_equivariant.config import ConfigError
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.records import load_outcomes, read_record
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run

ROOT = Path(__file__).resolve().parents[1]
#: A set of test images that two ranks do not divide.
WORDS = ("experiment=table1_equivariant_relative", "dataset.options.n_test=45", "distortion.saturations=[0,0.9]")


def torchrun(words, folder):
    """Run the command line in two processes; return what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "offset_equivariant", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_nodes(words, folder):
    """Start a torchrun for each of two machines, that meet through c10d and have one process each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([*command, *meeting, "-m", "offset_equivariant", *words], cwd=folder, env=environment)
        for _ in range(2)
    ]


def losses(directory):
    return [json.loads(line)["loss"] for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def together(tiny_words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    said = torchrun((*tiny_words, *WORDS), folder)
    return folder / "runs", said


@pytest.fixture
def alone(tiny_settings):
    """One process; batch normalisation sees as many images at a time as in each of two."""
    return Run(tiny_settings(*WORDS, "train.accumulate=2"))


def test_two_ranks_learn_what_one_learns(together, alone):
    runs, said = together
    record = run_experiment(alone, NullTracker())
    (directory,) = runs.glob("table1_*/seed=0")
    assert losses(directory) == pytest.approx(losses(alone.directory), rel=1e-4)
    theirs, ours = load_file(directory / "weights.safetensors"), load_file(alone.weights_path)
    for name, values in theirs.items():
        if "running" not in name and "num_batches" not in name:  # one rank has seen each step in two parts
            torch.testing.assert_close(values, ours[name], rtol=1e-3, atol=1e-4)
    assert said.count("error_percent") == 1  # the other rank is silent
    (path,) = (runs / "results").rglob("seed0.json")
    found = read_record(path)
    assert found.n == record.n == 45


@pytest.mark.slow
def test_two_machines_learn_what_one_learns_and_stop_together_when_one_is_told_to(together, tiny_words, tmp_path):
    runs, _ = together
    (directory,) = runs.glob("table1_*/seed=0")
    words = (*tiny_words, *WORDS, "mode=train", "train.checkpoint_seconds=3600")
    run = tmp_path / "runs" / directory.parent.name / "seed=0"
    nodes = start_nodes(words, tmp_path)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or len(losses(run)) < 2:
        assert time.monotonic() < deadline and all(node.poll() is None for node in nodes)
        time.sleep(0.001)
    nodes[1].send_signal(signal.SIGTERM)
    assert all(node.wait(120) != 0 for node in nodes)
    (checkpoint,) = (run / "checkpoints").glob("step-*.pt")
    step = int(checkpoint.stem.removeprefix("step-"))
    assert step == 2 * len(losses(run)) < 2 * len(losses(directory))
    assert not (run / "FAILED").exists()

    assert [node.wait(300) for node in start_nodes(words, tmp_path)] == [0, 0]
    assert losses(run) == losses(directory)


def test_evaluation_by_two_ranks_counts_every_image_once(together, tiny_settings):
    runs, _ = together
    (weights,) = runs.rglob("weights.safetensors")
    one = Run(tiny_settings(*WORDS, "mode=evaluate", f"weights='{weights}'"))
    record = run_experiment(one, NullTracker())
    (path,) = (runs / "results").rglob("seed0.json")
    found = read_record(path)
    assert found.metrics["error_percent"] == record.metrics["error_percent"]
    assert found.metrics["posterior_change"] == pytest.approx(record.metrics["posterior_change"], abs=1e-5)
    theirs = load_outcomes(runs / "results", [found])
    ours = load_outcomes(path_of_results(one), [record])
    key = (record.experiment, 0)
    for saturation in ("0.0", "0.9"):
        assert np.array_equal(theirs[key]["error"][saturation], ours[key]["error"][saturation])
        assert len(ours[key]["error"][saturation]) == 45


def path_of_results(run):
    return Path(run.config.paths.results)


def test_one_rank_goes_on_from_the_checkpoint_of_two(together, tiny_settings, tmp_path):
    runs, _ = together
    (directory,) = runs.glob("table1_*/seed=0")
    run = Run(tiny_settings(*WORDS))
    shutil.copytree(directory, run.directory)
    (run.directory / "record.json").unlink()
    last = run.checkpoints.paths()[-1]
    last.unlink()
    step = run.checkpoints.latest()["step"]
    assert 0 < step < len(losses(directory)) * 2
    run_experiment(run, NullTracker())
    assert len(losses(run.directory)) == len(losses(directory))
    assert losses(run.directory)[: step // 2] == losses(directory)[: step // 2]
    # Its batch normalisation now sees whole batches, so that the rest is near, but not the same.
    assert losses(run.directory)[-1] == pytest.approx(losses(directory)[-1], rel=0.2)


@pytest.mark.parametrize("experiment", ["table1_equivariant", "table1_original"])
def test_synchronised_ranks_learn_what_one_learns_with_the_whole_batch(experiment, tiny_words, tiny_settings, tmp_path):
    # At the rate of the preset a training this small swings, and rounding with it.
    words = (f"experiment={experiment}", "distortion.saturations=[0]", "train.learning_rate=0.02")
    words += ("train.synchronise_batch_norm=true",)
    torchrun((*tiny_words, *words), tmp_path)
    alone = Run(tiny_settings(*words, f"paths.runs={tmp_path}/alone"))
    run_experiment(alone, NullTracker())
    (directory,) = (tmp_path / "runs").glob("table1_*/seed=0")
    # Rounding grows from step to step: 1e-7 at first, 1e-3 in the end.
    found, expected = losses(directory), losses(alone.directory)
    assert found[:8] == pytest.approx(expected[:8], rel=1e-4) and found == pytest.approx(expected, rel=1e-2)


#: Images that are files, which each rank reads for itself, and colours that are drawn for the whole batch.
STREAMED = (
    "experiment=table2_imagenette_equivariant",
    "strategy=augmentation",
    "train=imagenet_smoke",
    "model.options.width=0.0625",
    "dataset.options={n_train: 48, n_test: 45, shorter_side: 72, size: 64}",
    "train.learning_rate=0.02",  # more, and rounding grows
    "train.log_every=1",
    "train.synchronise_batch_norm=true",
    "distortion.saturations=[0,0.9]",
    "logger=none",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.progress=false",
)


def test_streamed_images_are_learned_and_counted_alike_by_two_ranks_and_by_one(make_settings, tmp_path):
    torchrun((*STREAMED, "runtime.workers=1", "runtime.evaluation_batch_size=10"), tmp_path)
    (directory,) = (tmp_path / "runs").glob("table2_*/seed=0")
    (path,) = (tmp_path / "runs" / "results").rglob("seed0.json")
    found = read_record(path)
    alone = Run(make_settings(*STREAMED, f"paths.runs={tmp_path}/alone", f"paths.results={tmp_path}/one"))
    run_experiment(alone, NullTracker())
    assert len(losses(directory)) == 6
    assert losses(directory) == pytest.approx(losses(alone.directory), rel=1e-4)

    weights = f"weights='{directory}/weights.safetensors'"
    words = ("mode=evaluate", weights, f"paths.results={tmp_path}/same")
    record = run_experiment(Run(make_settings(*STREAMED, *words)), NullTracker())
    assert found.n == record.n == 45
    assert found.data_sha256 == record.data_sha256
    for metric in ("error_percent", "top5_error_percent"):
        assert found.metrics[metric] == record.metrics[metric]
    theirs = load_outcomes(tmp_path / "runs" / "results", [found])[record.experiment, 0]["error"]
    ours = load_outcomes(tmp_path / "same", [record])[record.experiment, 0]["error"]
    for saturation in ("0.0", "0.9"):
        assert len(theirs[saturation]) == 45 and np.array_equal(theirs[saturation], ours[saturation])


def test_batches_that_ranks_cannot_share_are_refused(tiny_settings):
    with pytest.raises(ConfigError, match=r"train\.batch_size = 16 must be divisible by train\.accumulate = 3 times"):
        run_experiment(Run(tiny_settings("train.accumulate=3")), NullTracker())
