"""Time the strategies of Table 1, or the ablations, side by side on this device.

    python scripts/measure_costs.py [table1|ablations] [--rounds 9]

Writes results/costs/table1.json or results/ablations/costs.json.

Trainings and inference run as in `train=fast`, without a compiler, on images of noise. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch

from offset_equivariant import provenance
from offset_equivariant.building import build_network, choose_device
from offset_equivariant.composition import CONFIGURATION, checked_run, composed_words
from offset_equivariant.config import ExperimentConfig
from offset_equivariant.data import describe_dataset
from offset_equivariant.performance.measuring import interleaved
from offset_equivariant.performance.settings import device_slug
from offset_equivariant.performance.strategies import BATCH, Subject, subject_of, training_steps
from offset_equivariant.performance.subjects import random_images
from offset_equivariant.reporting.ablations import FOLDER
from offset_equivariant.reporting.costs import Cost, Costs, costs_path, write_costs
from offset_equivariant.reporting.records import find_records

#: Images of noise: enough for a few batches.
IMAGES = 512
#: Largest time over median one that a quiet machine shows.
UNEVEN = 1.3
#: The experiment that trains what balances the images of a strategy.
BALANCING = "quasi_unsupervised"
#: Where the search for a strategy's own settings was recorded, below `results`.
SEARCHES = {"augmentation": "search_jitter", "augmentation_illuminants": "search_illuminants"}


def main() -> None:
    """Measure everything, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=["table1", "ablations"], default="table1")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rounds, prefix = arguments.rounds, {"table1": "table1_", "ablations": "ablation_"}[arguments.subject]
    device = choose_device("auto")
    images = random_images(32, IMAGES, device)
    experiments = sorted(path.stem for path in (CONFIGURATION / "experiment").glob(f"{prefix}*.yaml"))
    subjects = {name.removeprefix(prefix): subject_of(config_of(name), images) for name in experiments}
    searched = {name: search_steps(name) for name in subjects}  # before the timing, which would be lost
    timed: dict[str, Callable[[], object]] = {f"{name} step": s.training_step for name, s in subjects.items()}
    timed |= {f"{name} inference": s.inference for name, s in subjects.items()}
    timed |= {f"{name} balance": s.balance for name, s in subjects.items() if s.balance is not None}
    network = config_of(BALANCING)
    timed[BALANCING] = training_steps(network, build_network(network).to(device), images)
    times = interleaved(timed, device, rounds)
    warn_of_disturbance(times)
    learned = steps_of(network) * times[BALANCING]["median"] / 1000
    rows = {name: cost_of(name, subject, times, learned, searched[name]) for name, subject in subjects.items()}
    commit, dirty = provenance.commit()
    details = {"environment": provenance.environment(device), "rounds": rounds, "ms": times}
    costs = Costs(device_slug(device), torch.get_num_threads(), commit, dirty, rows, details)
    results = provenance.repository_root() / "results"
    path = costs_path(results, 1) if arguments.subject == "table1" else costs_path(results / FOLDER)
    print(f"wrote {write_costs(costs, path)}; now make tables")


def warn_of_disturbance(times: Mapping[str, Mapping[str, Any]]) -> None:
    """Say so if what was timed took much longer at times: something else ran, and the numbers are not worth keeping."""
    uneven = [name for name, time in times.items() if time["max"] > UNEVEN * time["median"]]
    if uneven:
        print(f"WARNING: a round took {UNEVEN} times the median, or more, of {', '.join(uneven)}; measure again, alone")


def config_of(experiment: str) -> ExperimentConfig:
    """Return the configuration of an experiment, without a compiler."""
    return checked_run(composed_words([f"experiment={experiment}", "runtime.compile=false", "mode=train"])).config


def steps_of(config: ExperimentConfig) -> int:
    """Return the steps of an experiment's training."""
    images = describe_dataset(config.dataset.name, **config.dataset.options).images["train"]
    return config.train.total_steps(images // config.train.batch_size)


def cost_of(
    name: str, subject: Subject, times: dict[str, dict[str, Any]], learned_seconds: float, searched_steps: int
) -> Cost:
    """Put together what was timed of a strategy."""
    beforehand = 0.0
    if subject.balance is not None:
        beforehand = times[f"{name} balance"]["median"] / 1000 * subject.training_images / BATCH
    if subject.learned_balancing:
        beforehand += learned_seconds
    return Cost(
        parameters=subject.parameters,
        inference_ms=times[f"{name} inference"]["median"] / BATCH,
        step_ms=times[f"{name} step"]["median"],
        steps=subject.steps,
        beforehand_seconds=beforehand,
        search_steps=searched_steps,
    )


def search_steps(name: str) -> int:
    """Return the steps of all trainings that chose a strategy's own settings; 0 if it has none.

    Raises:
        FileNotFoundError: if the search of a strategy that has settings was not recorded.
    """
    if name not in SEARCHES:
        return 0
    folder = provenance.repository_root() / "results" / SEARCHES[name]
    records = find_records(folder)
    if not records:
        raise FileNotFoundError(f"{folder}: holds no records of the search that chose the settings of {name}")
    return sum(record.steps for record in records)


if __name__ == "__main__":
    main()
