"""Cells on an engine that the command line names."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TextIO

from apd.errors import UserError
from apd.files import check_writable, parse_yaml
from apd.ranges import number, whole
from apd.sweep.cell import Cell, State
from apd.sweep.display import Display
from apd.sweep.executors import make_executor
from apd.sweep.lock import check_system
from apd.sweep.scheduler import Sweep


@dataclass(frozen=True)
class EngineOptions:
    """Where cells run; the defaults are processes on this machine.

    Args:
        executor: local, ray or slurm.
        jobs: cells at a time; None: the caller's choice.
        threads: per cell; None: the processors divided by ``jobs``.
        gpus: per cell, for ray and slurm.
        address: of a Ray cluster; "": start Ray here.
        slurm: submitit's options, as KEY=VALUE.
    """

    executor: str = "local"
    jobs: int | None = None
    threads: int | None = None
    gpus: float | None = None
    address: str = ""
    slurm: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> EngineOptions:
        """From the arguments of ``add_arguments``."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls)})


def add_arguments(parser: argparse.ArgumentParser, what: str, jobs: str) -> None:
    """Where to run ``what`` (cells, shards); ``jobs`` says how many run at a time by default."""
    group = parser.add_argument_group("where to run")
    group.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    group.add_argument("--jobs", type=whole(1), help=f"{what}s at a time (default: {jobs})")
    group.add_argument(
        "--threads", type=whole(1), help=f"per {what} (default: the processors / jobs)"
    )
    group.add_argument(
        "--gpus", type=number(0), help=f"per {what}, for ray (0.25: four share one), slurm"
    )
    group.add_argument("--address", default="", help="of a Ray cluster (default: start Ray here)")
    group.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="submitit's options: timeout_min=240 slurm_partition=gpu",
    )


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def run_cells(
    cells: list[Cell], options: EngineOptions, jobs: int, file: TextIO | None = None
) -> dict[Cell, State]:
    """Run cells, ``jobs`` at a time; how each has ended.

    Args:
        file: where the end of each is told, if nobody watches (default: stdout).

    Raises:
        KeyboardInterrupt: a signal came; local cells have ended, the others go on.
        OSError: the disk is full; local cells have ended, and will go on where they were.
        UserError: the system has no locks, or no such engine.
    """
    check_system()
    output = cells[0].output
    check_writable(output, "--output")
    slurm = dict(_pair(text) for text in options.slurm)
    executor = make_executor(
        options.executor, output, jobs, options.threads, options.gpus, options.address, slurm
    )
    display = Display(cells, output, file)
    sweep = Sweep(cells, executor, display)
    try:
        with _signals_to(sweep.interrupt):
            return sweep.run()
    finally:
        executor.close()
        display.close()


def _pair(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--slurm {text}: use KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ValueError as error:
        raise UserError(f"--slurm {text}: {error}") from error


@contextlib.contextmanager
def _signals_to(handler: Callable) -> Iterator[None]:
    """Ctrl-C, and what a batch system or ``kill`` sends."""
    kept = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, kept)  # whatever started this may have blocked them
    try:
        yield
    finally:
        for number, old in kept.items():
            signal.signal(number, old)
