"""Ray and submitit, both on this machine: a worker is killed, and the results stay the same."""

import os
import signal
import sys
from pathlib import Path

import pytest

from apd.errors import UserError
from apd.jobs.cluster import Ray, Slurm
from apd.jobs.lock import owner
from apd.jobs.scheduler import Scheduler
from apd.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cells(write_spec, monkeypatch):
    """One cell: each of its processes imports everything anew."""
    import apd

    apd.register()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
    # long enough to be met in the middle
    options = {"OPTIM.MAX_EPOCH": 20, "TRAIN.CHECKPOINT_FREQ": 20}
    return read_spec(write_spec({"trainer": "APD"}, set=options))


def run(cells, executor, signals, monkeypatch):
    """Run the cell. Its first process, when it has trained a bit, is sent the first signal, the
    second one the second, and so on; how many were lost."""
    (cell,) = cells
    met = []

    def meet(sweep):
        worker = owner(cell.folder)
        if len(met) < len(signals) and worker and Path(cell.folder, "resume.pth.tar").exists():
            if worker["pid"] not in met:
                os.kill(worker["pid"], signals[len(met)])
                met.append(worker["pid"])

    monkeypatch.setattr(executor, "pause", 0.05)
    sweep = Scheduler(cells, executor, meet)
    try:
        ended = sweep.run()
    finally:
        executor.close()
    assert {state.kind for state in ended.values()} == {"done"} and len(met) == len(signals)
    assert "Resuming" in max(Path(cell.folder).glob("log.txt-*")).read_text()
    return sum(sweep.lost.values())


def test_ray(cells, serial, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else it waits for the tests beside it
    executor = Ray(slots=1, threads=1, gpus=0)
    assert run(cells, executor, [signal.SIGKILL], monkeypatch) == 1
    same = serial(cells, tmp_path / "serial")
    assert same(cells[0])


def test_slurm_jobs(cells, serial, tmp_path, monkeypatch):
    """SIGUSR2 is what Slurm sends before it takes a job's machine; the queue has the job then. A
    killed one is the sweep's to start again."""
    pytest.importorskip("submitit")
    options, logs = {"cluster": "local", "timeout_min": 5}, str(tmp_path / "jobs")
    executor = Slurm(1, threads=1, options=options, logs=logs)
    assert run(cells, executor, [signal.SIGUSR2, signal.SIGKILL], monkeypatch) == 1
    same = serial(cells, tmp_path / "serial")
    assert same(cells[0])


def test_a_slurm_job_out_of_time_is_put_into_the_queue_again(cells, tmp_path):
    submitit = pytest.importorskip("submitit")
    from apd.jobs.cluster import _Submission
    from apd.jobs.lock import Lock
    from apd.jobs.worker import _locks

    lock = Lock(cells[0].folder, cells[0].output)
    assert lock.acquire()
    _locks.append(lock)
    again = _Submission(cells[0], ".", 1).checkpoint()
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
