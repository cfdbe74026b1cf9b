"""Records: one JSON file per experiment and seed, with the per-image outcomes beside it.

``results/records/<experiment>/seed<k>.json`` holds the numbers and their provenance (configuration, commit, digests of
weights and data, environment); ``seed<k>.npz`` holds what happened to each test image.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from offset_equivariant.settings import differing_settings
from offset_equivariant.storage import locked, replace_file

Metrics = dict[str, dict[str, float]]
Outcomes = dict[str, dict[str, NDArray[Any]]]
_T = TypeVar("_T")
#: Of the environment, what may differ between the jobs of one sweep.
_PLACE = ("platform", "device_name", "threads")
#: Data sets that are what lies in a folder, which may be a part of them -> test images of the whole.
_TEST_IMAGES = {"imagenette": 3_925, "ilsvrc12": 50_000, "nus": 1_853, "paris_street_view": 100}
#: Of something that the first records do not say.
NOT_RECORDED = "not recorded"
#: What to do about a damaged record, which an evaluation reads before it writes its own.
_RENEW = "remove it and evaluate the experiment again"
#: The same of its outcomes: a record that is complete is not measured again for them.
_RENEW_BOTH = "remove it, and the record beside it, and evaluate the experiment again"
_OUTCOME_DTYPES = ("bool", "uint8", "float32")


class RecordError(ValueError):
    """A record or an outcomes file that is not what it should be; the message names the file and the field."""


@dataclass(frozen=True)
class Record:
    """What one evaluation found, and where its numbers come from.

    Attributes:
        experiment: Name of the experiment, ``table<N>_<row>`` with a suffix for presets other than the default.
        table: Table of the paper that the experiment belongs to, or None.
        row: Row of that table, in the paper's words.
        dataset: Name of the data set.
        preset: Name of the training preset.
        seed: Seed of training. That of the test's hues is in the configuration, ``distortion.seed``.
        complete: Whether the training of the weights had finished.
        metrics: Metric -> saturation (see :func:`saturation_key`) -> value.
        n: Number of test images.
        parameters: Number of parameters of the network.
        config: The resolved configuration.
        config_sha256: Digest of the configuration.
        commit: Commit under which the evaluation ran.
        dirty: Whether the tree had uncommitted changes then.
        training_commits: Commits under which the weights were trained, oldest first.
        training_dirty: Whether any of the training ran on a tree with uncommitted changes.
        steps: Training steps taken.
        total_steps: Training steps of the complete schedule.
        checkpoint_sha256: Digest of the evaluated weights.
        data_sha256: Split -> digest of its images, of pixels in memory, of names and sizes of files;
            ``balancing_weights`` -> that of the network that balances them.
        environment: Versions of the libraries, device.
        train_seconds: Seconds spent on training.
        evaluate_seconds: Seconds spent on evaluation.
        training_devices: Names of the GPUs or processors that trained; empty in records of before they were kept.
        training_means: Scalar of the training -> its mean over the last twentieth of the steps; empty as those.
    """

    experiment: str
    table: int | None
    row: str
    dataset: str
    preset: str
    seed: int
    complete: bool
    metrics: Metrics
    n: int
    parameters: int
    config: dict[str, Any]
    config_sha256: str
    commit: str
    dirty: bool
    training_commits: list[str]
    training_dirty: bool
    steps: int
    total_steps: int
    checkpoint_sha256: str
    data_sha256: dict[str, str]
    environment: dict[str, Any]
    train_seconds: float
    evaluate_seconds: float
    training_devices: list[str] = field(default_factory=list)
    training_means: dict[str, float] = field(default_factory=dict)

    @property
    def distorted_otherwise(self) -> str:
        """What is special about the light that it was measured under, for readers; empty for that of the tables."""
        distortion = self.config.get("distortion", {})
        rounded = ["8-bit images"] if distortion.get("requantize") else []
        return ", ".join(rounded + ([f"hues of seed {seed}"] if (seed := distortion.get("seed", 0)) else []))

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader of the numbers must be warned of; empty for a result that can be published."""
        whole = _TEST_IMAGES.get(self.dataset, self.n)
        marks = (
            (not self.complete, f"incomplete ({self.steps}/{self.total_steps} steps)"),
            (self.training_dirty, "dirty training"),
            (self.dirty, "dirty evaluation"),
            (self.n != whole, f"{self.n:,} of {whole:,} test images"),
        )
        return tuple(mark for applies, mark in marks if applies)

    def largest(self, metric: str) -> float | None:
        """Return the largest value of a metric up to S = 0.9; None if it was not measured there."""
        values = [value for s, value in self.metrics.get(metric, {}).items() if float(s) <= 0.9]
        return max(values, default=None)

    def lacking(self, saturations: Iterable[float]) -> list[str]:
        """Return the keys of those ``saturations`` at which some metric was not measured."""
        keys = map(saturation_key, saturations)
        return [key for key in keys if any(key not in by_saturation for by_saturation in self.metrics.values())]


