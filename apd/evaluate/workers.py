"""The shards of evaluations, on the engines of sweeps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apd.errors import WorkerFailed
from apd.evaluate.plan import SHARDS, Shard
from apd.evaluate.shards import Merger
from apd.results import EVALUATIONS
from apd.sweep import engine
from apd.sweep.cell import Cell, State


@dataclass(frozen=True)
class Job:
    """Whose evaluation it is, and which: all that a worker needs to know.

    Args:
        folder: of the run.
        results: its results, or of them config, prompts_from, method and seed.
        args: of ``apd-eval``.
    """

    folder: Path
    results: dict
    args: argparse.Namespace


@dataclass(frozen=True)
class ShardCell(Cell):
    """A shard of one run's evaluation. ``argv`` is the files that it leaves."""

    shard: Shard = Shard(1, 1)
    job: Job | None = field(default=None, compare=False)

    @classmethod
    def of(cls, job: Job, shard: Shard, files: Sequence[Path]) -> ShardCell:
        store = job.folder / EVALUATIONS
        return cls(
            str(store / shard.folder),
            tuple(map(str, files)),
            str(store / SHARDS),
            shard=shard,
            job=job,
        )

    def state(self) -> State:
        if all(Path(path).exists() for path in self.argv):
            return State("done")
        return self.unfinished()

    def run(self) -> int:
        evaluate_shard(self.job, self.shard, {Path(path).name.split(".")[0] for path in self.argv})
        return 0


def evaluate_shard(job: Job, shard: Shard, only: set[str] | None = None) -> list[dict]:
    """In this process; the records of this part of the images."""
    import torch

    import apd
    from apd.evaluate.run import Run

    apd.register()
    torch.backends.cudnn.allow_tf32 = False  # attacks and their verdicts are in float32
    args = job.args
    run = Run(job.folder, job.results, args.root, args.compile)
    found = [run.evaluate(args, asked, shard, only) for asked in run.asked(args)]
    return [record for records in found for record in records]


def evaluate_run(folder: Path, results: dict, merger: Merger) -> None:
    """A run's own evaluation, in processes on this machine; arguments as of ``Job``."""
    from apd.evaluate.command import parse_args

    count, args = len(merger.images.digests), parse_args([str(folder)])
    run_shards([(Job(folder, results, args), [merger])], count, args)


def run_shards(todo: list[tuple[Job, list[Merger]]], count: int, args: argparse.Namespace) -> None:
    """Bring all shards of all evaluations to their end; ``args`` as of ``engine.add_arguments``.

    Raises:
        KeyboardInterrupt: interrupted; what was found is kept.
        WorkerFailed: one has ended in an error.
    """
    cells = []
    for job, mergers in todo:
        for shard in Shard.all(count):
            files = [kept.finished for merger in mergers for kept in merger.wanted(shard)]
            if not all(path.exists() for path in files):
                cells.append(ShardCell.of(job, shard, files))
    if cells:
        for cell in cells:
            cell.forgive()  # of an earlier time
        jobs = args.jobs or engine.gpus() or count
        ended = engine.run_cells(cells, args, min(jobs, len(cells)), file=sys.stderr)
        for cell, state in ended.items():
            if state.kind != "done":
                raise WorkerFailed(
                    f"{cell.job.folder}, shard {cell.shard}: {state.note}"
                    + (f" ({state.log[-1].removeprefix('error: ')})" if state.log else "")
                    + f"; {cell.folder} has its log, and the same command goes on"
                )
