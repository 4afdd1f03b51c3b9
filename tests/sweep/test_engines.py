"""Ray and submitit, both on this machine: a worker is killed, and the results stay the same."""

import os
import signal
import sys
from pathlib import Path

import pytest

from apd.errors import UserError
from apd.sweep.executors import Ray, Slurm
from apd.sweep.lock import owner
from apd.sweep.scheduler import Sweep
from apd.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cells(write_spec, monkeypatch):
    import apd

    apd.register()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
    # long enough to be met in the middle
    options = {"OPTIM.MAX_EPOCH": 20, "TRAIN.CHECKPOINT_FREQ": 20}
    return read_spec(write_spec({"trainer": ["CoOp", "APD"], "seed": [1, 2]}, set=options))


def run(cells, executor, signal_, monkeypatch):
    """Run the cells. One, when it has trained a bit, is sent the signal; how many processes were
    lost."""
    met = []

    def meet(sweep):
        for cell in sweep.running:
            found = owner(cell.folder)
            if not met and found and Path(cell.folder, "resume.pth.tar").exists():
                os.kill(found["pid"], signal_)
                met.append(cell)

    monkeypatch.setattr(executor, "pause", 0.01)
    sweep = Sweep(cells, executor, meet)
    try:
        ended = sweep.run()
    finally:
        executor.close()
    assert {state.kind for state in ended.values()} == {"done"}
    assert "Resuming" in max(Path(met[0].folder).glob("log.txt-*")).read_text()
    return sum(sweep.lost.values())


def test_ray(cells, serial, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    executor = Ray(jobs=2, threads=1, gpus=0)
    run(cells, executor, signal.SIGKILL, monkeypatch)
    same = serial(cells, tmp_path / "serial")
    assert [cell.folder for cell in cells if not same(cell)] == []


@pytest.mark.parametrize("signal_", ["SIGKILL", "SIGUSR2"])
def test_slurm_jobs(cells, serial, tmp_path, monkeypatch, signal_):
    """SIGUSR2 is what Slurm sends before it takes a job's machine; the queue has the job then."""
    pytest.importorskip("submitit")
    cells, logs = cells[1:3], str(tmp_path / "jobs")
    executor = Slurm(2, threads=1, options={"cluster": "local", "timeout_min": 5}, logs=logs)
    lost = run(cells, executor, getattr(signal, signal_), monkeypatch)
    assert signal_ == "SIGKILL" or lost == 0
    same = serial(cells, tmp_path / "serial")
    assert [cell.folder for cell in cells if not same(cell)] == []


def test_a_slurm_job_out_of_time_is_put_into_the_queue_again(cells, tmp_path):
    submitit = pytest.importorskip("submitit")
    from apd.sweep.executors import _Job
    from apd.sweep.lock import Lock
    from apd.sweep.worker import _held

    lock = Lock(cells[0].folder, cells[0].output)
    assert lock.acquire()
    _held.append(lock)
    again = _Job(cells[0], ".", 1).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert owner(cells[0].folder) is None  # wherever the queue sends it


@pytest.mark.parametrize(
    "make, package, message",
    [
        (lambda: Ray(1), "ray", r"the executor ray needs ray: pip install \"apd-clip\[ray\]\""),
        (lambda: Slurm(1), "submitit", r"the executor slurm needs submitit: .*\[slurm\]"),
    ],
)
def test_what_is_missing_is_told(monkeypatch, make, package, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message):
        make()


def test_an_unknown_option_of_slurm_is_told(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="Slurm: .*partitoin"):
        Slurm(1, options={"cluster": "local", "slurm_partitoin": "gpu"}, logs=str(tmp_path))


def test_no_slurm_here_is_told(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="Slurm: "):
        Slurm(1, logs=str(tmp_path))
