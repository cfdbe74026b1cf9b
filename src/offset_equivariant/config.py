"""What an experiment is: every setting by name, type and range, checked before any work starts.

The command line composes a dictionary from ``conf/``; :func:`experiment_config` turns it into these dataclasses, or
says what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from offset_equivariant.color.constancy import BALANCING_METHODS
from offset_equivariant.models.context_encoder import CENTRE_SIZE
from offset_equivariant.models.resnet import RESNETS

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, missing, or has a value that it cannot have."""


@dataclass(frozen=True)
class DatasetConfig:
    """Where images come from, and the statistics of their training pixels by representation."""

    name: Literal[
        "cifar10",
        "synthetic",
        "ilsvrc12",
        "imagenette",
        "imagenet_synthetic",
        "nus",
        "nus_synthetic",
        "paris_street_view",
        "facades",
        "inpainting_synthetic",
        "photo_folder",
    ]
    #: None where images have no class.
    classes: int | None
    #: Images held out of the training split and evaluated on in place of the test split; 0 for a real run.
    validation_images: int
    #: Every image is a test image once: of a network that saw neither its fold nor, for cameras, its camera. With
    #: validation images there is only one network.
    cross_validation: Literal["folds", "cameras"] | None
    download: bool
    statistics: dict[str, dict[str, list[float]]]
    #: Keyword arguments of the data set's loader.
    options: dict[str, Any]


@dataclass(frozen=True)
class RepresentationConfig:
    """Colour space of the network's input. ``statistics`` names the entry of the data set's statistics."""

    space: Literal["srgb", "linear", "log_rgb"]
    statistics: str
    clipping: Literal["absolute", "relative", "filled"] | None
    clipping_options: dict[str, float]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and family of layers."""

    architecture: Literal[
        "resnet8",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "cerberus",
        "image_statistics",
        "context_encoder",
        "classical_inpainting",
        "quasi_unsupervised",
    ]
    #: Keyword arguments of the architecture beside its family.
    options: dict[str, Any]
    family: Literal[
        "conventional", "offset_equivariant", "offset_equivariant_plain", "offset_equivariant_unconstrained"
    ]
    family_options: dict[str, Any]
    #: None where an architecture has a coding of its input of its own.
    representation: RepresentationConfig | None


@dataclass(frozen=True)
class JitterConfig:
    """Strengths of colour jitter, in torchvision's conventions."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class StrategyConfig:
    """What is done about coloured light beside the architecture."""

    name: str
    #: Name of the colour balancing applied to training and test images: one of ``BALANCING_METHODS``, which learn
    #: nothing, or ``LEARNED_BALANCING``.
    balancing: str | None
    #: Of the latter: its safetensors file; a relative path is one in the repository.
    weights: str | None
    #: Mean linear RGB, in (0, 1], that balanced images are scaled to; None leaves it to the light.
    brightness: float | None
    jitter: JitterConfig | None
    #: Largest saturation of the random illuminants that training images are shown under; None for none.
    illuminant_saturation: float | None


