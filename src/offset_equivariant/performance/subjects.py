"""What is timed: training steps, inference, input pipeline and sweep of ResNet-20, in three versions.

``original`` and ``equivariant`` are the networks of Table 1; ``plain`` is the equivariant one of the readable
compositions of :mod:`offset_equivariant.nn.adapters`, feature maps passed on as tensors, nothing fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offset_equivariant.color import AbsoluteClipping
from offset_equivariant.color.representation import Representation
from offset_equivariant.data.labelled_images import LabelledImages
from offset_equivariant.evaluation.sweep import SATURATIONS, sweep
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.constraint import project_
from offset_equivariant.nn.families import Conventional, LayerFamily, OffsetEquivariant, PlainOffsetEquivariant
from offset_equivariant.nn.inference import fuse_for_inference
from offset_equivariant.performance.settings import Setting
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, RecognitionTraining, kept_batches
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation

NETWORKS = ("original", "equivariant", "plain")
#: Of the layer family, by network.
FAMILY_NAMES = {"original": "conventional", "equivariant": "offset_equivariant", "plain": "offset_equivariant"}
CLASSES = 10


@dataclass(frozen=True)
class Size:
    """How much is computed at a time."""

    batch: int = 128
    side: int = 32
    offset_groups: int = 3


def family_of(network: str, offset_groups: int = 3) -> LayerFamily:
    """Return the layers of one of ``NETWORKS``."""
    if network == "original":
        return Conventional()
    return (OffsetEquivariant if network == "equivariant" else PlainOffsetEquivariant)(offset_groups)


def build(network: str, size: Size, setting: Setting, device: torch.device) -> CifarResNet:
    """Build the network, with as many input channels as there are offset groups."""
    torch.manual_seed(0)
    family = family_of(network, size.offset_groups)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return CifarResNet(20, CLASSES, family, size.offset_groups).to(device).to(memory_format=layout)


def random_images(side: int, count: int, device: torch.device) -> LabelledImages:
    """Images of noise, kept as a data set's are; only their size matters."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    classes = tuple(map(str, range(CLASSES)))
    return LabelledImages("noise", "train", images, labels, classes, sha256="", synthetic=True).to(device)


def pipeline_of(network: str) -> InputPipeline:
    """Return the network's conversion of images."""
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if network == "original":
        return InputPipeline(Representation("srgb", zeros, ones))
    return InputPipeline(Representation("log_rgb", zeros, ones, AbsoluteClipping()))


def training_of(network: str, size: Size, setting: Setting, device: torch.device) -> RecognitionTraining:
    """Return a training whose steps are timed, on RGB images enough for a few batches."""
    module = build(network, size, setting, device)
    images, pipeline = random_images(size.side, 4 * size.batch, device), pipeline_of(network)
    return RecognitionTraining(
        module,
        _optimizer(module),
        kept_batches(images, pipeline, Augmentation(), size.batch, seed=0),
        pipeline,
        Augmentation(),
        seed=0,
        channels_last=setting.channels_last,
        forward=torch.compile(module) if setting.compile else None,
    )


def bare_step_of(network: str, size: Size, setting: Setting, device: torch.device) -> Callable[[], None]:
    """Return a training step on one batch that is there already, of any number of channels."""
    module = build(network, size, setting, device)
    optimizer = _optimizer(module)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.rand(size.batch, size.offset_groups, size.side, size.side, device=device).to(memory_format=layout)
    labels = torch.arange(size.batch, device=device) % CLASSES

    return training_step(module, optimizer, images, labels)


def training_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Return a function that takes one step of image recognition, on the same images each time."""

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
        project_(module)

    return step


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)


def inference_of(network: str, size: Size, setting: Setting, device: torch.device) -> Callable[[], Tensor]:
    """Return a forward pass, of the folded network but for ``plain``."""
    module = build(network, size, setting, device).eval()
    fused = module if network == "plain" else fuse_for_inference(module)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.rand(size.batch, size.offset_groups, size.side, size.side, device=device).to(memory_format=layout)

    @torch.no_grad()
    def run() -> Tensor:
        scores: Tensor = fused(images)
        return scores

    return run


def sweep_of(
    network: str, images: int, batch: int, setting: Setting, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a sweep over all saturations, and as many bare forward passes over the same images, folded both."""
    module = fuse_for_inference(build(network, Size(), setting, device))
    data = random_images(32, images, device)
    task = RecognitionEvaluation(module, data, pipeline_of(network), channels_last=setting.channels_last)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    batches = [part.to(memory_format=layout) for part in torch.rand(images, 3, 32, 32, device=device).split(batch)]

    @torch.no_grad()
    def bare() -> None:
        for _ in SATURATIONS:
            for part in batches:
                module(part)

    return lambda: void(sweep(task, batch_size=batch)), bare


def void(_: object) -> None:
    """Discard a result."""
