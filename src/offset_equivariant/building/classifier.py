"""Classifiers from files of weights, for whoever wants to use or look into a released one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offset_equivariant.building.common import representation_of
from offset_equivariant.building.quasi_unsupervised import balancing_estimator
from offset_equivariant.color import BALANCING_METHODS
from offset_equivariant.config import RepresentationConfig
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.nn import FAMILIES, fuse_for_inference
from offset_equivariant.provenance import file_sha256, repository_root
from offset_equivariant.tasks.recognition import InputPipeline
from offset_equivariant.training.weights import BALANCING_WEIGHTS, WeightsError, load_weights, read_facts


def load_classifier(weights: Path | str) -> Callable[[Tensor], Tensor]:
    """Return the network in a file of weights as a function from linear images ``(N, 3, H, W)`` to posteriors.

    Posteriors are ``(N, classes)``. The network is folded for inference; what balances its images, where something
    does, is part of the function.

    Raises:
        FileNotFoundError: if there is no such file, or none of the network that balances its images.
        ValueError: if its weights are of an architecture that recognises nothing, or the network that balances is
            another than in training.
    """
    weights = Path(weights)
    facts = read_facts(weights)
    settings = facts.get("config", {})
    model, dataset, strategy = (settings.get(name, {}) for name in ("model", "dataset", "strategy"))
    if model.get("architecture") not in RESNETS:
        raise WeightsError(f"{weights} holds no network of the architectures {', '.join(RESNETS)}")
    family = FAMILIES[model["family"]](**model["family_options"])
    network: nn.Module = RESNETS[model["architecture"]](
        classes=dataset["classes"], family=family, **model.get("options", {})
    )
    load_weights(network, weights)
    network = fuse_for_inference(network) if family.folds else network.eval()
    representation = representation_of(RepresentationConfig(**model["representation"]), dataset["statistics"])
    balancing, path = strategy.get("balancing"), strategy.get("weights")
    estimator = None
    if balancing is not None:
        estimator = BALANCING_METHODS[balancing] if path is None else balancing_estimator(repository_root() / path)
        _require_same_balancing(facts, weights, path)
    return partial(_posteriors, network, InputPipeline(representation, estimator, strategy.get("brightness")))


def _require_same_balancing(facts: Mapping[str, Any], weights: Path, path: str | None) -> None:
    if path is None or BALANCING_WEIGHTS not in facts:
        return
    digest = file_sha256(repository_root() / path)
    if digest != facts[BALANCING_WEIGHTS]:
        raise ValueError(
            f"{weights} learned from images that another network balanced than that in {path}: its digest was "
            f"{facts[BALANCING_WEIGHTS][:8]}, not {digest[:8]}"
        )


@torch.no_grad()
def _posteriors(network: nn.Module, pipeline: InputPipeline, linear: Tensor) -> Tensor:
    return torch.softmax(network(pipeline(linear)), dim=1)
