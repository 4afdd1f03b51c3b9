"""Processes ("ranks") that train one run together, started by torchrun.

A process that torchrun has not started is rank 0 of 1. All ranks draw the same random numbers and
read the same batches. Each rank computes on its slice of a batch. Gradients, losses and text
features are then combined over the ranks, so that every rank takes the step that a single process
would take.
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

from apd.console import started
from apd.errors import WorkerFailed

RANK_STOPPED = "another rank has stopped: the same command goes on after the last finished epoch"

_stepping = False  # inside ``step``


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Join the process group of torchrun's processes; without torchrun, do nothing.

    Raises:
        WorkerFailed: another rank has stopped.
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
        # ranks wait for the slowest shard of an evaluation; a rank that stops is noticed at once
        timeout=datetime.timedelta(days=7),
        device_id=device,
    )
    handler = signal.signal(signal.SIGTERM, _raise_rank_stopped)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise WorkerFailed(RANK_STOPPED) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
        dist.destroy_process_group()


def _raise_rank_stopped(*_) -> None:
    raise WorkerFailed(RANK_STOPPED)


def progress_disabled() -> bool | None:
    """tqdm's ``disable``: True on ranks other than 0; None, tqdm's "where there is no terminal"."""
    return True if rank() else None


def barrier() -> None:
    if size() > 1:
        dist.barrier()


# -- a step ----------------------------------------------------------------------------------------


class BatchSlice(NamedTuple):
    """This rank's images of a batch: number ``first`` and every ``step``-th after it.

    Attributes:
        count: number of images in the batch.
        first: number of this rank's first image, from 0.
        step: distance to its next image: the number of ranks, or 1 where a rank has all images.
        weight: of this slice's mean loss in the batch's mean loss; those of all ranks sum to 1.
    """

    count: int  # type: ignore[assignment]  # in place of tuple's method
    first: int = 0
    step: int = 1
    weight: float = 1.0

    @property
    def rows(self) -> slice:
        return slice(self.first, None, self.step)

    def before(self, number: int) -> int:
        """How many images of this slice are among the batch's first ``number``."""
        return len(range(self.first, number, self.step))

    def after(self, number: int) -> BatchSlice:
        """This rank's slice of the batch without its first ``number`` images.

        Its weight is that of a mean over the remaining images.
        """
        remaining = self.count - number
        first = (self.first - number) % self.step
        own = len(range(first, remaining, self.step))
        weight = self.weight if self.step == 1 else own / max(remaining, 1)
        return BatchSlice(remaining, first, self.step, weight)


def batch_slice(count: int, least: int = 1) -> BatchSlice:
    """This rank's slice of a batch of ``count`` images.

    Where a rank would get fewer than ``least`` images, every rank computes on the whole batch.
    """
    if count < least * size():
        return BatchSlice(count, weight=1 / size())
    own = len(range(rank(), count, size()))
    return BatchSlice(count, rank(), size(), own / count if size() > 1 else 1.0)


@contextlib.contextmanager
def step() -> Iterator[None]:
    """A training step: inside it, each rank runs the text encoder on its slice of the classes."""
    global _stepping
    _stepping = size() > 1
    try:
        yield
    finally:
        _stepping = False


def divides_text(classes: int) -> bool:
    """Whether each rank runs the text encoder on a slice of the ``classes`` classes only."""
    return _stepping and classes >= size()


def total(values: Tensor) -> Tensor:
    """The sum over ranks."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def total_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over ranks of each tensor; one message for all of them."""
    if size() == 1 or not tensors:
        return list(tensors)
    flat = total(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    sums = flat.split([tensor.numel() for tensor in tensors])
    return [values.view_as(tensor) for values, tensor in zip(sums, tensors)]


def total_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every rank the sum of all ranks' gradients."""
    if size() > 1:
        own = [p.grad for p in parameters if p.grad is not None]
        for gradient, summed in zip(own, total_of(own)):
            gradient.copy_(summed)


def gather_batch(own: Tensor, images: BatchSlice) -> Tensor:
    """A row for each image of the batch, in the batch's order, from every rank's ``own`` rows."""
    if images.step == 1:
        return own
    slices = [torch.arange(first, images.count, images.step) for first in range(images.step)]
    rows = gather(own, [len(numbers) for numbers in slices])
    return rows[torch.cat(slices).argsort().to(own.device)]


def gather(own: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, rank 0's first; rank i gives ``counts[i]`` rows.

    The gradient of a row is the sum of all ranks' gradients, and goes to the rank that gave it.
    """
    return _Gather.apply(own, tuple(counts))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.rows = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return total(gradient.contiguous())[ctx.rows], None
