import multiprocessing
import os
import select
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from offset_equivariant.data import workers as worker_processes
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.cropping import RandomCrops, central_crop
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFileError, ImageFiles
from offset_equivariant.data.streaming import StreamedBatches, StreamedImages, central_batch
from offset_equivariant.signals import STOP_SIGNALS
from offset_equivariant.training.stopping import StopRequest

SIZE = 8


@pytest.fixture
def files(tmp_path):
    """Eleven images of different sizes, one in CMYK and one a PNG."""
    rng = np.random.default_rng(0)
    names = [f"{number:02d}.JPEG" for number in range(11)]
    for number, name in enumerate(names):
        image = Image.fromarray(rng.integers(0, 256, (12 + number, 30 - 2 * number, 3), dtype=np.uint8))
        image.convert("CMYK" if number == 3 else "RGB").save(tmp_path / name, "PNG" if number == 5 else "JPEG")
    return ImageFiles(
        name="toy",
        split="train",
        folder=tmp_path,
        names=np.array(names, dtype=np.bytes_),
        sizes=np.array([(tmp_path / name).stat().st_size for name in names]),
        labels=torch.arange(11) % 3,
        classes=("a", "b", "c"),
        wnids=("a", "b", "c"),
        shorter_side=10,
        size=SIZE,
    )


def batches_of(files, **options):
    return StreamedBatches(files, RandomCrops(), **{"batch_size": 4, "seed": 7, "end": 5} | options)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_the_step_of_the_order_with_the_crops_of_the_step(files):
    batches = batches_of(files)
    assert batches.steps_per_epoch == 2
    order, crops = EpochOrder(11, 4, 7), RandomCrops()
    for step in (0, 1, 4):
        images, labels = batches.batch(step)
        indices = order.indices(step)
        drawn = crops.draw(4, step_generator(7, step, stream=2))
        expected = [
            crops.apply(decode_image_file(files.path(i)), SIZE, numbers)
            for i, numbers in zip(indices.tolist(), drawn, strict=True)
        ]
        assert images.dtype == torch.uint8 and torch.equal(images, torch.stack(expected))
        assert torch.equal(labels, files.labels[indices])
        assert torch.equal(batches.indices(step), indices)


def test_workers_change_nothing(files):
    alone = list(batches_of(files).between(0, 5))
    assert len(alone) == 5 and not torch.equal(alone[0][0], alone[2][0])
    assert all(same(a, b) for a, b in zip(alone, batches_of(files, workers=2).between(0, 5), strict=True))


def test_a_run_that_is_taken_up_again_sees_the_same(files):
    alone = list(batches_of(files).between(0, 5))
    assert all(same(a, b) for a, b in zip(alone[3:], batches_of(files, workers=1).between(3, 5), strict=True))
    batches = batches_of(files, workers=1)
    for step in (2, 3, 0, 4, 4):  # in a row, back, ahead, again
        assert same(batches.batch(step), alone[step])
    batches.close()
    assert same(batches.batch(1), alone[1])
    for step in (-1, 5):
        with pytest.raises(IndexError, match=f"step = {step} is not in 0 to 4"):
            batches.batch(step)


