"""Jobs as processes on this machine."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from apd.errors import disk_full
from apd.jobs.job import Job
from apd.jobs.lock import check_system
from apd.jobs.worker import PRELOADED, run_job

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Local:
    """The executor (``apd.jobs.engine``) of this machine.

    At most ``slots`` processes run, each with its share of the threads and one of the GPUs.

    A job has a process of its own, forked from one that has imported everything and done nothing:
    the bits are those of a fresh process, five seconds earlier. It outlives a command that is
    killed (then it still has its lock, so that the next one waits for it), not one that is
    interrupted.

    Args:
        threads: per job; None: the processors divided by ``slots``.
    """

    pause = 0.05

    def __init__(self, slots: int, threads: int | None = None) -> None:
        self.slots = slots
        self.threads = threads or max(1, processors() // slots)
        self.gpus = visible_gpus()
        self.running: dict[int, BaseProcess] = {}  # by slot
        self.context = warm_up()

    def room(self, running: int) -> int:
        return self.slots - running

    def start(self, jobs: Sequence[Job]) -> list[BaseProcess]:
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> BaseProcess:
        slot = next(s for s in range(self.slots) if s not in self.running)
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = self.context.Process(
            target=_process, args=(job, os.getcwd(), self.threads, gpu), name=job.folder
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


def start_local(output: str, slots: int) -> Local:
    """``Local`` as an ``apd.jobs.engine.StartExecutor``."""
    return Local(slots)


def warm_up() -> multiprocessing.context.BaseContext:
    """What local jobs are started by: a process to fork from, which begins to import at once."""
    check_system()
    from multiprocessing import forkserver, resource_tracker  # which Windows lacks

    # clip asks for GPUs when it is imported; asked in this way, children can still use them
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
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


def _process(job: Job, folder: str, threads: int, gpu: str | None) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # so that the lock is given back
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        if hasattr(signal, "pthread_sigmask"):  # see ``warm_up``
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        run_job(job, folder, threads)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if not disk_full(error):
            raise
        sys.exit(errno.ENOSPC)  # for ``Local.poll``: there is no room to write it down


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else list(map(str, range(count)))
