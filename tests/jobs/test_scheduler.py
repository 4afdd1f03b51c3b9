"""The order of things, with jobs and an executor that only pretend."""

import os
import signal
from collections import deque
from pathlib import Path

import pytest

from apd.jobs import scheduler
from apd.jobs.engine import _signals_to
from apd.jobs.job import STDERR_NAME, Job, State
from apd.jobs.scheduler import ATTEMPTS, Scheduler


class Fake:
    """A job whose process ends in the states of ``ends``, one after another."""

    def __init__(self, folder, *ends, now="missing", needs=""):
        self.folder, self.needs = folder, needs
        self.now, self.ends = now, deque(ends or ["done"])

    def state(self):
        return State(self.now)

    def fail(self, reason, log):
        self.now, self.reason = "failed", reason

    def last_written(self):
        return 0.0

    def last_lines(self, since):
        return []


class Executor:
    """Starts what it is given; a poll ends a job."""

    pause = 0

    def __init__(self, slots):
        self.slots, self.started, self.most = slots, [], 0  # most at once

    def room(self, running):
        return self.slots - running

    def start(self, jobs):
        self.started += [job.folder for job in jobs]
        return list(jobs)

    def poll(self, job):
        job.now = job.ends.popleft()
        return "killed by signal 9" if job.now == "partial" else ""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(scheduler, "ELSEWHERE", 0)


def run(*jobs, slots=2):
    executor = Executor(slots)
    ended = Scheduler(list(jobs), executor).run()
    assert ended.keys() == {*jobs}
    return executor.started, {job.folder: state.kind for job, state in ended.items()}


def test_a_failure_does_not_stop_the_rest():
    started, ended = run(Fake("a"), Fake("b", "failed"), Fake("c"), slots=1)
    assert started == ["a", "b", "c"]
    assert ended == {"a": "done", "b": "failed", "c": "done"}


def test_what_has_an_end_is_not_started():
    jobs = [Fake(kind, now=kind) for kind in ("done", "failed", "blocked", "partial", "missing")]
    assert run(*jobs)[0] == ["partial", "missing"]


def test_killed_jobs_are_started_again_but_not_for_ever():
    lucky = Fake("lucky", *["partial"] * (ATTEMPTS - 1), "done")
    cursed = Fake("cursed", *["partial"] * ATTEMPTS)
    started, ended = run(lucky, cursed)
    assert ended == {"lucky": "done", "cursed": "failed"}
    assert started.count("lucky") == started.count("cursed") == ATTEMPTS
    assert cursed.reason == f"killed by signal 9, {ATTEMPTS} times"


@pytest.mark.parametrize("says", ["", "out of memory"])
def test_a_killed_cell_is_noted_with_its_own_last_words_only(tmp_path, says):
    class Bare(Job):
        command = ("x",)

        def done(self):
            return None

        def run(self):
            raise NotImplementedError

        def logs(self):
            return [tmp_path / "log.txt"]

    class Killer(Executor):
        def start(self, jobs):
            if says and not self.started:
                Path(jobs[0].folder, STDERR_NAME).write_text(says)
            return super().start(jobs)

        def poll(self, job):
            return "killed by signal 9"

    for name in (STDERR_NAME, "log.txt"):
        path = tmp_path / name
        path.write_text("of last week's process")
        os.utime(path, (1e9, 1e9))
    job = Bare(folder=str(tmp_path), output=str(tmp_path))
    ended = Scheduler([job], Killer(1)).run()[job]
    assert ended.kind == "failed" and ended.log == ((says,) if says else ())


def test_a_job_that_another_sweep_runs_is_waited_for():
    class Elsewhere(Fake):
        looks = 0

        def state(self):
            self.looks += 1
            return State("running" if self.looks < 4 else "done")

    started, ended = run(Elsewhere("theirs"), Fake("ours"))
    assert started == ["ours"] and ended["theirs"] == "done"


def test_a_job_that_another_sweep_abandons_is_started():
    class Abandoned(Fake):
        looks = 0

        def state(self):
            self.looks += 1
            return State("running" if self.looks < 4 else self.now)

    assert run(Abandoned("theirs"))[0] == ["theirs"]


def test_finding_another_owner_is_not_a_loss():
    class Taken(Fake):
        states = deque(["missing", "running"] * (ATTEMPTS + 1) + ["done"])

        def state(self):
            return State(self.states.popleft() if len(self.states) > 1 else "done")

    job = Taken("theirs", *["running"] * 9)
    assert run(job)[1] == {"theirs": "done"} and not hasattr(job, "reason")


def test_an_interrupt_waits_until_what_was_started_is_known():
    class Interrupted(Executor):
        def start(self, jobs):
            running.interrupt()  # the signal comes in the middle
            return super().start(jobs)

    running = Scheduler([Fake("a", "missing", "missing"), Fake("b")], Interrupted(1))
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert running.executor.started == ["a"]
    with pytest.raises(KeyboardInterrupt):
        running.interrupt()


def test_a_job_waits_for_the_run_that_it_needs():
    new, base, other = Fake("new", needs="base"), Fake("base"), Fake("other")
    started, _ = run(new, base, other, slots=2)
    assert started == ["base", "other", "new"]


@pytest.mark.parametrize("end", ["failed", "blocked"])
def test_a_job_is_not_run_if_the_run_that_it_needs_failed(end):
    _, ended = run(Fake("base", end), Fake("new", needs="base"), Fake("rest"))
    assert ended == {"base": end, "new": "missing", "rest": "done"}


def test_a_job_may_need_a_run_that_is_not_in_the_sweep():
    assert run(Fake("new", needs="an/older/run"))[1] == {"new": "done"}


def test_no_more_than_there_is_room_for():
    class Counting(Executor):
        def start(self, jobs):
            self.most = max(self.most, len(jobs))
            return super().start(jobs)

    executor = Counting(3)
    Scheduler([Fake(str(i)) for i in range(8)], executor).run()
    assert executor.most == 3 and len(executor.started) == 8


def test_signals_that_whoever_started_it_had_blocked_are_heard():
    heard = []
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with _signals_to(lambda *_: heard.append(True)):
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)
