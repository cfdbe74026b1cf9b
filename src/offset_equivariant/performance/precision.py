"""How well equivariance holds in each precision: of ResNet-20 as trained, and of ResNet-50 with initial weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from offset_equivariant.color import AbsoluteClipping, linear_to_log_rgb
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.data.synthetic import synthetic_images
from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.nn.families import OffsetEquivariant, PlainOffsetEquivariant
from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.tables import replace_block
from offset_equivariant.storage import replace_file
from offset_equivariant.training.weights import load_weights

BEGIN, END = "<!-- precision:begin -->", "<!-- precision:end -->"
#: Offsets are drawn from [-OFFSET, OFFSET], in standard deviations of the log-RGB input.
OFFSET = 3.0
#: The weights of ResNet-20, below the results.
WEIGHTS = Path("checkpoints") / "table1_equivariant-seed0.safetensors"


@dataclass(frozen=True)
class Precision:
    """A way to compute: type of weights and input, and what autocast makes of convolutions and linear layers."""

    dtype: torch.dtype
    autocast: torch.dtype | None = None


PRECISIONS: dict[str, Precision] = {
    "float64": Precision(torch.float64),
    "float32": Precision(torch.float32),
    "float16 autocast": Precision(torch.float32, torch.float16),
    "bfloat16 autocast": Precision(torch.float32, torch.bfloat16),
    "all in float16": Precision(torch.float16),
    "all in bfloat16": Precision(torch.bfloat16),
}


@dataclass(frozen=True)
class Subject:
    """A classifier in double precision, ready for inference, and images and offsets for it.

    Attributes:
        network: ``(N, 3, H, W)`` to ``(N, classes)`` scores, which an offset Δ of the input moves by its mean (Eq. 28).
        images: its input ``(N, 3, H, W)``, float64.
        offsets: Δ of each image, ``(N, 3)``, float64.
    """

    network: nn.Module
    images: Tensor
    offsets: Tensor


@torch.no_grad()
def scores(network: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    """Return the scores, as float64, that a network in double precision gives once it is in another."""
    converted = copy.deepcopy(network).to(precision.dtype)
    low = precision.autocast
    with nullcontext() if low is None else torch.autocast(images.device.type, low):
        found: Tensor = converted(images.to(precision.dtype))
    return found.double()


def measure(subject: Subject, precision: Precision) -> dict[str, float]:
    """Return the errors of a precision, each over the standard deviation of an image's scores.

    ``equivariance``: the largest absolute value of f(x + GΔ) - f(x) - mean(Δ), in this precision. ``rounding``: that of
    the difference of f(x) from the one in double precision.
    """
    exact = scores(subject.network, subject.images, PRECISIONS["float64"])
    spread = exact.std(1).mean()
    still = scores(subject.network, subject.images, precision)
    moved = scores(subject.network, add_offset(subject.images, subject.offsets), precision)
    broken = moved - still - subject.offsets.mean(1, keepdim=True)
    errors = {"equivariance": broken, "rounding": still - exact}
    return {name: float(error.abs().max() / spread) for name, error in errors.items()}


def measure_all(subjects: Mapping[str, Subject]) -> dict[str, dict[str, dict[str, float]]]:
    """Return :func:`measure` by subject and precision."""
    return {
        name: {precision: measure(subject, how) for precision, how in PRECISIONS.items()}
        for name, subject in subjects.items()
    }


def make_subjects(results: Path) -> dict[str, Subject]:
    """Return what is measured, by name.

    Args:
        results: the folder with the released weights.

    Raises:
        FileNotFoundError: if they are not there.
    """
    trained = RESNETS["resnet20"](classes=10, family=OffsetEquivariant(constraint="projection"))
    load_weights(trained, results / WEIGHTS)
    plain = RESNETS["resnet20"](classes=10, family=PlainOffsetEquivariant(constraint="projection"))
    # The plain composition's parameters lie one adapter deeper.
    state = trained.state_dict()
    plain.load_state_dict({name: state[name.replace(".norm.module.", ".")] for name in plain.state_dict()})
    torch.manual_seed(0)
    deep = RESNETS["resnet50"](classes=1000, family=OffsetEquivariant(constraint="projection"))
    small, large = inputs(32, 32), inputs(4, 96)
    return {
        "ResNet-20, trained": Subject(in_double_precision(trained), *small),
        "The same of plain layers": Subject(in_double_precision(plain), *small),
        "ResNet-50, initial weights": Subject(with_statistics_of(in_double_precision(deep), large[0]), *large),
    }


@cache
def inputs(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Log RGB of drawn images, each channel less its mean over the deviation of all, and offsets for them."""
    images = synthetic_images("test", n_test=count, size=side).images
    log_rgb = linear_to_log_rgb(decode_srgb(images).double(), AbsoluteClipping())
    centred = log_rgb - log_rgb.mean((0, 2, 3))[:, None, None]
    generator = torch.Generator().manual_seed(0)
    offsets = OFFSET * (2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1)
    return centred / centred.std(), offsets


def in_double_precision(network: nn.Module) -> nn.Module:
    """Return a network, made with ``constraint="projection"``, as float64, its weights projected anew."""
    network = network.double().eval()
    for module in network.modules():
        if hasattr(module, "project_"):
            cast(Any, module).project_()
    return network


@torch.no_grad()
def with_statistics_of(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a network whose batch normalisations have the statistics of these images, as if it had been trained."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def render_precision(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    errors: Mapping[str, Mapping[str, Mapping[str, float]]] = found["errors"]
    rows = [[name, *map(_both, of.values())] for name, of in errors.items()]
    header = ["Network", *PRECISIONS]
    environment = found["environment"]
    dirty = ", with uncommitted changes" if found["dirty"] else ""
    said = (
        f"Largest error of equivariance under offsets of up to {found['offset']:g} standard deviations of the input / "
        "largest rounding error of the scores without an offset, both over the standard deviation of an image's "
        f"scores. torch {environment['torch']} on a {environment['device']}, commit {found['commit'][:8]}{dirty}."
    )
    return f"{markdown_rows([header, *rows])}\n\n{said}\n"


def _both(errors: Mapping[str, float]) -> str:
    return " / ".join(f"{errors[name]:.0e}" if errors[name] else "0" for name in ("equivariance", "rounding"))


def write_precision(root: Path, found: Mapping[str, Any]) -> Path:
    """Put the table into docs/PERFORMANCE.md, and return its path."""
    path = root / "docs" / "PERFORMANCE.md"
    text = replace_block(path.read_text(encoding="utf-8"), render_precision(found), BEGIN, END)
    replace_file(path, text.encode())
    return path
