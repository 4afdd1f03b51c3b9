"""Shards of evaluations as jobs, which the executors of ``apd.jobs`` run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apd.errors import WorkerFailed
from apd.evaluate.evaluated import Saved
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard
from apd.evaluate.shards import Merger
from apd.jobs.engine import StartExecutor, run_jobs
from apd.jobs.job import Job, State
from apd.jobs.local import start_local, visible_gpus
from apd.precision import forbid_tf32
from apd.results import EVALUATIONS


@dataclass(frozen=True, kw_only=True)
class ShardJob(Job):
    """One shard of the evaluations of one model.

    Args:
        saved: the model, as another process can load it.
        shard: the part of the images.
        requests: evaluations of that shard.
        files: that it writes; it is done when all are there.
    """

    saved: Saved = field(compare=False)
    shard: Shard
    requests: tuple[EvaluationRequest, ...] = field(compare=False)
    files: tuple[Path, ...]

    @classmethod
    def of(cls, saved: Saved, shard: Shard, mergers: Sequence[Merger]) -> ShardJob:
        """The job that brings ``shard`` of all ``mergers``' evaluations to its end."""
        store = saved.folder / EVALUATIONS
        requests = (merger.shard_request(shard) for merger in mergers)
        return cls(
            folder=str(store / shard.folder),
            output=str(store / SHARDS),
            saved=saved,
            shard=shard,
            requests=tuple(request for request in requests if request),
            files=tuple(path for merger in mergers for path in merger.missing_files(shard)),
        )

    @property
    def command(self) -> list[str]:
        return [str(path) for path in self.files]

    def done(self) -> State | None:
        return State("done") if all(path.exists() for path in self.files) else None

    def run(self) -> int:
        evaluate_requests(self.saved, self.requests)
        return 0


def evaluate_requests(saved: Saved, requests: Iterable[EvaluationRequest]) -> list[dict]:
    """The records of all requests, in a process that is new: it sets PyTorch's precision first."""
    forbid_tf32()
    run = saved.load()
    return [record for request in requests for record in run.evaluate(request)]


def run_shards(
    todo: Sequence[tuple[Saved, Sequence[Merger]]],
    count: int,
    start_executor: StartExecutor | None = None,
    slots: int | None = None,
) -> None:
    """Bring all ``count`` shards of all evaluations to their end.

    Args:
        todo: models, each with the mergers of its evaluations.
        start_executor: default: processes on this machine.
        slots: how many shards run at a time; default: one per GPU, or without one ``count``.

    Raises:
        KeyboardInterrupt: interrupted; states are stored, and the same call goes on from them.
        WorkerFailed: a shard has ended in an error.
    """
    jobs = [ShardJob.of(saved, shard, m) for saved, m in todo for shard in Shard.all(count)]
    jobs = [job for job in jobs if job.files]
    if not jobs:
        return
    for job in jobs:
        job.clear_failure()  # of an earlier call
    slots = min(slots or len(visible_gpus()) or count, len(jobs))
    ended = run_jobs(jobs, start_executor or start_local, slots, "shard", file=sys.stderr)
    for job in jobs:
        if (state := ended[job]).kind != "done":
            raise WorkerFailed(
                f"{job.saved.folder}, shard {job.shard}: {state.note}"
                + (f" ({state.log[-1].removeprefix('error: ')})" if state.log else "")
                + f"; {job.folder} has its log, and the same command goes on"
            )
