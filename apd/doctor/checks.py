"""What ``apd-doctor`` looks at: data sets on disk, zero-shot CLIP and attacks."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from apd.clip.text import warn_of_same_prompts
from apd.datasets.fewshot import Entry, FewShotDataset, check_labels
from apd.datasets.layout import DIFFERS, Counts, Published, SplitFile, published
from apd.doctor.selftest import self_test
from apd.doctor.zeroshot import zero_shot
from apd.errors import UserError, listed, one_line
from apd.host import DATASET_REGISTRY
from apd.images import open_rgb

DATASETS = published()
BUNDLED = {  # data sets that come with this package
    name: DATASET_REGISTRY.get(name) for name in ("Clothing", "Digits", "Letters", "RenderedDigits")
}
HELP = """CoOp's instructions have the same folders,
with $DATA for --root: https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md
For those who cannot get a split file, --dataset NAME --make-split makes a seeded one, whose
numbers cannot be compared with published ones."""
SHOWN = 10  # at most so many faulty images are named


@dataclass
class Finding:
    """The state of one data set; ``advice`` has the lines about it below the table."""

    dataset: type[Published]
    folder: Path
    state: str = "ok"
    usable: bool = False
    counts: Counts | None = None
    unreadable: int | None = None
    made: str = ""
    advice: list[str] = field(default_factory=list)

    @property
    def split_file(self) -> str:
        if not issubclass(self.dataset, SplitFile):
            return "–"
        if self.made:
            return "not CoOp's" if self.made == DIFFERS else "made here"
        if not self.dataset.split_path(self.folder).is_file():
            return "missing"
        return "CoOp's" if self.usable and self.dataset.split_mark else "found"


def examine(dataset: type[Published], root: Path, deep: bool = False) -> Finding:
    """Read a data set below ``root`` as a run would; with ``deep``, decode its images too."""
    finding = Finding(dataset, root / dataset.dataset_dir)
    missing = dataset.missing(finding.folder)
    if missing:
        finding.state = "missing"
        origins = defaultdict(list)
        for path, origin in missing.items():
            origins[origin].append(str(path.relative_to(root)))
        finding.advice = [f"{', '.join(paths)} <- {o}" for o, paths in origins.items()]
        return finding
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            source = dataset.source(finding.folder)
            train, test = source.train(), source.test()
            val = source.val() if source.val else []
            check_labels(dataset.__name__, train, val, test)
            names = {entry.label: entry.classname for entry in train}
            warn_of_same_prompts(dataset.__name__, list(names.values()))
    except UserError as error:
        finding.state = "faulty"
        finding.advice.append(str(error).removeprefix(f"{dataset.__name__}: "))
        return finding
    finally:
        warnings = printed.getvalue().splitlines()
        finding.advice += [line.replace(f"{dataset.__name__}: ", "") for line in warnings]
    finding.counts = _counts(dataset, train, val, test)
    paths = {entry.impath: None for split in (train, val, test) for entry in split}
    absent = [path for path in paths if not Path(path).is_file()]
    if absent:
        finding.state = "images missing"
        finding.advice += [f"there is no image {path}" for path in absent[:SHOWN]]
        finding.advice += [f"{len(absent):,} of {len(paths):,} images are missing"]
        return finding
    if deep:
        bad = _undecodable(paths, dataset.__name__)
        finding.unreadable = len(bad)
        finding.advice += [f"cannot read {path} ({why})" for path, why in bad[:SHOWN]]
        if bad:
            finding.state = "images unreadable"
            finding.advice += [f"{len(bad):,} of {len(paths):,} images cannot be read"]
            return finding
    finding.usable, finding.made = True, source.made
    if source.made:
        finding.advice.append(f"the split is {source.made}")
    if source.made == DIFFERS:
        finding.state = "split differs"
    if finding.counts != dataset.counts:
        finding.state = "counts differ"
        finding.advice.append("usable, but not the published set of images")
    return finding


def _counts(dataset, train: list[Entry], val: list[Entry], test: list[Entry]) -> Counts:
    """Counts of the splits; None for those that have no published count."""
    sizes = (
        len(split) if published is not None else None
        for split, published in zip((train, val, test), dataset.counts[1:])
    )
    return Counts(len({entry.label for entry in train}), *sizes)


def _undecodable(paths: Iterable[str], name: str) -> list[tuple[str, str]]:
    paths = list(paths)
    with ThreadPool() as pool:
        reasons = pool.imap(_why_undecodable, paths, chunksize=16)
        progress = tqdm(reasons, desc=name, total=len(paths), unit="image", disable=None)
        return [(path, reason) for reason, path in zip(progress, paths) if reason]


def _why_undecodable(path: str) -> str:
    try:
        open_rgb(path)
    except ValueError as error:
        return str(error)
    return ""


def report(findings: list[Finding]) -> str:
    """The table of data sets, and below it what to do, a line each."""
    headers = ["data set", "state", "folder", "split file", *Counts._fields]
    deep = any(finding.unreadable is not None for finding in findings)
    if deep:
        headers.append("unreadable")
    rows = []
    for finding in findings:
        counts = finding.counts or [None] * len(Counts._fields)
        row = [finding.dataset.__name__, finding.state, finding.folder, finding.split_file]
        row += [
            f"{_number(n)} of {_number(p)}" if p else "–"
            for n, p in zip(counts, finding.dataset.counts)
        ]
        if deep:
            row.append(_number(finding.unreadable))
        rows.append(row)
    table = tabulate(rows, headers=headers, disable_numparse=True)
    advice = [f"{f.dataset.__name__}: {line}" for f in findings for line in f.advice]
    if any(finding.state == "missing" for finding in findings):
        advice.append("<- names where to get what is missing below --root. " + HELP)
    return "\n".join([table, "", "n of m: found, of the published number", *advice])


def _number(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def attack(device: str) -> int:
    """Run the self-test of attacks and print it; 1 if something does not hold."""
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"no device {device} ({one_line(error)}): use cpu or cuda") from error
    checks = list(self_test(device))
    rows = [[check.name, "ok" if check.good else "FAILED", check.measured] for check in checks]
    print(tabulate(rows, headers=[f"attacks on {device}", "state", "seen"]))
    failed = [check.name for check in checks if not check.good]
    if failed:
        print(f"\ndo not trust attacks here: {listed(failed)}")
    return 1 if failed else 0


def zeroshot(args: argparse.Namespace, root: Path, datasets: list[type[FewShotDataset]]) -> int:
    """Evaluate zero-shot CLIP on the data sets and print it; 1 if one is off."""
    if not datasets:
        raise UserError(
            "--zeroshot: no data set of these is usable; these come with the package: "
            f"--dataset {' '.join(BUNDLED)}"
        )
    rows, well = [], True
    for name, accuracy, count, text, good in zero_shot(
        args.zeroshot, datasets, root, args.subset, args.device
    ):
        rows.append([name, f"{accuracy:.1f}", f"{count:,}", text])
        well &= good
    headers = ["data set", f"zero-shot {args.zeroshot} (%)", "images", "held against the published"]
    print("\n" + tabulate(rows, headers=headers, disable_numparse=True))
    return 0 if well else 1


def run(args: argparse.Namespace) -> int:
    """Make the checks that the flags name and print them; the exit code of ``apd-doctor``."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.attack:
        failed = attack(args.device)
        if not args.root or failed:
            return failed
    root = Path(args.root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: point --root at your data root")
    bundled = [BUNDLED[name] for name in args.dataset or () if name in BUNDLED]
    if bundled and not args.zeroshot:
        raise UserError(
            f"{bundled[0].__name__} comes with this package, so there is nothing to look for: "
            "--zeroshot BACKBONE evaluates it"
        )
    unknown = [name for name in args.dataset or () if name not in {**DATASETS, **BUNDLED}]
    if unknown:
        names = ", ".join([*DATASETS, *BUNDLED])
        raise UserError(f"unknown data set {unknown[0]}: there are {names}")
    datasets = [DATASETS[name] for name in args.dataset or DATASETS if name in DATASETS]
    if args.make_split:
        for dataset in datasets if args.dataset else ():
            if not issubclass(dataset, SplitFile):
                raise UserError(f"{dataset.__name__} has no split file: it needs none")
        if not args.dataset:
            raise UserError("--make-split needs --dataset NAME")
        for dataset in datasets:
            path = dataset.make_split(root / dataset.dataset_dir, args.seed)
            print(f"wrote {path}: its numbers are not comparable with published ones")
    findings = [examine(dataset, root, args.deep) for dataset in datasets]
    if findings:
        print(report(findings))
    usable = [finding.dataset for finding in findings if finding.usable]
    if args.zeroshot and zeroshot(args, root, [*usable, *bundled]):
        return 1
    return 0 if all(finding.usable for finding in findings) else 1
