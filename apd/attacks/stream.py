"""Images under attack are rows, which join and leave a batch one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from apd.attacks.draws import Draws

Rows = dict[str, Tensor]  # columns of equal length: "index", "image", "label", ...
LogitsFn = Callable[[Tensor], Tensor]


class Stage(Protocol):
    """An attack of an evaluation: ours (``PGD``), or an adapter to a library's."""

    @property
    def name(self) -> str: ...

    def run(
        self,
        supply: Supply,
        target: LogitsFn,
        *,
        batch_size: int,
        sources: Sequence[LogitsFn] = (),
        precision: torch.dtype | None = None,
        seed: int = 0,
        draws: Draws = ...,
    ) -> Iterator[tuple[Rows, Rows | None]]:
        """Yield rows that are decided, and those still under attack; see ``PGD.run``."""
        ...


CPU_COLUMNS = ("index", "step", "restart")  # always on the CPU, because loops read their values


def select(rows: Rows, which: Tensor) -> Rows:
    """The rows at ``which``, a mask."""
    index = which.nonzero()[:, 0]
    on = {index.device: index}
    for column in rows.values():
        if column.device not in on:
            on[column.device] = to_device(index, column.device)
    # index_select copies images several times as fast as indexing by [] does
    return {name: column.index_select(0, on[column.device]) for name, column in rows.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the CPU to ``device`` without waiting for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def join(parts: list[Rows]) -> Rows:
    """Concatenate rows; a single part is returned without a copy, as in most steps of an attack."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]}


class Supply:
    """The rows of a stream, of which any number can be taken at a time."""

    def __init__(self, stream: Iterable[Rows]) -> None:
        self._stream: Iterator[Rows] = iter(stream)
        self._next: Rows | None = None

    def take(self, count: int) -> Iterator[Rows]:
        """The next ``count`` rows (fewer at the end), in parts whose rows have the same columns."""
        while count:
            rows = self._next if self._next is not None else next(self._stream, None)
            if rows is None:
                return
            if size := len(rows["index"]):
                yield {name: column[:count] for name, column in rows.items()}
            remaining = {name: column[count:] for name, column in rows.items()}
            self._next = remaining if size > count else None
            count -= min(size, count)


def row_seed(*parts: int) -> int:
    """A 32-bit seed that differs between images, restarts and runs."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def attack_batch(
    stages: Sequence[Stage],
    model: LogitsFn,
    images: Tensor,
    labels: Tensor,
    *,
    places: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """A few images under an attack, as an evaluation attacks them.

    Args:
        stages: of the attack, one after another, each on what the ones before left standing.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,), right for all of them.
        places: (B,) of the images in their data set, which decide the random starts; default:
            0 to B - 1.
        seed: of the random starts.

    Returns:
        The images that decided (B, 3, H, W), and whether the model is right on all that the
        attack made of each, (B,) bool on the CPU.
    """
    attacked, stands = images.clone(), torch.ones(len(images), dtype=torch.bool)
    places = torch.arange(len(images)) if places is None else places
    row_of = {place: row for row, place in enumerate(places.tolist())}
    for stage in stages:
        left = stands.nonzero()[:, 0]
        on = left.to(images.device)
        rows = {"index": places[left], "image": images[on], "label": labels[on]}
        if not len(left):
            break
        for done, _ in stage.run(Supply([rows]), model, batch_size=len(left), seed=seed):
            place = torch.tensor([row_of[i] for i in done["index"].tolist()], dtype=torch.long)
            attacked[place.to(images.device)] = done["attacked"].to(attacked)
            stands[place] = done["right"].cpu()
    return attacked, stands
