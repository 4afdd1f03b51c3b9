"""Figures of finished runs.

    apd-plot RUN [RUN...] -o FOLDER [--kind KIND...] [--format FORMAT...]

RUN is a run's folder, or a folder above several. Lines and points are means over seeds; bands and
bars are one sample standard deviation. In scatter of one seed, bars are the standard error over
test images. Kinds over tasks are drawn only when they are named, and take the options of apd-table
(docs/tasks.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from apd.commandline import Parser
from apd.errors import UserError, exit_codes, listed
from apd.figures.kinds import KINDS, Figures
from apd.figures.style import FORMATS, save
from apd.figures.tasks import frontier, moderator
from apd.files import check_writable
from apd.results.runs import load_runs
from apd.results.schema import SPLITS
from apd.tables.arms import add_options, design_of

OVER_TASKS: dict[str, tuple[Callable[..., Figures], str]] = {  # and what they show
    "frontier": (frontier, "clean against robust accuracy, one point a training radius"),
    "moderator": (moderator, "a difference of two arms on each task, against zero-shot accuracy"),
}


def _listed_kinds() -> str:
    shows = {name: kind.shows for name, kind in KINDS.items()}
    shows |= {name: f"over tasks: {text}" for name, (_, text) in OVER_TASKS.items()}
    width = max(map(len, shows))
    return "kinds:\n" + "\n".join(f"  {name:{width}}  {text}" for name, text in shows.items())


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="apd-plot", description=__doc__, epilog=_listed_kinds())
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
    check_writable(args.output, "-o")  # before anything is drawn
    runs = load_runs(args.runs, args.split)
    figures: Figures = {}
    for kind in args.kind:
        if kind in KINDS:
            figures |= KINDS[kind].draw(runs)
        else:
            draw, _ = OVER_TASKS[kind]
            figures |= draw(runs, design_of(args, baseline=args.baseline))
    if not figures:
        needs = ", ".join(f"{name} needs {kind.needs}" for name, kind in KINDS.items())
        raise UserError(
            f"nothing to draw: the runs in {listed(args.runs)} do not suit {', '.join(args.kind)} "
            f"({needs})"
        )
    for stem, figure in figures.items():
        for form in args.format:
            print(save(figure, Path(args.output, f"{stem}.{form}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
