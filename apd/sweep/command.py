"""Run every cell of a sweep: a grid over methods, data sets, shots, seeds and config keys.

    apd-sweep SPEC.yaml [--dry-run | --plan FILE] [--jobs K] [--root DATA] [--dataset ...] ...

A cell is a planned run: each combination of the grid makes one, with some protocols several.
apd/sweep/spec.py describes SPEC; configs/sweeps/ has examples. Runs have the same folders as with
scripts/*.sh. The same command again continues a sweep: finished cells are left alone, killed ones
go on where they were. Several sweeps, on one machine or on many, may share an output folder.

Exit codes: 0 all cells are done, 1 some are not, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import mean

from tabulate import tabulate

import apd
from apd.commandline import Parser
from apd.config import flag_type, plain
from apd.errors import UserError, counted, exit_codes
from apd.jobs import options
from apd.jobs.engine import run_jobs
from apd.jobs.job import Job, State
from apd.jobs.local import visible_gpus
from apd.plans import write_plan
from apd.ranges import whole
from apd.results import read_results
from apd.sweep.estimate import seconds_here
from apd.sweep.rows import Rows
from apd.sweep.spec import read_spec, spec_files
from apd.sweep.training_job import TrainingJob


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-sweep", description=__doc__)
    parser.add_argument("spec", metavar="SPEC.yaml")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and their states")
    parser.add_argument("--folders", action="store_true", help="print the finished cells' folders")
    parser.add_argument(
        "--plan",
        metavar="FILE",
        type=Path,
        help="write what is going to run into FILE, to be committed; run nothing",
    )
    parser.add_argument(
        "--rows", action="store_true", help="print a row of results for each cell that is done"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells again")

    group = parser.add_argument_group("in place of what SPEC says")
    group.add_argument("--root", help="folder of the data sets")
    group.add_argument("--output", help="folder of the runs")
    for axis in ("trainer", "config", "dataset", "backbone"):
        group.add_argument(f"--{axis}", nargs="+", metavar="NAME")
    group.add_argument("--targets", nargs="+", metavar="NAME", help="data sets to transfer to")
    group.add_argument("--chosen", metavar="FILE", help="config keys that a search has chosen")
    group.add_argument("--shots", nargs="+", type=flag_type("DATASET.NUM_SHOTS"), metavar="N")
    group.add_argument("--seed", nargs="+", type=whole(0), metavar="N")
    group.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every cell"
    )

    options.add_arguments(parser, "cell", "one, or one per GPU")
    return parser.parse_args(argv)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    apd.register()
    jobs = read_jobs(args)
    states = {job: job.state() for job in jobs}
    if args.plan:
        _plan(args, states)
        return 0
    slots = args.jobs or max(1, len(visible_gpus()))
    if args.dry_run:
        _list(states, slots)
        return 0
    if args.folders:
        print("\n".join(job.folder for job, state in states.items() if state.kind == "done"))
        return 0
    return _run(args, states, slots)


def read_jobs(args: argparse.Namespace) -> list[TrainingJob]:
    names = ("root", "output", "trainer", "config", "dataset", "backbone", "targets", "chosen")
    replaced = {name: getattr(args, name) for name in (*names, "shots", "seed")}
    if len(args.set) % 2:
        raise UserError("--set takes pairs of KEY and VALUE")
    options = dict(zip(args.set[::2], args.set[1::2]))
    return read_spec(args.spec, set=options, **replaced)


def _plan(args: argparse.Namespace, states: dict[TrainingJob, State]) -> None:
    configs = {}
    for job in states:
        cfg, prompts_from = job.setup()
        folder = Path(job.folder).relative_to(job.output).as_posix()
        configs[folder] = plain(cfg), prompts_from is not None
    finished = sum(state.kind == "done" for state in states.values())
    write_plan(args.plan, spec_files(args.spec), configs, finished)
    print(f"{args.plan}: {counted(len(configs), 'cell')}. Commit it before they run.")
    if finished:
        print(f"warning: {counted(finished, 'cell')} had finished before, and the plan says so")


# -- running ---------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, states: dict[TrainingJob, State], slots: int) -> int:
    if args.retry_failed:
        for job in [job for job, state in states.items() if state.kind == "failed"]:
            job.clear_failure()
    before = sum(state.kind == "done" for state in states.values())
    try:
        start = options.ExecutorOptions.of(args).start
        rows = Rows(states) if args.rows else None
        ended = run_jobs(list(states), start, slots, "cell", describe=rows)
    except KeyboardInterrupt:
        print("interrupted: the same command continues this sweep", file=sys.stderr)
        return 130
    _summarise(ended, before)
    return int(any(state.kind != "done" for state in ended.values()))


def _summarise(ended: Mapping[Job, State], before: int) -> None:
    for job, state in ended.items():
        if state.kind != "done":
            print(f"\n{state.kind}: {job.folder}: {state.note}")
            for line in state.log:
                print(f"    {line}")
    counts = Counter(state.kind for state in ended.values())
    unfinished = ", ".join(f"{n} {kind}" for kind, n in counts.items() if kind != "done")
    print(
        f"{len(ended)} cells: {counts['done']} done ({counts['done'] - before} in this sweep)"
        + (f", {unfinished}" if unfinished else "")
    )
    if counts["failed"]:
        print("--retry-failed runs the failed ones again")


# -- the dry run -----------------------------------------------------------------------------------


def _list(states: dict[TrainingJob, State], slots: int) -> None:
    estimate = Estimator(states)
    rows, remaining, unknown = [], [], 0
    for job, state in states.items():
        seconds = None
        if state.kind not in ("done", "blocked"):
            seconds = estimate(job)
            remaining += [seconds] if seconds else []
            unknown += seconds is None
        note = " ".join([state.note, *state.log[-1:]])
        if state.kind in ("running", "partial"):
            note = " ".join(filter(None, [state.note, job.progress()]))
        rows.append([state.kind, job.folder, _clock(seconds) if seconds else "", note])
    print(tabulate(rows, ["state", "cell", "estimate", ""], disable_numparse=True))
    counts = Counter(state.kind for state in states.values())
    print(f"\n{len(states)} cells: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if remaining:
        seconds = max(max(remaining), sum(remaining) / slots)  # no sooner than the longest cell
        print(f"estimated time left: {_clock(seconds)}, {slots} cells at a time")
    if unknown:
        print(f"no estimate for {counted(unknown, 'cell')}: {estimate.reasons[0]}")


class Estimator:
    """Estimates the seconds that a cell will take, from start to end.

    The estimate is the mean over the most similar finished cells. These have at least the same data
    set and the same part of the protocol; if possible also the same trainer, config and shots (in
    this order). Where there are none, the cell's encoder passes are counted, a pass is timed on
    this machine (``apd.sweep.estimate``), and the product is scaled by the mean ratio of measured
    to counted seconds of all finished cells.

    Attributes:
        reasons: why cells have no estimate.
    """

    def __init__(self, states: dict[TrainingJob, State]) -> None:
        self.measured = {  # seconds of finished jobs
            job: read_results(job.folder)["seconds"]
            for job, state in states.items()
            if state.kind == "done"
        }
        self.alike: dict[tuple, list[float]] = {}
        for job, seconds in self.measured.items():
            for length in range(2, len(job.similarity_key) + 1):
                self.alike.setdefault(job.similarity_key[:length], []).append(seconds)
        self.reasons: list[str] = []

    def __call__(self, job: TrainingJob) -> float | None:
        for length in range(len(job.similarity_key), 1, -1):
            if job.similarity_key[:length] in self.alike:
                return mean(self.alike[job.similarity_key[:length]])
        counted = self._counted(job)
        return counted and self._scale * counted

    def _counted(self, job: TrainingJob) -> float | None:
        try:
            return seconds_here(job)
        except UserError as error:
            self.reasons.append(str(error))
            return None

    @cached_property
    def _scale(self) -> float:
        counted = {job: self._counted(job) for job in self.measured}
        ratios = [self.measured[job] / seconds for job, seconds in counted.items() if seconds]
        return mean(ratios or [1])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
