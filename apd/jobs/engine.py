"""Jobs on an executor, until all have ended or a signal comes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from apd.files import check_writable
from apd.jobs.display import Display
from apd.jobs.job import Job, State
from apd.jobs.lock import check_system
from apd.jobs.scheduler import Scheduler


class Executor(Protocol):
    """Where jobs run. What came of a job is not its business: the folder tells (``Job.state``).

    Attributes:
        pause: seconds between two polls.
    """

    pause: float

    def room(self, running: int) -> int:
        """How many more jobs it takes when so many run."""

    def start(self, jobs: Sequence[Job]) -> list[Any]:
        """A handle for each job."""

    def poll(self, handle: Any) -> str | None:
        """None while the job's process lives, then how it ended ("" for normally).

        Raises:
            OSError: the job has met a full disk, which is no fault of the job's.
        """

    def close(self) -> None:
        """End what can be ended."""


# of a folder for its own files, and how many jobs run at a time
StartExecutor = Callable[[str, int], Executor]


def run_jobs(
    jobs: Sequence[Job],
    start_executor: StartExecutor,
    slots: int,
    unit: str,
    file: TextIO | None = None,
) -> dict[Job, State]:
    """Run jobs, at most ``slots`` at a time; how each has ended.

    Args:
        unit: what a job is called on the terminal.
        file: where the end of each is told, if nobody watches (default: stdout).

    Raises:
        KeyboardInterrupt: a signal came; local jobs have ended, the others go on.
        OSError: the disk is full; local jobs have ended, and will go on where they were.
        UserError: the system has no locks, or no such executor.
    """
    check_system()
    output = jobs[0].output
    check_writable(output, "--output")
    executor = start_executor(output, slots)
    display = Display(jobs, output, unit, file)
    scheduler = Scheduler(jobs, executor, display)
    try:
        with _signals_to(scheduler.interrupt):
            return scheduler.run()
    finally:
        executor.close()
        display.close()


@contextlib.contextmanager
def _signals_to(handler: Callable) -> Iterator[None]:
    """Ctrl-C, and what a batch system or ``kill`` sends."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # whatever started this may block them
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
