"""Processes that train one run together, started by torchrun; a process alone is one of one.

All of them draw the same random numbers and read the same batches. Each takes its part of a batch;
gradients, losses and text features are put together again, so that every rank takes the same step,
the one that a single process would take.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from apd import errors
from apd.errors import WorkerFailed

LOST = "another rank has stopped: the same command goes on after the last finished epoch"

_stepping = False  # inside ``step``


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def started() -> int:
    """How many processes torchrun has started; 1: none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def hush() -> None:
    """Of all that torchrun has started, only rank 0 prints, errors that all meet too."""
    if started() > 1 and int(os.environ["RANK"]):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        errors.silent = True


@contextlib.contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Be one of the processes that torchrun has started, if it has.

    Raises:
        WorkerFailed: another one has stopped.
    """
    if started() == 1:
        yield
        return
    cuda = cuda and torch.cuda.is_available()
    device = None
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        # ranks wait for the slowest one's part of an evaluation; a lost one is noticed at once
        timeout=datetime.timedelta(days=7),
        device_id=device,
    )
    handler = signal.signal(signal.SIGTERM, _lost)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise WorkerFailed(LOST) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
        dist.destroy_process_group()


def _lost(*_) -> None:
    raise WorkerFailed(LOST)


def hidden() -> bool | None:
    """tqdm's ``disable``: nothing where nobody watches, nor from ranks beside the first."""
    return True if rank() else None


def barrier() -> None:
    if size() > 1:
        dist.barrier()


# -- a step ----------------------------------------------------------------------------------------


class Share(NamedTuple):
    """This rank's part of a batch: the ``first``-th image and each ``step``-th on.

    Attributes:
        count: images of the batch.
        weight: of a mean over this part, in the mean over the batch.
    """

    count: int
    first: int = 0
    step: int = 1
    weight: float = 1.0

    @property
    def rows(self) -> slice:
        return slice(self.first, None, self.step)

    def before(self, number: int) -> int:
        """How many of this part are among the batch's first ``number``."""
        return len(range(self.first, number, self.step))

    def after(self, number: int) -> Share:
        """The part that is left without the batch's first ``number``; its weight is in those."""
        left = self.count - number
        first = (self.first - number) % self.step
        own = len(range(first, left, self.step))
        alone = self.step == 1
        return Share(left, first, self.step, self.weight if alone else own / max(left, 1))


def share(count: int, least: int = 1) -> Share:
    """This rank's part of a batch of ``count``; all of it where some would have under ``least``."""
    if count < least * size():
        return Share(count, weight=1 / size())
    own = len(range(rank(), count, size()))
    return Share(count, rank(), size(), own / count if size() > 1 else 1.0)


@contextlib.contextmanager
def step() -> Iterator[None]:
    """A training step, in which the ranks share the text encoder's work too."""
    global _stepping
    _stepping = size() > 1
    try:
        yield
    finally:
        _stepping = False


def shares_text(classes: int) -> bool:
    return _stepping and classes >= size()


def total(values: Tensor) -> Tensor:
    """The sum over ranks."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def total_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over ranks, in one piece."""
    if size() == 1 or not tensors:
        return list(tensors)
    whole = total(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    parts = whole.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]


def total_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every rank the sum of all ranks' gradients."""
    if size() > 1:
        found = [p for p in parameters if p.grad is not None]
        for p, gradient in zip(found, total_of([p.grad for p in found])):
            p.grad.copy_(gradient)


def whole(own: Tensor, share: Share) -> Tensor:
    """A row for each image of the batch, from each rank's ``own`` part of it."""
    if share.step == 1:
        return own
    counts = [len(range(first, share.count, share.step)) for first in range(share.step)]
    rows = torch.cat([torch.arange(first, share.count, share.step) for first in range(share.step)])
    return gather(own, counts)[rows.argsort().to(own.device)]


def gather(own: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, of which each has ``counts`` many, one rank after another.

    A gradient goes to the rank that gave the row: the sum of what all ranks do with it.
    """
    return _Gather.apply(own, tuple(counts))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.rows = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return total(gradient.contiguous())[ctx.rows], None
