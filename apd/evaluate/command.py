"""Evaluate finished runs under further attacks: the command ``apd-eval`` (apd/arguments)."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

import apd
from apd.attacks import ThreatModel, doubts, find_attack
from apd.errors import UserError, listed
from apd.evaluate.flags import ERROR
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard, Source, threat_model
from apd.evaluate.run import Run, SavedRun
from apd.evaluate.shards import Images, Merger, shard_counts
from apd.evaluate.workers import run_shards
from apd.files import check_writable
from apd.jobs import options
from apd.jobs.local import warm_up
from apd.jobs.lock import Lock
from apd.precision import forbid_tf32
from apd.results import EVALUATIONS
from apd.results.runs import load_runs
from apd.results.words import radius


def table(evaluated: list[tuple[Run, list[dict]]]) -> str:
    """One row per evaluation, with footnotes for its flags."""
    rows, notes = [], []
    for run, (clean, *records) in evaluated:
        for record in records or [clean]:
            marks = []
            for name, text in record["flags"].items():
                note = f"{name}: {text}"
                if note not in notes:
                    notes.append(note)
                marks.append(str(notes.index(note) + 1))
            threat = record["threat_model"] or {}
            attack, precision = record["attack"], threat.get("precision", "fp32")
            rows.append(
                {
                    "method": run.results["method"],
                    "seed": run.results["seed"],
                    "attack": attack if precision == "fp32" else f"{attack} ({precision})",
                    "norm": threat.get("norm", "-"),
                    "eps": f"{threat['eps']:g}/255" if threat else "-",
                    "source": threat.get("source", "-"),
                    "images": f"{record['total']}{' (val)' if record['split'] == 'val' else ''}",
                    "clean (%)": f"{clean['accuracy']:.1f}",
                    "robust (%)": f"{record['accuracy']:.1f}" if threat else "-",
                    "flags": ", ".join(marks),
                    "seconds": f"{record['seconds']:.0f}",
                }
            )
    text = tabulate(rows, "keys", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(notes, start=1))])


def changed_verdicts(run: Run, records: list[dict]) -> list[str]:
    """How many images' verdicts differ between float32 and half precision, attack by attack."""
    stored = {one.record["key"]: one for one in run.stored()}
    full, lines = {}, []
    for record in sorted(records, key=lambda r: r["threat_model"]["precision"] != "fp32"):
        threat = dict(record["threat_model"])
        precision = threat.pop("precision")
        what, stands = (record["attack"], str(threat)), stored[record["key"]].stands
        if precision == "fp32":
            full[what] = stands
        elif what in full:
            changed = int((stands != full[what]).sum())
            lines.append(
                f"{run.name}: {record['attack']} ({radius(threat)}) in {precision} "
                f"changes {changed:,} of {len(stands):,} verdicts"
            )
    return lines


def requests_for(run: Run, args: argparse.Namespace) -> list[EvaluationRequest]:
    """All attacks at all radii, once for each source and precision."""
    test = run.cfg.AT.TEST
    names = args.attack.split(",") if args.attack else test.ATTACKS or [f"pgd-{test.STEPS}"]
    request = replace(
        EvaluationRequest.from_config(run.cfg),
        attacks=tuple(
            find_attack(name, threat, test.LAST_ITERATE)
            for threat in threats(run, args)
            for name in names
        ),
        split=args.split or run.cfg.TEST.SPLIT,
        subset=test.SUBSET if args.subset is None else args.subset,
        store=run.folder / EVALUATIONS,
        save_adv=args.save_adv,
    )
    return [
        replace(request, source=Source(source), precision=precision)
        for source in args.source.split(",")
        for precision in (args.prec or test.PREC).split(",")
    ]


def threats(run: Run, args: argparse.Namespace) -> list[ThreatModel]:
    """One for each eps."""
    test = run.cfg.AT.TEST
    own = None if test.EPS is None else threat_model(run.cfg, "TEST")
    if own is None and not args.eps:
        raise UserError(f"{run.folder} has no AT.TEST.EPS: give --eps")
    norm = args.norm or test.NORM
    if norm != test.NORM and not args.eps:
        raise UserError(f"--norm {norm}: give its --eps too")
    radii = [float(eps) for eps in args.eps] or [own.eps]
    for eps in radii:
        for _, text in doubts(eps, test.STEPS):
            print(f"warning: {text}")
    ratio = own.alpha / own.eps if own and own.eps else 0.25
    base = own or ThreatModel(test.NORM, 1, 1, test.STEPS, test.RESTARTS, loss=test.LOSS)
    return [replace(base, norm=norm, eps=eps, alpha=ratio * eps) for eps in radii]


