"""The one entry point: ``python -m offset_equivariant experiment=table1_equivariant seed=0``."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from offset_equivariant.building import headline_metric
from offset_equivariant.composition import CONFIGURATION, checked_run, plain_settings
from offset_equivariant.config import ConfigError, experiment_config
from offset_equivariant.data.locations import DataError
from offset_equivariant.experiment import run_experiment
from offset_equivariant.reporting.records import Record, RecordError, record_path
from offset_equivariant.reporting.tracking import make_tracker
from offset_equivariant.runs import RunDirectoryError
from offset_equivariant.training.checkpoint import CheckpointError
from offset_equivariant.training.loop import NonFiniteLossError
from offset_equivariant.training.ranks import is_first, joined_ranks, wait_for_all
from offset_equivariant.training.stopping import TrainingInterruptedError
from offset_equivariant.training.weights import WeightsError

log = logging.getLogger(__name__)

#: These say what to do, and where in the code they came from does not help.
EXPLAINED_ERRORS = (
    ConfigError,
    RunDirectoryError,
    RecordError,
    DataError,
    WeightsError,
    CheckpointError,
    NonFiniteLossError,
    FileNotFoundError,
)


def run_configuration(composed: DictConfig) -> Record | None:
    """Run one composed configuration; a failure leaves a file ``FAILED`` in the run's directory.

    Of several ranks, that is the first to fail: the others then fail because it is gone. A run that refuses another is
    left as it is: the file lies in the folder of all runs then, with experiment and seed in its name; of weights from
    elsewhere, it lies in that of the results.
    """
    with joined_ranks():
        return _run_configuration(composed)


def _run_configuration(composed: DictConfig) -> Record | None:
    run = checked_run(composed)
    config = run.config
    # Where weights from elsewhere are evaluated there is no run, and nothing is left where one would be.
    directory = run.directory if config.weights is None else Path(config.paths.results)
    named = f"FAILED-{config.experiment}-seed{config.seed}"
    mark = directory / (named if config.weights else "FAILED")
    # A run that refuses another is as good as before.
    refused = mark if config.weights else Path(config.paths.runs) / named
    if is_first():
        refused.unlink(missing_ok=True)
    try:
        # A process that waits, or is refused, neither touches the run's mark nor goes on with its curve.
        with run.claimed() if config.trains else nullcontext():
            if is_first():
                mark.unlink(missing_ok=True)
            wait_for_all()
            tracker = make_tracker(
                config.logger.kind if is_first() else "none",
                project=config.logger.project,
                name=f"{config.experiment}-seed{config.seed}",
                group=None if config.table is None else f"table{config.table}",
                config=dict(run.settings),
                directory=directory,
                # A training that goes on is one curve; evaluations, which may be many at once, are runs of their own.
                identity=directory / "wandb-id" if config.trains else None,
            )
            try:
                return run_experiment(run, tracker)
            finally:
                tracker.finish()
    except TrainingInterruptedError:
        raise
    except RunDirectoryError:
        _leave(refused)
        raise
    except Exception:
        _leave(mark)
        raise


def _leave(mark: Path) -> None:
    """Write what failed into a file, unless there is one."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), mark.open("x") as file:
        file.write(traceback.format_exc())


@hydra.main(version_base="1.3", config_path=str(CONFIGURATION), config_name="config")
def main(composed: DictConfig) -> float | None:
    """Run the experiment that the command line composes.

    Returns:
        what a sweeper is to minimise: the metric that the task is judged by, at the lowest saturation of the record, an
        error, or the negative of a ratio in dB; None where nothing was evaluated.
    """
    try:
        record = run_configuration(composed)
    except EXPLAINED_ERRORS as error:
        # In a multirun Hydra must see them.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        log.error("%s", error)
        sys.exit(2)
    except TrainingInterruptedError as interruption:
        log.warning("%s", interruption)
        sys.exit(interruption.exit_status)
    if record is None:
        return None
    metric, unit = headline_metric(experiment_config(plain_settings(composed)))
    saturation, value = min(record.metrics[metric].items(), key=lambda item: float(item[0]))
    name = f"{record.experiment} seed {record.seed}"
    path = record_path(Path(composed.paths.results), record.experiment, record.seed)
    log.info("%s on %s: %s = %.2f at S = %s; record in %s", name, record.dataset, metric, value, saturation, path)
    return -value if unit == "dB" else value


if __name__ == "__main__":
    main()
