"""Attack pictures in the browser, on this machine.

    apd-demo RUN [RUN...] [--port 7860]

Serves a page at 127.0.0.1 where you drop a picture, choose the attack's radius and steps and the
runs, and see what each run says before and after the attack on it. RUN is a run's folder, one that
save wrote, hf:USER/NAME, or a checkpoint of another project. The page loads nothing from the
network and sends nothing to it. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys

from apd.commandline import Parser
from apd.errors import UserError, exit_codes, one_line
from apd.models.arguments import SOURCES, add_flags, check_alike, classifier, short_names, split
from apd.ranges import whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-demo", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help=SOURCES)
    add("--port", type=whole(1), help="of 127.0.0.1 (default: the first free one from 7860 on)")
    add_flags(parser)
    return parser.parse_args(argv)


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sources, others = split(args.runs)
    if others:
        raise UserError(f"{others[0]} is no classifier: give {SOURCES}")
    try:
        from apd.demo.page import build, serve
    except ImportError as error:
        raise UserError(
            f"the page needs gradio ({one_line(error)}): pip install 'apd-clip[demo]'"
        ) from error
    models = [classifier(source, args) for source in sources]
    check_alike(models)
    serve(build(models, short_names(sources, models)), args.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