def evaluations(runs: list[Run], args: argparse.Namespace) -> Iterator[tuple[Run, list[dict]]]:
    """The clean record of each run, and those of all attacks, radii, sources and precisions."""
    requests = {run: requests_for(run, args) for run in runs}
    # runs with the same predictions share the folder of their attacked images: one after another
    for group in [[run] for run in runs] if args.save_adv else [runs]:
        mergers: dict[Run, list[Merger]] = {}
        if args.shards or args.merge:
            mergers = {run: to_merge(run, requests[run], args) for run in group}
        if args.shards:
            todo = [(run.saved, mergers[run]) for run in group]
            run_shards(todo, args.shards, options.ExecutorOptions.of(args).start, args.jobs)
        for run in group:
            records: list[dict] = []
            for place, request in enumerate(requests[run]):
                merger = mergers[run][place] if mergers else None
                if merger and not merger.finished:
                    found = merger.records()
                else:
                    found = run.evaluate(request)
                    if merger:
                        merger.clear()  # shards whose verdicts another run had
                records += found[1:] if records else found
            yield run, records


def to_merge(run: Run, requests: list[EvaluationRequest], args: argparse.Namespace) -> list[Merger]:
    """One for each request.

    Raises:
        UserError: --merge, but some shards have not ended.
    """
    counts = [args.shards] if args.shards else shard_counts(run.folder / EVALUATIONS)
    same = "with the same other options"
    for count in counts or [1]:
        first = requests[0]  # they are all about the same images
        loader = run.trainer.split_loader(first.split)
        images = Images(loader, first.subset, count, run.trainer.parse_batch_test)
        mergers = [Merger(run.resolved(r), images, run.fingerprint) for r in requests]
        missing = sorted({shard for merger in mergers for shard in merger.missing()})
        if args.shards or not missing:
            return mergers
    if not counts:
        raise UserError(f"{run.folder} has no shards: run --shard i/N first, {same}")
    raise UserError(
        f"{run.folder}: of its shards, {listed(map(str, missing))} of this evaluation have not "
        f"ended: run --shard {missing[0]}, {same}"
    )


def one_shard(saved: list[SavedRun], args: argparse.Namespace) -> int:
    """--shard: a part of each run's evaluation, in this process."""
    shard = Shard.parse(args.shard)
    for one in saved:
        store = one.folder / EVALUATIONS
        lock = Lock(store / shard.folder, store / SHARDS)
        if not lock.acquire():
            raise UserError(f"{one.folder}: another process is at shard {shard}: wait for it")
        try:
            run = one.load()
            requests = [replace(request, shard=shard) for request in requests_for(run, args)]
            records = [record for request in requests for record in run.evaluate(request)]
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # if it has left nothing
                (store / shard.folder).rmdir()
        for record in records:
            eps = f" ({radius(record['threat_model'])})" if record["threat_model"] else ""
            print(
                f"{one.folder}, shard {shard}: {record['attack']}{eps}: "
                f"{record['correct']:,} of {record['total']:,} images stand"
            )
    print("when all shards have ended, --merge makes one evaluation of them")
    return 0


def evaluate_runs(args: argparse.Namespace) -> int:
    """Do what the flags of apd/arguments/evaluate.py ask for; the exit code."""
    if args.shards and args.executor == "local":
        warm_up()  # while this process finds out what there is to do
    apd.register()
    forbid_tf32()
    for flag, folder in (("--save-adv", args.save_adv), ("--figures", args.figures)):
        if folder:
            check_writable(folder, flag)
    saved = [SavedRun(*run, args.root, args.compile) for run in load_runs(args.runs).items()]
    try:
        if args.shard:
            return one_shard(saved, args)
        runs = [one.load() for one in saved]
        evaluated = [(run, run.flagged(records)) for run, records in evaluations(runs, args)]
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
