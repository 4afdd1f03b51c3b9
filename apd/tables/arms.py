"""Runs by arm, task and training radius: what the tables frontier and moderator compare.

An arm is a method with its settings, whatever the radius of its training attack; a task is a data
set, or a part of one (``DATASET.CLASSES``); a source is what tasks are parts of.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from apd.classes import name_suffix
from apd.config import flat
from apd.errors import UserError, listed
from apd.methods import rank
from apd.results.comparable import check_comparable, learns
from apd.results.runs import clean_accuracy
from apd.results.words import header
from apd.tables.configs import DEFAULT, assigned, config_changes
from apd.tables.grid import stand_ins

RADIUS = ("AT.TRAIN.EPS", "AT.TRAIN.ALPHA")  # what runs of an arm on a task may differ in


@dataclass(frozen=True)
class Design:
    """What is compared with what.

    Attributes:
        arms: names of arms -> config keys and values, as text, that their runs have. Other runs are
            named by their method and what sets them apart.
        differences: pairs of arms; none: each arm and the ``baseline``.
        sources: names of sources -> patterns of the data sets that they are made of. Other data
            sets are sources of their own.
        family: of tests elsewhere, which p-values are adjusted for too: evaluation -> p-values.
    """

    arms: dict[str, dict[str, str]] = field(default_factory=dict)
    differences: tuple[tuple[str, str], ...] = ()
    baseline: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    family: dict[str, list[float]] = field(default_factory=dict)

    def pairs(self, arms: list[str]) -> list[tuple[str, str]]:
        """The arms that are compared.

        Raises:
            UserError: there is no such arm, or nothing says which.
        """
        known = f"there are {listed(arms)}"
        if not self.differences and not self.baseline:
            raise UserError(f"give --baseline ARM or --difference ARM ARM: {known}")
        pairs = self.differences or tuple((a, self.baseline) for a in arms if a != self.baseline)
        if unknown := [arm for pair in pairs for arm in pair if arm not in arms]:
            raise UserError(f"there is no arm {unknown[0]}: {known}")
        return list(pairs)

    def source(self, dataset: str) -> str:
        """What the data set of that name, without its classes, is a part of."""
        for name, pattern in self.sources.items():
            if fnmatchcase(dataset, pattern):
                return name
        return dataset


class Point(NamedTuple):
    """An arm on a task at one training radius: accuracies in percent, means over seeds."""

    clean: float
    robust: float
    radius: float  # 1/255
    seeds: int


@dataclass
class Curves:
    """Of one evaluation.

    Attributes:
        header: its column.
        points: arm -> task -> its points, by radius; every arm, also one that was not evaluated so.
        sources: task -> its source.
        classes: task -> how many.
        notes: what was left out, and why.
    """

    header: str
    points: dict[str, dict[str, list[Point]]]
    sources: dict[str, str]
    classes: dict[str, int]
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        return list(self.sources)


def curves(runs: dict[Path, dict], design: Design) -> list[Curves]:
    """The points of all arms, for each attack, those of most runs first.

    Raises:
        UserError: the runs cannot be compared, an arm has a run twice or several settings, or none
            was attacked.
    """
    runs = {folder: run for folder, run in runs.items() if learns(run)}
    if not runs:
        raise UserError("these runs train nothing: arms are methods that do")
    check_comparable(runs, ("backbone", "subsample", "shots"))
    arms = _arms(runs, design)
    columns = {name: header(one) for name, one in stand_ins(runs).items()}
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    unknown: dict[str, set] = defaultdict(set)
    sources, classes = {}, {}
    for folder, run in runs.items():
        task, arm, radius = run["dataset"], arms[folder], _radius(run)
        sources[task] = design.source(_whole(run))
        classes[task] = run["classes"]
        for one in run["evaluations"]:
            if one["threat_model"]:
                column = columns[header(one)]
                clean = clean_accuracy(folder, run, one)
                if clean is None:
                    unknown[column].add(f"{arm} on {task}")
                    continue
                seeds = found[column][arm][task].setdefault(radius, {})
                if run["seed"] in seeds:
                    raise UserError(
                        f"arm {arm} has seed {run['seed']} twice on {task} at radius {radius:g}: "
                        f"{seeds[run['seed']][2]}, {folder}; --arm tells arms apart"
                    )
                seeds[run["seed"]] = clean, one["accuracy"], folder
    if not found:
        raise UserError("none of these runs was attacked, with clean accuracy on the same images")
    order = sorted(sources)
    made = []
    for column, of_arms in found.items():
        points = {
            arm: {task: _points(of_arms[arm][task]) for task in order if task in of_arms[arm]}
            for arm in sorted(set(arms.values()), key=rank)
        }
        notes = []
        if unknown[column]:
            notes.append(
                "left out, because their clean accuracy on the attacked images is not known: "
                + listed(sorted(unknown[column]), 3)
            )
        tasks = {task: sources[task] for task in order}
        made.append(Curves(column, points, tasks, classes, notes))
    return sorted(made, key=lambda one: -sum(map(len, one.points.values())))


def _points(radii: dict[float, dict[int, tuple]]) -> list[Point]:
    points = []
    for radius, seeds in sorted(radii.items()):
        clean, robust, _ = zip(*seeds.values())
        points.append(Point(mean(clean), mean(robust), radius, len(seeds)))
    return points


def _radius(run: dict) -> float:
    radius = run["config"].get("AT", {}).get("TRAIN", {}).get("EPS")
    return float(radius or 0)


def _whole(run: dict) -> str:
    """The name of the data set that a run's task is a part of."""
    added = name_suffix(run["config"].get("DATASET", {}).get("CLASSES", []))
    return run["dataset"].removesuffix(added).removesuffix("+val")


