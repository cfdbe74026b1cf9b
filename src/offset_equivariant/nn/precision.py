"""Mixed precision: nothing that is computed in few digits holds an offset.

Under ``torch.autocast`` or in TF32, convolutions and linear layers round their input to 8 (bfloat16) or 11 (float16,
TF32) significant bits, relative to the sum of feature and offset: of features a hundred times as small as their offset,
little is left. Their equivariance itself shows the way out, f(x) = f(x - Gφ(x)) + Gφ(x): the group means are taken out,
in at least single precision, and carried past the layer. Between layers that pass on
:class:`~offset_equivariant.nn.shifted.ShiftedFeatures`, that has been done already, once, at the entrance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from offset_equivariant.groups import add_offset, at_least_single, group_mean


def is_autocast_on(device_type: str) -> bool:
    """Whether ``torch.autocast`` is at work on a kind of device; not on those, such as ``meta``, that have none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocasts(x: Tensor) -> bool:
    """Whether ``torch.autocast`` is at work on tensors like ``x``; it leaves double precision alone."""
    return x.dtype != torch.float64 and is_autocast_on(x.device.type)


def rounds_operands(x: Tensor) -> bool:
    """Whether convolutions and linear layers round tensors like ``x`` to few digits: under autocast, or to TF32."""
    return autocasts(x) or (x.is_cuda and x.dtype == torch.float32 and _tf32_is_allowed())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _tf32_is_allowed() -> bool:
    """Whether CUDA may multiply in TF32: cuDNN does so unless told otherwise."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9; the older flags cannot be read once the newer ones were set
        return "tf32" in (cudnn.conv.fp32_precision, matmul.fp32_precision)
    return bool(cudnn.allow_tf32 or matmul.allow_tf32)


def past_low_precision(layer: Callable[[Tensor], Tensor], x: Tensor, offset_groups: int) -> Tensor:
    """Return f(x - Gφ(x)) + Gφ(x) for an offset equivariant f, ``layer``, in at least single precision.

    Args:
        layer: from ``(N, C, *spatial)`` to ``(N, C', *spatial')``.
        x: ``(N, C, *spatial)``.
        offset_groups: number of offset groups.
    """
    wide = x.to(at_least_single(x.dtype))
    offset = group_mean(wide, offset_groups)
    return add_offset(layer(add_offset(wide, -offset)).to(wide.dtype), offset)
