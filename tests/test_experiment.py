import colorsys
import copy
import hashlib
import json
import logging
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file

from offset_equivariant import building, experiment, provenance, runs, storage
from offset_equivariant.building import recognition
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data import pixels_sha256, synthetic_images
from offset_equivariant.evaluation.sweep import sweep
from offset_equivariant.experiment import finished_record, run_experiment
from offset_equivariant.reporting.records import (
    Record,
    RecordError,
    outcomes_path,
    read_outcomes,
    read_record,
    record_path,
    write_record,
)
from offset_equivariant.reporting.tracking import NullTracker, Tracker
from offset_equivariant.runs import Run, RunDirectoryError, released_weights_path
from offset_equivariant.storage import locked
from offset_equivariant.tasks.recognition import RecognitionTraining
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation
from offset_equivariant.training.checkpoint import Checkpoints
from offset_equivariant.training.weights import DIGESTS, add_digest, load_weights, read_facts, save_weights

#: Four steps, three saturations.
SHORT = (
    "dataset.options.n_train=64",
    "dataset.options.n_test=40",
    "train.epochs=1",
    "distortion.saturations=[0,0.5,1]",
)
NAME, SEED = "table1_equivariant_smoke", 0


def run(settings: dict[str, Any], tracker: Tracker) -> Record | None:
    return run_experiment(Run(settings), tracker)


