"""Write our prompts in the layout of CoOp, MaPLe, APT, FAP, AdvPT and MAPT, and theirs in ours; or
write a classifier's folder, for apd.load.

    apd-convert output/caltech101/MaPLe/vit_b16_16shots/seed1 elsewhere/seed1 --epoch 5
    apd-convert output/caltech101/APD/vit_b16_16shots/seed1 folder --format apd [--push USER/NAME]

The names in the checkpoint tell whose layout it has; it is written in the other one. The peers load
the result with --model-dir and --load-epoch, and add the frozen CLIP and the class names
themselves. --format apd writes the prompts, all that they need but the weights of CLIP, and a model
card; --push uploads it to the Hugging Face hub (HF_TOKEN says who you are).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apd.commandline import Parser, command
from apd.models.arguments import SOURCES, add_flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-convert", description=__doc__)
    add = parser.add_argument
    add("source", metavar="SRC", help=f"folder of a run; with --format apd {SOURCES}")
    add("target", metavar="DST", type=Path, help="folder to write to")
    add("--format", choices=("peers", "apd"), default="peers", help="default: peers")
    add("--push", metavar="USER/NAME", help="with --format apd, upload it to the hub")
    add_flags(parser)
    args = parser.parse_args(argv)
    for name in ("push", "classes", "device", "backbone", "robust", "trainer", "revision"):
        if getattr(args, name) and args.format != "apd":
            parser.error(f"--{name} is of use with --format apd only: give that too")
    return args


main = command(parse_args, "apd.interchange.command:run")

if __name__ == "__main__":
    sys.exit(main())
