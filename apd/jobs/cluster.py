"""Executors (``apd.jobs.engine``) on clusters: Ray and Slurm."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from apd.errors import UserError, disk_full, one_line
from apd.jobs.job import Job
from apd.jobs.local import processors
from apd.jobs.worker import release, run_job


class Ray:
    """Ray tasks, each in a worker process of its own.

    Args:
        slots: jobs at a time on this machine; only for a Ray that is started here.
        threads: processors (and threads of PyTorch) per job.
        gpus: per job; 0.25: four jobs share one.
        address: of a running cluster, whose machines share the file system; "": start Ray here.
    """

    pause = 0.5

    def __init__(
        self, slots: int, threads: int | None = None, gpus: float | None = None, address: str = ""
    ) -> None:
        self.ray = _extra("ray")
        threads = threads or max(1, processors() // slots)
        local = {} if address else {"num_cpus": slots * threads}
        self.ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            **local,
        )
        if gpus is None:
            gpus = min(1, self.ray.cluster_resources().get("GPU", 0))
        # max_calls: a new process for each job; max_retries: our scheduler tries again itself
        remote = self.ray.remote(max_calls=1, max_retries=0)(run_job)
        self.run = remote.options(num_cpus=threads, num_gpus=gpus)
        self.threads = threads
        self.running: set = set()

    def room(self, running: int) -> int:
        return 10**9  # Ray has a queue

    def start(self, jobs: Sequence[Job]) -> list:
        handles = [self.run.remote(job, os.getcwd(), self.threads) for job in jobs]
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

    The jobs go on when the command that started them is killed or interrupted. The same command
    again waits for those that run. Some may still be in Slurm's queue; they end at once if their
    work is done when they start.

    Args:
        slots: how many of an array may run at a time.
        threads: processors (and threads of PyTorch) per job.
        gpus: per job.
        options: submitit's, such as timeout_min and slurm_partition; "cluster": "local" runs the
            jobs here, without Slurm.
        logs: folder for submitit's files.

    Raises:
        UserError: there is no Slurm here, or no such option.
    """

    pause = 2.0

    def __init__(
        self,
        slots: int,
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
            self.executor.update_parameters(slurm_array_parallelism=slots, **parameters, **options)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"Slurm: {one_line(error)}") from error

    def room(self, running: int) -> int:
        return 10**9  # Slurm has a queue

    def start(self, jobs: Sequence[Job]) -> list:
        folder = os.getcwd()
        submissions = [_Submission(job, folder, self.threads) for job in jobs]
        with self.executor.batch():
            return [self.executor.submit(submission) for submission in submissions]

    def poll(self, handle) -> str | None:
        if not handle.done():
            return None
        return "" if handle.state in ("COMPLETED", "FINISHED") else f"job {handle.state}"

    def close(self) -> None:
        pass


class _Submission:
    """The function that submitit runs; ``checkpoint`` puts it into the queue again."""

    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        run_job(*self.arguments)

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
