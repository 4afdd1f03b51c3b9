"""Images under attack, as rows that join and leave a batch one by one."""

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


CPU_COLUMNS = ("index", "step", "restart")  # always on the CPU: a loop looks at them


def select(rows: Rows, which: Tensor) -> Rows:
    """The rows at ``which``, a mask."""
    index = which.nonzero()[:, 0]
    on = {index.device: index}
    for column in rows.values():
        if column.device not in on:
            on[column.device] = to_device(index, column.device)
    # index_select copies images several times as fast as brackets do
    return {name: column.index_select(0, on[column.device]) for name, column in rows.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU, which a GPU need not be waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def join(parts: list[Rows]) -> Rows:
    """One part as it is: most steps of an attack join nothing, and need no copy."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([rows[name] for rows in parts]) for name in parts[0]}


class Supply:
    """Rows of a stream, as many at a time as are asked for."""

    def __init__(self, stream: Iterable[Rows]) -> None:
        self._stream: Iterator[Rows] = iter(stream)
        self._next: Rows | None = None

    def take(self, count: int) -> Iterator[Rows]:
        """The next ``count`` rows in parts with the same columns each; fewer at the end."""
        while count:
            rows = self._next if self._next is not None else next(self._stream, None)
            if rows is None:
                return
            if size := len(rows["index"]):
                yield {name: column[:count] for name, column in rows.items()}
            rest = {name: column[count:] for name, column in rows.items()}
            self._next = rest if size > count else None
            count -= min(size, count)


def row_seed(*parts: int) -> int:
    """A 32-bit seed that differs between images, restarts and runs."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
