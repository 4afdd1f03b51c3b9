"""What processes on this machine are given."""

from types import SimpleNamespace

import pytest

from apd.sweep import executors
from apd.sweep.executors import Local


class Process:
    """Lives until it is told to end."""

    def __init__(self, target, args, name):
        self.cell, _, self.threads, self.gpu = args
        self.exitcode = None

    def start(self):
        pass

    def is_alive(self):
        return self.exitcode is None


@pytest.fixture
def local(monkeypatch):
    def local(jobs, gpus, **more):
        monkeypatch.setattr(executors, "_gpus", lambda: gpus)
        monkeypatch.setattr(executors, "_processors", lambda: 8)
        executor = Local(jobs, **more)
        executor.context = SimpleNamespace(Process=Process)
        return executor

    return local


def cells(count):
    return [SimpleNamespace(folder=str(i)) for i in range(count)]


def test_gpus_are_handed_out_and_taken_back(local):
    executor = local(3, ["3", "5"])
    processes = executor.start(cells(3))
    assert [p.gpu for p in processes] == ["3", "5", "3"]
    processes[1].exitcode = 0
    assert [executor.poll(p) for p in processes] == [None, "", None]
    assert executor.room(2) == 1 and executor.start(cells(1))[0].gpu == "5"


def test_without_gpus_none_is_named(local):
    assert local(1, []).start(cells(1))[0].gpu is None


def test_one_budget_of_threads(local):
    assert local(3, []).start(cells(1))[0].threads == 2
    assert local(20, []).start(cells(1))[0].threads == 1
    assert local(3, [], threads=5).start(cells(1))[0].threads == 5


def test_a_signal_is_told(local):
    executor = local(1, [])
    (process,) = executor.start(cells(1))
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
    assert executors._gpus() == names
