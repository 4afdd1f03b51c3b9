"""The command line's options that choose where jobs run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from apd.errors import UserError
from apd.files import parse_yaml
from apd.jobs.cluster import Ray, Slurm
from apd.jobs.engine import Executor
from apd.jobs.local import Local
from apd.ranges import number, whole


@dataclass(frozen=True)
class ExecutorOptions:
    """Where jobs run.

    Args:
        executor: local, ray or slurm.
        jobs: how many at a time; None: the command's choice.
        threads: per job; None: the processors divided by ``jobs``.
        gpus: per job, for ray and slurm.
        address: of a Ray cluster; "": start Ray here.
        slurm: submitit's options.
    """

    executor: str
    jobs: int | None
    threads: int | None
    gpus: float | None
    address: str
    slurm: dict[str, object]

    @classmethod
    def of(cls, args: argparse.Namespace) -> ExecutorOptions:
        """From the arguments of ``add_arguments``.

        Raises:
            UserError: an option of Slurm that is no KEY=VALUE.
        """
        values = {field.name: getattr(args, field.name) for field in fields(cls)}
        return cls(**{**values, "slurm": dict(_pair(text) for text in args.slurm)})

    def start(self, output: str, slots: int) -> Executor:
        """The executor, for ``slots`` jobs at a time; files of its own go below ``output``."""
        if self.executor == "ray":
            return Ray(slots, self.threads, self.gpus, self.address)
        if self.executor == "slurm":
            return Slurm(slots, self.threads, self.gpus, self.slurm, str(Path(output, "slurm")))
        return Local(slots, self.threads)


def add_arguments(parser: argparse.ArgumentParser, noun: str, jobs: str) -> None:
    """Add the options of ``ExecutorOptions``.

    Args:
        noun: what to call a job: "cell" or "shard".
        jobs: how many run at a time by default, in words.
    """
    group = parser.add_argument_group("where to run")
    group.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    group.add_argument("--jobs", type=whole(1), help=f"{noun}s at a time (default: {jobs})")
    group.add_argument(
        "--threads", type=whole(1), help=f"per {noun} (default: the processors / jobs)"
    )
    group.add_argument(
        "--gpus", type=number(0), help=f"per {noun}, for ray (0.25: four share one), slurm"
    )
    group.add_argument("--address", default="", help="of a Ray cluster (default: start Ray here)")
    group.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="submitit's options: timeout_min=240 slurm_partition=gpu",
    )


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--slurm {text}: use KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ValueError as error:
        raise UserError(f"--slurm {text}: {error}") from error