class Watcher(NullTracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.scalars: list[tuple[int, dict[str, float]]] = []
        self.tables: dict[str, Any] = {}
        self.plots: dict[str, Any] = {}

    def log(self, scalars, step):
        self.scalars.append((step, dict(scalars)))

    def table(self, name, columns, rows):
        self.tables[name] = (list(columns), [list(row) for row in rows])

    def curves(self, name, xs, ys, x_name, title):
        self.plots[name] = (list(xs), {key: list(values) for key, values in ys.items()})


def short_settings(make_settings, words, folder: Path, *overrides: str) -> dict[str, Any]:
    paths = (f"paths.runs={folder}/runs", f"paths.results={folder}/results")
    return make_settings("experiment=table1_equivariant", *words, *SHORT, *paths, *overrides)


@pytest.fixture
def settings(make_settings, tiny_words, tmp_path):
    return lambda *overrides: short_settings(make_settings, tiny_words, tmp_path, *overrides)


@pytest.fixture(scope="module")
def done(make_settings, tiny_words, tmp_path_factory):
    """A finished experiment: its settings, record, folder, and what the tracker was told."""
    folder = tmp_path_factory.mktemp("done")
    chosen = short_settings(make_settings, tiny_words, folder)
    watcher = Watcher()
    record = run(chosen, watcher)
    assert record is not None
    return chosen, record, folder, watcher


@pytest.fixture
def finished(done, settings, tmp_path):
    """A copy of the finished experiment that a test may spoil: settings by words, and the run's directory."""
    shutil.copytree(done[2], tmp_path, dirs_exist_ok=True)
    return settings, tmp_path / "runs" / NAME / "seed=0"


def no_step(*_: object) -> None:
    raise AssertionError("a training step was taken")


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_record_ties_the_numbers_to_what_they_come_from(done):
    settings, record, folder, _ = done
    assert (record.experiment, record.table, record.row, record.seed) == (NAME, 1, "equivariant", SEED)
    assert (record.dataset, record.preset, record.n) == ("synthetic", "smoke", 40)
    assert (record.steps, record.total_steps, record.complete) == (4, 4, True)
    commit, dirty = runs.code_version()
    assert (record.commit, record.dirty) == (commit, dirty)
    assert (record.training_commits, record.training_dirty) == ([commit], dirty)

    weights = folder / "runs" / NAME / "seed=0" / "weights.safetensors"
    assert record.checkpoint_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    for split in ("train", "test"):
        images = synthetic_images(split, n_train=64, n_test=40).images
        assert record.data_sha256[split] == pixels_sha256(images)
    canonical = json.dumps(record.config, sort_keys=True)
    assert record.config_sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    for section in ("dataset", "model", "strategy", "train", "seed"):
        assert record.config[section] == settings[section]
    assert record.config["distortion"] == {"seed": 0, "requantize": False}
    assert not {"paths", "runtime", "logger", "mode", "weights"} & record.config.keys()
    assert record.parameters == sum(
        value.numel()
        for name, value in load_file(weights).items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    assert record.environment["device"] == "cpu"
    assert record.training_devices == [provenance.device_description(torch.device("cpu"))]
    *_, last = (json.loads(line) for line in (weights.parent / "log.jsonl").read_text().splitlines())
    assert record.training_means == {name: float(f"{last[name]:.4g}") for name in ("loss", "error_percent")}
    assert record.train_seconds > 0 and record.evaluate_seconds >= 0


def test_record_and_outcomes_are_on_disk(done):
    _, record, folder, _ = done
    results = folder / "results"
    assert read_record(record_path(results, NAME, SEED)) == record
    assert read_record(folder / "runs" / NAME / "seed=0" / "record.json") == record
    outcomes = read_outcomes(outcomes_path(results, NAME, SEED))
    assert set(outcomes) == {"error"} and list(outcomes["error"]) == ["0.0", "0.5", "1.0"]
    for saturation, wrong in outcomes["error"].items():
        assert (wrong.shape, wrong.dtype) == ((40,), bool)
        assert record.metrics["error_percent"][saturation] == wrong.mean() * 100
    assert set(record.metrics) == {"error_percent", "posterior_change"}
    assert set(record.metrics["posterior_change"]) == {"0.0", "0.5", "1.0"}


def test_the_weights_give_the_records_numbers(done):
    settings, record, folder, _ = done
    config = experiment_config(settings)
    network = building.build_network(config)
    facts = load_weights(network, folder / "runs" / NAME / "seed=0" / "weights.safetensors").facts
    assert (facts["experiment"], facts["row"], facts["preset"], facts["seed"]) == (NAME, "equivariant", "smoke", SEED)
    images = synthetic_images("test", n_test=40)
    found = sweep(RecognitionEvaluation(network, images, recognition.build_pipeline(config)), [0.0, 0.5, 1.0])
    for metric, by_saturation in found.metrics.items():
        values = record.metrics[metric].values()
        np.testing.assert_allclose(list(by_saturation.values()), list(values), atol=1e-5)


def test_tracker_is_told_everything(done):
    _, record, folder, watcher = done
    lines = [json.loads(line) for line in (folder / "runs" / NAME / "seed=0" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert watcher.scalars == [
        (line["step"], {f"train/{name}": value for name, value in line.items() if name != "step"}) for line in lines
    ]
    errors, changes = record.metrics["error_percent"], record.metrics["posterior_change"]
    columns, rows = watcher.tables["saturation_sweep"]
    assert columns == ["experiment", "seed", "saturation", "error_percent", "posterior_change"]
    assert rows == [[NAME, 0, float(s), errors[s], changes[s]] for s in ("0.0", "0.5", "1.0")]
    assert watcher.plots["error_percent_over_saturation"] == ([0.0, 0.5, 1.0], {NAME: list(errors.values())})


def test_a_run_does_not_depend_on_what_ran_before_it_in_the_process(done, settings, tmp_path):
    _, record, folder, _ = done
    torch.manual_seed(77)
    torch.rand(5)
    np.random.seed(3)
    again = run(settings(), NullTracker())
    assert again is not None and again.metrics == record.metrics
    ours, theirs = (load_file(place / "runs" / NAME / "seed=0" / "weights.safetensors") for place in (tmp_path, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = run(settings("seed=1"), NullTracker())
    assert other is not None and other.seed == 1
    seed1 = load_file(tmp_path / "runs" / NAME / "seed=1" / "weights.safetensors")
    assert not torch.equal(seed1["conv1.weight"], theirs["conv1.weight"])


def leave_unfinished(path: Path, monkeypatch) -> None:
    """Begin to write a file, and be killed: nothing is cleaned up."""
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", no_step)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(AssertionError):
            storage.replace_file(path, b"half a checkpoint")


def test_finished_run_says_so_and_takes_no_step(finished, monkeypatch, caplog):
    settings, directory = finished
    before = content_of(directory)
    leave_unfinished(directory / "checkpoints" / "step-00000004.pt", monkeypatch)
    assert content_of(directory) != before
    monkeypatch.setattr(RecognitionTraining, "training_step", no_step)
    monkeypatch.setattr("offset_equivariant.experiment.load_split", no_step)
    with caplog.at_level(logging.INFO):
        assert run(settings("mode=train"), NullTracker()) is None
    assert f"the training in {directory} is complete: all 4 steps were taken" in caplog.text
    assert content_of(directory) == before


def test_finished_run_without_its_checkpoints_is_not_trained_anew(finished, monkeypatch):
    settings, directory = finished
    for checkpoint in (directory / "checkpoints").glob("step-*.pt"):
        checkpoint.unlink()
    before = content_of(directory)
    with monkeypatch.context() as patch:
        patch.setattr(RecognitionTraining, "training_step", no_step)
        assert run(settings("mode=train"), NullTracker()) is None
    assert content_of(directory) == before
    weights = directory / "weights.safetensors"
    save_weights(torch.nn.Linear(1, 1), weights, read_facts(weights) | {"steps": 3})
    run(settings("mode=train"), NullTracker())
    assert read_facts(weights)["steps"] == 4


@pytest.mark.parametrize("mode", ["train", "both", "evaluate"])
def test_directory_of_other_settings_is_refused(finished, mode):
    settings, directory = finished
    before = content_of(directory.parents[2])
    with pytest.raises(RunDirectoryError) as caught:
        run(
            settings(f"mode={mode}", "train.learning_rate=0.7", "train.schedule.options.warmup_fraction=0.5"),
            NullTracker(),
        )
    message = str(caught.value)
    assert str(directory) in message
    assert f"train.learning_rate: {settings()['train']['learning_rate']} there, 0.7 now" in message
    assert "train.schedule.options.warmup_fraction: 0.25 there, 0.5 now" in message
    assert "Give the experiment another name=" in message and "momentum" not in message
    assert content_of(directory.parents[2]) == before


def test_other_settings_are_refused_before_waiting_for_the_directory_and_after(finished, monkeypatch):
    settings, directory = finished
    claim = (directory / "config.json").read_bytes()
    other = Run(settings("mode=train", "train.learning_rate=0.7"))
    monkeypatch.setattr(Run, "sole_use", no_step)
    with pytest.raises(RunDirectoryError, match=r"there, 0\.7 now"):
        run_experiment(other, NullTracker())

    @contextmanager
    def wait(run):
        (directory / "config.json").write_bytes(claim)
        yield

    (directory / "config.json").unlink()
    monkeypatch.setattr(Run, "sole_use", wait)
    with pytest.raises(RunDirectoryError, match=r"there, 0\.7 now"):
        run_experiment(other, NullTracker())


@pytest.mark.parametrize("words", ["distortion.requantize=true", "distortion.seed=1"])
def test_an_evaluation_in_other_light_leaves_the_record_of_the_run(words, finished, tmp_path):
    settings, directory = finished
    before = content_of(directory)
    record = run(settings("mode=evaluate", "distortion.saturations=[0.5]", words), NullTracker())
    assert record is not None and record.experiment != NAME
    assert read_record(record_path(tmp_path / "results", record.experiment, SEED)) == record
    assert content_of(directory) == before


def test_what_does_not_change_the_training_may_differ(finished, monkeypatch):
    settings, _ = finished
    monkeypatch.setattr(RecognitionTraining, "training_step", no_step)
    changes = ("train.log_every=7", "train.checkpoint_seconds=60", "runtime.evaluation_batch_size=13")
    record = run(settings(*changes, "distortion.saturations=[0.3]"), NullTracker())
    assert record is not None and set(record.metrics["error_percent"]) >= {"0.3"}


def interrupt_at(monkeypatch, step: int) -> None:
    original = RecognitionTraining.training_step

    def training_step(self, number, factor):
        if number == step:
            raise KeyboardInterrupt
        return original(self, number, factor)

    monkeypatch.setattr(RecognitionTraining, "training_step", training_step)


def test_unfinished_run_is_evaluated_as_what_it_is(done, settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(settings(), NullTracker())
    assert not (tmp_path / "results").exists()
    record = run(settings("mode=evaluate"), NullTracker())
    assert record is not None
    assert (record.steps, record.total_steps, record.complete) == (2, 4, False)
    assert record.flags[0] == "incomplete (2/4 steps)"
    complete = run(settings(), NullTracker())
    assert complete is not None and complete.complete and complete.metrics == done[1].metrics


def test_a_run_goes_on_with_the_images_that_it_began_with(settings, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(settings(), NullTracker())

    def other_images(config, split):
        return replace(building.load_split(config, split), sha256="0" * 64)

    monkeypatch.setattr(experiment, "load_split", other_images)
    with pytest.raises(RunDirectoryError, match=r"other images of synthetic: .* those now found is 00000000"):
        run(settings(), NullTracker())


def test_nothing_to_evaluate(settings, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nothing to evaluate in .*seed=0; train first \(mode=train\), or give"
    ):
        run(settings("mode=evaluate"), NullTracker())
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.safetensors"):
        run(settings("mode=evaluate", f"weights={tmp_path}/absent.safetensors"), NullTracker())
    assert not (tmp_path / "results").exists()


@pytest.fixture
def released(done, tmp_path):
    """The finished experiment's weights where released ones lie, with their digest listed."""
    path = released_weights_path(tmp_path / "released", NAME, SEED)
    assert path == tmp_path / "released" / "checkpoints" / "table1_equivariant_smoke-seed0.safetensors"
    path.parent.mkdir(parents=True)
    shutil.copyfile(done[2] / "runs" / NAME / "seed=0" / "weights.safetensors", path)
    add_digest(path)
    return path


def test_released_weights_give_the_same_numbers_without_a_run(done, released, settings, tmp_path):
    record = run(settings("mode=evaluate", f"weights={released}"), NullTracker())
    assert record is not None
    changes = {"evaluate_seconds": 0.0}
    assert Record(**vars(record) | changes) == Record(**vars(done[1]) | changes)
    assert not (tmp_path / "runs").exists()


def test_weights_facts_and_digest_are_those_of_one_file(finished, tmp_path, monkeypatch):
    """Beside a living training, each of several evaluations writes the weights of its moment to the same place."""
    settings, directory = finished
    run = Run(settings("mode=evaluate"))
    network, other = (building.build_network(run.config) for _ in range(2))
    content = run.weights_path.read_bytes()
    facts = read_facts(run.weights_path)
    shutil.rmtree(directory / "checkpoints")  # from which the weights would be written anew
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    save_weights(other, tmp_path / "later.safetensors", {**facts, "steps": 9})
    read, load_state_dict = Path.read_bytes, network.load_state_dict

    def replace_after(action):
        def acting(*arguments):
            found = action(*arguments)
            run.weights_path.write_bytes(read(tmp_path / "later.safetensors"))
            return found

        return acting

    monkeypatch.setattr(Path, "read_bytes", replace_after(read))
    monkeypatch.setattr(network, "load_state_dict", replace_after(load_state_dict))
    found = run.find_weights(network)
    assert read(run.weights_path) != content
    assert (found.sha256, found.facts) == (hashlib.sha256(content).hexdigest(), facts)
    loaded, expected = network.state_dict(), load(content)
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert expected["conv1.weight"].abs().sum() > 0


def test_damaged_released_weights_are_refused(released, settings, tmp_path):
    content = bytearray(released.read_bytes())
    content[-100] ^= 1
    released.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is not the one in"):
        run(settings("mode=evaluate", f"weights={released}"), NullTracker())
    assert not (tmp_path / "results").exists()
    released.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is not the one in"):
        run(settings("mode=evaluate", f"weights={released}"), NullTracker())
    (released.parent / DIGESTS).unlink()
    with pytest.raises(ValueError, match="is not a file of weights"):
        run(settings("mode=evaluate", f"weights={released}"), NullTracker())
    (released.parent / DIGESTS).write_text("")
    with pytest.raises(ValueError, match="it is not a released file; release it, or move it elsewhere"):
        run(settings("mode=evaluate", f"weights={released}"), NullTracker())


def test_released_weights_of_other_settings_are_refused(released, settings, tmp_path):
    with pytest.raises(RunDirectoryError, match=r"the weights .*train\.weight_decay: 0\.\d+ there, 0\.0123 now"):
        run(settings("mode=evaluate", f"weights={released}", "train.weight_decay=0.0123"), NullTracker())
    # Said instead of every weight whose size differs.
    with pytest.raises(RunDirectoryError, match=r"model\.family: 'offset_equivariant' there, 'conventional' now"):
        run(settings("model=resnet20_original", "mode=evaluate", f"weights={released}"), NullTracker())
    with pytest.raises(RunDirectoryError, match=r"seed: 0 there, 1 now.*\. Give the settings that they were"):
        run(settings("mode=evaluate", f"weights={released}", "seed=1"), NullTracker())
    assert not (tmp_path / "results").exists()


def test_second_process_waits_for_the_first(settings, tmp_path):
    chosen = settings("mode=train")
    directory = Run(chosen).directory
    second = threading.Thread(target=run, args=(chosen, NullTracker()))
    with locked(directory / ".lock"):
        second.start()
        second.join(1.0)
        assert second.is_alive() and not (directory / "config.json").exists()
    second.join(60)
    assert (directory / "weights.safetensors").exists()


def test_run_directory_is_decided_by_the_settings(settings, tmp_path):
    def directory(*words):
        return Run(settings(*words)).directory.relative_to(tmp_path)

    assert directory() == Path("runs/table1_equivariant_smoke/seed=0")
    assert directory("seed=3", "train.preset=fast") == Path("runs/table1_equivariant/seed=3")
    assert directory("name=mine", "train.preset=paper") == Path("runs/mine_paper/seed=0")


def test_validation_images_are_training_images_that_the_training_does_without(settings):
    whole = synthetic_images("train", n_train=64)
    for seed in (0, 1):
        config = experiment_config(settings("dataset.validation_images=20", f"seed={seed}"))
        train, held_out = building.load_split(config, "train"), building.load_split(config, "evaluation")
        assert (len(train), len(held_out), held_out.split) == (44, 20, "validation")
        pixels = [{image.numpy().tobytes() for image in part.images} for part in (train, held_out, whole)]
        assert not pixels[0] & pixels[1]
        assert pixels[0] | pixels[1] == pixels[2] and len(pixels[2]) == 64
        if seed == 0:
            first = held_out.sha256
    assert held_out.sha256 == first
    plain = experiment_config(settings())
    assert torch.equal(building.load_split(plain, "train").images, whole.images)
    assert torch.equal(building.load_split(plain, "evaluation").images, synthetic_images("test", n_test=40).images)


def test_device_is_chosen_by_itself(monkeypatch):
    def there(cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        there(cuda, mps)
        assert building.choose_device("auto").type == expected
    assert building.choose_device("cpu").type == "cpu"
    with pytest.raises(RuntimeError, match=r"runtime\.device = cuda is not available here; use runtime\.device=auto"):
        building.choose_device("cuda")


WRONG_OPTIONS = [
    (
        ("model", "family_options", "constraint"),
        "hard",
        "model.family_options.constraint = 'hard' must be one of parametrization, proj",
    ),
    (
        ("model", "family_options", "shortcut_padding"),
        "middle",
        "model.family_options.shortcut_padding = 'middle' must be",
    ),
    (("model", "family_options", "gain"), 1.0, "unknown setting model.family_options.gain"),
    (("model", "representation", "clipping"), None, "log_rgb needs one"),
    (("model", "representation", "clipping_options"), {"fraction": 0.1}, "no parameter fraction; it takes epsilon"),
    (("train", "schedule", "options"), {"warmup_fraction": 2.0}, "train.schedule: warmup_fraction = 2.0 must be"),
    (("train", "schedule", "name"), "multi_step", "unknown setting train.schedule.options.warmup_fraction"),
    (("strategy", "jitter"), {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.6}, "strategy: .*hue"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG_OPTIONS)
def test_wrong_options_show_before_any_work(settings, path, value, message):
    chosen = copy.deepcopy(settings())
    building.check_components(experiment_config(chosen))
    group = chosen
    for part in path[:-1]:
        group = group[part]
    group[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        building.check_components(experiment_config(chosen))


def test_preprocessing_row_balances_training_and_test_images(make_settings, tiny_words):
    config = experiment_config(make_settings("experiment=table1_preprocessing_grey_world", *tiny_words, *SHORT))
    pipeline = recognition.build_pipeline(config)
    linear = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4
    # Grey world: all three channels have the same mean in linear light, whatever the light was.
    lit = linear * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    first, second = pipeline(linear), pipeline(lit * (1 / 0.125) ** (1 / 3))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    task = building.plan_training(config, building.build_network(config), building.load_split(config, "train")).task
    assert isinstance(task, RecognitionTraining)
    images = synthetic_images("train", n_train=64).images
    torch.testing.assert_close(task._batches._images, pipeline(decode_srgb(images)), atol=1e-6, rtol=0)


def test_checkpoints_hold_no_code_and_the_whole_state(done):
    directory = done[2] / "runs" / NAME / "seed=0" / "checkpoints"
    assert [path.name for path in Checkpoints(directory).paths()] == ["step-00000002.pt", "step-00000004.pt"]
    state = torch.load(directory / "step-00000004.pt", weights_only=True)
    assert set(state) == {"step", "seconds", "notes", "modules", "optimizers", "random"}
    assert set(state["random"]) == {"python", "numpy", "torch", "cuda", "mps"}
    momenta = state["optimizers"]["network"]["state"]
    assert momenta and all(entry["momentum_buffer"].abs().sum() > 0 for entry in momenta.values())
    assert (state["notes"]["total_steps"], state["notes"]["data_sha256"]) == (4, done[1].data_sha256["train"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["row=orignal"], "table 1 has no row 'orignal', only original, preprocessing_grey_world"),
        (["table=7"], "there is no table 7, only 1"),
        (["dataset.classes=5"], "dataset.classes = 5, but synthetic has 10"),
        (["+dataset.options.size_of=3"], "unknown setting dataset.options.size_of; valid ones are n_train, n_test"),
        (["model.family_options.offset_groups=1"], "with offset_groups = 1, the std .* by different numbers"),
    ],
)
def test_what_would_fail_later_is_refused_before_any_work(settings, overrides, said):
    with pytest.raises(ConfigError, match=said):
        building.check_components(experiment_config(settings(*overrides)))


def test_saturations_that_would_be_one_key_are_refused(settings):
    with pytest.raises(ConfigError, match="saturations must differ in their first four decimals"):
        experiment_config(settings("distortion.saturations=[0.1,0.10001]"))


def test_a_complete_evaluation_is_not_repeated(done, settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runs, "code_version", lambda: ("c" * 40, False))
    chosen = settings()
    first = run(chosen, NullTracker())
    with caplog.at_level(logging.INFO):
        assert run(chosen, NullTracker()) == first
    assert "the evaluation is complete" in caplog.text
    assert first is not None
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate", no_step)
        assert run(settings("train.log_every=7", "train.checkpoint_seconds=60"), NullTracker()) == first
        with pytest.raises(AssertionError):  # of other light than was measured
            run(settings("distortion.saturations=[0.25]"), NullTracker())
    monkeypatch.setattr(runs, "code_version", lambda: ("d" * 40, False))
    again = run(chosen, NullTracker())
    assert again is not None
    assert (again.commit, first.commit) == ("d" * 40, "c" * 40) and again.metrics == first.metrics


def test_damaged_outcomes_stop_an_evaluation_before_its_sweep(finished, tmp_path, monkeypatch):
    settings, _ = finished
    path = outcomes_path(tmp_path / "results", NAME, SEED)
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(experiment, "sweep", no_step)
    with pytest.raises(RecordError, match=r"seed0\.npz: no file of outcomes, or a damaged one"):
        run(settings("mode=evaluate", "distortion.saturations=[0.25]"), NullTracker())


@pytest.fixture
def evaluated(finished, tmp_path, monkeypatch):
    """A finished experiment whose record a clean commit wrote: the run, its weights, and its record's path."""
    settings, _ = finished
    monkeypatch.setattr(runs, "code_version", lambda: ("c" * 40, False))
    again = Run(settings())
    path = record_path(tmp_path / "results", NAME, SEED)
    write_record(replace(read_record(path), commit="c" * 40, dirty=False), path)
    return again, again.find_weights(building.build_network(again.config)), path


NOT_OF_THE_RECORD = {
    "another commit": {"commit": "d" * 40},
    "a dirty tree": {"dirty": True},
    "other weights": {"checkpoint_sha256": "0" * 64},
    "fewer saturations": {
        "metrics": {"error_percent": {"0.0": 90.0, "0.5": 90.0}, "posterior_change": {"0.0": 0.0, "0.5": 0.0}}
    },
}


@pytest.mark.parametrize("change", NOT_OF_THE_RECORD)
def test_an_evaluation_is_not_complete_by_the_record_of(change, evaluated):
    again, weights, path = evaluated
    record = read_record(path)
    assert finished_record(again, weights) == record
    write_record(replace(record, **NOT_OF_THE_RECORD[change]), path)
    assert finished_record(again, weights) is None
    write_record(record, path)
    assert finished_record(again, weights) == record


def test_an_evaluation_is_not_complete_by_the_record_of_other_settings(evaluated):
    again, weights, path = evaluated
    record = read_record(path)
    for differing, is_complete in (({"weight_decay": 0.0123}, False), ({"log_every": 7}, True)):
        config = {**record.config, "train": {**record.config["train"], **differing}}
        write_record(replace(record, config=config), path)
        assert (finished_record(again, weights) is not None) is is_complete


def test_an_evaluation_by_a_dirty_tree_or_of_other_weights_or_settings_is_never_complete(evaluated, settings):
    again, weights, path = evaluated
    assert finished_record(again, weights) == read_record(path)
    assert finished_record(again, replace(weights, sha256="0" * 64)) is None
    assert finished_record(Run(settings("train.weight_decay=0.0123")), weights) is None
    again.dirty = True
    assert finished_record(again, weights) is None


def test_an_evaluation_is_complete_only_where_the_same_network_balanced(evaluated, tmp_path, monkeypatch):
    again, weights, path = evaluated
    balancing = tmp_path / "balancing"
    balancing.write_bytes(b"weights")
    monkeypatch.setattr(experiment, "balancing_weights", lambda config: balancing)
    assert finished_record(again, weights) is None
    record = read_record(path)
    digest = hashlib.sha256(b"weights").hexdigest()
    balanced = replace(record, data_sha256=record.data_sha256 | {"balancing_weights": digest})
    write_record(balanced, path)
    assert finished_record(again, weights) == balanced
    balancing.write_bytes(b"others")
    assert finished_record(again, weights) is None


def test_hues_and_rounding_are_those_of_the_settings(done, finished):
    """Distorted, rounded to 8 bits and shown to the network, without the library's colours."""
    settings, _ = finished
    asked = ("mode=evaluate", "distortion.saturations=[0.5]", "distortion.requantize=true", "distortion.seed=3")
    again = Run(settings(*asked))
    found = run_experiment(again, NullTracker())
    assert found is not None and found.experiment == f"{NAME}_requantized_hues3"
    network = building.build_network(again.config)
    again.find_weights(network)
    statistics = again.config.dataset.statistics["log_rgb_absolute"]
    mean, std = (torch.tensor(statistics[name])[:, None, None] for name in ("mean", "std"))
    data = synthetic_images("test", n_test=40)
    srgb = data.images.double().numpy() / 255

    def posteriors(linear):
        inputs = (-torch.from_numpy(linear).clamp(min=2e-4).log().float() - mean) / std
        with torch.no_grad():
            return network.eval()(inputs).softmax(1)

    def change(seed, rounded):
        """Largest change of a posterior probability, and the share of images that are misclassified."""
        hues = [np.random.default_rng([seed, image]).random() for image in range(40)]
        lights = np.array([colorsys.hsv_to_rgb(hue, 0.5, 1.0) for hue in hues])
        linear = to_linear(srgb) * lights[..., None, None]
        if rounded:
            gamma = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
            linear = to_linear(np.round(gamma * 255) / 255)
        answer = posteriors(linear)
        wrong = answer.argmax(1) != data.labels
        return (answer - posteriors(to_linear(srgb))).abs().max().item(), wrong.double().mean().item()

    def to_linear(values):
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)

    expected, wrong = change(3, True)
    assert found.metrics["posterior_change"]["0.5"] == pytest.approx(expected, rel=0.02)
    assert found.metrics["error_percent"]["0.5"] == pytest.approx(100 * wrong)
    others = [change(0, True)[0], change(3, False)[0], done[1].metrics["posterior_change"]["0.5"]]
    assert all(abs(other / expected - 1) > 0.1 for other in others), (expected, others)


@pytest.fixture
def first_asked():
    """A process that has not asked for its commit, before and after."""
    runs.code_version.cache_clear()
    yield
    runs.code_version.cache_clear()


def test_the_commit_is_the_one_that_was_loaded(settings, monkeypatch, first_asked):
    commits = iter(["a" * 40])
    monkeypatch.setattr(provenance, "commit", lambda: (next(commits), False))
    record = run(settings(), NullTracker())
    assert record is not None
    assert (record.commit, record.training_commits) == ("a" * 40, ["a" * 40])
    assert Run(settings("seed=1")).commit == "a" * 40  # another job of the same process
