"""Evaluate finished runs under further attacks.

    apd-eval RUN [RUN...] --attack pgd-100,autoattack --eps 1,2,4 --subset 1000
    apd-eval RUN [RUN...] --attack autoattack --shards 8 [--executor slurm --gpus 1 ...]
    apd-eval --model package.module:function --data FOLDER --attack autoattack --eps 4

RUN is a run's folder, or a folder above several. Each evaluation is kept in the run's folder
(evaluations/), found again, and continued if it was killed. eps is in units of 1/255; alpha keeps
its ratio to eps. --shards N splits the images over N workers, with the same verdicts; on clusters
that know neither Ray nor Slurm, start --shard 1/N to N/N by hand, then --merge, with the same
other options each.

--model evaluates any model: the function, called without arguments, returns a callable from images
in [0, 1] to logits (or the name is that of a PyTorch module). Its evaluations are kept in --store.

Exit codes: 0 done, 1 a result is impossible (see flags) or a worker failed, 2 bad input, 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys

from apd.attack_catalog import attack_names
from apd.choices import NORMS, RULES
from apd.commandline import Parser, command
from apd.config import flag_type
from apd.jobs import options
from apd.ranges import number, per_255, several, whole
from apd.results import SPLITS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-eval", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folder of a run, or of several")
    add("--attack", default="", help=f"with commas between: {', '.join(attack_names())}")
    add(
        "--eps",
        type=several(per_255(number(0)), split=True),
        default=[],
        help="with commas between, in 1/255 (default: the run's)",
    )
    add("--norm", choices=NORMS, help="default: the run's")
    add(
        "--source",
        default="white-box",
        help=(
            "where attacks are made, with commas between: white-box, transfer:zeroshot, "
            "transfer:RUN, adaptive (also through APD's teacher; through a test-time defence, "
            "which is what white-box is there), static (on the model without that defence)"
        ),
    )
    add("--prec", default="", help="of the attack, with commas between: fp32, bf16, amp")
    draws = parser.add_argument_group("models whose logits are random (default: the run's)")
    draws.add_argument("--eot", type=whole(1), help="draws that a gradient is averaged over")
    draws.add_argument("--draws", type=whole(1), help="draws of a verdict")
    draws.add_argument("--rule", choices=RULES, help="when a verdict of several draws is right")
    add("--compile", action="store_true", help="torch.compile the model: needs a C++ compiler")
    add("--split", choices=SPLITS, help="on these images (default: the run's TEST.SPLIT)")
    add(
        "--subset",
        type=flag_type("AT.TEST.SUBSET"),
        help="how many test images, the same for all runs; 0: all",
    )
    add("--root", default="", help="folder that holds the datasets (default: the run's)")
    add("--save-adv", metavar="DIR", help="keep the adversarial images (npz, float32)")
    add("--figures", metavar="DIR", help="draw examples, curves over eps, accuracy of classes")
    model = parser.add_argument_group("another model than a run's").add_argument
    model("--model", metavar="MODULE:NAME", help="importable from here: what makes the model")
    model("--data", metavar="FOLDER", help="of class folders; of train/ and test/, test/ is taken")
    model("--store", metavar="DIR", help="default: output/DATASET/NAME")
    model("--name", help="of the model, in tables (default: the function's)")
    model("--dataset", help="name of the data, as runs have it (default: the folder's)")
    model("--backbone", default="", help="as runs have it, to stand in one table (default: NAME)")
    model("--classes", default="", metavar="a,b,c|FILE", help="in the order of the model's logits")
    model("--size", type=whole(0), default=0, help="resize and cut out the centre, in pixels")
    model("--batch-size", type=whole(1), default=64, help="images together (default: 64)")
    model("--device", default="", help="default: where the function puts the model")
    model("--seed", type=whole(0), default=1, help="of the attacks, and in tables (default: 1)")
    shards = parser.add_argument_group("in parts").add_mutually_exclusive_group()
    shards.add_argument(
        "--shards", type=whole(1), metavar="N", help="split the images over N workers"
    )
    shards.add_argument("--shard", metavar="i/N", help="do this part here, for --merge")
    shards.add_argument("--merge", action="store_true", help="make one evaluation of all parts")
    options.add_arguments(parser, "shard", "all, or one per GPU")
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.model):
        parser.error("give runs, or --model with --data")
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    if args.model and (args.root or args.compile):
        parser.error("--root and --compile are for runs")
    return args


main = command(parse_args, "apd.evaluate.command:evaluate_runs")

if __name__ == "__main__":
    sys.exit(main())