def saturation_key(s: float) -> str:
    """Return the key of saturation ``s`` in [0, 1]: "0.0", "0.1", "0.25", "1.0".

    Raises:
        ValueError: If ``s`` is outside [0, 1] or not a number.
    """
    if not 0.0 <= s <= 1.0:
        raise ValueError(f"saturation must be in [0, 1], got {s}")
    return str(round(float(s), 4))  # rounded, so that 3 * 0.1 is "0.3"


def record_path(results: Path, experiment: str, seed: int) -> Path:
    """Return the path of a record below the folder ``results``."""
    return results / "records" / experiment / f"seed{seed}.json"


def outcomes_path(results: Path, experiment: str, seed: int) -> Path:
    """Return the path of the per-image outcomes that belong to a record."""
    return record_path(results, experiment, seed).with_suffix(".npz")


def write_record(record: Record, path: Path) -> None:
    """Write ``record`` as JSON, replacing ``path`` in one step; equal records give equal bytes.

    Raises:
        RecordError: If a field has the wrong type, or a value is not finite.
    """
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    _validate(values, path)
    values["metrics"] = _ordered(record.metrics)
    for name in ("config", "data_sha256", "environment"):
        values[name] = _sorted_deep(values[name])
    try:
        text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path}: cannot be written as JSON ({error}); use plain finite values") from error
    replace_file(path, (text + "\n").encode())


def read_record(path: Path) -> Record:
    """Read the record at ``path``.

    Raises:
        RecordError: If the file is not JSON, or a field is missing, unknown or of the wrong type.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path}: not a JSON file ({error}); {_RENEW}") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path}: a record is a JSON object, found a {type(values).__name__}; {_RENEW}")
    _validate(values, path)
    return Record(**values)


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write per-image outcomes (metric -> saturation -> array of shape (n,)), replacing ``path`` in one step.

    Equal outcomes give equal bytes: members are ordered, and carry no time of writing.

    Raises:
        RecordError: If an array is not one-dimensional, or not of type bool, uint8 or float32.
    """
    members: dict[str, NDArray[Any]] = {}
    for metric, by_saturation in _ordered(outcomes).items():
        for saturation, values in by_saturation.items():
            name = f"{metric}/{saturation}"
            if values.ndim != 1 or values.dtype.name not in _OUTCOME_DTYPES:
                raise RecordError(
                    f"{path}: outcomes {name} must be a 1-D array of {', '.join(_OUTCOME_DTYPES)}, "
                    f"got shape {values.shape} of {values.dtype}"
                )
            members[name] = values
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **members)
    replace_file(path, buffer.getvalue())


def read_outcomes(path: Path) -> Outcomes:
    """Read what :func:`write_outcomes` wrote.

    Raises:
        RecordError: If the file is damaged.
        FileNotFoundError: If there is none.
    """
    outcomes: Outcomes = {}
    try:
        with zipfile.ZipFile(path):  # which numpy takes a file that is none for something else
            pass
        with np.load(path, allow_pickle=False) as members:
            for name in members.files:
                metric, _, saturation = name.rpartition("/")
                outcomes.setdefault(metric, {})[saturation] = members[name]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise RecordError(f"{path}: no file of outcomes, or a damaged one ({error}); {_RENEW_BOTH}") from error
    return outcomes


