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


def select(rows: Rows, mask: Tensor) -> Rows:
    """The rows where ``mask`` (N,), bool, is true."""
    index = mask.nonzero()[:, 0]
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


def join(groups: list[Rows]) -> Rows:
    """Concatenate groups of rows; in most steps of an attack there is one, which is not copied."""
    if len(groups) == 1:
        return groups[0]
    return {name: torch.cat([rows[name] for rows in groups]) for name in groups[0]}


class Supply:
    """The rows of a stream, of which any number can be taken at a time."""

    def __init__(self, stream: Iterable[Rows]) -> None:
        self._stream: Iterator[Rows] = iter(stream)
        self._next: Rows | None = None

    def take(self, count: int) -> Iterator[Rows]:
        """The next ``count`` rows (fewer at the end), in groups that have the same columns each."""
        while count:
            rows = self._next if self._next is not None else next(self._stream, None)
            if rows is None:
                return
            if size := len(rows["index"]):
                yield {name: column[:count] for name, column in rows.items()}
            remaining = {name: column[count:] for name, column in rows.items()}
            self._next = remaining if size > count else None
            count -= min(size, count)


def row_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all ``numbers``, such as seed, image and restart."""
    text = ",".join(map(str, numbers))
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
        stages: of the attack, one after another, each on the images that still stand.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,), right for all of them.
        places: (B,) of the images in their data set, which decide the random starts; default:
            0 to B - 1.
        seed: of the random starts.

    Returns:
        The images that decided the verdicts, (B, 3, H, W), and the verdicts, (B,) bool on the CPU:
        whether the model is right on every image that the attack tried.
    """
    attacked, stands = images.clone(), torch.ones(len(images), dtype=torch.bool)
    places = torch.arange(len(images)) if places is None else places
    row_of = {place: row for row, place in enumerate(places.tolist())}
    for stage in stages:
        standing = stands.nonzero()[:, 0]
        on_device = standing.to(images.device)
        rows = {"index": places[standing], "image": images[on_device], "label": labels[on_device]}
        if not len(standing):
            break
        for decided, _ in stage.run(Supply([rows]), model, batch_size=len(standing), seed=seed):
            index = [row_of[place] for place in decided["index"].tolist()]
            row = torch.tensor(index, dtype=torch.long)
            attacked[row.to(images.device)] = decided["attacked"].to(attacked)
            stands[row] = decided["right"].cpu()
    return attacked, stands