def _arms(runs: dict[Path, dict], design: Design) -> dict[Path, str]:
    """The arm of each run."""
    arms, others = {}, defaultdict(dict)
    for folder, run in runs.items():
        named = next((name for name, keys in design.arms.items() if _has(run, keys)), None)
        if named is None:
            others[run["method"]][folder] = run
        else:
            arms[folder] = named
    for name in design.arms:
        part = {folder: runs[folder] for folder, arm in arms.items() if arm == name}
        if not part:
            raise UserError(f"--arm {name}: no run has these values")
        _, varied = config_changes(part, RADIUS)
        if len({run["method"] for run in part.values()}) > 1 or varied:
            keys = listed(varied) or "the method"
            raise UserError(f"--arm {name}: its runs differ in {keys}: give more values")
    for method, part in others.items():
        for folder, changed in config_changes(part, RADIUS)[0].items():
            text = assigned(changed)
            arms[folder] = method if text == DEFAULT else f"{method}: {text}"
    return arms


def _has(run: dict, keys: dict[str, str]) -> bool:
    values = dict(flat(run["config"])) | {"TRAINER.NAME": run["method"]}
    return all(key in values and _same(values[key], text) for key, text in keys.items())


def _same(value, text: str) -> bool:
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return str(value) == text


# -- command lines ---------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``design_of``."""
    group = parser.add_argument_group("frontier and moderator")
    add = group.add_argument
    add(
        "--difference",
        nargs=2,
        action="append",
        default=[],
        metavar="ARM",
        help="compare these two arms (again for more; else each with --baseline)",
    )
    add(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="call the runs with these config values so: control:TRAINER.APD.LAMBDA_KD=0",
    )
    add(
        "--source",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="data sets that are one source: PACS=PACS-* (else each is one, with all its parts)",
    )


def design_of(args: argparse.Namespace, **more) -> Design:
    arms = dict(_named(text, ":", "--arm NAME:KEY=VALUE,...") for text in args.arm)
    return Design(
        {name: dict(_keys(rest, name)) for name, rest in arms.items()},
        tuple((first, second) for first, second in args.difference),
        sources=dict(_named(text, "=", "--source NAME=PATTERN") for text in args.source),
        **more,
    )


def _named(text: str, mark: str, form: str) -> tuple[str, str]:
    name, _, rest = text.partition(mark)
    if not name.strip() or not rest.strip():
        raise UserError(f"{text} is not {form}")
    return name.strip(), rest.strip()


def _keys(text: str, name: str) -> Iterator[tuple[str, str]]:
    for pair in text.split(","):
        yield _named(pair, "=", f"KEY=VALUE, in --arm {name}")
