"""Offset equivariant layers (Section 2). Names and arguments follow ``torch.nn``."""

from offset_equivariant.nn.adapters import (
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    InvariantHead,
    LeakyReLU,
    Maxout,
    OffsetAdapter,
    ReLU,
)
from offset_equivariant.nn.concatenation import Concatenation
from offset_equivariant.nn.constraint import (
    OffsetConstraint,
    constraint_error,
    project_,
    project_weight,
    remove_parametrizations_,
)
from offset_equivariant.nn.equivariance import EquivarianceReport, check_equivariance
from offset_equivariant.nn.families import FAMILIES, Conventional, LayerFamily, OffsetEquivariant
from offset_equivariant.nn.fused import BatchNormOfShortcut, BatchNormReLU
from offset_equivariant.nn.inference import LEAF_MODULES, fuse_for_inference
from offset_equivariant.nn.layers import Conv1d, Conv2d, Conv3d, Linear
from offset_equivariant.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GroupLinear,
    GroupMax,
    GroupMean,
    GroupMin,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from offset_equivariant.nn.residual import OptionAShortcut, ResidualMerge
from offset_equivariant.nn.shifted import GlobalAveragePool, Joined, ShiftedFeatures, TakeOutOffset
from offset_equivariant.nn.synchronised import synchronise_batch_norm_
from offset_equivariant.nn.transposed import ConvTranspose1d, ConvTranspose2d

__all__ = [
    "FAMILIES",
    "LEAF_MODULES",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNormOfShortcut",
    "BatchNormReLU",
    "Concatenation",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Conventional",
    "Dropout",
    "EquivarianceReport",
    "GlobalAveragePool",
    "GroupLinear",
    "GroupMax",
    "GroupMean",
    "GroupMin",
    "InvariantHead",
    "Joined",
    "LayerFamily",
    "LeakyReLU",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Maxout",
    "OffsetAdapter",
    "OffsetConstraint",
    "OffsetEquivariant",
    "OptionAShortcut",
    "ReLU",
    "ResidualMerge",
    "ShiftedFeatures",
    "TakeOutOffset",
    "check_equivariance",
    "constraint_error",
    "fuse_for_inference",
    "project_",
    "project_weight",
    "remove_parametrizations_",
    "synchronise_batch_norm_",
]
