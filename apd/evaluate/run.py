"""A finished run, evaluated again."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from apd.attacks import ThreatModel, doubts, find_attack
from apd.config import default, flat, merge
from apd.errors import UserError, one_line
from apd.evaluate.flags import add_flags
from apd.evaluate.loop import evaluate
from apd.evaluate.plan import LogitsFn, Shard, Source
from apd.evaluate.state import fingerprint
from apd.host import build_trainer, set_random_seed
from apd.results import EVALUATIONS
from apd.results.runs import load_runs
from apd.results.verdicts import (
    Verdicts,
    read_verdicts,
    verdicts_keys,
    verdicts_path,
    write_verdicts,
)


class Run:
    """A finished run: its trainer, with the prompts that results.json is about."""

    def __init__(self, folder: Path, results: dict, root: str = "", compiled: bool = False) -> None:
        self.folder, self.results = folder, results
        cfg = default()
        config = {
            key: value
            for key, value in flat(results["config"])
            # a run on the other host has the sections of that host's trainers too
            if not key.startswith("TRAINER.") or key.split(".")[1] in cfg.TRAINER
        }
        merge(cfg, config.items(), f"the config in {folder}")
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
        wanted = [float(eps) for eps in args.eps] or [threat.eps]
        for eps in wanted:
            for _, text in doubts(eps, part.STEPS):
                print(f"warning: {text}")
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
            if (beside := trainer.beside(self.folder)) is None:
                raise UserError(f"{self.folder} has no teacher that adaptive attacks go through")
            logits, model = beside
            return Source(name, (self.logits, logits), fingerprint(model))
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

    def loader(self, args: argparse.Namespace) -> tuple[DataLoader, Callable, int]:
        """The images that are asked for: loader, ``parse_batch`` and subset of ``evaluate``."""
        split = args.split or self.cfg.TEST.SPLIT
        subset = self.cfg.AT.TEST.SUBSET if args.subset is None else args.subset
        return self.trainer.split_loader(split), self.trainer.parse_batch_test, subset

    @torch.no_grad()
    def asked(self, args: argparse.Namespace) -> Iterator[dict]:
        """Further arguments of ``evaluate``, for each source and precision."""
        part, split = self.cfg.AT.TEST, args.split or self.cfg.TEST.SPLIT
        names = args.attack.split(",") if args.attack else part.ATTACKS or [f"pgd-{part.STEPS}"]
        attacks = [
            find_attack(name, threat, part.LAST_ITERATE)
            for threat in self.threats(args)
            for name in names
        ]
        for source in args.source.split(","):
            made_on = self.source(source)
            for precision in args.prec.split(",") if args.prec else [part.PREC]:
                yield {
                    "attacks": attacks,
                    "split": split,
                    "source": made_on,
                    "precision": precision,
                    "seed": max(self.cfg.SEED, 0),
                    "store": self.folder / EVALUATIONS,
                    "fingerprint": self.fingerprint,
                    "save_adv": args.save_adv and Path(args.save_adv),
                }

    def evaluate(
        self,
        args: argparse.Namespace,
        asked: dict,
        shard: Shard | None = None,
        only: Collection[str] | None = None,
    ) -> list[dict]:
        """The clean record, and those of all attacks and radii; ``asked`` is one of ``asked``."""
        loader, parse_batch, subset = self.loader(args)
        source = asked["source"].name if asked["source"] else "white-box"
        desc = f"{self.name} {source}" + (f", shard {shard}" if shard else "")
        with torch.no_grad():
            return evaluate(
                self.logits,
                loader,
                parse_batch=parse_batch,
                subset=subset,
                desc=desc,
                shard=shard,
                only=only,
                **asked,
            )

    def stored(self) -> list[Verdicts]:
        """All finished evaluations of these prompts."""
        paths = [verdicts_path(self.folder, key) for key in verdicts_keys(self.folder)]
        found = [read_verdicts(path) for path in paths]
        return [one for one in found if one.identity["model"] == self.fingerprint]

    def flagged(self, records: list[dict]) -> list[dict]:
        """Records whose flags come from all that is known of this run, and are stored."""
        stored = self.stored()
        keys = {one.record["key"] for one in stored}
        together = [one.record for one in stored]
        together += [record for record in records if record.get("key") not in keys]
        together += [r for r in self.results["evaluations"] if r.get("images") and "key" not in r]
        before = [dict(one.record["flags"]) for one in stored]
        add_flags(together)
        for one, flags in zip(stored, before):
            if one.record["flags"] != flags:
                write_verdicts(verdicts_path(self.folder, one.record["key"]), one)
        fresh = {one.record["key"]: one.record for one in stored}
        return [fresh.get(record.get("key"), record) for record in records]