@dataclass(frozen=True)
class DistortionConfig:
    """Illuminants of the evaluation: either a list of saturations or, for one job a saturation, a single one."""

    seed: int
    requantize: bool
    saturations: list[float] | None
    saturation: float | None

    def values(self) -> list[float]:
        """Return the saturations to evaluate."""
        if (self.saturations is None) == (self.saturation is None):
            raise ConfigError("distortion: give either saturations (a list) or saturation (one value)")
        values = [float(self.saturation)] if self.saturation is not None else [float(s) for s in self.saturations or []]
        if not values or any(not 0 <= s <= 1 for s in values):
            raise ConfigError(f"distortion: saturations must lie in [0, 1], got {values}")
        if len({round(s, 4) for s in values}) < len(values):
            raise ConfigError(f"distortion: saturations must differ in their first four decimals, got {values}")
        return values


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps, see :mod:`offset_equivariant.training.schedules`."""

    name: Literal["one_cycle", "multi_step", "equal_stages"]
    options: dict[str, Any]


@dataclass(frozen=True)
class InpaintingConfig:
    """What the training of an inpainting network has beside its recipe (Section 4.3; Pathak et al. 2016)."""

    #: Weight of the adversarial loss; that of the squared error is 1 minus it.
    adversarial_weight: float
    #: At its peak; the discriminator's schedule is the network's.
    discriminator_learning_rate: float
    #: Pixels along the border of the centre whose squared error counts ``border_weight`` times.
    border: int
    border_weight: float
    #: Epochs between two grids of samples; None for none.
    sample_epochs: float | None


@dataclass(frozen=True)
class RandomResizedCropConfig:
    """Crops of a random part of an image, resized to the size of the data set's options (Szegedy et al. 2015)."""

    #: Smallest and largest part of the image's area.
    area: list[float]
    #: Smallest and largest width over height.
    aspect_ratio: list[float]


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe. Exactly one of ``epochs`` and ``steps`` is given."""

    preset: str
    epochs: float | None
    steps: int | None
    batch_size: int
    #: None: stochastic gradient descent.
    optimizer: Literal["adam", "adamw"] | None
    learning_rate: float
    #: Batch size that ``learning_rate`` is meant for: with another one it is scaled in proportion (Goyal et al. 2017).
    #: None: it is taken as it is.
    reference_batch_size: int | None
    #: Of adam: its first decay rate, called beta 1.
    momentum: float
    nesterov: bool
    weight_decay: float
    label_smoothing: float
    #: Parts of a batch that are computed one after the other, to save memory; batch normalisation sees one at a time.
    #: None: 1.
    accumulate: int | None
    #: Whether batch normalisation sees all ranks' images, see :mod:`offset_equivariant.nn.synchronised`. None: no.
    synchronise_batch_norm: bool | None
    #: Mixed precision of the training's forward pass, see :mod:`offset_equivariant.nn.precision`; weights, group means
    #: and evaluation stay float32.
    autocast: Literal["bfloat16", "float16"] | None
    schedule: ScheduleConfig
    crop_padding: int
    flip: bool
    #: Of images of different sizes, which are files; None for the others.
    random_resized_crop: RandomResizedCropConfig | None
    #: Side of the smallest random square crop, as a share of the image's; None for whole images.
    smallest_crop: float | None
    inpainting: InpaintingConfig | None
    log_every: int
    checkpoint_seconds: float

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate where the schedule's factor is 1, for this batch size."""
        if self.reference_batch_size is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.reference_batch_size

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimisation steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how fast to compute; nothing here changes what is computed, but for rounding."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    #: None: in image recognition what was fastest on this device, see :mod:`offset_equivariant.performance.settings`;
    #: elsewhere, and with images that are files, channels-last, and no compiler. Several ranks do not compile.
    channels_last: bool | None
    compile: bool | None
    threads: int | None
    progress: bool
    evaluation_batch_size: int
    #: Processes that decode images, of each rank; 0: none beside itself. None: as many as cores are free, which on a
    #: GPU are all, and on a CPU none.
    workers: int | None


@dataclass(frozen=True)
class LoggerConfig:
    """Tracking beside the run's own log."""

    kind: Literal["wandb", "none"]
    project: str


@dataclass(frozen=True)
class PathsConfig:
    """Folders: data sets (several, as PATH names them), runs, and results."""

    data: str | None
    runs: str
    results: str


#: Colour balancing by a network that was trained before.
LEARNED_BALANCING = "quasi_unsupervised"
Task = Literal["recognition", "illuminant_estimation", "inpainting", "colour_constancy"]
#: What is learned of the images of a data set.
TASKS: dict[str, Task] = {
    "cifar10": "recognition",
    "synthetic": "recognition",
    "ilsvrc12": "recognition",
    "imagenette": "recognition",
    "imagenet_synthetic": "recognition",
    "nus": "illuminant_estimation",
    "nus_synthetic": "illuminant_estimation",
    "paris_street_view": "inpainting",
    "facades": "inpainting",
    "inpainting_synthetic": "inpainting",
    "photo_folder": "colour_constancy",
}
#: Architectures of a task.
_ARCHITECTURES: dict[Task, tuple[str, ...]] = {
    "recognition": tuple(RESNETS),
    "illuminant_estimation": ("cerberus", "image_statistics"),
    "inpainting": ("context_encoder", "classical_inpainting"),
    "colour_constancy": ("quasi_unsupervised",),
}
#: Architectures that learn nothing.
_UNTRAINED = ("image_statistics", "classical_inpainting")
_ONLY_RECOGNITION = {
    "reference_batch_size": None,
    "crop_padding": 0,
    "random_resized_crop": None,
    "label_smoothing": 0.0,
    "accumulate": None,
    "synchronise_batch_norm": None,
    "autocast": None,
}
#: Settings of a recipe that only some tasks have, and the value that stands for their absence.
_UNUSED: dict[Task, dict[str, Any]] = {
    "recognition": {"smallest_crop": None, "inpainting": None},
    "illuminant_estimation": _ONLY_RECOGNITION | {"inpainting": None},
    "inpainting": _ONLY_RECOGNITION | {"smallest_crop": None},
    "colour_constancy": _ONLY_RECOGNITION | {"smallest_crop": None, "inpainting": None},
}


