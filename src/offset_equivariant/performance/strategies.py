"""What is timed to say what the strategies of Table 1 cost: training steps, inference, what comes before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from offset_equivariant.building import balancing_weights, build_network, plan_training
from offset_equivariant.building.quasi_unsupervised import load_balancing_network
from offset_equivariant.building.recognition import build_evaluation, build_pipeline
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.config import ExperimentConfig
from offset_equivariant.data import LabelledImages, describe_dataset

#: Images of a timed inference, as the sweep takes them, and those whose balancing is timed.
BATCH = 250


@dataclass(frozen=True)
class Subject:
    """One strategy, ready to be timed.

    Attributes:
        parameters: of the network, and of the one that balances its images.
        steps: of its training.
        training_images: how many are balanced before its training.
        training_step: takes one.
        inference: posteriors of ``BATCH`` images.
        balance: balances ``BATCH`` training images; None where none are.
        learned_balancing: whether a network does, which is trained beforehand.
    """

    parameters: int
    steps: int
    training_images: int
    training_step: Callable[[], object]
    inference: Callable[[], object]
    balance: Callable[[], object] | None
    learned_balancing: bool


def subject_of(config: ExperimentConfig, images: LabelledImages) -> Subject:
    """Build the networks of an experiment on CIFAR-10 with random weights, but for the one that balances.

    Args:
        config: of the experiment.
        images: any, enough for a few steps, on the device; only their number and size matter.
    """
    torch.manual_seed(0)
    described = describe_dataset(config.dataset.name, **config.dataset.options)
    network = build_network(config).to(images.images.device)
    pipeline = build_pipeline(config)
    linear = decode_srgb(images.images[:BATCH])
    evaluation = build_evaluation(config, network, images)
    balances = pipeline.balances and config.strategy.jitter is None and config.strategy.illuminant_saturation is None
    return Subject(
        parameters=count_parameters(network) + _balancing_parameters(config),
        steps=config.train.total_steps(described.images["train"] // config.train.batch_size),
        training_images=described.images["train"],
        training_step=training_steps(config, network, images),
        inference=lambda: evaluation.posteriors(linear),
        balance=(lambda: pipeline.from_srgb_bytes(images.images[:BATCH])) if balances else None,
        learned_balancing=balancing_weights(config) is not None,
    )


def training_steps(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> Callable[[], object]:
    """Return a function that takes the next step of an experiment's training."""
    task, numbers = plan_training(config, network, images).task, count()
    return lambda: task.training_step(next(numbers), 1.0)


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _balancing_parameters(config: ExperimentConfig) -> int:
    path = balancing_weights(config)
    return 0 if path is None else count_parameters(load_balancing_network(path))
