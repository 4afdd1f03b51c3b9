"""Train or evaluate one method on one dataset, with CoOp's command line.

    python train.py --root DATA --seed 1 --trainer APD \\
        --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/APD/vit_b32.yaml \\
        --output-dir output/caltech101/APD/vit_b32_16shots/seed1 DATASET.NUM_SHOTS 16

Exit codes: 0 done (or done before), 1 the loss is not finite or a result impossible, 2 bad input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from functools import cache

import apd
from apd import config
from apd.commandline import Parser
from apd.console import silence_nonzero_ranks, started
from apd.errors import UserError, exit_codes
from apd.files import check_writable
from apd.ranges import whole
from apd.results import is_complete, read_results


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """CoOp's flags; everything after them is KEY VALUE pairs of the config."""
    args = _parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return args


@cache
def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--root", default="", help="folder that holds the datasets")
    add("--output-dir", default="", help="folder for this run")
    add("--resume", default="", help="folder of a run to continue (default: --output-dir)")
    add("--seed", type=config.flag_type("SEED"), default=-1, help="0 or more fixes it")
    add("--source-domains", nargs="+", help="source domains, for domain generalisation")
    add("--target-domains", nargs="+", help="target domains")
    add("--transforms", nargs="+", help="data augmentations")
    add("--config-file", default="", help="config of the method")
    add("--dataset-config-file", default="", help="config of the dataset")
    add("--trainer", default="", help="method, by its trainer name")
    add("--backbone", default="", help="CLIP: an OpenAI name, a local file, or mini")
    add("--head", default="", help="not used by prompt learning")
    add("--eval-only", action="store_true", help="evaluate the prompts in --model-dir")
    add("--model-dir", default="", help="folder of the run to evaluate")
    add("--attack", default="", help="AT.TEST.ATTACKS: names with commas between")
    add("--load-epoch", type=whole(1), help="its epoch (default: the best, or else the last)")
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set")
    return parser


def setup_cfg(args: argparse.Namespace):
    """The run's config: defaults, dataset file, method file, flags, KEY VALUE pairs, in this order.

    Raises:
        UserError: missing file, unknown key or a value that it does not take.
    """
    cfg = config.of_files(filter(None, (args.dataset_config_file, args.config_file)))
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
        "AT.TEST.ATTACKS": args.attack,
    }
    options = [(key, value) for key, value in flags.items() if value]
    if args.seed >= 0:
        options.append(("SEED", args.seed))
    config.merge(cfg, [*options, *config.pairs(args.opts)], "command line")
    cfg.freeze()
    return cfg


class _Tee(io.StringIO):
    """Keeps what is printed before the log file exists, and shows it."""

    def __init__(self, console) -> None:
        super().__init__()
        self.console = console

    def write(self, text: str) -> int:
        self.console.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.console.flush()


def evaluated_prompts(args: argparse.Namespace) -> dict | None:
    """``prompts_from`` of results.json: the prompts that --eval-only loads; None: the run trains.

    Raises:
        UserError: flags name prompts to load, but the run trains fresh ones.
    """
    if not args.eval_only:
        for flag, value in (("--model-dir", args.model_dir), ("--load-epoch", args.load_epoch)):
            if value:
                raise UserError(
                    f"{flag} {value} without --eval-only would be ignored, and fresh prompts "
                    f"trained: add --eval-only to evaluate those prompts, or leave {flag} out"
                )
        return None
    return {"model_dir": args.model_dir, "epoch": args.load_epoch}


def finished(cfg, prompts_from: dict | None) -> bool:
    """Whether OUTPUT_DIR has the results of this run.

    Raises:
        UserError: it has the results of another run.
    """
    if not is_complete(cfg.OUTPUT_DIR):
        return False
    results = read_results(cfg.OUTPUT_DIR)
    changed = config.differences(cfg, results["config"])
    if results["prompts_from"] != prompts_from:
        changed.append(f"prompts from {prompts_from}, was {results['prompts_from']}")
    if changed:
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds the results of another run ({'; '.join(changed)}): "
            "choose another --output-dir"
        )
    return True


def run(args: argparse.Namespace) -> None:
    from apd import ranks

    cfg = setup_cfg(args)
    if started() > 1 and cfg.SEED < 0:
        raise UserError("ranks of torchrun draw alike by their seed: give --seed")
    with ranks.joined(cfg.USE_CUDA):
        _run(args, cfg)


def _run(args: argparse.Namespace, cfg) -> None:
    from apd import host, ranks
    from apd.precision import forbid_tf32

    prompts_from = evaluated_prompts(args)
    # an evaluation without a folder of its own is only printed
    keep = bool(args.output_dir) or not args.eval_only
    if keep and finished(cfg, prompts_from):
        print(f"{cfg.OUTPUT_DIR} is finished: kept as it is")
        return
    forbid_tf32()
    if keep:
        check_writable(cfg.OUTPUT_DIR, "--output-dir")
    # Everything that can be wrong is found before the output folder is touched.
    with contextlib.redirect_stdout(_Tee(sys.stdout)) as early:
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            host.set_random_seed(cfg.SEED)
        print(cfg)
        print(host.collect_env_info())
        print(f"host: {host.HOST} {host.HOST_VERSION}")
        trainer = host.build_trainer(cfg)
        if args.eval_only:
            if not args.model_dir and trainer.learns:
                raise UserError("--eval-only needs the folder of a run: give it with --model-dir")
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        elif not args.no_train:
            trainer.resume_model_if_exist(cfg.RESUME or cfg.OUTPUT_DIR)
    if args.no_train and not args.eval_only:
        return
    trainer.keep_results, trainer.prompts_from, trainer.argv = keep, prompts_from, args.argv
    if keep and not ranks.rank():
        host.setup_logger(cfg.OUTPUT_DIR)
        sys.stdout.file.write(early.getvalue())  # type: ignore[union-attr]  # a Logger's
    if args.eval_only:
        trainer.test()
    else:
        trainer.train()


def train(argv: list[str] | None = None) -> int:
    """The command ``apd-train`` for callers in Python: it raises errors where ``main`` prints them.

    Returns:
        The exit code: 0, or 130 if it was interrupted.
    """
    silence_nonzero_ranks()
    args = parse_args(argv)
    apd.register()
    try:
        run(args)
    except KeyboardInterrupt:
        print("interrupted: the same command continues this run", file=sys.stderr)
        return 130
    finally:
        sys.stdout.flush()
    return 0


main = exit_codes(train)

if __name__ == "__main__":
    sys.exit(main())