def task_of(dataset: str, architecture: str) -> Task:
    """Return what an architecture learns of a data set: of images with classes it can be colour constancy too.

    Raises:
        KeyError: if there is no such data set.
    """
    task = TASKS[dataset]
    return "colour_constancy" if task == "recognition" and architecture == "quasi_unsupervised" else task


@dataclass(frozen=True)
class ExperimentConfig:
    """One row of one table, at one seed."""

    name: str
    table: int | None
    row: str
    seed: int
    mode: Literal["train", "evaluate", "both"]
    #: safetensors file to evaluate in place of the run's own weights.
    weights: str | None
    dataset: DatasetConfig
    model: ModelConfig
    strategy: StrategyConfig
    distortion: DistortionConfig
    train: TrainConfig
    runtime: RuntimeConfig
    logger: LoggerConfig
    paths: PathsConfig

    @property
    def task(self) -> Task:
        """What is learned."""
        return task_of(self.dataset.name, self.model.architecture)

    @property
    def trains(self) -> bool:
        """Whether a training is asked for, and there is something to learn."""
        return self.mode != "evaluate" and self.train.steps != 0

    @property
    def experiment(self) -> str:
        """Name of the experiment with its preset, but for the preset ``fast`` that is meant where nothing is said."""
        return self.name if self.train.preset == "fast" else f"{self.name}_{self.train.preset}"

    @property
    def record_name(self) -> str:
        """Name of the experiment with what its evaluation does otherwise than the others."""
        requantized = "_requantized" if self.distortion.requantize else ""
        return self.experiment + requantized + (f"_hues{self.distortion.seed}" if self.distortion.seed else "")

    @property
    def dataset_label(self) -> str:
        """Name of the images that are evaluated on."""
        return self.dataset.name + ("_validation" if self.dataset.validation_images else "")


#: Parts of the configuration that decide what is learned; the others say where, how fast, or how it is tested.
TRAINING_SECTIONS = ("dataset", "model", "strategy", "train", "seed")


def experiment_config(settings: Mapping[str, Any]) -> ExperimentConfig:
    """Check a dictionary of settings.

    Raises:
        ConfigError: names the setting, what is wrong with it, and what it can be.
    """
    config = _build(ExperimentConfig, settings, "")
    _check(config)
    return config


def _check(config: ExperimentConfig) -> None:
    config.distortion.values()
    _check_names(config)
    _check_task(config)
    train, dataset, strategy = config.train, config.dataset, config.strategy
    if (train.epochs is None) == (train.steps is None):
        raise ConfigError("train: give either epochs or steps, and leave the other null")
    if train.optimizer == "adamw" and (train.momentum or train.nesterov):
        raise ConfigError("train.optimizer = adamw has no momentum of that kind; give train.momentum=0, nesterov=false")
    if train.optimizer == "adam" and (train.nesterov or not train.momentum < 1):
        raise ConfigError("train.optimizer = adam takes train.momentum, its beta 1, below 1, and train.nesterov=false")
    if train.nesterov and not train.momentum:
        raise ConfigError("train.nesterov = True needs a train.momentum above 0")
    if config.weights is not None and config.mode != "evaluate":
        raise ConfigError(f"weights = {config.weights!r} is for mode = evaluate, but mode = {config.mode}")
    if config.weights is not None and train.steps == 0:
        raise ConfigError(
            f"weights = {config.weights!r} does not fit {config.model.architecture}, which learns nothing; give null"
        )
    _check_balancing(strategy)
    _check_representation(config)
    positive = {
        "train.epochs": train.epochs,
        "train.batch_size": train.batch_size,
        "train.learning_rate": train.learning_rate,
        "train.log_every": train.log_every,
        "train.accumulate": train.accumulate,
        "train.reference_batch_size": train.reference_batch_size,
        "runtime.threads": config.runtime.threads,
        "runtime.evaluation_batch_size": config.runtime.evaluation_batch_size,
        "dataset.classes": dataset.classes,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} = {value} must be positive")
    not_negative = {
        "seed": config.seed,
        "train.steps": train.steps or 0,
        "distortion.seed": config.distortion.seed,
        "train.weight_decay": train.weight_decay,
        "train.momentum": train.momentum,
        "train.crop_padding": train.crop_padding,
        "train.checkpoint_seconds": train.checkpoint_seconds,
        "dataset.validation_images": dataset.validation_images,
        "runtime.workers": config.runtime.workers or 0,
    }
    for name, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{name} = {value} must not be negative")
    if config.seed >= 2**63:
        raise ConfigError(f"seed = {config.seed} must be below 2**63, what torch's generators can be seeded with")
    if train.smallest_crop is not None and not 0 < train.smallest_crop <= 1:
        raise ConfigError(f"train.smallest_crop = {train.smallest_crop} must lie in (0, 1]")
    if not 0 <= train.label_smoothing < 1:
        raise ConfigError(f"train.label_smoothing = {train.label_smoothing} must lie in [0, 1)")


