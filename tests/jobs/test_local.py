"""What processes on this machine are given."""

import errno
import subprocess
import sys
from types import SimpleNamespace

import pytest

from apd.jobs import local as module
from apd.jobs.local import Local


class Process:
    """Lives until it is told to end."""

    def __init__(self, target, args, name):
        self.job, _, self.threads, self.gpu = args
        self.exitcode = None

    def start(self):
        pass

    def is_alive(self):
        return self.exitcode is None


@pytest.fixture
def local(monkeypatch):
    def local(slots, gpus, **more):
        monkeypatch.setattr(module, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(module, "processors", lambda: 8)
        monkeypatch.setattr(module, "warm_up", lambda: SimpleNamespace(Process=Process))
        return Local(slots, **more)

    return local


def jobs(count):
    return [SimpleNamespace(folder=str(i)) for i in range(count)]


def test_gpus_are_handed_out_and_taken_back(local):
    executor = local(3, ["3", "5"])
    processes = executor.start(jobs(3))
    assert [p.gpu for p in processes] == ["3", "5", "3"]
    processes[1].exitcode = 0
    assert [executor.poll(p) for p in processes] == [None, "", None]
    assert executor.room(2) == 1 and executor.start(jobs(1))[0].gpu == "5"


def test_without_gpus_none_is_named(local):
    assert local(1, []).start(jobs(1))[0].gpu is None


def test_one_budget_of_threads(local):
    assert local(3, []).start(jobs(1))[0].threads == 2
    assert local(20, []).start(jobs(1))[0].threads == 1
    assert local(3, [], threads=5).start(jobs(1))[0].threads == 5


def test_a_signal_is_told(local):
    executor = local(1, [])
    (process,) = executor.start(jobs(1))
    process.exitcode = -9
    assert executor.poll(process) == "killed by signal 9"


@pytest.mark.parametrize(
    "visible, names", [(None, ["0", "1"]), ("4,7", ["4", "7"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_only_visible_gpus_are_handed_out(monkeypatch, visible, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert module.visible_gpus() == names


def test_what_jobs_are_forked_from_outlives_ctrl_c_while_it_imports():
    code = """
import os, signal
from apd.jobs.local import warm_up

context = warm_up()
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.killpg(0, signal.SIGINT)
process = context.Process(target=print, args=("forked",))
process.start()
process.join()"""
    found = subprocess.run(
        [sys.executable, "-c", code], start_new_session=True, capture_output=True, text=True
    )
    assert (found.stdout, found.stderr) == ("forked\n", "")


def test_what_killed_processes_leave_is_removed_without_a_word(tmp_path):
    code = """
import multiprocessing, os, signal
from apd.jobs import local

def leave_a_semaphore():
    kept.append(multiprocessing.Lock())
    os.kill(os.getpid(), signal.SIGKILL)

kept = []
if __name__ == "__main__":
    multiprocessing.context.ForkServerContext.set_forkserver_preload = lambda *_: None  # fast
    process = local.warm_up().Process(target=leave_a_semaphore)
    process.start()
    process.join()
    assert process.exitcode == -9"""
    program = tmp_path / "program.py"
    program.write_text(code)
    found = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_a_process_that_meets_a_full_disk_says_so_by_its_exit_code(monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "run_job", no_room)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        module._process(None, ".", 1, None)
    executor = Local.__new__(Local)
    process = SimpleNamespace(is_alive=lambda: False, exitcode=ended.value.code, name="run")
    executor.running = {0: process}
    with pytest.raises(OSError, match="No space left on device: 'run'"):
        executor.poll(process)
    assert executor.running == {}
