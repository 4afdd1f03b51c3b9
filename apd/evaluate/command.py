"""Evaluate finished runs under further attacks.

    apd-eval RUN [RUN...] --attack pgd-100,autoattack --eps 1,2,4 --subset 1000

RUN is a run's folder, or a folder above several. Each evaluation is kept in the run's folder
(evaluations/), found again, and continued if it was killed. eps is in units of 1/255; alpha keeps
its ratio to eps.

Exit codes: 0 done, 1 a result is impossible (see flags), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tabulate import tabulate
from yacs.config import CfgNode

import apd
from apd.attacks import NAMES, ThreatModel, find_attack
from apd.config import default
from apd.errors import UserError, exit_codes, one_line
from apd.evaluate.flags import ERROR, add_flags
from apd.evaluate.loop import evaluate
from apd.evaluate.plan import LogitsFn, Source
from apd.evaluate.state import fingerprint, read_finished, write_finished
from apd.host import build_trainer, set_random_seed
from apd.results import EVALUATIONS, SPLITS
from apd.results.runs import load_runs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="apd-eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    add("--attack", default="", help=f"with commas between: {', '.join(NAMES)}")
    add("--eps", default="", help="with commas between, in 1/255 (default: the run's)")
    add("--norm", choices=("linf", "l2"), help="default: the run's")
    add("--source", default="white-box", help=(
        "where attacks are made, with commas between: white-box, transfer:zeroshot, "
        "transfer:RUN, adaptive (also through APD's teacher)"
    ))  # fmt: skip
    add("--prec", default="", help="of the attack, with commas between: fp32, bf16, amp")
    add("--compile", action="store_true", help="torch.compile the model: needs a C++ compiler")
    add("--split", choices=SPLITS, help="on these images (default: the run's TEST.SPLIT)")
    add("--subset", type=int, help="how many test images, the same for all runs; 0: all")
    add("--root", default="", help="folder that holds the datasets (default: the run's)")
    add("--save-adv", metavar="DIR", help="keep the adversarial images (npz, float32)")
    add("--figures", metavar="DIR", help="draw examples, curves over eps, accuracy of classes")
    return parser.parse_args(argv)


class Run:
    """A finished run: its trainer, with the prompts that results.json is about."""

    def __init__(self, folder: Path, results: dict, root: str = "", compiled: bool = False) -> None:
        self.folder, self.results = folder, results
        cfg = default()
        try:
            cfg.merge_from_other_cfg(CfgNode(results["config"]))
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"the config in {folder}: {one_line(error)}") from error
        cfg.OUTPUT_DIR, cfg.RESUME, cfg.VERBOSE = str(folder), "", False
        cfg.DATASET.ROOT = root or cfg.DATASET.ROOT
        cfg.freeze()
        with contextlib.redirect_stdout(io.StringIO()):
            set_random_seed(max(cfg.SEED, 0))
            self.trainer = trainer = build_trainer(cfg)
            if trainer.learns:
                loaded = results["prompts_from"] or {"model_dir": str(folder), "epoch": None}
                trainer.load_model(loaded["model_dir"], epoch=loaded["epoch"])
        self.cfg, self.logits = cfg, trainer.image_logits()
        if compiled:
            self.logits = self.compiled(self.logits)
        self.fingerprint = fingerprint(trainer.model)

    @torch.no_grad()
    def compiled(self, logits: LogitsFn) -> LogitsFn:
        """The same, compiled once for batches of every size."""
        compiled = torch.compile(logits, dynamic=True)
        try:
            compiled(torch.rand(2, 3, *self.cfg.INPUT.SIZE, device=self.trainer.device))
        except RuntimeError as error:
            raise UserError(f"--compile: {one_line(error)}") from error
        return compiled

    @property
    def name(self) -> str:
        return f"{self.results['method']}, seed {self.results['seed']}"

    def threats(self, args: argparse.Namespace) -> list[ThreatModel]:
        """One for each eps."""
        threat, part = self.trainer.test_threat, self.cfg.AT.TEST
        if threat is None and not args.eps:
            raise UserError(f"{self.folder} has no AT.TEST.EPS: give --eps")
        norm = args.norm or part.NORM
        if norm != part.NORM and not args.eps:
            raise UserError(f"--norm {norm}: give its --eps too")
        wanted = [_number(eps) for eps in args.eps.split(",")] if args.eps else [threat.eps]
        ratio = threat.alpha / threat.eps if threat and threat.eps else 0.25
        base = threat or ThreatModel(part.NORM, 1, 1, part.STEPS, part.RESTARTS, loss=part.LOSS)
        return [replace(base, norm=norm, eps=eps, alpha=ratio * eps) for eps in wanted]

    @torch.no_grad()
    def source(self, name: str) -> Source | None:
        """Where attacks are made; None: white-box."""
        trainer = self.trainer
        if name == "white-box":
            return None
        if name == "adaptive":
            if (teacher := getattr(trainer, "teacher", None)) is None:
                raise UserError(f"{self.folder} has no teacher that adaptive attacks go through")
            if self.cfg.TRAINER.APD.TEACHER.MODE == "offline":
                trainer.load_teacher(teacher, str(self.folder / "teacher"))
            teacher.eval()
            teacher_logits = teacher.classifier()
            return Source(
                name,
                (self.logits, lambda images: teacher_logits(trainer.for_teacher(images))),
                fingerprint(teacher),
            )
        kind, _, folder = name.partition(":")
        if kind != "transfer" or not folder:
            raise UserError(
                f'unknown source "{name}": use white-box, transfer:zeroshot, transfer:RUN, adaptive'
            )
        if folder == "zeroshot":
            model = trainer.build_prompted_clip(trainer.clip_model).eval()
            return Source(name, (model.classifier(),), fingerprint(model))
        found = load_runs([folder])
        if len(found) > 1:
            raise UserError(f"{name}: one run, please; there are {', '.join(map(str, found))}")
        other = Run(*next(iter(found.items())), root=self.cfg.DATASET.ROOT)
        for what, ours, theirs in (
            ("classes", self.classnames, other.classnames),
            ("INPUT.SIZE", list(self.cfg.INPUT.SIZE), list(other.cfg.INPUT.SIZE)),
        ):
            if ours != theirs:
                raise UserError(f"{name}: it has other {what} than {self.folder}")
        return Source(name, (other.logits,), other.fingerprint)

    @property
    def classnames(self) -> list[str]:
        return list(self.trainer.dm.dataset.classnames)

    @torch.no_grad()
    def evaluate(self, args: argparse.Namespace) -> list[dict]:
        """The clean record, and those of all attacks, radii, sources and precisions."""
        part, split = self.cfg.AT.TEST, args.split or self.cfg.TEST.SPLIT
        names = args.attack.split(",") if args.attack else part.ATTACKS or [f"pgd-{part.STEPS}"]
        attacks = [
            find_attack(name, threat, part.LAST_ITERATE)
            for threat in self.threats(args)
            for name in names
        ]
        records: list[dict] = []
        for source in args.source.split(","):
            made_on = self.source(source)
            for precision in args.prec.split(",") if args.prec else [part.PREC]:
                found = evaluate(
                    self.logits,
                    self.trainer.split_loader(split),
                    attacks=attacks,
                    parse_batch=self.trainer.parse_batch_test,
                    split=split,
                    source=made_on,
                    precision=precision,
                    subset=part.SUBSET if args.subset is None else args.subset,
                    seed=max(self.cfg.SEED, 0),
                    store=self.folder / EVALUATIONS,
                    fingerprint=self.fingerprint,
                    save_adv=args.save_adv and Path(args.save_adv),
                    desc=f"{self.name} {source}",
                )
                records += found[1:] if records else found
        return self.flagged(records)

    def stored(self) -> list[dict]:
        """All finished evaluations of these prompts, verdicts included."""
        paths = sorted((self.folder / EVALUATIONS).glob("*.json"))
        found = [read_finished(path) for path in paths]
        return [one for one in found if one["identity"]["model"] == self.fingerprint]

    def flagged(self, records: list[dict]) -> list[dict]:
        """Records whose flags come from all that is known of this run, and are stored."""
        stored = self.stored()
        keys = {one["record"]["key"] for one in stored}
        together = [one["record"] for one in stored]
        together += [record for record in records if record.get("key") not in keys]
        together += [r for r in self.results["evaluations"] if r.get("images") and "key" not in r]
        before = [dict(one["record"]["flags"]) for one in stored]
        add_flags(together)
        for one, flags in zip(stored, before):
            if one["record"]["flags"] != flags:
                write_finished(self.folder / EVALUATIONS / f"{one['record']['key']}.json", one)
        fresh = {one["record"]["key"]: one["record"] for one in stored}
        return [fresh.get(record.get("key"), record) for record in records]


def table(evaluated: list[tuple[Run, list[dict]]]) -> str:
    """One row an evaluation, with footnotes for its flags."""
    rows, notes = [], []
    for run, (clean, *records) in evaluated:
        for record in records or [clean]:
            marks = []
            for name, text in record["flags"].items():
                note = f"{name}: {text}"
                notes += [note] * (note not in notes)
                marks.append(str(notes.index(note) + 1))
            threat = record["threat_model"] or {}
            precision = threat.get("precision", "fp32")
            rows.append({
                "method": run.results["method"],
                "seed": run.results["seed"],
                "attack": record["attack"] + f" ({precision})" * (precision != "fp32"),
                "norm": threat.get("norm", "-"),
                "eps": f"{threat['eps']:g}/255" if threat else "-",
                "source": threat.get("source", "-"),
                "images": f"{record['total']}{' (val)' if record['split'] == 'val' else ''}",
                "clean (%)": f"{clean['accuracy']:.1f}",
                "robust (%)": f"{record['accuracy']:.1f}" if threat else "-",
                "flags": ", ".join(marks),
                "seconds": f"{record['seconds']:.0f}",
            })  # fmt: skip
    text = tabulate(rows, "keys", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(notes, start=1))])


def changed_verdicts(run: Run, records: list[dict]) -> list[str]:
    """How many images' verdicts differ between float32 and half precision, attack by attack."""
    stored = {one["record"]["key"]: one for one in run.stored()}
    full, lines = {}, []
    for record in sorted(records, key=lambda r: r["threat_model"]["precision"] != "fp32"):
        threat = dict(record["threat_model"])
        precision = threat.pop("precision")
        what, lost = (record["attack"], str(threat)), stored[record["key"]]["lost_to"]
        if precision == "fp32":
            full[what] = lost
        elif what in full:
            changed = int(((lost == 0) != (full[what] == 0)).sum())
            lines.append(
                f"{run.name}: {record['attack']} (eps {threat['eps']:g}/255) in {precision} "
                f"changes {changed:,} of {len(lost):,} verdicts"
            )
    return lines


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--eps {text}: use numbers, in 1/255") from error


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    apd.register()
    torch.backends.cudnn.allow_tf32 = False  # attacks and their verdicts are in float32
    try:
        evaluated = []
        for folder, results in load_runs(args.runs).items():
            run = Run(folder, results, args.root, args.compile)
            evaluated.append((run, run.evaluate(args)))
        print(table(evaluated))
        for run, records in evaluated:
            for line in changed_verdicts(run, records[1:]):
                print(line)
        if args.figures:
            from apd.figures.evaluation import draw  # matplotlib is slow to import

            draw(evaluated, Path(args.figures))
        impossible = any(ERROR in r["flags"] for _, records in evaluated for r in records)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130
    return int(impossible)


if __name__ == "__main__":
    sys.exit(main())