@contextmanager
def apart(target, *args):
    """A process in a group of its own, for what would end the tests."""

    def run():
        os.setpgrp()
        target(*args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    try:
        yield process
        process.join(30)
    finally:
        process.kill()


def signalled_while_reading(files, number, times):
    steps = batches_of(files, workers=1, end=12).between(0, 12)
    found = [next(steps)]
    with StopRequest() as stop:
        for _ in range(times):
            os.killpg(0, number)
        found += list(steps)
    assert set(stop.numbers) == {number}
    assert all(same(a, b) for a, b in zip(found, batches_of(files, end=12).between(0, 12), strict=True))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_left_to_the_process_that_trains(files, number):
    """They come to all processes; what is trained is saved first, for which batches may still be needed."""
    # Twice, as torchrun and Slurm may send them; of Ctrl-C the second is as usual.
    times = 1 if number == signal.SIGINT else 2
    with apart(signalled_while_reading, files, number, times) as process:
        pass
    assert process.exitcode == 0


def signalled_while_starting(files, number):
    leave_signals = worker_processes._leave_signals

    def signalled(*args):
        os.killpg(0, number)
        leave_signals(*args)

    worker_processes._leave_signals = signalled
    with StopRequest() as stop:
        found = list(batches_of(files, workers=1).between(0, 5))
    assert stop.numbers == [number]
    assert all(same(a, b) for a, b in zip(found, batches_of(files).between(0, 5), strict=True))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_left_from_the_start(files, number):
    with apart(signalled_while_starting, files, number) as process:
        pass
    assert process.exitcode == 0


def die_while_reading(files, ended_by, late):
    leave_signals = worker_processes._leave_signals

    def leave_signals_late(ending, worker):
        if worker == 1:
            time.sleep(late)
        leave_signals(ending, worker)

    worker_processes._leave_signals = leave_signals_late
    steps = batches_of(files, workers=2, end=12).between(0, 12)
    next(steps)
    if ended_by == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(steps)  # as a traceback may
    if ended_by == "error":
        raise KeyError


#: What outlives the function that made it.
kept = []


@pytest.mark.parametrize("late", [0, 0.5])
@pytest.mark.parametrize("ended_by", ["return", "error", "kill"])
def test_workers_end_with_their_process(files, ended_by, late):
    reader, writer = os.pipe()
    with apart(die_while_reading, files, ended_by, late) as process:
        os.close(writer)
        # The pipe's end is reached when all that were forked are gone.
        ready, _, _ = select.select([reader], [], [], 30)
        assert ready and os.read(reader, 1) == b""
        os.close(reader)
    assert process.exitcode == {"return": 0, "error": 1, "kill": -signal.SIGKILL}[ended_by]


def test_the_global_generator_is_left_alone(files):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(batches_of(files, workers=workers).between(0, 1))
        list(StreamedImages(files, batch_size=11, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [2, 4])
def test_parts_of_a_batch_are_what_one_would_have_seen(files, world):
    alone = list(batches_of(files).between(0, 5))
    parts = [slice(4 * rank // world, 4 * (rank + 1) // world) for rank in range(world)]
    ranks = [list(batches_of(files, part=part).between(0, 5)) for part in parts]
    for step, whole in enumerate(alone):
        found = [ranks[rank][step] for rank in range(world)]
        assert all(len(images) == 4 // world for images, _ in found)
        assert same([torch.cat(column) for column in zip(*found, strict=True)], whole)


def test_a_process_reads_only_its_part(files):
    order = EpochOrder(11, 4, 7)
    own = {number for step in range(2) for number in order.indices(step)[2:].tolist()}
    for number in set(range(11)) - own:
        files.path(number).unlink()
    assert len(list(batches_of(files, part=slice(2, 4), end=2).between(0, 2))) == 2


def test_seeds_and_epochs_differ(files):
    first = batches_of(files).batch(0)
    assert not torch.equal(first[0], batches_of(files, seed=8).batch(0)[0])
    assert not torch.equal(first[0], batches_of(files).batch(2)[0])


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_each_image_is_evaluated_once_whatever_the_ranks(files, world):
    seen = []
    for rank in range(world):
        part = slice(11 * rank // world, 11 * (rank + 1) // world)
        found = list(StreamedImages(files, batch_size=3, part=part))
        assert len(found) == -(-(part.stop - part.start) // 3)
        for indices, images, labels in found:
            assert torch.equal(labels, files.labels[indices])
            for i, image in zip(indices.tolist(), images, strict=True):
                assert torch.equal(image, central_crop(decode_image_file(files.path(i)), 10, SIZE))
            seen += indices.tolist()
    assert seen == list(range(11))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_by_number_are_the_same_in_a_row_and_out_of_it(files, workers):
    images = StreamedImages(files, batch_size=3, part=slice(2, 11), workers=workers)
    assert len(images) == 11
    # In a row, again, skipping one, other numbers than a batch's, another part's, in no order.
    asked = [[2, 3, 4], [5, 6, 7], [2, 3, 4], [8, 9, 10], [3, 4, 5], [2, 3], [0, 1], [10, 4, 0], []]
    for numbers in asked:
        found, labels = images.batch(torch.tensor(numbers, dtype=torch.int64))
        assert torch.equal(found, central_batch(files, numbers))
        assert torch.equal(labels, files.labels[torch.tensor(numbers, dtype=torch.int64)])


def test_evaluation_with_workers_and_without(files):
    found = list(StreamedImages(files, batch_size=4, workers=2))
    assert [len(indices) for indices, _, _ in found] == [4, 4, 3]
    assert torch.equal(torch.cat([images for _, images, _ in found]), central_batch(files, range(11)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named_and_nothing_else_is_said(files, workers):
    path = files.path(6)
    path.write_bytes(path.read_bytes()[:-40])
    for batches in (
        StreamedImages(files, batch_size=4, workers=workers),
        batches_of(files, batch_size=11, workers=workers).between(0, 1),
    ):
        with pytest.raises(ImageFileError, match=r"^\S*/06\.JPEG cannot be decoded as an image"):
            list(batches)


def test_numbers_out_of_range_are_refused(files):
    with pytest.raises(ValueError, match="batch_size = 12 must be between 1 and the 11 training images"):
        batches_of(files, batch_size=12)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StreamedImages(files, batch_size=0)
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        StreamedImages(files, batch_size=1, workers=-1)
