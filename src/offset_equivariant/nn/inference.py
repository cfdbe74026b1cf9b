r"""Networks for inference alone: the running statistics of batch normalisation folded into the convolutions.

For ordinary layers this is textbook. For equivariant ones, with :math:`a_c = \gamma_c / \sqrt{V_c + \epsilon}` and
:math:`t_c = \beta_c - a_c M_c`, the convolution's weights and bias are multiplied by a, so that its values and shift
become :math:`v' = a v` and :math:`s' = a s`. Step 3 of :mod:`offset_equivariant.nn.fused` is then
:math:`h = v' + s' + t + (1 - a_c) \varphi`, where φ, the group's mean of the unscaled output, is that of
:math:`(\mathrm{mean}(v') + s') / a` over its channels. What is left for every value is to add a bias, one an image and
channel, and to rectify.

The addition could be saved, since :math:`\mathrm{relu}(v' + b) = \max(v', -b) + b` and b could go to the shift. Then
values and shift grow from block to block of a residual network and cancel: in single precision that cost the scores of
ResNet-50 two to three digits.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from offset_equivariant.nn import adapters, concatenation, one_position, pooling, residual, shifted
from offset_equivariant.nn.constraint import ConstrainedWeight, remove_parametrizations_
from offset_equivariant.nn.fused import (
    BatchNormOfShortcut,
    BatchNormReLU,
    ConventionalBatchNormReLU,
    FusedNormalisation,
    room_with_border,
)
from offset_equivariant.nn.fused_passes import Layout, over_pixels, pixel_mean, shortcut_level, spread_mean
from offset_equivariant.nn.layers import Conv2d
from offset_equivariant.nn.padding import write_border_
from offset_equivariant.nn.shifted import ShiftedFeatures, require_tensor, unshifted
from offset_equivariant.nn.synchronised import SynchronisableBatchNorm2d

#: Stands for a scale of zero, whose channel still counts in its group's mean.
_LEAST_SCALE = 1e-30


class _FoldedNormalisation(nn.Module):
    """What folded batch normalisation has, with and without the rectifier."""

    scale: Tensor
    constant: Tensor

    def __init__(self, scale: Tensor, constant: Tensor, offset_groups: int, border: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("constant", constant)
        self.offset_groups = offset_groups
        self.border = border
        self._require_scales()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        converted = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._require_scales()
        return converted

    def _require_scales(self) -> None:
        """Refuse scales that the type has no digits for: group means are divided by them."""
        if self.scale.is_floating_point() and not self.scale.is_meta and not self.scale.all():
            raise ValueError(
                f"some of a folded batch normalisation's scales are zero in {self.scale.dtype}: convert the network as "
                "it was before fuse_for_inference, or keep the folded one in float32 or bfloat16"
            )

    def _groups_of(self, z: ShiftedFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of each channel, φ, and what the shift lacks of h - φ."""
        level = pixel_mean(z.values, z.shift.dtype) + z.shift
        group = spread_mean(level / self.scale, self.offset_groups)
        return level, group, self.constant - self.scale * group


class FoldedBatchNormOfShortcut(_FoldedNormalisation):
    """What is left of :class:`BatchNormOfShortcut`: another shift."""

    def forward(self, input: Any) -> Any:
        """As :meth:`BatchNormOfShortcut.forward`, of the folded convolution's output."""
        z = input if isinstance(input, ShiftedFeatures) else unshifted(input, self.offset_groups)
        _, group, constant = self._groups_of(z)
        normalised = z._replace(shift=z.shift + constant + group)
        return normalised if isinstance(input, ShiftedFeatures) else normalised.joined().to(input.dtype)


