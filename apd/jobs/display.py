"""The progress of jobs: bars on a terminal, or else a line for each job that ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

from apd.jobs.job import Job, State
from apd.jobs.lock import owner

LINES = 8  # running jobs that are shown
INTERVAL = 1.0  # seconds


DescribeEnd = Callable[[Job, State], str]  # what is printed of a job that has ended


def end_line(job: Job, state: State) -> str:
    return f"{state.kind:8} {job.folder} {state.note}".rstrip()


class Display:
    """On a terminal a bar, and a line for each running job; else a line for each job that ends.

    Args:
        unit: what to call a job.
        file: where the lines of jobs that end are printed (default: stdout).
        describe: makes these lines; with it they are printed on a terminal too, above the bar.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        output: str,
        unit: str,
        file: TextIO | None = None,
        describe: DescribeEnd | None = None,
    ) -> None:
        self.file, self.describe = file or sys.stdout, describe
        self.bar = tqdm(total=len(jobs), unit=unit, desc=output, disable=None, position=0)
        self.lines: list[tqdm] = []
        self.shown_ends: set[Job] = set()
        self.shown = 0.0

    def __call__(self, scheduler) -> None:
        for job in [job for job in scheduler.ended if job not in self.shown_ends]:
            self.shown_ends.add(job)
            if self.bar.disable or self.describe:
                line = (self.describe or end_line)(job, scheduler.ended[job])
                tqdm.write(line, file=self.file)
                self.file.flush()
            self.bar.update()
        over = not (scheduler.waiting or scheduler.running or scheduler.elsewhere)
        if self.bar.disable or time.monotonic() - self.shown < INTERVAL and not over:
            return
        self.shown = time.monotonic()
        self.bar.set_postfix(
            running=len(scheduler.running) + len(scheduler.elsewhere),
            failed=sum(state.kind != "done" for state in scheduler.ended.values()),
        )
        # jobs without an owner are still in the executor's queue
        running = [c for c in [*scheduler.running, *scheduler.elsewhere] if owner(c.folder)][:LINES]
        while len(self.lines) < len(running):
            self.lines.append(tqdm(bar_format="{desc}", position=len(self.lines) + 1, leave=False))
        for place, line in enumerate(self.lines):
            job = running[place] if place < len(running) else None
            line.set_description_str(f"  {job.folder}: {job.progress()}" if job else "")

    def close(self) -> None:
        for line in reversed(self.lines):
            line.close()
        self.bar.close()
