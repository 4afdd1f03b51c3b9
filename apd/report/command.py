"""One page about finished runs, to be sent to a co-author.

    apd-report RUN [RUN...] -o report.html [--title TEXT]

RUN is a run's folder, or a folder above several. The page has the tables and figures that the runs
suit, threat models, sanity flags, configurations and versions. It needs no other file, no network
and no script, and the same runs give the same page.
"""

from __future__ import annotations

import sys

from apd.commandline import Parser
from apd.errors import exit_codes
from apd.files import atomic_write
from apd.report.page import page
from apd.results.runs import load_runs
from apd.results.schema import SPLITS


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="apd-report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE")
    parser.add_argument("--title", default="", help="default: names the data")
    parser.add_argument("--split", choices=SPLITS, help="evaluations on these images only")
    args = parser.parse_args(argv)
    content = page(load_runs(args.runs, args.split), args.title)
    with atomic_write(args.output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
