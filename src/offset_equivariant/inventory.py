"""Which records make the paper's tables and the ablations, which of them are missing, and how they are had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offset_equivariant import provenance
from offset_equivariant.composition import CONFIGURATION, composed_words, plain_settings
from offset_equivariant.config import ExperimentConfig, experiment_config
from offset_equivariant.reporting.ablations import ABLATIONS, FOLDER
from offset_equivariant.reporting.records import Record, read_record, record_path
from offset_equivariant.runs import released_weights_path, run_directory
from offset_equivariant.settings import differing_settings, recorded_settings
from offset_equivariant.storage import replace_file

#: Seeds of a table's rows, but for those of one training a camera.
SEEDS = {"table1": (0, 1, 2), "table2": (0,), "table3": (0, 1, 2), "table4": (0,)}
_OF_ONE_SEED = "_unseen_camera"
#: Data sets that a table can be had on: the usual one first, the paper's last.
DATASETS = {
    "table1": ("cifar10",),
    "table2": ("imagenette", "ilsvrc12"),
    "table3": ("nus",),
    "table4": ("facades", "paris_street_view"),
}
#: Trainings whose networks the rows of several tables use: wanted before them.
OTHERS = ("quasi_unsupervised",)
#: Rows that are wanted with another preset too, of the first seed: the paper's length.
LONG = {"table1_original": "paper", "table1_equivariant": "paper"}
#: Folder below ``results`` of the runs of trainings that continue over several machines, until they end.
UNFINISHED = "unfinished"
_REQUANTIZED = "_requantized"


@dataclass(frozen=True)
class MissingRecord:
    """A record that is not there, or not as it should be.

    Attributes:
        name: of its experiment, with what is special about it.
        seed: of its experiment.
        words: the command line of the entry point that makes it, but for its paths.
        trains: whether that trains a network, or evaluates one that is there.
        why: what is wrong with the one that is there; empty without one.
        made: a good one that lies in another folder of results, without its suffix; None where there is none.
        wanted: where it belongs, without its suffix.
        paths: settings of the command line that are paths, absolute.
    """

    name: str
    seed: int
    words: tuple[str, ...]
    trains: bool
    why: str = ""
    made: Path | None = None
    wanted: Path = Path()
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def job(self) -> list[str]:
        """The words that make it, whatever the current directory."""
        return [*self.words, *(f"{name}='{path}'" for name, path in self.paths.items())]

    @property
    def command(self) -> str:
        """The command that makes it, or brings it there, for a shell at the root of the repository."""
        if self.made is not None:
            folder = _relative(self.wanted.parent)
            return f"mkdir -p {folder} && cp {_relative(self.made)}.* {folder}/"
        paths = [f"{name}={_relative(path)}" for name, path in self.paths.items()]
        return " ".join(["python -m offset_equivariant", *self.words, *paths])

    def adopt(self) -> None:
        """Copy what was ``made`` elsewhere to where it is ``wanted``."""
        assert self.made is not None
        self.wanted.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".npz", ".json"):  # the record last: what has one is complete
            source, target = self.made.with_suffix(suffix), self.wanted.with_suffix(suffix)
            if source.exists():
                replace_file(target, source.read_bytes())
            else:
                target.unlink(missing_ok=True)


def experiments_of(prefix: str) -> list[str]:
    """Return the experiments whose names begin with a word, "table1" or "ablation" for instance."""
    return sorted(path.stem for path in (CONFIGURATION / "experiment").glob(f"{prefix}_*.yaml"))


def experiments_on(table: str, dataset: str) -> list[str]:
    """Return the experiments that are rows of a table on one of its data sets."""
    names, datasets = experiments_of(table), DATASETS[table]
    if dataset != datasets[-1]:  # named in its experiments, but for a table's own
        return [name for name in names if name.startswith(f"{table}_{dataset}_")]
    others = tuple(f"{table}_{name}_" for name in datasets[:-1])
    return [name for name in names if not name.startswith(others)]


def seeds_of(table: str, experiment: str) -> tuple[int, ...]:
    """Return the seeds that a row of a table is wanted with."""
    seeds = SEEDS[table]
    return seeds[:1] if experiment.endswith(_OF_ONE_SEED) else seeds


def missing_records(results: Path, settings: Sequence[str] = (), elsewhere: Sequence[Path] = ()) -> list[MissingRecord]:
    """Return what is missing below ``results``: of every table on every data set, of the ablations, and of the rest.

    A record of an unfinished training or of uncommitted code counts as missing, and so does one that lacks saturations.
    What others need comes before them.

    Args:
        results: the folder of the records.
        settings: further words for the entry point, of every command.
        elsewhere: other folders of results, in which a missing record may have been made.

    Raises:
        RecordError: if a record is damaged.
    """
    wanted: list[tuple[list[str], Path]] = [([f"experiment={name}", "seed=0"], results) for name in OTHERS]
    for table in SEEDS:
        for name in [name for dataset in DATASETS[table] for name in experiments_on(table, dataset)]:
            wanted += [([f"experiment={name}", f"seed={seed}"], results) for seed in seeds_of(table, name)]
    wanted += [([f"experiment={name}", f"train={preset}", "seed=0"], results) for name, preset in LONG.items()]
    wanted += [([f"experiment={name}", "seed=0"], results / FOLDER) for name in experiments_of("ablation")]
    wanted += [
        ([f"experiment={name.removesuffix(_REQUANTIZED)}", "seed=0", "distortion.requantize=true"], results / FOLDER)
        for name in dict.fromkeys(name for ablation in ABLATIONS for name in ablation.variants.values())
        if name.endswith(_REQUANTIZED)
    ]
    found = [_missing([*words, *settings], folder.absolute(), elsewhere) for words, folder in wanted]
    return [missing for missing in found if missing is not None]


def _missing(words: list[str], folder: Path, elsewhere: Sequence[Path]) -> MissingRecord | None:
    composed = plain_settings(composed_words(words))
    config = experiment_config(composed)
    learns = config.train.steps != 0
    repeated = not learns and config.seed != 0  # what learns nothing has one seed
    path = record_path(folder, config.record_name, config.seed)
    why = _faults(read_record(path), config, composed) if path.exists() else ""
    if repeated or (path.exists() and not why):
        return None
    released = provenance.repository_root() / "results"
    weights = released_weights_path(released, config.experiment, config.seed)
    paths = {"paths.results": folder}
    if learns and weights.exists():
        words = [*words, "mode=evaluate"]
        paths["weights"] = weights
    elif run_directory(released / UNFINISHED, config.experiment, config.seed).exists():
        paths["paths.runs"] = released / UNFINISHED
    others = [record_path(other, config.record_name, config.seed) for other in elsewhere]
    good = [other for other in others if other.exists() and not _faults(read_record(other), config, composed)]
    return MissingRecord(
        config.record_name,
        config.seed,
        tuple(words),
        learns and not weights.exists(),
        why,
        made=good[0].with_suffix("") if good else None,
        wanted=path.with_suffix(""),
        paths=paths,
    )


def _faults(record: Record, config: ExperimentConfig, composed: Mapping[str, Any]) -> str:
    """What keeps a record from being the result of its experiment, whose settings are given; empty if nothing does."""
    # A setting that the record lacks is one that came later, or was null: the experiment's null is as good.
    others = differing_settings(record.config, recorded_settings(composed))
    faults = [*record.flags, *(f"{name}={recorded}" for name, (recorded, _) in others.items())]
    lacking = record.lacking(config.distortion.values())
    return ", ".join(faults + ([f"no S = {' '.join(lacking)}"] if lacking else []))


def _relative(path: Path) -> Path:
    """A path as it is written at the root of the repository."""
    root = provenance.repository_root()
    return path.relative_to(root) if path.is_relative_to(root) else path