def merge_records(old: Record, new: Record) -> Record:
    """Unite two evaluations of the same weights on the same data, as one-saturation-a-job sweeps produce.

    Metrics are united (``new`` wins on equal keys), ``evaluate_seconds`` added up, and ``dirty`` stays set while a
    number of a dirty evaluation is among them; all else is taken from ``new``: of the environment, the jobs of a sweep
    may differ in the computer and its threads. ``new`` replaces ``old`` where the two differ in experiment, seed,
    configuration, weights, data or ``n``, and where ``new`` measured all that ``old`` did.

    Raises:
        RecordError: as :func:`require_mergeable`.
    """
    if _keys(old.metrics) <= _keys(new.metrics):
        return replace(new, metrics=_ordered(new.metrics))
    require_mergeable(old, new, {saturation for _, saturation in _keys(new.metrics)})
    if not _same_subject(old, new):
        return replace(new, metrics=_ordered(new.metrics))
    return replace(
        new,
        metrics=_ordered(_united(old.metrics, new.metrics)),
        evaluate_seconds=old.evaluate_seconds + new.evaluate_seconds,
        dirty=old.dirty or new.dirty,
    )


def require_mergeable(old: Record, new: Record, saturations: Iterable[str]) -> None:
    """Check that an evaluation at some saturations would not replace more numbers of the same weights.

    Args:
        old: What a results folder holds.
        new: The evaluation; its metrics do not matter.
        saturations: Keys of its saturations.

    Raises:
        RecordError: If ``old`` has other saturations too, of the same weights and data, and cannot be united with
            ``new``, because another commit or other versions of the libraries measured them.
    """
    lost = sorted({saturation for _, saturation in _keys(old.metrics)} - set(saturations), key=float)
    if not lost or not _same_subject(old, new) or _continues(old, new):
        return
    before, now = (_code(record) for record in (old, new))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differences = "; ".join(f"{name} {before.get(name)} there, {now.get(name)} now" for name in names)
    raise RecordError(
        f"the record of {old.experiment}, seed {old.seed}, holds the saturations {', '.join(lost)} too, and was "
        f"measured by other code ({differences}); evaluate all saturations in one go, remove it, or give another "
        "paths.results"
    )


def require_place(results: Path, new: Record, saturations: Iterable[str]) -> None:
    """Check, before it is measured, that :func:`save_evaluation` will find a place for an evaluation in ``results``.

    Args:
        results: Folder of results.
        new: The evaluation; its metrics do not matter.
        saturations: Keys of its saturations.

    Raises:
        RecordError: As :func:`require_mergeable`, or if a file there is damaged.
    """
    path = record_path(results, new.experiment, new.seed)
    if not path.exists():
        return
    old = read_record(path)
    require_mergeable(old, new, saturations)
    _outcomes_to_unite(results, old, new)


def _outcomes_to_unite(results: Path, old: Record, new: Record) -> Outcomes:
    """The outcomes beside an old record, if those of a new one are united with them; else none."""
    path = outcomes_path(results, old.experiment, old.seed)
    return read_outcomes(path) if _continues(old, new) and path.exists() else {}


def save_evaluation(results: Path, record: Record, outcomes: Outcomes, copy: Path | None = None) -> Record:
    """Merge an evaluation into what ``results`` holds for its experiment and seed, safely beside concurrent jobs.

    Args:
        results: Folder of results.
        record: The evaluation's record.
        outcomes: Its per-image outcomes, each of shape (``record.n``,).
        copy: Where the record is written a second time, None for nowhere.

    Returns:
        The record as written.

    Raises:
        RecordError: If an outcomes array has another length than ``record.n``, or a file there is damaged.
    """
    for metric, saturation in sorted(_keys(outcomes)):
        length = len(outcomes[metric][saturation])
        if length != record.n:
            raise RecordError(f"outcomes {metric}/{saturation} have {length} entries for n = {record.n} test images")
    path = record_path(results, record.experiment, record.seed)
    beside = outcomes_path(results, record.experiment, record.seed)
    with locked(path.with_name(f".{path.stem}.lock")):
        if path.exists():
            old = read_record(path)
            outcomes = _united(_outcomes_to_unite(results, old, record), outcomes)
            record = merge_records(old, record)
        # Outcomes first: a job killed in between leaves a record without the new numbers, and is simply run again.
        write_outcomes(beside, outcomes)
        write_record(record, path)
        if copy is not None:
            write_record(record, copy)
    return record


