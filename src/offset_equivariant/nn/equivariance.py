"""Measuring how equivariant a module is, and which part of it breaks the property first (Eq. 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offset_equivariant.groups import add_offset, group_mean
from offset_equivariant.nn.constraint import ConstrainedWeight, project_
from offset_equivariant.nn.shifted import FeatureMaps, ShiftedFeatures

#: What an offset Δ of the input does to a correct output: adds GΔ (Eq. 2), the mean of Δ to everything (the scores of
#: an invariant head, Eq. 28), or nothing.
Output = Literal["equivariant", "mean", "invariant"]

MAGNITUDES = (0.1, 1.0, 10.0, 1000.0)
#: Largest relative errors that rounding explains, for the verdict and for finding the submodule that breaks first.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Measurement:
    """The error of Eq. 2 under one condition.

    Attributes:
        dtype: precision of the computation.
        training: whether the module was in training mode.
        magnitude: standard deviation of the offsets.
        absolute: largest |f(x + GΔ) - f(x) - GΔ|.
        relative: the same, divided by the largest magnitude in f(x) and, unless the output is to be invariant, Δ.
    """

    dtype: torch.dtype
    training: bool
    magnitude: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class EquivarianceReport:
    """What :func:`check_equivariance` found.

    Attributes:
        measurements: one for each precision, mode and magnitude.
        first_breaking: qualified name of the first submodule whose inputs moved by an offset and whose output did not
            follow; the empty string for the module itself; None if nothing broke.
    """

    measurements: tuple[Measurement, ...]
    first_breaking: str | None

    @property
    def equivariant(self) -> bool:
        """Whether no error is larger than rounding explains, see ``TOLERANCES``."""
        return all(m.relative <= TOLERANCES[m.dtype] for m in self.measurements)

    def worst(self, dtype: torch.dtype = torch.float64) -> float:
        """Return the largest relative error in that precision; not a number if one is not."""
        errors = [m.relative for m in self.measurements if m.dtype == dtype]
        return torch.tensor(errors, dtype=torch.float64).max().item()

    def __str__(self) -> str:
        lines = [f"{'dtype':8} {'mode':6} {'offset':>8} {'absolute':>10} {'relative':>10}"]
        lines += [
            f"{str(m.dtype).removeprefix('torch.'):8} {'train' if m.training else 'eval':6} "
            f"{m.magnitude:8g} {m.absolute:10.2e} {m.relative:10.2e}"
            for m in self.measurements
        ]
        if self.first_breaking is not None:
            lines.append(f"first to break it: {self.first_breaking or 'the module itself'}")
        return "\n".join(lines)


def check_equivariance(
    module: nn.Module,
    *input_shapes: Sequence[int],
    offset_groups: int = 3,
    output: Output = "equivariant",
    magnitudes: Sequence[float] = MAGNITUDES,
    seed: int = 0,
) -> EquivarianceReport:
    """Measure the error of Eq. 2 in single and double precision, training and evaluation mode.

    The module itself is not touched: copies are measured, with random inputs and one random offset an image and group.
    They have the module's weights as they are. Of layers held by projection (``constraint="projection"``), weights that
    satisfy Eq. 16 up to the rounding of the type that they are kept in, as float32 numbers do to 1e-7, are projected
    again in the precision of the measurement; weights that do not, since :func:`project_` was not called after they
    were loaded or trained, are measured like any others, and break the property.

    Args:
        module: maps tensors ``(N, C, ...)`` to one such tensor.
        input_shapes: shape of each of its inputs, batch first; all get the same offset.
        offset_groups: number of groups in the inputs, and in the output if that is ``equivariant``.
        output: what a correct output does.
        magnitudes: standard deviations of the offsets.
        seed: of inputs, offsets, and random layers such as dropout, which draw the same with and without offset.

    Raises:
        ValueError: for an unknown ``output``, no input shape, no magnitude, or channels that the groups do not divide.
    """
    if output not in get_args(Output):
        raise ValueError(f"output = {output!r} is not one of {', '.join(get_args(Output))}")
    if not input_shapes:
        raise ValueError("give the shape of the module's input, for instance (2, 15, 8, 8)")
    if not magnitudes:
        raise ValueError("magnitudes is empty: nothing would be measured")
    rounded = [name for name, layer in module.named_modules() if _is_projected(layer)]
    measurements = []
    broken: str | None = None
    for dtype in TOLERANCES:
        for training in (False, True):
            # On the CPU: not every device has double precision.
            candidate = copy.deepcopy(module).cpu().to(dtype).train(training)
            for name in rounded:
                project_(candidate.get_submodule(name))
            for magnitude in magnitudes:
                probe = _Probe(candidate, input_shapes, offset_groups, magnitude, dtype, seed)
                measured = probe.measure(output, training)
                measurements.append(measured)
                follows = measured.relative <= TOLERANCES[dtype]  # false for NaN
                if not follows and (broken is None or dtype == torch.float64):
                    found = probe.first_breaking(output)
                    broken = broken if found is None else found
    return EquivarianceReport(tuple(measurements), broken)


def _is_projected(layer: nn.Module) -> bool:
    """Whether a layer holds its constraint by projection, and its weight was projected."""
    if not isinstance(layer, ConstrainedWeight) or layer.holds_scaled_weight:
        return False
    return not parametrize.is_parametrized(layer, "weight") and layer.satisfies_constraint()


class _Probe:
    """One input and one offset, and what the module makes of them."""

    def __init__(
        self,
        module: nn.Module,
        shapes: Sequence[Sequence[int]],
        offset_groups: int,
        magnitude: float,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.module = module
        self.offset_groups = offset_groups
        self.magnitude = magnitude
        self.dtype = dtype
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        self.offset = magnitude * torch.randn(shapes[0][0], offset_groups, generator=generator, dtype=torch.float64)
        self.moved = [add_offset(x, self.offset).to(dtype) for x in self.inputs]
        # What rounding x + GΔ loses is no error of the module: the plain input is the moved one, moved back.
        self.offset = self.offset.to(dtype)
        self.inputs = [add_offset(x, -self.offset) for x in self.moved]

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # Copies, since the module may work in place.
            return _joined(self.module(*(x.clone() for x in inputs)))

    def measure(self, output: Output, training: bool) -> Measurement:
        plain, moved = self.run(self.inputs), self.run(self.moved)
        expected = plain
        if output == "equivariant":
            if plain.ndim < 2 or plain.shape[1] % self.offset_groups:
                raise ValueError(
                    f"the output has shape {tuple(plain.shape)}, and offset_groups = {self.offset_groups} does not "
                    "divide its channels; if these are the scores of an invariant head, pass output='mean' (Eq. 28)"
                )
            expected = add_offset(plain, self.offset)
        elif output == "mean":
            expected = add_offset(plain, self.offset.mean(1, keepdim=True))
        absolute = (moved - expected).abs().max().item()
        scale = plain.abs().max().item()
        if output != "invariant":
            scale = max(scale, self.offset.abs().max().item())
        relative = absolute / scale if scale else absolute
        return Measurement(self.dtype, training, self.magnitude, absolute, relative)

    def first_breaking(self, output: Output) -> str | None:
        with _recorded(self.module) as calls:
            self.run(self.inputs)
            half = len(calls)
            self.run(self.moved)
        for (name, inputs, result), (_, moved_inputs, moved_result) in zip(calls[:half], calls[half:], strict=True):
            offsets = [self._offset_between(a, b) for a, b in zip(inputs, moved_inputs, strict=True)]
            if offsets and all(offset is not None for offset in offsets):
                found = self._offset_between(result, moved_result)
                if found is None or not self._follows(found, offsets[0], output):
                    return name
        return None

    def _offset_between(self, plain: Tensor, moved: Tensor) -> Tensor | None:
        """The offset by which a tensor moved, one number an image and group; None if it moved otherwise."""
        difference = moved - plain
        divisible = plain.ndim > 1 and plain.shape[1] % self.offset_groups == 0
        groups = self.offset_groups if divisible else 1
        offset = group_mean(difference if plain.ndim > 1 else difference[:, None], groups)
        rest = add_offset(difference if plain.ndim > 1 else difference[:, None], -offset)
        return offset if rest.abs().max().item() <= self._tolerance(plain) else None

    def _follows(self, found: Tensor, given: Tensor | None, output: Output) -> bool:
        """Whether the output moved by the offset of the input, or in the other way that ``output`` allows for."""
        assert given is not None
        possible = [given] if found.shape[1] == given.shape[1] else []
        if output == "mean" or not possible:
            possible.append(given.mean(1, keepdim=True).expand_as(found))
        if output == "invariant":
            possible.append(torch.zeros_like(found))
        return any(bool((found - offset).abs().max().item() <= self._tolerance(offset)) for offset in possible)

    def _tolerance(self, values: Tensor) -> float:
        return TOLERANCES[self.dtype] * max(1.0, values.abs().max().item(), self.magnitude)


def _joined(x: FeatureMaps) -> Tensor:
    return x.joined() if isinstance(x, ShiftedFeatures) else x.detach().clone()


_Call = tuple[str, list[Tensor], Tensor]


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[_Call]]:
    """Record name, tensor inputs and output of every submodule's call, in the order in which the calls end."""
    calls: list[_Call] = []

    begun: list[list[Tensor]] = []

    # Before the call: a module that works in place overwrites its inputs.
    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        given = [_joined(x) for x in inputs if isinstance(x, Tensor | ShiftedFeatures)]
        begun.append([x for x in given if x.is_floating_point()])

    def end(name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
            given = begun.pop()
            if isinstance(result, Tensor | ShiftedFeatures):
                calls.append((name, given, _joined(result)))

        return record

    handles = []
    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(begin), part.register_forward_hook(end(name))]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
