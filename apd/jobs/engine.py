"""Jobs on an executor, until all have ended or a signal comes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from apd.files import check_writable
from apd.jobs.display import DescribeEnd, Display
from apd.jobs.job import Job, State
from apd.jobs.lock import check_system
from apd.jobs.scheduler import Scheduler


class Executor(Protocol):
    """Runs jobs in processes. A job's folder shows whether it is done (``Job.state``).

    Attributes:
        pause: seconds between two polls.
    """

    pause: float

    def room(self, running: int) -> int:
        """How many more jobs may start, when ``running`` are running."""

    def start(self, jobs: Sequence[Job]) -> list[Any]:
        """A handle for each job."""

    def poll(self, handle: Any) -> str | None:
        """None while the job's process lives; then how it ended, "" if normally.

        Raises:
            OSError: the job met a full disk. The job itself has not failed.
        """

    def close(self) -> None:
        """End the processes, where the executor can."""


# makes an executor from a folder for its files, and the number of jobs at a time
StartExecutor = Callable[[str, int], Executor]


def run_jobs(
    jobs: Sequence[Job],
    start_executor: StartExecutor,
    slots: int,
    unit: str,
    file: TextIO | None = None,
    describe: DescribeEnd | None = None,
) -> dict[Job, State]:
    """Run jobs, at most ``slots`` at a time, and return how each ended.

    Args:
        unit: what to call a job on the terminal.
        file: where a line is printed for each job that ends, if stderr is no terminal (default:
            stdout).
        describe: makes these lines; with it they are printed on a terminal too.

    Raises:
        KeyboardInterrupt: a signal came. Local jobs have ended, those on a cluster go on.
        OSError: the disk is full. Local jobs have ended; the same command continues them.
        UserError: the system has no file locks, or there is no such executor.
    """
    check_system()
    output = jobs[0].output
    check_writable(output, "--output")
    executor = start_executor(output, slots)
    display = Display(jobs, output, unit, file, describe)
    scheduler = Scheduler(jobs, executor, display)
    try:
        with _signals_to(scheduler.interrupt):
            return scheduler.run()
    finally:
        executor.close()
        display.close()


@contextlib.contextmanager
def _signals_to(handler: Callable) -> Iterator[None]:
    """Let ``handler`` handle SIGINT (Ctrl-C) and SIGTERM (sent by ``kill`` and batch systems)."""
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)  # the parent process may block them
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
