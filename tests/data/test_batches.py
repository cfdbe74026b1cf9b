import pytest
import torch

from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator


def test_every_epoch_is_a_new_permutation_without_its_partial_batch():
    order = EpochOrder(images=23, batch_size=5, seed=0)
    assert order.steps_per_epoch == 4
    epochs = [torch.cat([order.indices(4 * epoch + batch) for batch in range(4)]) for epoch in range(50)]
    for epoch in epochs:
        assert len(epoch) == 20 and len(set(epoch.tolist())) == 20
        assert epoch.min() >= 0 and epoch.max() < 23
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 50
    # Not the same three images are always dropped.
    assert set(torch.cat(epochs).tolist()) == set(range(23))


def test_every_image_is_seen_once_an_epoch_when_batches_come_out_even():
    order = EpochOrder(images=24, batch_size=6, seed=1)
    for epoch in range(3):
        seen = torch.cat([order.indices(4 * epoch + batch) for batch in range(4)])
        assert sorted(seen.tolist()) == list(range(24))


def test_order_is_a_function_of_seed_and_step_alone():
    steps = [7, 0, 3, 100, 8, 7]
    forward = {step: EpochOrder(24, 6, seed=2).indices(step) for step in steps}
    order = EpochOrder(24, 6, seed=2)
    torch.manual_seed(5)
    for step in steps:
        assert torch.equal(order.indices(step), forward[step])
        torch.rand(())  # the global generator takes no part
    other = EpochOrder(24, 6, seed=3)
    assert not all(torch.equal(other.indices(step), forward[step]) for step in steps)


def test_batch_size_must_fit():
    assert EpochOrder(5, 5, 0).steps_per_epoch == 1
    for batch_size in (0, -1, 6):
        with pytest.raises(ValueError, match=f"batch_size = {batch_size} must be between 1 and the 5 training images"):
            EpochOrder(5, batch_size, 0)


def test_generators_differ_by_seed_step_and_stream():
    draws = {
        torch.rand((), generator=step_generator(seed, step, stream)).item()
        for seed in range(5)
        for step in range(5)
        for stream in range(2)
    }
    assert len(draws) == 50
    again = torch.rand((), generator=step_generator(4, 3, 1)).item()
    assert again == torch.rand((), generator=step_generator(4, 3, 1)).item() and again in draws


def crops_and_flips(image: torch.Tensor, padding: int, flip: bool) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every result that one image can have, by slicing."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            found[top, left, False] = crop
            if flip:
                found[top, left, True] = crop.flip(-1)
    return found


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (2, True)])
def test_crop_and_flip_against_slices(padding, flip):
    images = torch.rand(400, 3, 7, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    result = random_crop_and_flip(images, padding, flip, torch.Generator().manual_seed(1))
    assert result.shape == images.shape
    drawn = []
    for image, found in zip(images, result, strict=True):
        (match,) = [key for key, crop in crops_and_flips(image, padding, flip).items() if torch.equal(crop, found)]
        drawn.append(match)
    # Five standard deviations around the uniform distributions' means.
    offsets = torch.tensor([[top, left] for top, left, _ in drawn], dtype=torch.float64)
    spread = (((2 * padding + 1) ** 2 - 1) / 12) ** 0.5
    assert ((offsets.mean(0) - padding).abs() <= 5 * spread / 20).all()
    assert set(offsets.flatten().int().tolist()) == set(range(2 * padding + 1))
    flipped = sum(was for *_, was in drawn)
    assert abs(flipped - 200) < 50 if flip else flipped == 0
    # Each image has its own draw.
    assert len(set(drawn)) >= min(50, (2 * padding + 1) ** 2 * (1 + flip))


def test_crop_and_flip_leave_the_images_and_are_seeded():
    images = torch.rand(8, 3, 6, 6)
    before = images.clone()
    first = random_crop_and_flip(images, 2, True, torch.Generator().manual_seed(3))
    assert torch.equal(images, before)
    assert torch.equal(random_crop_and_flip(images, 2, True, torch.Generator().manual_seed(3)), first)
    assert not torch.equal(random_crop_and_flip(images, 2, True, torch.Generator().manual_seed(4)), first)
    assert torch.equal(random_crop_and_flip(images, 0, False, torch.Generator()), images)