class FoldedBatchNormReLU(_FoldedNormalisation):
    """What is left of :class:`BatchNormReLU` once its scale and shift are in the convolution before it."""

    def forward(self, input: Any, shortcut: Any = None) -> Any:
        """As :meth:`BatchNormReLU.forward`, of the folded convolution's output, which has no gradient.

        Raises:
            RuntimeError: if it has one.
        """
        values = input.values if isinstance(input, ShiftedFeatures) else input
        if torch.is_grad_enabled() and values.requires_grad:
            raise RuntimeError(
                "a network folded by fuse_for_inference has no gradients, and its input requires one; differentiate "
                "the network that it was made of, or call this one under torch.no_grad()"
            )
        if isinstance(input, ShiftedFeatures):
            return self._rectified(input, shortcut)
        wrapped = None if shortcut is None else unshifted(require_tensor(shortcut), self.offset_groups)
        return self._rectified(unshifted(input, self.offset_groups), wrapped).joined().to(input.dtype)

    def _rectified(self, z: ShiftedFeatures, x: ShiftedFeatures | None) -> ShiftedFeatures:
        level, group, constant = self._groups_of(z)
        rectified_from = spread_mean(level + constant, self.offset_groups)
        bias = z.shift + constant - rectified_from
        if x is not None:
            bias = bias + cast(Tensor, shortcut_level(x.values, x.shift, self.offset_groups))
        values, padded = self._add_and_rectify(z.values, None if x is None else x.values, bias)
        return ShiftedFeatures(values, rectified_from + group, z.offset, padded)

    def _add_and_rectify(self, z: Tensor, x: Tensor | None, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``relu(z [+ x] + bias)``, and the same within its border."""
        if torch.compiler.is_compiling():
            y = z if x is None else z + x
            return torch.relu(y + over_pixels(bias)).to(y.dtype), None
        layout = Layout(z)
        # In place: the output of a convolution, which nothing else needs.
        values, padded = room_with_border(z, self.border) if self.border else (z, None)
        seen = layout.see(z) if x is None else layout.see(z).add_(layout.see(x))
        torch.add(seen, layout.spread(bias), out=layout.see(values))
        values.relu_()
        if padded is not None:
            write_border_(padded)
        return values, padded


class MergeReLU(nn.Module):
    """What is left of :class:`ConventionalBatchNormReLU`: ``relu(input [+ shortcut])``."""

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return nn.functional.relu_(input if shortcut is None else input.add_(shortcut))


def fuse_for_inference(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` for inference, in evaluation mode, with the running statistics in its weights.

    Every convolution whose output goes to one batch normalisation alone is folded with it: ``BatchNormReLU`` and that
    of projected shortcuts, in either layer family, or torch's own behind torch's own convolution. Layers with hooks on
    their forward pass, with weights that something else computes, or of classes with a ``forward`` of their own are
    left as they are. The result computes the same up to rounding, has no gradients, not even of its input, and can be
    given to ``torch.export`` and ONNX. What follows a folded convolution overwrites its output, which hooks must not
    keep.

    Args:
        network: one that ``torch.fx`` can trace, without branches that depend on the data or its shape.

    Raises:
        ValueError: if it cannot be traced, or nothing in it can be folded.
    """
    fused = copy.deepcopy(network).eval().requires_grad_(False)
    remove_parametrizations_(fused)
    pairs = _foldable(fused)
    if not pairs:
        raise ValueError(
            "there is nothing to fold: no convolution of this package is followed by BatchNormReLU (put it in the "
            "place of BatchNorm2d and ReLU), and none of torch's, with a weight of its own, by torch's BatchNorm2d"
        )
    for convolution_name, norm_name in pairs:
        convolution, norm = fused.get_submodule(convolution_name), fused.get_submodule(norm_name)
        fused.set_submodule(norm_name, _fold(convolution, norm))
    return fused


#: The layers of this package, and what is derived from them: wholes to ``torch.fx``, which cannot see through their
#: checks. For tracers other than that of :func:`fuse_for_inference`, such as torchvision's ``create_feature_extractor``
#: with ``tracer_kwargs={"leaf_modules": list(LEAF_MODULES)}``.
LEAF_MODULES: tuple[type[nn.Module], ...] = (
    ConstrainedWeight,
    FusedNormalisation,
    ConventionalBatchNormReLU,
    SynchronisableBatchNorm2d,
    _FoldedNormalisation,
    MergeReLU,
    adapters.OffsetAdapter,
    adapters.Maxout,
    adapters.InvariantHead,
    concatenation.Concatenation,
    concatenation.ConventionalConcatenation,
    one_position.Conv2d,
    one_position.ConvTranspose2d,
    pooling.MaxPool2d,
    pooling._AvgPool,
    pooling._GroupPooling,
    pooling.GroupLinear,
    residual.ResidualMerge,
    residual.OptionAShortcut,
    residual.ConventionalOptionAShortcut,
    shifted.TakeOutOffset,
    shifted.Joined,
    shifted.GlobalAveragePool,
)


class _Tracer(fx.Tracer):
    """Sees the layers of this package as wholes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = m.__module__.startswith("offset_equivariant.nn.")
        return inside or isinstance(m, LEAF_MODULES) or super().is_leaf_module(m, module_qualified_name)


def _foldable(network: nn.Module) -> list[tuple[str, str]]:
    """Names of the pairs to fold, as convolution and normalisation."""
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx: {error}; give the part of it that can be, from "
            "the first convolution on"
        ) from error
    holders = Counter(id(own) for part in network.modules() for own in part.parameters(recurse=False))
    # A weight that the network's own code reads, a tied one for instance.
    holders.update(id(_attribute(network, str(node.target))) for node in graph.nodes if node.op == "get_attr")
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    pairs = []
    for node in graph.nodes:
        given = node.args[0] if node.args else node.kwargs.get("input")
        source = given if node.op == "call_module" else None
        if isinstance(source, fx.Node) and source.op == "call_module" and _uses(source) == 1:
            names = str(source.target), str(node.target)
            modules = [network.get_submodule(name) for name in names]
            # A module that is called twice may meet other inputs the other time, and so may a weight of two modules.
            once = calls[names[0]] == calls[names[1]] == 1
            shared = any(holders[id(own)] > 1 for own in modules[0].parameters(recurse=False))
            if once and not shared and _fit(*modules):
                pairs.append(names)
    return pairs


def _attribute(network: nn.Module, name: str) -> Any:
    """What a dotted name of a traced graph stands for."""
    found: Any = network
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _uses(source: fx.Node) -> int:
    """How often a node's result is taken; one user may take it twice, as input and as shortcut."""
    taken: list[fx.Node] = []
    for user in source.users:
        fx.node.map_arg((user.args, user.kwargs), taken.append)
    return taken.count(source)


def _fit(convolution: nn.Module, norm: nn.Module) -> bool:
    # Of another parametrised layer, ``weight`` is computed anew at every call; and what hooks do would be lost.
    if "weight" not in convolution._parameters or _is_hooked(convolution) or _is_hooked(norm):
        return False
    if _computes_as(norm, BatchNormReLU, BatchNormOfShortcut):
        return _computes_as(convolution, Conv2d)
    complete = isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.running_mean is not None
    ordinary = isinstance(convolution, nn.Conv2d) and not isinstance(convolution, ConstrainedWeight)
    return (
        ordinary
        and complete
        and (_computes_as(norm, ConventionalBatchNormReLU) or type(norm) in (nn.BatchNorm2d, SynchronisableBatchNorm2d))
    )


def _computes_as(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is of one of these classes, or derived from one without computing anything else."""
    return any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in kinds)


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> nn.Module:
    """Fold the statistics into the convolution, in place and in double precision; return what takes norm's place."""
    dtype = convolution.weight.dtype
    device = convolution.weight.device
    convolution, norm = convolution.cpu(), norm.cpu()  # not every device has double precision
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    equivariant = isinstance(norm, FusedNormalisation)
    if equivariant:
        scale = torch.where(scale.abs() < _LEAST_SCALE, _LEAST_SCALE, scale)
    constant = norm.bias.double() - scale * norm.running_mean.double()
    bias = 0 if convolution.bias is None else convolution.bias.double()
    convolution.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
    folded: nn.Module
    if equivariant:
        convolution.holds_scaled_weight = True
        convolution.bias = nn.Parameter((scale * bias).to(dtype).expand_as(scale), requires_grad=False)
        kind = FoldedBatchNormReLU if isinstance(norm, BatchNormReLU) else FoldedBatchNormOfShortcut
        folded = kind(scale.to(dtype), constant.to(dtype), norm.offset_groups, norm.border)
    else:
        convolution.bias = nn.Parameter((scale * bias + constant).to(dtype), requires_grad=False)
        folded = MergeReLU() if isinstance(norm, ConventionalBatchNormReLU) else nn.Identity()
    convolution.to(device)
    return folded.to(device)
