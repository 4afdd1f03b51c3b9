"""Never two owners, and no owner that is dead."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from apd.jobs import lock
from apd.jobs.lock import LOCK_NAME, STALE, Lock, owner


@pytest.fixture
def cell(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def leave(folder, age=0.0, **changed):
    """A lock as another owner would have left it."""
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**lock._this_process(), "token": "other", **changed}))
    os.utime(path, (time.time() - age,) * 2)


def test_one_owner_at_a_time(cell):
    first, second = Lock(cell, cell.parent), Lock(cell, cell.parent)
    assert first.acquire() and not second.acquire()
    assert owner(cell)["pid"] == os.getpid()
    second.release()  # what it does not have
    assert owner(cell)
    first.release()
    assert owner(cell) is None and second.acquire()
    second.release()
    assert list(cell.iterdir()) == []


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_dead_owner_is_replaced_however_fresh_its_lock_is(cell):
    leave(cell, pid=dead_process())
    assert owner(cell) is None and Lock(cell, cell.parent).acquire()
    assert owner(cell)["token"] != "other"


def test_a_later_process_with_its_number_is_not_the_owner(cell):
    leave(cell, pid=os.getpid(), start=lock._start(os.getpid()) - 1)
    assert owner(cell) is None


def test_a_killed_child_that_nobody_has_waited_for_is_dead(cell):
    child = subprocess.Popen(["sleep", "60"])
    leave(cell, pid=child.pid, start=lock._start(child.pid))
    assert owner(cell)["pid"] == child.pid
    child.kill()
    deadline = time.monotonic() + 10
    while owner(cell) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner(cell) is None
    child.wait()


def test_an_owner_here_may_be_stopped_for_long(cell):
    leave(cell, age=10 * STALE)  # this very process
    assert owner(cell) and not Lock(cell, cell.parent).acquire()


@pytest.mark.parametrize("age, alive", [(0.5 * STALE, True), (1.1 * STALE, False)])
def test_an_owner_elsewhere_lives_while_its_heart_beats(cell, age, alive):
    leave(cell, age=age, host="elsewhere", pid=1)
    assert bool(owner(cell)) == alive
    assert Lock(cell, cell.parent).acquire() != alive


def test_a_lock_that_is_being_written_is_one(cell):
    (cell / LOCK_NAME).touch()
    assert owner(cell) and not Lock(cell, cell.parent).acquire()
    os.utime(cell / LOCK_NAME, (time.time() - 2 * STALE,) * 2)  # its writer was killed
    assert Lock(cell, cell.parent).acquire()


def test_the_heart_beats(cell, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    held = Lock(cell, cell.parent)
    assert held.acquire()
    os.utime(cell / LOCK_NAME, (0, 0))
    deadline = time.monotonic() + 10
    while (cell / LOCK_NAME).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - (cell / LOCK_NAME).stat().st_mtime < 60
    held.release()


def test_a_process_that_has_lost_its_lock_stops(cell):
    program = (
        "import sys, time; from apd.jobs import lock; lock.HEARTBEAT = 0.05\n"
        "assert lock.Lock(sys.argv[1], sys.argv[2]).acquire()\n"
        "print('mine', flush=True); time.sleep(30)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(cell), str(cell.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "mine\n"
    leave(cell, host="elsewhere")
    assert "gone or another's" in process.communicate(timeout=20)[1]
    assert process.returncode == 1


def contend(cell, barrier, won):
    living = lock._living

    def slowly(*args):
        found = living(*args)
        time.sleep(0.02)
        return found

    lock._living = slowly  # all look before the first one acts, unless they take turns
    mine = Lock(cell, cell.parent)
    barrier.wait()
    if mine.acquire():
        won.put(os.getpid())
    barrier.wait()  # nobody dies before all have tried


def test_many_take_a_dead_owners_lock_and_one_gets_it(cell):
    fork = multiprocessing.get_context("fork")
    leave(cell, pid=dead_process())
    barrier, won = fork.Barrier(8), fork.SimpleQueue()
    crowd = [fork.Process(target=contend, args=(cell, barrier, won)) for _ in range(8)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(20)
    won.get()
    assert won.empty()


def test_no_empty_lock_is_left(fill, tmp_path):
    fill(lock)
    folder = tmp_path / "run"
    with pytest.raises(OSError) as caught:
        Lock(folder, tmp_path).acquire()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(folder / LOCK_NAME)
    assert list(folder.iterdir()) == [] and owner(folder) is None