def _check_names(config: ExperimentConfig) -> None:
    """An experiment's name and preset name the folders of its runs and records."""
    for setting, name in {"name": config.name, "train.preset": config.train.preset}.items():
        if name in (".", "..") or not re.fullmatch(r"[\w.+=,-]+", name):
            raise ConfigError(
                f"{setting} = {name!r} must be able to name a folder: letters, digits, and any of . + = , - _, "
                "but neither . nor .. alone"
            )


def _check_task(config: ExperimentConfig) -> None:
    """Data set, architecture and recipe must be of one task."""
    task, dataset = config.task, config.dataset
    fitting = _ARCHITECTURES[task]
    if config.model.architecture not in fitting:
        raise ConfigError(
            f"model.architecture = {config.model.architecture} does not fit dataset {dataset.name}, whose task is "
            f"{task}; choose one of {', '.join(fitting)}"
        )
    for name, absent in _UNUSED[task].items():
        if getattr(config.train, name) != absent:
            raise ConfigError(f"train.{name} = {getattr(config.train, name)} is not for {task}; give {absent}")
    untrained = config.model.architecture in _UNTRAINED
    if untrained != (config.train.steps == 0):
        raise ConfigError(
            f"train.steps must be 0 for {', '.join(_UNTRAINED)}, which learn nothing, and for nothing else"
        )
    if (TASKS[dataset.name] == "recognition") == (dataset.classes is None):
        raise ConfigError(f"dataset.classes = {dataset.classes} does not fit {task}")
    if task != "illuminant_estimation" and dataset.cross_validation is not None:
        raise ConfigError(f"dataset.cross_validation = {dataset.cross_validation} is not for {dataset.name}; give null")
    if task == "illuminant_estimation" and dataset.cross_validation is None and not dataset.validation_images:
        raise ConfigError(
            f"dataset {dataset.name} has no test images: give dataset.cross_validation=folds, or cameras, or "
            "dataset.validation_images"
        )
    if dataset.name == "photo_folder" and config.mode != "train" and not dataset.validation_images:
        raise ConfigError("dataset photo_folder has no test images: give dataset.validation_images, or mode=train")
    if task != "recognition":
        _refuse_what_is_for_recognition(config)
    if task == "inpainting":
        _check_inpainting(config.train.inpainting)


def _refuse_what_is_for_recognition(config: ExperimentConfig) -> None:
    task = config.task
    if config.strategy.name != "none":
        raise ConfigError(f"strategy = {config.strategy.name} is not for {task}; give strategy=none")
    for name, value in vars(config.strategy).items():
        if name != "name" and value is not None:
            raise ConfigError(f"strategy.{name} = {value} is not for {task}; give null")
    if config.distortion.requantize:
        raise ConfigError(f"distortion.requantize = True is not for {task}; give false")


def _check_inpainting(settings: InpaintingConfig | None) -> None:
    if settings is None:
        raise ConfigError("train.inpainting is missing; give a recipe for inpainting, such as train=inpainting_fast")
    if not 0 <= settings.adversarial_weight <= 1:
        raise ConfigError(f"train.inpainting.adversarial_weight = {settings.adversarial_weight} must lie in [0, 1]")
    if not 0 <= settings.border <= CENTRE_SIZE // 2:
        raise ConfigError(f"train.inpainting.border = {settings.border} must lie in [0, {CENTRE_SIZE // 2}] pixels")
    positive = {
        "discriminator_learning_rate": settings.discriminator_learning_rate,
        "border_weight": settings.border_weight,
        "sample_epochs": settings.sample_epochs,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"train.inpainting.{name} = {value} must be positive")


