"""Tables of many runs.

    apd-table RUN [RUN...] [--table KIND] [--baseline METHOD] [--markdown FILE] [--latex FILE] ...

RUN is a run's folder, or a folder above several. Runs that differ in the seed alone make one
number: mean and sample standard deviation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from apd.commandline import Parser
from apd.errors import UserError, exit_codes
from apd.files import atomic_write
from apd.plans import Plan
from apd.ranges import number
from apd.results.published import papers, read_paper
from apd.results.runs import load_runs
from apd.results.schema import SPLITS
from apd.tables.against import against, published, with_published
from apd.tables.arms import add_options, design_of
from apd.tables.compare import INTERVALS, compare
from apd.tables.frontier import family, frontier
from apd.tables.kinds import CRITERIA, TABLES, fitting
from apd.tables.missing import commands
from apd.tables.moderator import MODERATORS, moderator
from apd.tables.write import Table, write

OVER_TASKS: dict[str, Callable[..., list[Table]]] = {"frontier": frontier, "moderator": moderator}
_FILES = {"markdown": "pipe", "latex": "latex", "csv": "csv", "json": "json"}  # option -> style


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-table", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    kinds = [*TABLES, *OVER_TASKS]
    add("--table", choices=kinds, help="default: methods, or else what the runs suit")
    add("--split", choices=SPLITS, help="evaluations on these images only")
    add("--baseline", metavar="METHOD", help="add the differences to it, in points")
    add(
        "--interval",
        choices=INTERVALS,
        default="images",
        help=(
            "of differences: what other test images would change (default; a bootstrap), or other "
            "seeds (Student's t)"
        ),
    )
    add(
        "--against",
        metavar="PAPER",
        help=(
            "ours, theirs and the difference, of every figure that a paper has published and "
            f"these runs can be held against: {', '.join(papers())}, or a file like "
            "configs/published/*.yaml"
        ),
    )
    add(
        "--published",
        metavar="PAPER",
        help=("add rows of the figures that a paper has published, and a table of all of them"),
    )
    _add_options_of_kinds(parser)
    add(
        "--plan",
        metavar="FILE",
        nargs="+",
        type=Path,
        default=[],
        help="say which runs follow this committed plan of apd-sweep, and what of it has not run",
    )
    add("--commands", action="store_true", help="print what makes the missing runs, not the tables")
    add("--markdown", metavar="FILE", help="write the tables as Markdown")
    add("--latex", metavar="FILE", help="write the tables as LaTeX (booktabs)")
    add("--csv", metavar="FILE", help="write the tables as CSV, one line a number")
    add("--json", metavar="FILE", help="write the tables as JSON, with the numbers of all seeds")
    return parser.parse_args(argv)


def _add_options_of_kinds(parser: argparse.ArgumentParser) -> None:
    """Add the options that only a search, a frontier or a moderator has."""
    add = parser.add_argument
    add(
        "--criterion",
        choices=CRITERIA,
        default="mean",
        help=(
            "of a search: the accuracy that is to be highest: the mean or harmonic mean of clean "
            "and robust, or robust"
        ),
    )
    add(
        "--within",
        type=float,
        metavar="POINTS",
        help=(
            "of a search: choose among trials at most so far below the method's best clean accuracy"
        ),
    )
    add_options(parser)
    add("--by", choices=MODERATORS, default="zero-shot", help="of a moderator: what it is")
    add(
        "--at",
        nargs="+",
        type=number(),
        default=[],
        metavar="POINTS",
        help="of a moderator: where to read the line, in points above chance",
    )
    add(
        "--family",
        nargs="+",
        default=[],
        metavar="FILE",
        help=(
            "of frontier and moderator: tables in JSON whose tests p-values are adjusted for too"
        ),
    )


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    runs = load_runs(args.runs, args.split)
    if args.against and (args.table or args.baseline or args.commands):
        raise UserError(
            "--against is a table of its own: leave --table, --baseline, --commands out"
        )
    if args.against:
        tables = against(runs, read_paper(args.against))
    else:
        tables = _tables(args, runs)
    if args.commands:
        lacking = dict.fromkeys(run for table in tables for run in table.missing)
        print("\n".join(commands(lacking, runs)) or "# nothing is missing")
        return 0
    # an ablation has a baseline of its own
    baseline = args.baseline or next((table.baseline for table in tables if table.baseline), None)
    if args.interval != "images" and (args.against or not baseline):
        raise UserError("--interval is of differences to a row: give --baseline too")
    intervals = args.baseline or args.interval != "images"
    if baseline and intervals and args.table not in OVER_TASKS:
        tables = compare(tables, baseline, args.interval)
    if args.published:
        paper = read_paper(args.published)
        tables = [*with_published(tables, runs, paper), published(paper)]
    if args.plan:
        tables[-1] = _with_plans(tables[-1], runs, args.plan)
    print(write(tables, "simple"))
    for option, style in _FILES.items():
        if path := getattr(args, option):
            with atomic_write(path) as temporary:
                temporary.write_text(write(tables, style) + "\n", encoding="utf-8")
    return 0


def _with_plans(table: Table, runs: dict[Path, dict], paths: list[Path]) -> Table:
    plans = {str(path): Plan(path) for path in paths}
    verdicts = {
        path: {str(run): why or "followed" for run, why in plan.verdicts(runs).items()}
        for path, plan in plans.items()
    }
    notes = [note for plan in plans.values() for note in plan.notes(runs)]
    return replace(table, extra={**table.extra, "plans": verdicts}).with_notes(*notes)


def _tables(args: argparse.Namespace, runs: dict[Path, dict]) -> list[Table]:
    kind = args.table or fitting(runs)[0]
    if kind not in OVER_TASKS:
        options = {"criterion": args.criterion, "within": args.within} if kind == "search" else {}
        return TABLES[kind](runs, **options)
    for option in ("commands", "published"):
        if getattr(args, option):
            raise UserError(f"--table {kind} has differences over tasks: leave --{option} out")
    design = design_of(args, baseline=args.baseline or "", family=family(args.family))
    options = {"by": args.by, "at": tuple(args.at)} if kind == "moderator" else {}
    return OVER_TASKS[kind](runs, design, **options)


if __name__ == "__main__":
    sys.exit(main())
