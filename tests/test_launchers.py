"""Multiruns through Hydra's launchers: real processes, and a real signal of preemption."""

import contextlib
import json
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from offset_equivariant.reporting.records import read_record, record_path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("table1_equivariant_smoke", "table1_original_smoke")
WORDS = ("experiment=table1_original,table1_equivariant", "distortion.saturations=[0.0]")


def run_directory(folder, name):
    return folder / "runs" / name / "seed=0"


def lines_of(folder, name):
    path = run_directory(folder, name) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_recorded(folder):
    for name in NAMES:
        record = read_record(record_path(folder / "runs" / "results", name, 0))
        assert (record.experiment, record.complete, record.environment["threads"]) == (name, True, 1)


def process_that_holds(path, starter):
    """The process, among those that ``starter`` has started, that has a file open."""
    for process in psutil.Process(starter).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # that has ended meanwhile
            if str(path) in [file.path for file in process.open_files()]:
                return process
    raise AssertionError(f"no process has {path} open")


def words_of(tiny_words, logger="none"):
    return (*WORDS, *(word for word in tiny_words if not word.startswith("logger=")), f"logger={logger}")


@pytest.mark.slow
def test_jobs_of_joblib_are_recorded(command_line, tiny_words, tmp_path):
    job = command_line.start_fresh("-m", "hydra/launcher=joblib", *words_of(tiny_words), folder=tmp_path)
    assert job.wait() == 0, job.text
    assert "is launching 2 jobs" in job.text and "deprecated" not in job.text
    assert_recorded(tmp_path)


@pytest.mark.slow
def test_preempted_job_of_submitit_goes_on_from_its_checkpoint(command_line, tiny_words, tmp_path):
    words = words_of(tiny_words, "wandb")
    # Checkpoints are an hour apart: what is gone on from is the signal's.
    late = ("train.checkpoint_seconds=3600", "train.epochs=4")
    launcher = ("-m", "hydra/launcher=submitit_local")
    job = command_line.start_fresh(*launcher, *words, *late, folder=tmp_path, WANDB_MODE="offline")
    preempted, other = NAMES
    deadline = time.monotonic() + 120
    while len(lines_of(tmp_path, preempted)) < 3:
        assert time.monotonic() < deadline and psutil.pid_exists(job.pid), job.text
        time.sleep(0.001)
    before = lines_of(tmp_path, preempted)
    process_that_holds(run_directory(tmp_path, preempted) / ".lock", job.pid).send_signal(signal.SIGUSR2)
    assert job.wait() == 0, job.text

    assert_recorded(tmp_path)
    said = "".join(path.read_text() for path in tmp_path.glob("runs/.hydra/.submitit/*/*_log.out"))
    assert "this job is preempted" in said and "Requeued job" in said
    starts = {name: len(list(run_directory(tmp_path, name).glob("wandb/offline-run-*"))) for name in NAMES}
    assert starts == {preempted: 2, other: 1}
    # The rates show that these lines were not written anew: the job did not begin again.
    after = lines_of(tmp_path, preempted)
    assert after[: len(before)] == before and "images_per_second" in before[0]
    steps = [line["step"] for line in after]
    assert steps == sorted({*steps}) and steps[-1] == 64
    assert not list(tmp_path.rglob("FAILED"))

    alone = tmp_path / "alone"
    alone.mkdir()
    code, text = command_line.run("experiment=table1_equivariant", *words_of(tiny_words)[1:], *late, folder=alone)
    assert code == 0, text
    ours, theirs = (load_file(run_directory(place, preempted) / "weights.safetensors") for place in (tmp_path, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm"])
def test_presets_name_their_plugins_launcher_and_fill_what_it_takes(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    launcher = composed.hydra.launcher
    assert launcher["_target_"].startswith(f"hydra_plugins.hydra_{name.split('_')[0]}_launcher.")
    if name == "submitit_slurm":
        assert (launcher.timeout_min, launcher.signal_delay_s, launcher.max_num_timeout) == (1440, 300, 30)
        assert launcher.additional_parameters == {"requeue": True}


def test_job_script_for_slurm(tmp_path):
    """What would be given to sbatch: one process with a GPU, a signal before the end, back into the queue."""
    from submitit.slurm.slurm import _make_sbatch_string

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(
            "config", ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True
        )
    launcher = composed.hydra.launcher
    names = ("partition", "nodes", "gpus_per_node", "cpus_per_task", "signal_delay_s", "setup", "additional_parameters")
    script = _make_sbatch_string(
        "python",
        str(tmp_path),
        map_count=6,
        array_parallelism=launcher.array_parallelism,
        **{name: launcher[name] for name in names},
    )
    lines = script.splitlines()
    for line in ("partition=gpu", "nodes=1", "gpus-per-node=1", "cpus-per-task=4", "requeue", "array=0-5%6"):
        assert f"#SBATCH --{line}" in lines
    assert "#SBATCH --signal=USR2@300" in lines
    setup = next(number for number, line in enumerate(lines) if "OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK" in line)
    assert setup < next(number for number, line in enumerate(lines) if line.startswith("srun"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device that must not be here is")
@pytest.mark.parametrize(("launcher", "said"), [("submitit_slurm", "srun"), ("joblib", "cuda is not available here")])
def test_the_device_of_slurms_jobs_need_not_be_here(command_line, tiny_words, tmp_path, launcher, said):
    words = ("-m", f"hydra/launcher={launcher}", *words_of(tiny_words), "runtime.device=cuda")
    code, text = command_line.run(*words, folder=tmp_path)
    assert code != 0 and said in text and ("is not available here" in text) == (launcher == "joblib")


def test_launcher_that_is_not_installed_is_said_before_any_work(command_line, tiny_words, tmp_path):
    launcher = ("-m", "+hydra.launcher.n=1", "hydra.launcher._target_=hydra_plugins.hydra_absent_launcher.x.Launcher")
    code, said = command_line.run(*launcher, *words_of(tiny_words), folder=tmp_path)
    assert code == 2 and "hydra_absent_launcher is not installed; install it with: pip install -e '.[cluster]'" in said
    assert not (tmp_path / "runs").exists()
