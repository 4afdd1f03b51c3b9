"""A sweep and its workers are killed and started again, and come to what plain runs come to."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from apd.jobs.lock import LOCK_NAME, owner
from apd.results.runs import load_runs
from apd.sweep.spec import read_spec
from apd.tables.kinds import few_shot
from apd.tables.write import write

ROOT = Path(__file__).parents[2]
GRID = {"trainer": ["CoOp", "APD"], "shots": [1, 2], "seed": [1, 2]}


@pytest.fixture(scope="module")
def fork():
    """Function: a process of its own, with everything imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["apd.sweep.command", "apd.train.preload"])
        yield context.Process


@pytest.fixture
def start(fork, tmp_path):
    """Function: start ``apd-sweep``. What is left of it in the end is killed."""
    processes = []

    def start(spec, *more, server=False):
        log = tmp_path / f"sweep-{len(processes)}.log"
        arguments = [str(spec), "--threads", "1", *more]
        process = fork(target=_sweep, args=(arguments, log, server))
        process.start()
        process.log = log
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def _sweep(arguments, log, server):
    """The process: its cells are its own forks, unless a server is to fork them, as it is for a
    user; that one imports everything again."""
    from apd.jobs import local, scheduler
    from apd.sweep.command import main

    if not server:
        local.warm_up = lambda: multiprocessing.get_context("fork")
    scheduler.ELSEWHERE = 0.5
    sys.stdout = sys.stderr = open(log, "w", buffering=1, encoding="utf-8")
    sys.exit(main(arguments))


def end(process, seconds=120):
    """Its exit code."""
    process.join(seconds)
    return process.exitcode


def workers(cells):
    return [found["pid"] for cell in cells if (found := owner(cell.folder))]


def wait_for(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), process.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done(cells):
    return sum(Path(cell.folder, "results.json").exists() for cell in cells)


def test_killed_at_random_and_resumed(start, write_spec, serial, tmp_path):
    # long enough that a busy machine does not finish them before it is told to stop
    spec = write_spec(GRID, set={"OPTIM.MAX_EPOCH": 8})
    cells = read_spec(spec)
    moment = random.Random(7)

    # interrupted: its workers end with it, and give their locks back
    process = start(spec, "--jobs", "2", server=True)
    wait_for(lambda: done(cells) and workers(cells), process)
    process.terminate()
    assert end(process) == 130 and workers(cells) == []
    assert not list(Path(cells[0].output).rglob(LOCK_NAME))
    assert "the same command continues this sweep" in process.log.read_text()

    # killed, and so are workers before it; the last one lives on
    process, killed = start(spec, "--jobs", "2"), []
    for _ in range(2):
        now = done(cells)
        wait_for(lambda: done(cells) > now and workers(cells), process)
        time.sleep(moment.uniform(0, 0.3))
        for cell in [cell for cell in cells if cell not in killed and owner(cell.folder)][:1]:
            with contextlib.suppress(ProcessLookupError, TypeError):  # it has just ended
                os.kill(owner(cell.folder)["pid"], signal.SIGKILL)
                killed.append(cell)
    wait_for(lambda: workers(cells), process)
    process.kill()
    process.join()
    assert killed

    process = start(spec, "--jobs", "2")
    assert end(process) == 0
    text = process.log.read_text()
    assert "8 cells: 8 done" in text and "(8 in this sweep)" not in text
    assert not list(Path(cells[0].output).rglob(LOCK_NAME))
    same = serial(cells, tmp_path / "serial")
    assert [cell.folder for cell in cells if not same(cell)] == []
    killed, whole = (
        write(few_shot(load_runs([folder])), "csv")
        for folder in (cells[0].output, tmp_path / "serial")
    )
    assert killed == whole and all(method in whole for method in GRID["trainer"])


def test_two_sweeps_at_once_share_the_work(start, write_spec):
    spec = write_spec({"seed": [1, 2, 3]}, set={"OPTIM.MAX_EPOCH": 3})
    cells = read_spec(spec)
    first, second = start(spec), start(spec)
    assert end(first) == end(second) == 0
    for process in (first, second):
        assert "3 cells: 3 done" in process.log.read_text()
    # a second run in a folder would have left a log of its own
    assert [len(list(Path(cell.folder).glob("log.txt*"))) for cell in cells] == [1] * 3
