"""Check a data root: which data sets are complete and readable, and what to download next.
Check an installation: is zero-shot CLIP as good as published, and do attacks work?

    python -m apd.doctor --root DATA [--dataset NAME ...] [--deep]
    python -m apd.doctor --root DATA --dataset NAME --make-split [--seed 1]
    python -m apd.doctor --root DATA --zeroshot ViT-B/16 [--subset 2000]
    python -m apd.doctor --root DATA --zeroshot mini --dataset Digits
    python -m apd.doctor --attack [--device cuda]

Counts of classes and images are shown beside the published ones. --deep decodes every image.
--make-split writes the split file of a data set from its raw annotations, by CoOp's rules and
with a seed: for those who cannot get the published file, and not comparable with its numbers.
--zeroshot evaluates templates on some test images of each usable data set, and compares the
accuracy with published figures. It also takes the data sets that come with this package.
--attack tests attacks on this device, in seconds.

Exit codes: 0 all that was asked for is usable, 1 something is not, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys

from apd.catalog import PUBLISHED
from apd.commandline import Parser, command
from apd.ranges import whole

BACKBONES = (
    "mini (characters) or mini-photo (photographs), which come with this package, an OpenAI name "
    "such as ViT-B/16, or a file"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-doctor", description=__doc__)
    add = parser.add_argument
    add("--root", metavar="DATA", help="folder that holds the data sets")
    add("--dataset", nargs="+", metavar="NAME", help=f"which (default: {', '.join(PUBLISHED)})")
    add("--deep", action="store_true", help="decode every image")
    add("--make-split", action="store_true", help="write the split file of --dataset")
    add("--seed", type=whole(0), default=1, help="of --make-split")
    add("--zeroshot", metavar="BACKBONE", nargs="?", const="", help=f"zero-shot CLIP: {BACKBONES}")
    add(
        "--subset",
        type=whole(0),
        default=2000,
        metavar="N",
        help="of --zeroshot: test images of a data set, drawn with a fixed seed; 0: all",
    )
    add("--attack", action="store_true", help="test attacks on this device; needs no data")
    add(
        "--device",
        default="",
        help="of --zeroshot and --attack (default: the GPU, if there is one)",
    )
    args = parser.parse_args(argv)
    if args.zeroshot == "":
        parser.error(f"--zeroshot needs a backbone: {BACKBONES}")
    if not (args.root or args.attack):
        parser.error("--root DATA is missing")
    return args


main = command(parse_args, "apd.doctor.checks:run")

if __name__ == "__main__":
    sys.exit(main())
