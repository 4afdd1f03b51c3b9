"""Starts jobs on an executor until each has ended, and starts those again whose process died."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from apd.jobs.job import Job, State

ATTEMPTS = 3  # a job has failed when so many of its processes died (no memory, preempted, killed)
ENDS = ("done", "failed", "blocked")
ELSEWHERE = 5.0  # seconds between two looks at jobs that another scheduler runs


class Scheduler:
    """Runs jobs.

    Args:
        jobs: in any order, also where one needs another.
        executor: an ``apd.jobs.engine.Executor``.
        show: called repeatedly with this object, to display the progress.
    """

    def __init__(self, jobs: Sequence[Job], executor, show=lambda scheduler: None) -> None:
        self.executor, self.show = executor, show
        self.waiting = list(jobs)
        self.running: dict[Job, object] = {}  # job -> the executor's handle
        self.elsewhere: list[Job] = []  # jobs that another scheduler's processes run
        self.ended: dict[Job, State] = {}
        self.lost: Counter[Job] = Counter()  # job -> how many of its processes died
        self.before: dict[
            Job, float
        ] = {}  # job -> when its logs were last written before its start
        self.interrupted = False  # by ``interrupt``

    def run(self) -> dict[Job, State]:
        """Run all, and return each job's last state.

        It is done, failed, blocked, or missing where a job that it needs is not done.

        Raises:
            KeyboardInterrupt: ``interrupt`` was called.
        """
        looked = time.monotonic()
        while self.waiting or self.running or self.elsewhere:
            self._collect()
            if self.interrupted:
                raise KeyboardInterrupt
            if self.elsewhere and time.monotonic() - looked > ELSEWHERE:
                looked = time.monotonic()
                self.waiting, self.elsewhere = self.elsewhere + self.waiting, []
            self._start()
            self.show(self)
            if self.running or self.elsewhere:
                time.sleep(self.executor.pause)
        return self.ended

    def interrupt(self, *_) -> None:
        """A signal's handler: stop before the next start; at the second signal stop at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        # not at once: a process that is just being started would be in no list, and never ended
        self.interrupted = True

    def _collect(self) -> None:
        for job, handle in list(self.running.items()):
            how = self.executor.poll(handle)
            if how is None:
                continue
            del self.running[job]
            state = job.state()
            if state.kind in ENDS:
                self.ended[job] = state
                continue
            if state.kind != "running":  # its process died without writing a note
                self.lost[job] += 1
                if self.lost[job] == ATTEMPTS:
                    lines = job.last_lines(since=self.before[job])
                    job.fail(f"{how or 'its process ended'}, {ATTEMPTS} times", lines)
            self.waiting.insert(0, job)

    def _start(self) -> None:
        """Start the jobs that there is room for, in order."""
        room, ready = self.executor.room(len(self.running)), list[Job]()
        ends = {job.folder: state for job, state in self.ended.items()}
        waiting, self.waiting = self.waiting, []
        open_folders = {job.folder for job in [*waiting, *self.running, *self.elsewhere]}
        for place, job in enumerate(waiting):
            if len(ready) >= room:
                self.waiting += waiting[place:]
                break
            if job.needs in open_folders:
                self.waiting.append(job)
                continue
            if job.needs and (end := ends.get(job.needs)) and end.kind != "done":
                self.ended[job] = State("missing", f"needs {job.needs}, which is {end.kind}")
                open_folders.discard(job.folder)
                continue
            state = job.state()
            if state.kind in ENDS:
                self.ended[job] = state
            elif state.kind == "running":
                self.elsewhere.append(job)
            else:
                ready.append(job)
        for job in ready:
            self.before.setdefault(job, job.last_written())
        if ready:
            self.running |= zip(ready, self.executor.start(ready))
