"""Measuring how equivariant a module is, and which part of it breaks the property first (Eq. 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeGuard, cast, get_args

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
#: Largest relative errors that rounding explains where offsets are not larger than features, see :func:`_tolerance`.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}
#: What larger offsets add to it: so many units in the last place of the largest one, of inputs with variance 1. Where
#: one such unit, added to the inputs, moves the output further, so many times that.
UNITS_OF_OFFSETS = 16


@dataclass(frozen=True)
class Measurement:
    """The error of Eq. 2 under one condition.

    Attributes:
        dtype: precision of the computation.
        training: whether the module was in training mode.
        magnitude: standard deviation of the offsets.
        absolute: largest |f(x + GΔ) - f(x) - GΔ|.
        relative: the same, divided by the largest magnitude in f(x) and, unless the output is to be invariant, Δ.
        tolerance: largest relative error that rounding explains. It grows with the offsets, next to which features lose
            digits: in single precision it is 1e-4 for small ones, and about 5e-3 at a magnitude of 1000. What breaks
            the property shows in double precision, where it is 1e-10; of networks that
            :func:`~offset_equivariant.nn.fuse_for_inference` folded, as wide as in the type that their weights,
            whose sums the rounding changed, are kept in. It is wider where the module itself multiplies rounding, as
            batch normalisation of a handful of values does in training mode: that is measured.
        moved_by_mean: whether the output, which was to be ``equivariant`` and was not, moved by the mean of the offset.
    """

    dtype: torch.dtype
    training: bool
    magnitude: float
    absolute: float
    relative: float
    tolerance: float
    moved_by_mean: bool = False

    @property
    def within_tolerance(self) -> bool:
        """Whether rounding explains the error; not if it is not a number."""
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class EquivarianceReport:
    """What :func:`check_equivariance` found.

    Attributes:
        measurements: one for each precision, mode and magnitude.
        first_breaking: qualified name of the first submodule whose inputs moved by an offset and whose output did not
            follow; the empty string for the module itself, also if no submodule breaks the property by more than
            rounding and all together do; None if nothing broke. Found in double precision, unless only single breaks.
    """

    measurements: tuple[Measurement, ...]
    first_breaking: str | None

    @property
    def equivariant(self) -> bool:
        """Whether no error is larger than rounding explains, see :class:`Measurement`."""
        return all(m.within_tolerance for m in self.measurements)

    @property
    def moves_by_mean(self) -> bool:
        """Whether, wherever an output that was to be ``equivariant`` broke it, it moved as an invariant head's does."""
        broken = [m for m in self.measurements if not m.within_tolerance]
        return bool(broken) and all(m.moved_by_mean for m in broken)

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
        if self.moves_by_mean:
            lines.append("the output moved by the mean of the offset; of an invariant head's scores: output='mean'")
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
        module: maps tensors ``(N, C, ...)`` to one such tensor. Of a network that begins with the conversion to log
            RGB, the part behind it: an offset of sRGB is no change of light.
        input_shapes: shape of each of its inputs, batch first and channels second, as in all layers but ``Linear``; all
            get the same offset.
        offset_groups: number of groups in the inputs, and in the output if that is ``equivariant``.
        output: what a correct output does.
        magnitudes: standard deviations of the offsets.
        seed: of inputs, offsets, and random layers such as dropout, which draw the same with and without offset.

    Raises:
        TypeError: if a shape is no sequence of whole numbers, or the module does not return one tensor.
        ValueError: for an unknown ``output``, no input shape, no magnitude, or channels that the groups do not divide.
    """
    if output not in get_args(Output):
        raise ValueError(f"output = {output!r} is not one of {', '.join(get_args(Output))}")
    if not input_shapes:
        raise ValueError("give the shape of the module's input, for instance (2, 15, 8, 8)")
    for shape in input_shapes:
        if not isinstance(shape, Sequence) or not all(isinstance(size, Integral) for size in shape):
            raise TypeError(
                f"an input's shape must be a sequence of whole numbers, batch first, but is {shape!r}; give one for "
                "each input, for instance check_equivariance(module, (2, 15, 8, 8))"
            )
    if not magnitudes:
        raise ValueError("magnitudes is empty: nothing would be measured")
    rounded = [name for name, layer in module.named_modules() if _is_projected(layer)]
    measurements = []
    folded = [layer.weight.dtype for layer in module.modules() if _is_folded(layer)]
    broken: str | None = None
    for dtype in TOLERANCES:
        for training in (False, True):
            # On the CPU: not every device has double precision.
            candidate = copy.deepcopy(module).cpu().to(dtype).train(training)
            for name in rounded:
                project_(candidate.get_submodule(name))
            for part in candidate.modules():
                if getattr(part, "synchronised", False):  # would wait for other processes, which need not measure
                    cast(Any, part).synchronised = False
            for magnitude in magnitudes:
                probe = _Probe(candidate, input_shapes, offset_groups, magnitude, dtype, seed, folded)
                measured = probe.measure(output, training)
                measurements.append(measured)
                if not measured.within_tolerance and (not broken or dtype == torch.float64):
                    found = probe.first_breaking(output)
                    broken = (broken or "") if found is None else found
    return EquivarianceReport(tuple(measurements), broken)


def _is_projected(layer: nn.Module) -> bool:
    """Whether a layer holds its constraint by projection, and its weight was projected."""
    if not isinstance(layer, ConstrainedWeight) or _is_folded(layer):
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
        folded: Sequence[torch.dtype],
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
        self.tolerance = _tolerance(dtype, self.offset.abs().max().item(), folded)

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        # The module is on the CPU; torch.manual_seed would seed GPUs, too, which nothing here restores.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            # Copies, since the module may work in place.
            result = self.module(*(x.clone() for x in inputs))
        if not isinstance(result, Tensor | ShiftedFeatures):
            raise TypeError(
                f"the module must return one tensor, but {type(self.module).__name__} returned "
                f"{type(result).__name__}; wrap it in a module that returns the tensor to be checked"
            )
        return _joined(result)

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
        moved_by_mean = False
        if relative > self.tolerance:
            change = self._change_by_rounding(plain)
            self.tolerance = max(self.tolerance, UNITS_OF_OFFSETS * (change / scale if scale else change))
            off_the_mean = (moved - add_offset(plain, self.offset.mean(1, keepdim=True))).abs().max().item()
            moved_by_mean = output == "equivariant" and off_the_mean <= self.tolerance * scale
        return Measurement(self.dtype, training, self.magnitude, absolute, relative, self.tolerance, moved_by_mean)

    def _change_by_rounding(self, plain: Tensor) -> float:
        """How far the output moves when the inputs do by the last place of what the moved ones hold."""
        unit = torch.finfo(self.dtype).eps * max(1.0, self.offset.abs().max().item())
        generator = torch.Generator().manual_seed(self.seed)
        nudged = [x + unit * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in self.inputs]
        return (self.run(nudged) - plain).abs().max().item()

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
        return self.tolerance * max(1.0, values.abs().max().item(), self.magnitude)


def _tolerance(dtype: torch.dtype, largest_offset: float, folded: Sequence[torch.dtype]) -> float:
    """Largest relative error that rounding explains.

    Args:
        dtype: precision of the computation.
        largest_offset: largest |Δ|, of inputs with variance 1: x + GΔ has so much fewer digits of x.
        folded: types of weights that batch normalisation was folded into, whose sums no projection can restore.
    """
    kept = [TOLERANCES.get(stored, TOLERANCES[torch.float32]) for stored in folded]
    return max([TOLERANCES[dtype], *kept]) + UNITS_OF_OFFSETS * torch.finfo(dtype).eps * largest_offset


def _is_folded(layer: nn.Module) -> TypeGuard[ConstrainedWeight]:
    """Whether a layer's weights hold what batch normalisation did: alone, the layer is not equivariant."""
    return isinstance(layer, ConstrainedWeight) and layer.holds_scaled_weight


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
        if _is_folded(part):  # equivariant together with what comes after it
            continue
        handles += [part.register_forward_pre_hook(begin), part.register_forward_hook(end(name))]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
