"""Figures of finished runs.

    apd-plot RUN [RUN...] -o FOLDER [--kind KIND...] [--format FORMAT...]

RUN is a run's folder, or a folder above several. The kinds:
    scatter   clean against robust accuracy, of the average where there are several data sets
    few-shot  accuracy against shots, for each data set and the average of all
    eps       robust accuracy against the radius of the attack, evaluations by apd-eval included
    training  what history.csv holds, against the epoch
Lines and points are means over seeds; bands and bars are one sample standard deviation.
Two kinds are drawn only when they are named, and take the options of apd-table (docs/tasks.md):
    frontier  clean against robust accuracy over tasks, one point a training radius
    moderator a difference of two arms on each task, against zero-shot accuracy
"""

from __future__ import annotations

import sys
from pathlib import Path

from apd.commandline import Parser
from apd.errors import UserError, exit_codes, listed
from apd.figures.kinds import KINDS, Figures
from apd.figures.style import FORMATS, save
from apd.figures.tasks import frontier, moderator
from apd.results.runs import load_runs
from apd.results.schema import SPLITS
from apd.tables.arms import add_options, design_of

OVER_TASKS = {"frontier": frontier, "moderator": moderator}


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="apd-plot", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    add("-o", "--output", required=True, metavar="FOLDER", help="where the figures go")
    add("--split", choices=SPLITS, help="evaluations on these images only")
    add("--kind", nargs="+", default=list(KINDS), metavar="KIND", help="default: all that suit")
    add("--baseline", metavar="ARM", default="", help="of frontier and moderator: as in apd-table")
    add_options(parser)
    add("--format", nargs="+", default=["png"], metavar="FORMAT", help=", ".join(FORMATS))
    args = parser.parse_args(argv)
    kinds = [*KINDS, *OVER_TASKS]
    for noun, names, known in (("kind", args.kind, kinds), ("format", args.format, FORMATS)):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"there is no {noun} {listed(unknown)}: use {', '.join(known)}")
    runs = load_runs(args.runs, args.split)
    figures: Figures = {}
    for kind in args.kind:
        if kind in KINDS:
            figures |= KINDS[kind](runs)
        else:
            figures |= OVER_TASKS[kind](runs, design_of(args, baseline=args.baseline))
    if not figures:
        raise UserError(
            f"nothing to draw: the runs in {listed(args.runs)} do not suit {', '.join(args.kind)} "
            "(few-shot needs two numbers of shots, scatter two methods under one attack, eps two "
            "radii, training a history.csv)"
        )
    for stem, figure in figures.items():
        for form in args.format:
            print(save(figure, Path(args.output, f"{stem}.{form}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
