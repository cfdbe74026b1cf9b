"""What Table 2 costs on all of ILSVRC-12: an estimate from counted operations and measured rates.

Operations are counted by torch, those of convolutions and matrix products, forward and backward. How much longer a step
of the equivariant network takes is measured on the machine at hand; how much a GPU does in a second is assumed.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offset_equivariant.data.ilsvrc12 import ILSVRC12
from offset_equivariant.evaluation.sweep import SATURATIONS
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.performance.subjects import family_of, training_step
from offset_equivariant.reporting.markdown import markdown_rows

NETWORKS = ("original", "equivariant")
#: Height and width of the images, and epochs, of the recipe train=imagenet_paper.
SIDE, EPOCHS = 224, 90
#: The assumption: an NVIDIA A100 that trains in float32 with TF32 convolutions, at 13 % of its 156 TFLOP/s.
GPU, SUSTAINED_TFLOPS = "NVIDIA A100, float32 with TF32 convolutions", 20.0


def build(network: str) -> nn.Module:
    """Build ResNet-50 with 1,000 classes, of one of ``NETWORKS``."""
    torch.manual_seed(0)
    return RESNETS["resnet50"](classes=ILSVRC12.classes, family=family_of(network)).to(
        memory_format=torch.channels_last
    )


def operations(network: str, side: int = SIDE) -> dict[str, float]:
    """Count floating-point operations of one image, in 10⁹: of the ``forward`` pass, and of a ``training`` step."""
    module, images = build(network), _images(2, side)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        module(images)
    with FlopCounterMode(display=False) as training:
        module(images).sum().backward()
    return {
        "forward": forward.get_total_flops() / len(images) / 1e9,
        "training": training.get_total_flops() / len(images) / 1e9,
    }


def step_seconds(batch: int, side: int = SIDE, rounds: int = 5) -> dict[str, float]:
    """Return the processor time of a training step by network: medians of alternating steps on this process's threads.

    Processor time, so that other processes on the machine count less.
    """
    steps = {network: _step(build(network), _images(batch, side)) for network in NETWORKS}
    times: dict[str, list[float]] = {network: [] for network in NETWORKS}
    for _ in range(rounds + 1):
        for network, step in steps.items():
            started = time.process_time()
            step()
            times[network].append(time.process_time() - started)
    return {network: statistics.median(values[1:]) for network, values in times.items()}  # the first one warms up


def gpu_hours(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Estimate GPU-hours of ``training`` and of the ``evaluation`` at all saturations, by network.

    The original's are its operations over the assumed rate; the equivariant network's are as many times as much as its
    step takes on the machine that was measured.

    Args:
        found: ``operations`` and ``step_seconds`` by network.
    """
    rate = SUSTAINED_TFLOPS * 1000 * 3600  # 10⁹ operations an hour
    original = found["operations"]["original"]
    shown = {"training": EPOCHS * ILSVRC12.images["train"], "evaluation": len(SATURATIONS) * ILSVRC12.images["test"]}
    hours = {
        "training": shown["training"] * original["training"] / rate,
        "evaluation": shown["evaluation"] * original["forward"] / rate,
    }
    slower = found["step_seconds"]["equivariant"] / found["step_seconds"]["original"]
    return {"original": hours, "equivariant": {what: slower * value for what, value in hours.items()}}


def cores_a_gpu(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Estimate how many cores like the one measured keep a GPU at the assumed rate busy, by network.

    That is the images a second that the GPU takes, in ``training`` and in ``evaluation``, over those that a core reads.

    Args:
        found: ``operations`` and ``step_seconds`` by network, and ``large``, what was read of the size of ILSVRC-12's.
    """
    reading = found["large"]["reading"]
    original = found["operations"]["original"]
    cores = {
        what: SUSTAINED_TFLOPS * 1000 / original[passes] / reading[what]
        for what, passes in (("training", "training"), ("evaluation", "forward"))
    }
    slower = found["step_seconds"]["equivariant"] / found["step_seconds"]["original"]
    return {"original": cores, "equivariant": {what: value / slower for what, value in cores.items()}}


def render_costs(found: dict[str, Any]) -> str:
    """Return what was measured and what it is estimated to mean, as Markdown."""
    hours, seconds = gpu_hours(found), found["step_seconds"]
    header = ["ResNet-50", "GFLOP, forward", "GFLOP, training", "images/s", "step, ratio"]
    header += ["GPU-hours, training", "evaluation"]
    rows = [
        [
            network,
            f"{found['operations'][network]['forward']:.2f}",
            f"{found['operations'][network]['training']:.2f}",
            f"{found['batch'] / seconds[network]:.1f}",
            f"{seconds[network] / seconds['original']:.2f}",
            f"{hours[network]['training']:.0f}",
            f"{hours[network]['evaluation']:.1f}",
        ]
        for network in NETWORKS
    ]
    return "\n".join(
        [
            "# What Table 2 costs",
            "",
            f"ResNet-50 with 1,000 classes at {SIDE} x {SIDE} pixels. Operations are those of convolutions and matrix "
            "products, a multiplication and an addition being two. Images a second: training steps of "
            f"{found['batch']} images on {found['threads']} thread of {found['processor']} (processor time, torch "
            f"{found['torch']}, commit {found['commit'][:8]}).",
            "",
            f"**GPU-hours are an estimate**, of {EPOCHS} epochs of {ILSVRC12.images['train']:,} images, and of "
            f"{len(SATURATIONS)} saturations of {ILSVRC12.images['test']:,}: the original's operations at an assumed "
            f"{SUSTAINED_TFLOPS:.0f} TFLOP/s ({GPU}); the equivariant network's, that times the ratio of the steps "
            "measured here. They assume that the images are read as fast as the GPU takes them. It has not been run.",
            "",
            markdown_rows([header, *rows]),
            "",
            *_rendered_reading(found),
        ]
    )


def _rendered_reading(found: dict[str, Any]) -> list[str]:
    """What a core reads, of both kinds of files where both were measured, and how many cores a GPU needs."""
    kinds = [found["images"] + ", smaller than those of ILSVRC-12"]
    rates = [found["reading"]]
    if "large" in found:
        kinds.append(found["large"]["images"])
        rates.append(found["large"]["reading"])
    lines = [
        "Images a second that one core reads; none of the lines can have more than the first, decoding alone:",
        "",
        markdown_rows(
            [["images/s", *kinds], *([name, *(f"{rate[name]:.0f}" for rate in rates)] for name in found["reading"])]
        ),
        "",
    ]
    if "large" not in found:
        return lines
    cores = cores_a_gpu(found)
    needed = ", ".join(
        f"{values['training']:.1f} such cores in training and {values['evaluation']:.1f} in evaluation ({network})"
        for network, values in cores.items()
    )
    rate = SUSTAINED_TFLOPS * 1000 / found["operations"]["original"]["training"]
    return [
        *lines,
        f"At the assumed rate a GPU takes {rate:.0f} images a second in the training of the original network. To read "
        f"images of the size of ILSVRC-12's as fast, it needs {needed}.",
        "",
    ]


def _images(batch: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, side, side, generator=generator).to(memory_format=torch.channels_last)


def _step(module: nn.Module, images: Tensor) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    labels = torch.arange(len(images))
    return training_step(module, optimizer, images, labels)
