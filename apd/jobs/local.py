"""Jobs as processes on this machine."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from apd.errors import disk_full
from apd.jobs.job import Job
from apd.jobs.lock import check_system
from apd.jobs.worker import PRELOADED, run_job

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Local:
    """The executor (``apd.jobs.engine``) of this machine.

    At most ``slots`` processes run, each with its share of the threads and one of the GPUs.

    Each job has a process of its own, forked from one that has imported everything and done nothing
    else. So its results have the same bits as those of a new process, and it starts five seconds
    sooner. If the command is killed, the job goes on and has its lock; the same command again waits
    for it. If the command is interrupted, the job is ended.

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
        code = handle.exitcode or 0
        return f"killed by signal {-code}" if code < 0 else ""

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.join(10)
            process.kill()


def start_local(output: str, slots: int) -> Local:
    """``Local`` as an ``apd.jobs.engine.StartExecutor``."""
    return Local(slots)


def warm_up() -> Any:  # a context, of the kind that the system has
    """Start the process that local jobs are forked from; it begins to import at once."""
    check_system()
    from multiprocessing import forkserver, resource_tracker  # which Windows lacks

    # importing clip looks for GPUs; without this setting, forked processes could not use them
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    # Ctrl-C reaches every process of the terminal. It would end this one while it imports, and no
    # job could be started any more. So it is started with signals blocked.
    # multiprocessing's resource tracker would unblock them if it were started together with it, so
    # it is started before. It removes the semaphores of killed processes; its warnings of that are
    # switched off.
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
    # KeyboardInterrupt, so that the lock is released
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        sys.exit(errno.ENOSPC)  # tells ``Local.poll``, because no file can be written


def processors() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else list(map(str, range(count)))
