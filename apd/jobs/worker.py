"""Runs one job in this process, which does nothing else."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from apd.errors import disk_full, report_error
from apd.jobs.job import STDERR_NAME, Job
from apd.jobs.lock import Lock

# the module with what every job imports; given by name, because it is above this package
PRELOADED = "apd.train.preload"

_locks: list[Lock] = []  # that this process owns


def run_job(job: Job, folder: str, threads: int | None = None) -> None:
    """Run a job. Its results, logs and errors are written to its folder.

    Returns at once if another process has the job's lock.

    Args:
        folder: the working directory, to which paths of the job are relative.
        threads: of PyTorch; None: PyTorch's default.

    Raises:
        OSError: the disk is full. That is no failure: with room, the job goes on where it was.
    """
    os.chdir(folder)
    lock = Lock(job.folder, job.output)
    if not lock.acquire():
        return
    _locks.append(lock)
    try:
        with _output_to(Path(job.folder)):
            job.clear_failure()
            code = _run(job, threads)
        if code not in (0, 130):  # 130: interrupted, the next start goes on
            job.fail(f"exit code {code}")
    finally:
        release()


def release() -> None:
    """Release all locks of this process."""
    while _locks:
        _locks.pop().release()


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
        if code := report_error(error):
            return code
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _output_to(folder: Path) -> Iterator[None]:
    """Write stderr to a file in ``folder``; drop stdout, whose text is in log.txt too."""
    stdout, copies = sys.stdout, [os.dup(1), os.dup(2)]
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
        for number, copy in zip((1, 2), copies):
            os.dup2(copy, number)
            os.close(copy)