def find_records(results: Path, table: int | None = None) -> list[Record]:
    """Return the records below ``results``, of one table or of all, sorted by table, experiment and seed.

    Records of dirty trees and unfinished trainings are among them: see :attr:`Record.flags`.

    Raises:
        RecordError: If a record is damaged, or lies under another experiment's or seed's name.
    """
    found = []
    for path in (results / "records").glob("*/seed*.json"):
        record = read_record(path)
        if path != record_path(results, record.experiment, record.seed):
            raise RecordError(f"{path}: holds experiment {record.experiment!r}, seed {record.seed}; move it there")
        found.append(record)
    if table is not None:
        found = [record for record in found if record.table == table]
    return sorted(found, key=lambda r: (r.table is None, r.table or 0, r.experiment, r.seed))


def load_outcomes(results: Path, records: Iterable[Record]) -> dict[tuple[str, int], Outcomes]:
    """Read the outcomes of those ``records`` that have them, by experiment and seed."""
    paths = {(r.experiment, r.seed): outcomes_path(results, r.experiment, r.seed) for r in records}
    return {key: read_outcomes(path) for key, path in paths.items() if path.exists()}


def trained_on(records: Iterable[Record]) -> list[str]:
    """Return the devices that trained several networks, each once."""
    return list(dict.fromkeys(device for r in records for device in (r.training_devices or [NOT_RECORDED])))


def trained_at(records: Iterable[Record]) -> list[str]:
    """Return the commits that several networks were trained at, abbreviated, each once."""
    return list(dict.fromkeys(commit[:8] for record in records for commit in record.training_commits))


def _same_subject(old: Record, new: Record) -> bool:
    same = ("experiment", "seed", "checkpoint_sha256", "data_sha256", "n")
    equal = all(getattr(old, name) == getattr(new, name) for name in same)
    return equal and not differing_settings(old.config, new.config)


def _continues(old: Record, new: Record) -> bool:
    # A record says one commit and one set of libraries for all of its numbers.
    return _same_subject(old, new) and _code(old) == _code(new)


def _code(record: Record) -> dict[str, Any]:
    """What measured: the commit and the versions, not on which computer."""
    versions = {name: value for name, value in record.environment.items() if name not in _PLACE}
    return {"commit": record.commit, **versions}


def _keys(nested: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(outer, inner) for outer, by_inner in nested.items() for inner in by_inner}


def _united(old: Mapping[str, Mapping[str, _T]], new: Mapping[str, Mapping[str, _T]]) -> dict[str, dict[str, _T]]:
    return {metric: {**old.get(metric, {}), **new.get(metric, {})} for metric in {**old, **new}}


def _ordered(nested: Mapping[str, Mapping[str, _T]]) -> dict[str, dict[str, _T]]:
    return {metric: {s: nested[metric][s] for s in sorted(nested[metric], key=float)} for metric in sorted(nested)}


def _sorted_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted_deep(value[key]) for key in sorted(value)}
    return [_sorted_deep(item) for item in value] if isinstance(value, list) else value


def _validate(values: dict[str, Any], path: Path) -> None:
    annotations = {field.name: field.type for field in fields(Record)}
    needed = {field.name for field in fields(Record) if field.default_factory is MISSING}
    if missing := sorted(needed - values.keys()):
        raise RecordError(f"{path}: missing field(s) {', '.join(missing)}; {_RENEW}")
    if unknown := sorted(values.keys() - annotations.keys()):
        raise RecordError(f"{path}: unknown field(s) {', '.join(unknown)}; remove them")
    for name, annotation in annotations.items():
        if name in values and not _matches(values[name], annotation):
            raise RecordError(f"{path}: field {name!r} must be {annotation}, got {values[name]!r}")
    for metric, saturation in _keys(values["metrics"]):
        try:
            canonical = saturation_key(float(saturation)) == saturation
        except ValueError:
            canonical = False
        if not canonical:
            raise RecordError(f"{path}: field 'metrics': {metric!r} has {saturation!r} for a saturation, not as '0.5'")


def _matches(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return any(_matches(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(key, arguments[0]) and _matches(item, arguments[1]) for key, item in value.items()
        )
    if annotation is NoneType:
        return value is None
    return isinstance(value, annotation) and not (annotation is int and isinstance(value, bool))
