"""Runs one job in this process, which should be its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from apd.errors import disk_full, tell
from apd.jobs.job import STDERR_NAME, Job
from apd.jobs.lock import Lock

# what every job needs; by name, because it imports what is above this package
PRELOADED = "apd.train.preload"

_held: list[Lock] = []  # by this process


def run_job(job: Job, folder: str, threads: int | None = None) -> None:
    """Run a job. All that it has to say is in the job's folder.

    Returns at once if another process has the job's lock.

    Args:
        folder: the working directory, which relative paths of the job start from.
        threads: of PyTorch; None: its own choice.

    Raises:
        OSError: the disk is full. The job has not failed: with room it goes on where it was.
    """
    os.chdir(folder)
    lock = Lock(job.folder, job.output)
    if not lock.acquire():
        return
    _held.append(lock)
    try:
        with _output_to(Path(job.folder)):
            job.clear_failure()
            code = _run(job, threads)
        if code not in (0, 130):  # 130: interrupted, the next start goes on
            job.fail(f"exit code {code}")
    finally:
        release()


def release() -> None:
    """Give this process's locks back."""
    while _held:
        _held.pop().release()


def _run(job: Job, threads: int | None) -> int:
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        importlib.import_module(PRELOADED)
        return job.run()
    except Exception as error:  # not SystemExit, by which submitit ends a job to start it again
        if disk_full(error):
            raise
        if code := tell(error):
            return code
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _output_to(folder: Path) -> Iterator[None]:
    """stderr into a file; stdout, which log.txt repeats, to nowhere."""
    stdout, kept = sys.stdout, [os.dup(1), os.dup(2)]
    try:
        with (
            open(folder / STDERR_NAME, "w", buffering=1, encoding="utf-8") as file,
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stderr(file),
        ):
            os.dup2(nowhere.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stdout = stdout
        for number, copy in zip((1, 2), kept):
            os.dup2(copy, number)
            os.close(copy)
