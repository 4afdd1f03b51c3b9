"""The work of the command ``apd-eval``; ``apd.arguments.evaluate`` has its flags."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apd
from apd.attacks import Draws, ThreatModel, find_attack, threat_warnings
from apd.errors import UserError
from apd.evaluate.evaluated import Evaluated, Saved
from apd.evaluate.examples import attacked_examples
from apd.evaluate.flags import ERROR
from apd.evaluate.imported import ImportedModel
from apd.evaluate.model import About
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard, Source, threat_model
from apd.evaluate.run import SavedRun
from apd.evaluate.shards import Merger
from apd.evaluate.table import table
from apd.evaluate.workers import run_shards
from apd.files import check_writable
from apd.jobs import options
from apd.jobs.local import warm_up
from apd.jobs.lock import Lock
from apd.models.arguments import class_names
from apd.precision import forbid_tf32
from apd.results import EVALUATIONS
from apd.results.runs import load_runs
from apd.results.words import radius

EXAMPLES = 6  # images of a figure of examples


def changed_verdicts(run: Evaluated, records: list[dict]) -> list[str]:
    """A line for each attack in half precision: how many verdicts differ from those in float32.

    Attacks that were not evaluated in float32 too have no line.
    """
    stored = {verdicts.record["key"]: verdicts for verdicts in run.stored()}
    in_float32, lines = {}, []
    for record in sorted(records, key=lambda r: r["threat_model"]["precision"] != "fp32"):
        threat = dict(record["threat_model"])
        precision = threat.pop("precision")
        conditions, stands = (record["attack"], str(threat)), stored[record["key"]].stands
        if precision == "fp32":
            in_float32[conditions] = stands
        elif conditions in in_float32:
            changed = int((stands != in_float32[conditions]).sum())
            lines.append(
                f"{run.name}: {record['attack']} ({radius(threat)}) in {precision} "
                f"changes {changed:,} of {len(stands):,} verdicts"
            )
    return lines


def requests_for(run: Evaluated, args: argparse.Namespace) -> list[EvaluationRequest]:
    """A request for each source and precision, with all attacks at all radii.

    Flags that are not given have the values of the run's config.
    """
    test = run.cfg.AT.TEST
    names = args.attack.split(",") if args.attack else test.ATTACKS or [f"pgd-{test.STEPS}"]
    request = replace(
        EvaluationRequest.from_config(run.cfg).of(run.logits),
        attacks=tuple(
            find_attack(name, threat, test.LAST_ITERATE)
            for threat in threats(run, args)
            for name in names
        ),
        split=args.split or run.cfg.TEST.SPLIT,
        subset=test.SUBSET if args.subset is None else args.subset,
        draws=Draws(args.eot or test.EOT, args.draws or test.DRAWS, args.rule or test.RULE),
        store=run.folder / EVALUATIONS,
        save_adv=args.save_adv,
    )
    return [
        replace(request, source=Source(source), precision=precision)
        for source in args.source.split(",")
        for precision in (args.prec or test.PREC).split(",")
    ]


def threats(run: Evaluated, args: argparse.Namespace) -> list[ThreatModel]:
    """A threat model for each --eps, by default the run's own; alpha keeps its ratio to eps.

    Raises:
        UserError: neither the flags nor the run have a radius, or not one of this norm.
    """
    test = run.cfg.AT.TEST
    own = None if test.EPS is None else threat_model(run.cfg, "TEST")
    radii = [float(eps) for eps in args.eps] or ([own.eps] if own else [])
    if not radii:
        raise UserError(f"{run.folder} has no AT.TEST.EPS: give --eps")
    norm = args.norm or test.NORM
    if norm != test.NORM and not args.eps:
        raise UserError(f"--norm {norm}: give its --eps too")
    for eps in radii:
        for _, text in threat_warnings(eps, test.STEPS):
            print(f"warning: {text}")
    ratio = own.alpha / own.eps if own and own.eps else 0.25
    base = own or ThreatModel(test.NORM, 1, 1, test.STEPS, test.RESTARTS, loss=test.LOSS)
    return [replace(base, norm=norm, eps=eps, alpha=ratio * eps) for eps in radii]


def evaluations(
    runs: list[Evaluated], args: argparse.Namespace
) -> Iterator[tuple[Evaluated, list[dict]]]:
    """Evaluate all runs: the clean record of each, then those of all its attacks."""
    requests = {run: requests_for(run, args) for run in runs}
    # runs with the same predictions share a folder of attacked images: shard one after another
    for group in [[run] for run in runs] if args.save_adv else [runs]:
        mergers: dict[Evaluated, list[Merger]] = {}
        if args.shards or args.merge:
            mergers = {
                run: run.mergers(requests[run], args.shards)
                if args.shards
                else run.ended_shards(requests[run])
                for run in group
            }
        if args.shards:
            todo = [(run.saved, mergers[run]) for run in group if run.saved]
            run_shards(todo, args.shards, options.ExecutorOptions.of(args).start, args.jobs)
        for run in group:
            yield run, run.records(requests[run], mergers.get(run, ()))


def one_shard(saved: list[Saved], args: argparse.Namespace) -> int:
    """Evaluate one shard of each model (--shard) in this process; the exit code.

    Raises:
        UserError: another process is at this shard.
    """
    shard = Shard.parse(args.shard)
    for model in saved:
        store = model.folder / EVALUATIONS
        lock = Lock(store / shard.folder, store / SHARDS)
        if not lock.acquire():
            raise UserError(f"{model.folder}: another process is at shard {shard}: wait for it")
        try:
            run = model.load()
            requests = [replace(request, shard=shard) for request in requests_for(run, args)]
            records = [record for request in requests for record in run.evaluate(request)]
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # it is not empty
                (store / shard.folder).rmdir()
        for record in records:
            eps = f" ({radius(record['threat_model'])})" if record["threat_model"] else ""
            print(
                f"{model.folder}, shard {shard}: {record['attack']}{eps}: "
                f"{record['correct']:,} of {record['total']:,} images stand"
            )
    print("when all shards have ended, --merge makes one evaluation of them")
    return 0


def saved_models(args: argparse.Namespace) -> list[Saved]:
    """The runs, or the model of the user's own, that the flags name."""
    if not args.model:
        return [SavedRun(*run, args.root, args.compile) for run in load_runs(args.runs).items()]
    name = args.name or args.model.rpartition(":")[2]
    dataset = args.dataset or Path(args.data).absolute().name
    folder = Path(args.store or Path("output", dataset, name))
    check_writable(folder, "--store")
    about = About(name, dataset, args.backbone, args.seed)
    classes = tuple(class_names(args.classes) or ())
    return [
        ImportedModel(
            *(folder, args.model, args.data, about, classes),
            *(args.size, args.batch_size, args.device),
        )
    ]


def evaluate_runs(args: argparse.Namespace) -> int:
    """Run ``apd-eval`` with its parsed flags; the exit code."""
    if args.shards and args.executor == "local":
        warm_up()  # worker processes start up while this one loads the runs
    apd.register()
    forbid_tf32()
    for flag, folder in (("--save-adv", args.save_adv), ("--figures", args.figures)):
        if folder:
            check_writable(folder, flag)
    saved = saved_models(args)
    try:
        if args.shard:
            return one_shard(saved, args)
        runs: list[Evaluated] = [model.load() for model in saved]
        evaluated = [(run, run.flagged(records)) for run, records in evaluations(runs, args)]
        print(table((run.results, records) for run, records in evaluated))
        for run, records in evaluated:
            for line in changed_verdicts(run, records[1:]):
                print(line)
        if args.figures:
            from apd.figures.evaluation import draw  # matplotlib is slow to import

            examples = {
                run: attacked_examples(run, attacks[0], EXAMPLES)
                for run, (_, *attacks) in evaluated
                if attacks
            }
            draw(evaluated, examples, Path(args.figures))
        impossible = any(ERROR in r["flags"] for _, records in evaluated for r in records)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130
    return int(impossible)
