"""Two processes that train and evaluate together, started by torchrun, on the CPU."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

from offset_equivariant import __main__ as command_line
from offset_equivariant.building import check_components, recognition
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.records import load_outcomes, read_record
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run
from offset_equivariant.training import ranks as ranks_module
from offset_equivariant.training.checkpoint import Checkpoints
from offset_equivariant.training.loop import FitSettings, fit
from offset_equivariant.training.ranks import any_rank, joined_ranks
from offset_equivariant.training.stopping import TrainingInterruptedError

ROOT = Path(__file__).resolve().parents[1]
#: A set of test images that two ranks do not divide.
WORDS = ("experiment=table1_equivariant_relative", "dataset.options.n_test=45", "distortion.saturations=[0,0.9]")


#: torch's launcher, whose address else is the machine's name, which not every network knows.
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--local-addr=localhost")
TWO_PROCESSES = (*LAUNCHER, "--standalone", "--nproc-per-node=2", "-m", "offset_equivariant")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def torchrun(words, folder):
    """Run the command line in two processes; return what they said."""
    done = subprocess.run(
        [*TWO_PROCESSES, *words],
        cwd=folder,
        env=ENVIRONMENT,
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


@contextmanager
def started(command, folder, times=1):
    """Processes of a command; those that a failed test leaves are ended."""
    processes = [subprocess.Popen(command, cwd=folder, env=ENVIRONMENT) for _ in range(times)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # which it passes on to its own
                process.wait(60)


def two_nodes(words):
    """The command of each of two machines, that meet through c10d and have one process each."""
    meeting = ("--rdzv-id=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}")
    return (*LAUNCHER, "--nnodes=2", "--nproc-per-node=1", *meeting, "-m", "offset_equivariant", *words)


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
    with started(two_nodes(words), tmp_path, 2) as nodes:
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

    with started(two_nodes(words), tmp_path, 2) as nodes:
        assert [node.wait(300) for node in nodes] == [0, 0]
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
    # Rounding grows from step to step: 1e-7 at first, up to 1e-4 in the eighth, 1e-3 in the end.
    found, expected = losses(directory), losses(alone.directory)
    assert found[:8] == pytest.approx(expected[:8], rel=1e-3) and found == pytest.approx(expected, rel=1e-2)


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


def as_rank(number, store, action, said):
    distributed.init_process_group("gloo", store=distributed.FileStore(str(store), 2), rank=number, world_size=2)
    said.put((number, action(number)))
    distributed.barrier()
    distributed.destroy_process_group()


def by_two_ranks(action, folder):
    """Call a function with the numbers of two ranks in a process each; return what each gave."""
    return in_two_processes(as_rank, folder / "store", action)


def in_two_processes(target, *arguments):
    """Call a function with a number, the arguments and a queue in a process each; return what each put there."""
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    processes = [context.Process(target=target, args=(number, *arguments, said)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [value for _, value in sorted(said.get() for _ in processes)]


class Stopped(nn.Linear):
    """One weight, and a training of which a rank is told to stop in a step."""

    batch_size = 2

    def __init__(self, number):
        super().__init__(1, 1)
        self.number = number

    def modules(self):
        return {"network": self}

    def optimizers(self):
        return {}

    def training_step(self, step, learning_rate_factor):
        if step == 2 and self.number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": torch.zeros(())}


def test_no_rank_ends_before_the_first_has_written_the_checkpoint(tmp_path, monkeypatch):
    save = Checkpoints.save

    def slowly(checkpoints, step, state):
        time.sleep(1)
        return save(checkpoints, step, state)

    monkeypatch.setattr(Checkpoints, "save", slowly)

    def train(number):
        settings = FitSettings(50, lambda step: 1.0, log_every=4, checkpoint_seconds=3600, progress=False)
        with pytest.raises(TrainingInterruptedError, match="at step 4;"):
            fit(Stopped(number), tmp_path, settings)
        return [path.name for path in tmp_path.rglob("step-*.pt")]

    assert by_two_ranks(train, tmp_path) == [["step-00000004.pt"]] * 2


def test_one_rank_that_is_told_to_is_enough(tmp_path):
    assert by_two_ranks(lambda number: (any_rank(number == 1), any_rank(False)), tmp_path) == [(True, False)] * 2


def join_three_times(number, port, said):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": "2"}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    sums = []
    for job in range(3):
        with joined_ranks():
            total = torch.tensor(10 * job + number)
            distributed.all_reduce(total)
            sums.append(int(total))
    said.put((number, sums))


def test_ranks_join_again_for_every_job_of_a_process():
    agent = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun's
    assert in_two_processes(join_three_times, agent.port) == [[1, 21, 41]] * 2


def test_ranks_on_a_machine_with_gpus_can_compute_on_the_cpu(monkeypatch):
    asked, chosen = [], []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ranks_module, "_meeting", lambda: (distributed.HashStore(), 2, 3))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=available: there)
        with joined_ranks():
            pass
    assert asked == ["cpu:gloo,cuda:nccl", "gloo"] and chosen == [0]


@pytest.mark.parametrize("first", [True, False])
def test_the_rank_that_fails_first_says_why(first, tiny_settings, tmp_path, monkeypatch):
    run = Run(tiny_settings())
    mark = run.directory / "FAILED"
    mark.parent.mkdir(parents=True)
    mark.write_text("of the run before")
    seen = []

    def fail(run, tracker):
        seen.append(mark.exists())
        if not first:
            mark.write_text("the other rank's")
        raise RuntimeError("a damaged file" if first else "connection closed by peer")

    monkeypatch.setattr(command_line, "checked_run", lambda composed: run)
    monkeypatch.setattr(command_line, "is_first", lambda: first)
    monkeypatch.setattr(command_line, "wait_for_all", lambda: None if first else mark.unlink())
    monkeypatch.setattr(command_line, "run_experiment", fail)
    with pytest.raises(RuntimeError):
        command_line._run_configuration(None)
    assert seen == [False]
    assert "a damaged file" in mark.read_text() if first else mark.read_text() == "the other rank's"


@pytest.mark.parametrize(("words", "warned"), [(["runtime.compile=true"], True), (["runtime.compile=null"], False)])
def test_several_ranks_say_that_they_do_not_compile(words, warned, tiny_settings, monkeypatch, caplog):
    config = experiment_config(tiny_settings(*words))
    monkeypatch.setattr(recognition, "ranks", lambda: 2)
    recognition.plan_training(config, recognition.build_network(config), recognition.load_split(config, "train"))
    assert caplog.messages == warned * ["runtime.compile = true has no effect with 2 ranks: they do not compile"]


@pytest.mark.slow
def test_ranks_with_workers_stop_after_their_checkpoint(tmp_path):
    words = (*STREAMED, "runtime.workers=1", "mode=train", "train.epochs=1000", "train.checkpoint_seconds=3600")
    with started((*TWO_PROCESSES, *words), tmp_path) as (job,):
        deadline = time.monotonic() + 240
        while not list(tmp_path.rglob("log.jsonl")) or len(losses(next(tmp_path.rglob("log.jsonl")).parent)) < 2:
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)  # passed on to every process, the workers too
        assert job.wait(120) != 0
    (run,) = (tmp_path / "runs").glob("table2_*/seed=0")
    (checkpoint,) = (run / "checkpoints").glob("step-*.pt")
    assert int(checkpoint.stem.removeprefix("step-")) == len(losses(run)) and not (run / "FAILED").exists()


def test_ranks_accumulate_what_one_accumulates(tiny_words, tiny_settings, tmp_path):
    words = ("experiment=table1_original", "dataset.options.n_train=64", "dataset.options.n_test=40", "mode=train")
    words += ("train.learning_rate=0.02", "train.log_every=1")  # more, and rounding grows
    torchrun((*tiny_words, *words, "train.accumulate=2"), tmp_path)
    alone = Run(tiny_settings(*words, "train.accumulate=4", f"paths.runs={tmp_path}/alone"))
    run_experiment(alone, NullTracker())
    (directory,) = (tmp_path / "runs").glob("table1_*/seed=0")
    assert losses(directory) == pytest.approx(losses(alone.directory), rel=1e-4)
    theirs, ours = load_file(directory / "weights.safetensors"), load_file(alone.weights_path)
    for name in (name for name in theirs if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


def test_batches_that_ranks_cannot_share_are_refused_before_any_work(tiny_settings, monkeypatch):
    config = experiment_config(tiny_settings("train.accumulate=2"))
    check_components(config)
    monkeypatch.setattr(recognition, "ranks", lambda: 3)
    message = r"train\.batch_size = 16 must be divisible by train\.accumulate = 2 times the number of ranks, 3"
    with pytest.raises(ConfigError, match=message):
        check_components(config)
