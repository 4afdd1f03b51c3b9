"""Where cells run: in processes here, on Ray, or in Slurm jobs.

An executor has ``room(running)``, how many more cells it takes; ``start(cells)``, a handle for
each; ``poll(handle)``, None while the cell's process lives, then how it ended ("" for normally),
to be called every ``pause`` seconds, an OSError if the cell has met a full disk, which is no fault
of the cell's; and ``close()``, which ends what it can. What came of a cell
is not its business: the cell's folder tells (``Cell.state``).
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from apd.errors import UserError, disk_full, one_line
from apd.sweep.cell import Cell
from apd.sweep.worker import release, run_cell

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Local:
    """``jobs`` processes at a time, each with its share of the threads and one of the GPUs.

    A cell has a process of its own, forked from one that has imported everything and done nothing:
    the bits are those of a fresh process, five seconds earlier. It outlives a sweep that is killed
    (then it still has its lock, so that the next sweep waits for it), not one that is interrupted.

    Args:
        threads: per cell; None: the processors divided by ``jobs``.
    """

    pause = 0.05

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        self.jobs = jobs
        self.threads = threads or max(1, _processors() // jobs)
        self.gpus = _gpus()
        self.running: dict[int, BaseProcess] = {}  # by slot
        self.context = warm_up()

    def room(self, running: int) -> int:
        return self.jobs - running

    def start(self, cells: Sequence[Cell]) -> list[BaseProcess]:
        return [self._start(cell) for cell in cells]

    def _start(self, cell: Cell) -> BaseProcess:
        slot = next(s for s in range(self.jobs) if s not in self.running)
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = self.context.Process(
            target=_process, args=(cell, os.getcwd(), self.threads, gpu), name=cell.folder
        )
        process.start()
        self.running[slot] = process
        return process

    def poll(self, handle: BaseProcess) -> str | None:
        if handle.is_alive():
            return None
        self.running = {slot: p for slot, p in self.running.items() if p is not handle}
        if handle.exitcode == errno.ENOSPC:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), handle.name)
        return f"killed by signal {-handle.exitcode}" if handle.exitcode < 0 else ""

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.join(10)
            process.kill()


def warm_up() -> multiprocessing.context.BaseContext:
    """What local cells are started by: a process to fork from, which begins to import at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    # clip asks for GPUs when it is imported; asked in this way, children can still use them
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apd.sweep.warm"])
    # Ctrl-C reaches every process of the terminal; while it imports, this one would end by it, and
    # nothing could be started any more. So it starts, and forks, with signals blocked.
    # The tracker would unblock them, if it were started with the other. It removes what killed
    # processes leave (semaphores), and need not say so.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    resource_tracker.ensure_running()
    sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _process(cell: Cell, folder: str, threads: int, gpu: str | None) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # so that the lock is given back
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        if hasattr(signal, "pthread_sigmask"):  # see ``warm_up``
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        run_cell(cell, folder, threads)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if not disk_full(error):
            raise
        sys.exit(errno.ENOSPC)  # for ``Local.poll``: there is no room to write it down


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


class Ray:
    """Ray tasks, each in a worker process of its own.

    Args:
        jobs: how many fit on this machine at a time; for a Ray that is started here.
        threads: processors (and threads of PyTorch) per cell.
        gpus: per cell; 0.25: four cells share one.
        address: of a running cluster, whose machines share the file system; "": start Ray here.
    """

    pause = 0.5

    def __init__(
        self, jobs: int, threads: int | None = None, gpus: float | None = None, address: str = ""
    ) -> None:
        self.ray = _extra("ray")
        threads = threads or max(1, _processors() // jobs)
        here = {} if address else {"num_cpus": jobs * threads}
        self.ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            **here,
        )
        if gpus is None:
            gpus = min(1, self.ray.cluster_resources().get("GPU", 0))
        # max_calls: the process ends with its cell; max_retries: the sweep itself tries again
        remote = self.ray.remote(max_calls=1, max_retries=0)(run_cell)
        self.run = remote.options(num_cpus=threads, num_gpus=gpus)
        self.threads, self.running = threads, set()

    def room(self, running: int) -> int:
        return 10**9  # Ray has a queue

    def start(self, cells: Sequence[Cell]) -> list:
        handles = [self.run.remote(cell, os.getcwd(), self.threads) for cell in cells]
        self.running.update(handles)
        return handles

    def poll(self, handle) -> str | None:
        if not self.ray.wait([handle], timeout=0)[0]:
            return None
        self.running.discard(handle)
        try:
            self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            if disk_full(cause := getattr(error, "cause", None)):
                raise cause from None
            return one_line(error)[:200]
        return ""

    def close(self) -> None:
        for handle in self.running:
            self.ray.cancel(handle, force=True)
        self.ray.shutdown()


class Slurm:
    """A Slurm job array, by submitit. A job that is preempted or out of time is put into the queue
    again and goes on where it was.

    The jobs outlive the sweep, whether killed or interrupted: the next one waits for those that
    run. Jobs still waiting then find their cells done, and end at once.

    Args:
        jobs: how many of an array may run at a time.
        threads: processors (and threads of PyTorch) per cell.
        gpus: per cell.
        options: submitit's, such as timeout_min and slurm_partition; "cluster": "local" runs the
            jobs here, without Slurm.
        logs: folder for submitit's files.

    Raises:
        UserError: there is no Slurm here, or no such option.
    """

    pause = 2.0

    def __init__(
        self,
        jobs: int,
        threads: int | None = None,
        gpus: float | None = None,
        options: dict | None = None,
        logs: str = "output/slurm",
    ) -> None:
        submitit = _extra("submitit", "slurm")
        options = dict(options or {})
        self.threads = threads
        parameters = {"cpus_per_task": threads, "gpus_per_node": gpus and int(gpus)}
        parameters = {key: value for key, value in parameters.items() if value}
        try:
            self.executor = submitit.AutoExecutor(logs, cluster=options.pop("cluster", "slurm"))
            self.executor.update_parameters(slurm_array_parallelism=jobs, **parameters, **options)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"Slurm: {one_line(error)}") from error

    def room(self, running: int) -> int:
        return 10**9  # Slurm has a queue

    def start(self, cells: Sequence[Cell]) -> list:
        here = os.getcwd()
        jobs = [_Job(cell, here, self.threads) for cell in cells]
        with self.executor.batch():
            return [self.executor.submit(job) for job in jobs]

    def poll(self, handle) -> str | None:
        if not handle.done():
            return None
        return "" if handle.state in ("COMPLETED", "FINISHED") else f"job {handle.state}"

    def close(self) -> None:
        pass


class _Job:
    """What submitit runs, and puts into the queue again."""

    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        run_cell(*self.arguments)

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        release()  # the next process may be on another host
        return DelayedSubmission(self)


def _extra(package: str, extra: str = ""):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = extra or package
        raise UserError(
            f'the executor {extra} needs {package}: pip install "apd-clip[{extra}]"'
        ) from error


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else list(map(str, range(count)))


def make_executor(
    name: str,
    output: str,
    jobs: int,
    threads: int | None = None,
    gpus: float | None = None,
    address: str = "",
    slurm: dict | None = None,
) -> Local | Ray | Slurm:
    """The executor of that name, which is local, ray or slurm."""
    if name == "ray":
        return Ray(jobs, threads, gpus, address)
    if name == "slurm":
        return Slurm(jobs, threads, gpus, slurm, str(Path(output, "slurm")))
    return Local(jobs, threads)
