"""Several processes, called ranks, that train or evaluate one network together (``torchrun``).

Everything works without them too: a single process is rank 0 of 1. A batch is divided among the ranks and gradients
are averaged, so that what is learned does not depend on their number, but for rounding and for batch normalisation's
statistics where these are not synchronised.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
#: The first rank may have to download a data set, while the others wait.
_PATIENCE = timedelta(hours=2)
#: How often this process has joined the others: once for each job of a multirun.
_joins = itertools.count()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the ranks that ``torchrun`` has started, and leave them at the end; without it, do nothing.

    Where there are GPUs, a rank takes the one of its number on its machine. What ranks tell each other goes by NCCL
    from a GPU and by gloo from the CPU, so that they can compute on either.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        # Ranks that compute on the CPU may be more than there are GPUs; of others, NCCL refuses two on one.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, number, count = _meeting()
    # Where ranks leave their addresses, those of the job before would be found.
    store = PrefixStore(f"join{next(_joins)}", store)
    distributed.init_process_group(_backend(), timeout=_PATIENCE, store=store, rank=number, world_size=count)
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@functools.cache
def _meeting() -> tuple[Store, int, int]:
    """Return where the ranks find each other, this one's number, and how many there are: once for all jobs."""
    store, number, count = next(rendezvous("env://", timeout=_PATIENCE))
    store.set_timeout(_PATIENCE)
    return store, number, count


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def wait_for_all() -> None:
    """Return when every rank is here."""
    if ranks() > 1:
        distributed.barrier()


def first_rank_first(action: Callable[[], T]) -> T:
    """Do something on the first rank, then on the others, which find done what is done once: a download, a claim."""
    if is_first():
        found = action()
        wait_for_all()
        return found
    wait_for_all()
    return action()


def own_part(count: int) -> slice:
    """Return this rank's part of ``count`` things in a row: as many as the others', or one more or less."""
    return slice(rank() * count // ranks(), (rank() + 1) * count // ranks())


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over all ranks."""
    if ranks() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / ranks()


def any_rank(truth: bool) -> bool:
    """Whether it is true on any rank. Every rank must ask."""
    if ranks() == 1:
        return truth
    # A group that the caller has made may serve GPUs alone.
    served = "cpu" if "cpu:" in distributed.get_backend_config() else "cuda"
    votes = torch.tensor(int(truth), device=served)
    distributed.all_reduce(votes, distributed.ReduceOp.MAX)
    return bool(votes)


def gathered(part: T) -> list[T]:
    """Return every rank's part, in the order of the ranks, on all of them."""
    if ranks() == 1:
        return [part]
    parts: list[T] = [part] * ranks()
    distributed.all_gather_object(parts, part)
    return parts


def averaging_gradients(network: nn.Module) -> nn.Module:
    """Return the network as it is to be called in training: its backward pass averages gradients over the ranks."""
    if ranks() == 1:
        return network
    device = next(network.parameters()).device
    # Gradients of a layer are sent while those of the next are computed; buffers follow the first rank's.
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def without_averaging(called: object) -> AbstractContextManager[None]:
    """While this lasts, what :func:`averaging_gradients` gave adds up the gradients of its own rank."""
    return called.no_sync() if isinstance(called, DistributedDataParallel) else nullcontext()
