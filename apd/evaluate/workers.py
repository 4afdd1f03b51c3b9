"""The shards of evaluations, on the engines of sweeps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apd.errors import WorkerFailed
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard
from apd.evaluate.run import SavedRun
from apd.evaluate.shards import Merger
from apd.results import EVALUATIONS
from apd.sweep import engine
from apd.sweep.cell import Cell, State


@dataclass(frozen=True)
class ShardCell(Cell):
    """A shard of one run's evaluation. ``argv`` is the files that it leaves."""

    shard: Shard = Shard(1, 1)
    saved: SavedRun | None = field(default=None, compare=False)
    requests: tuple[EvaluationRequest, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, saved: SavedRun, shard: Shard, mergers: Sequence[Merger]) -> ShardCell:
        store = saved.folder / EVALUATIONS
        requests = (merger.shard_request(shard) for merger in mergers)
        return cls(
            str(store / shard.folder),
            tuple(str(path) for merger in mergers for path in merger.missing_files(shard)),
            str(store / SHARDS),
            shard=shard,
            saved=saved,
            requests=tuple(request for request in requests if request),
        )

    def state(self) -> State:
        if all(Path(path).exists() for path in self.argv):
            return State("done")
        return self.unfinished()

    def run(self) -> int:
        evaluate_requests(self.saved, self.requests)
        return 0


def evaluate_requests(saved: SavedRun, requests: Iterable[EvaluationRequest]) -> list[dict]:
    """The records of all requests, in a process that has done nothing before."""
    import torch

    import apd

    apd.register()
    torch.backends.cudnn.allow_tf32 = False  # attacks and their verdicts are in float32
    run = saved.load()
    return [record for request in requests for record in run.evaluate(request)]


def run_shards(
    todo: Sequence[tuple[SavedRun, Sequence[Merger]]],
    count: int,
    options: engine.EngineOptions,
) -> None:
    """Bring all ``count`` shards of all evaluations to their end.

    Raises:
        KeyboardInterrupt: interrupted; what was found is kept.
        WorkerFailed: one has ended in an error.
    """
    cells = [ShardCell.of(saved, shard, m) for saved, m in todo for shard in Shard.all(count)]
    cells = [cell for cell in cells if cell.argv]
    if not cells:
        return
    for cell in cells:
        cell.forgive()  # of an earlier time
    jobs = options.jobs or engine.gpus() or count
    ended = engine.run_cells(cells, options, min(jobs, len(cells)), file=sys.stderr)
    for cell, state in ended.items():
        if state.kind != "done":
            raise WorkerFailed(
                f"{cell.saved.folder}, shard {cell.shard}: {state.note}"
                + (f" ({state.log[-1].removeprefix('error: ')})" if state.log else "")
                + f"; {cell.folder} has its log, and the same command goes on"
            )