def _check_balancing(strategy: StrategyConfig) -> None:
    methods = (*BALANCING_METHODS, LEARNED_BALANCING)
    if strategy.balancing is not None and strategy.balancing not in methods:
        raise ConfigError(f"strategy.balancing = {strategy.balancing!r} is not one of {', '.join(methods)}")
    if (strategy.balancing == LEARNED_BALANCING) != (strategy.weights is not None):
        raise ConfigError(
            f"strategy.weights = {strategy.weights!r} does not fit strategy.balancing = {strategy.balancing}: "
            f"{LEARNED_BALANCING} needs a file of weights, and nothing else has one"
        )
    brightness = strategy.brightness
    if brightness is not None and (strategy.balancing is None or not 0 < brightness <= 1):
        raise ConfigError(
            f"strategy.brightness = {brightness} does not fit strategy.balancing = {strategy.balancing}: it is the "
            "mean linear RGB of balanced images, above 0 and at most 1, and null where nothing is balanced"
        )


def _check_representation(config: ExperimentConfig) -> None:
    """The statistics must be those of the space that the network is shown, one mean and std a colour channel."""
    representation = config.model.representation
    if (representation is None) != (config.task == "colour_constancy"):
        raise ConfigError(
            f"model.representation = {representation} does not fit {config.model.architecture}: give "
            + ("null, for its input has a coding of its own" if representation else "space, statistics and clipping")
        )
    if representation is None:
        return
    name = representation.statistics
    if name not in config.dataset.statistics:
        raise ConfigError(
            f"dataset {config.dataset.name} has no statistics {name!r}, only {', '.join(config.dataset.statistics)}; "
            f"compute them with python scripts/compute_statistics.py {config.dataset.name}, and put them into "
            f"conf/dataset/{config.dataset.name}.yaml"
        )
    if not name.startswith(representation.space):
        fitting = [other for other in config.dataset.statistics if other.startswith(representation.space)]
        raise ConfigError(
            f"model.representation.statistics = {name!r} is not of space = {representation.space}; "
            f"choose one of {', '.join(fitting)}"
        )
    values = config.dataset.statistics[name]
    if sorted(values) != ["mean", "std"] or any(len(numbers) != 3 for numbers in values.values()):
        raise ConfigError(f"dataset.statistics.{name} = {values} must have three numbers each for mean and std")


def check_arguments(
    function: Callable[..., Any], options: Mapping[str, Any], path: str, given: Sequence[str] = ()
) -> None:
    """Check keyword options against the names and types of a function's, or a dataclass's, parameters.

    Args:
        function: what will be called with the options.
        options: names and values.
        path: name of the group of settings that the options are.
        given: parameters that are no options.

    Raises:
        ConfigError: for an unknown name, listing the valid ones, or a value of the wrong type.
    """
    hints = get_type_hints(function)
    valid = [name for name in inspect.signature(function).parameters if name not in given]
    for name, value in options.items():
        if name not in valid:
            raise ConfigError(f"unknown setting {path}.{name}; valid ones are {', '.join(valid) or '(none)'}")
        _value(hints[name], value, f"{path}.{name}")


def _build(cls: type[T], settings: Any, path: str) -> T:
    """Make the dataclass ``cls`` of a dictionary, checking names and types all the way down."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path or 'the configuration'} must be a group of settings, got {settings!r}")
    hints = get_type_hints(cls)
    prefix = f"{path}." if path else ""
    unknown = [name for name in settings if name not in hints]
    if unknown:
        raise ConfigError(f"unknown setting {prefix}{unknown[0]}; valid ones are {', '.join(hints)}")
    missing = [name for name in hints if name not in settings]
    if missing:
        raise ConfigError(f"setting {prefix}{missing[0]} is missing")
    return cls(**{name: _value(hint, settings[name], prefix + name) for name, hint in hints.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    """Check one value against its type hint."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return _fail(path, value, "a value") if type(None) not in get_args(hint) else None
        return _value(next(option for option in get_args(hint) if option is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        return value if value in get_args(hint) else _fail(path, value, "one of " + ", ".join(map(str, get_args(hint))))
    if origin in (list, Sequence):
        if not isinstance(value, list | tuple):
            return _fail(path, value, "a list")
        return [_value(get_args(hint)[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            return _fail(path, value, "a group of settings")
        return {str(key): _value(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return _fail(path, value, "a finite number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return _fail(path, value, {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint])
    return value


def _fail(path: str, value: Any, expected: str) -> Any:
    raise ConfigError(f"{path} = {value!r} must be {expected}")
