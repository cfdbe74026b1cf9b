import dataclasses

import pytest
import torch

from offset_equivariant.data.cross_validation import assign_folds, hold_out
from offset_equivariant.data.illuminant_images import IlluminantDataError
from offset_equivariant.data.nus import CAMERAS
from offset_equivariant.data.nus_synthetic import synthetic_scenes


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(36, size=16)


def test_official_folds_are_kept(scenes):
    assert torch.equal(assign_folds(scenes, "folds").folds, scenes.folds)
    numbered_otherwise = dataclasses.replace(scenes, folds=scenes.folds * 2 + 5)
    assert torch.equal(assign_folds(numbered_otherwise, "folds").folds, scenes.folds)


def test_a_camera_is_a_fold(scenes):
    folds = assign_folds(scenes, "cameras").folds
    alphabetical = sorted(CAMERAS)
    assert [alphabetical[fold] for fold in folds.tolist()] == list(scenes.cameras)


def test_what_is_held_out_is_outside_the_first_fold_and_always_the_same(scenes):
    held = hold_out(scenes, 7)
    first = {name for name, fold in zip(scenes.names, scenes.folds.tolist(), strict=True) if fold == 0}
    assert len(held) == 24 and not first & set(held.names) and held.split == "validation" != scenes.split
    assert sorted(held.folds.tolist()) == [-1] * 17 + [0] * 7
    assert torch.equal(hold_out(scenes, 7).folds, held.folds)


@pytest.mark.parametrize("count", [0, 24])
def test_impossible_splits_are_refused(scenes, count):
    with pytest.raises(IlluminantDataError, match=f"{count} images cannot be held out of the 24 outside the first"):
        hold_out(scenes, count)
    with pytest.raises(IlluminantDataError, match="all images of nus_synthetic are of one of the cameras"):
        assign_folds(dataclasses.replace(scenes, cameras=("SonyA57",) * 36), "cameras")
