"""One page about finished runs, to be sent to a co-author.

    apd-report RUN [RUN...] -o report.html [--baseline METHOD]

RUN is a run's folder, or a folder above several. The page opens with the best accuracies and a
table of all methods, the most robust first. Then it has the tables and figures that the runs suit,
images under attack, threat models, sanity flags, configurations and versions. It needs no other
file and no network, and the same runs give the same page. A click on a column's name sorts a table;
links save tables as CSV. Images under attack are drawn once, for which the data set is needed, and
stored in the run's folder evaluations/.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from apd.commandline import Parser
from apd.errors import exit_codes
from apd.files import atomic_write, check_writable
from apd.report.galleries import galleries
from apd.report.page import page
from apd.results.runs import load_runs
from apd.results.schema import SPLITS


def _store_gallery(folder: Path, results: dict, key: str, root: str) -> None:
    import apd
    from apd.show.stored import store_gallery  # PyTorch is slow to import

    apd.register()
    print(f"drawing images of {folder} under attack, once", file=sys.stderr)
    store_gallery(folder, results, key, root)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="apd-report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE")
    parser.add_argument("--title", default="", help="default: names the data")
    parser.add_argument("--baseline", metavar="METHOD", default="", help="add differences to it")
    parser.add_argument("--split", choices=SPLITS, help="evaluations on these images only")
    parser.add_argument("--root", default="", help="folder of the data sets (default: the runs')")
    parser.add_argument("--no-gallery", action="store_true", help="show no images under attack")
    args = parser.parse_args(argv)
    check_writable(Path(args.output).parent, "-o")  # before images are drawn
    runs = load_runs(args.runs, args.split)
    store = partial(_store_gallery, root=args.root)
    shown = ([], []) if args.no_gallery else galleries(runs, store)
    content = page(runs, args.title, shown, args.baseline)
    with atomic_write(args.output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
