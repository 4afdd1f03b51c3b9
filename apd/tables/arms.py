"""Runs by arm, task and training radius, which the tables frontier and moderator compare.

An arm is a method with its settings, apart from the radius of its training attack. A task is a data
set, or a part of one (``DATASET.CLASSES``). A source is the data set that tasks are parts of.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
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

RADIUS = ("AT.TRAIN.EPS", "AT.TRAIN.ALPHA")  # config keys in which runs of an arm may differ


@dataclass(frozen=True)
class Design:
    """Which arms are compared, and how tasks belong together.

    Attributes:
        arms: names of arms -> config keys and values, as text, that their runs have. Other runs are
            named by their method and the settings that differ.
        differences: pairs of arms; none: each arm and the ``baseline``.
        sources: names of sources -> patterns of names of data sets that belong to them. Other data
            sets are sources of their own.
        family: p-values of further tests, by evaluation, which Holm's adjustment takes in.
        without_flag: a difference leaves a task out where a run of either arm has this flag.
    """

    arms: dict[str, dict[str, str]] = field(default_factory=dict)
    differences: tuple[tuple[str, str], ...] = ()
    baseline: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    family: dict[str, list[float]] = field(default_factory=dict)
    without_flag: str = ""

    def pairs(self, arms: list[str]) -> list[tuple[str, str]]:
        """The arms that are compared.

        Raises:
            UserError: there is no such arm, or nothing says which.
        """
        choices = f"there are {listed(arms)}"
        if not self.differences and not self.baseline:
            raise UserError(f"give --baseline ARM or --difference ARM ARM: {choices}")
        pairs = self.differences or tuple((a, self.baseline) for a in arms if a != self.baseline)
        if unknown := [arm for pair in pairs for arm in pair if arm not in arms]:
            raise UserError(f"there is no arm {unknown[0]}: {choices}")
        return list(pairs)

    def source(self, dataset: str) -> str:
        """The source of the data set of that name (without its classes)."""
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
    """The points of all arms under one evaluation.

    Attributes:
        header: the evaluation's column.
        points: arm -> task -> its points, by radius; also arms without this evaluation.
        sources: task -> its source.
        classes: task -> the number of its classes.
        flagged: (arm, task) where a run has the flag ``Design.without_flag``.
        notes: what was left out, and why.
    """

    header: str
    points: dict[str, dict[str, list[Point]]]
    sources: dict[str, str]
    classes: dict[str, int]
    flagged: set[tuple[str, str]]
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        return list(self.sources)


def curves(runs: dict[Path, dict], design: Design) -> list[Curves]:
    """The points of all arms for each attack; the attack with the most points comes first.

    Raises:
        UserError: the runs cannot be compared, an arm has a run twice or several settings, or none
            was attacked.
    """
    runs = {folder: run for folder, run in runs.items() if learns(run)}
    if not runs:
        raise UserError("these runs train nothing: arms are methods that do")
    check_comparable(runs, ("backbone", "subsample", "shots"))
    arms = _arms(runs, design)
    columns = {name: header(evaluation) for name, evaluation in stand_ins(runs).items()}
    by_column: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    unknown: dict[str, set] = defaultdict(set)
    sources, classes, flagged = {}, {}, set()
    for folder, run in runs.items():
        task, arm, radius = run["dataset"], arms[folder], _radius(run)
        sources[task] = design.source(_whole_dataset(run))
        classes[task] = run["classes"]
        for evaluation in run["evaluations"]:
            if design.without_flag in evaluation.get("flags", {}):
                flagged.add((arm, task))
            if evaluation["threat_model"]:
                column = columns[header(evaluation)]
                clean = clean_accuracy(folder, run, evaluation)
                if clean is None:
                    unknown[column].add(f"{arm} on {task}")
                    continue
                seeds = by_column[column][arm][task].setdefault(radius, {})
                if run["seed"] in seeds:
                    raise UserError(
                        f"arm {arm} has seed {run['seed']} twice on {task} at radius {radius:g}: "
                        f"{seeds[run['seed']][2]}, {folder}; --arm tells arms apart"
                    )
                seeds[run["seed"]] = clean, evaluation["accuracy"], folder
    if not by_column:
        raise UserError("none of these runs was attacked, with clean accuracy on the same images")
    order = sorted(sources)
    curve_sets = []
    for column, of_arms in by_column.items():
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
        curve_sets.append(Curves(column, points, tasks, classes, flagged, notes))
    return sorted(curve_sets, key=lambda evaluation: -sum(map(len, evaluation.points.values())))


def _points(radii: dict[float, dict[int, tuple]]) -> list[Point]:
    points = []
    for radius, seeds in sorted(radii.items()):
        clean, robust, _ = zip(*seeds.values())
        points.append(Point(mean(clean), mean(robust), radius, len(seeds)))
    return points


def _radius(run: dict) -> float:
    radius = run["config"].get("AT", {}).get("TRAIN", {}).get("EPS")
    return float(radius or 0)


def _whole_dataset(run: dict) -> str:
    """The name of the data set that a run's task is a part of."""
    added = name_suffix(run["config"].get("DATASET", {}).get("CLASSES", []))
    return run["dataset"].removesuffix(added).removesuffix("+val")


def _arms(runs: dict[Path, dict], design: Design) -> dict[Path, str]:
    """The arm of each run."""
    arms: dict[Path, str] = {}
    by_method: dict[str, dict[Path, dict]] = defaultdict(dict)
    for folder, run in runs.items():
        named = next((name for name, keys in design.arms.items() if _has_values(run, keys)), None)
        if named is None:
            by_method[run["method"]][folder] = run
        else:
            arms[folder] = named
    for name in design.arms:
        members = {folder: runs[folder] for folder, arm in arms.items() if arm == name}
        if not members:
            raise UserError(f"--arm {name}: no run has these values")
        _, varied = config_changes(members, RADIUS)
        if len({run["method"] for run in members.values()}) > 1 or varied:
            keys = listed(varied) or "the method"
            raise UserError(f"--arm {name}: its runs differ in {keys}: give more values")
    for method, members in by_method.items():
        for folder, changed in config_changes(members, RADIUS)[0].items():
            text = assigned(changed)
            arms[folder] = method if text == DEFAULT else f"{method}: {text}"
    return arms


def _has_values(run: dict, keys: dict[str, str]) -> bool:
    values = dict(flat(run["config"])) | {"TRAINER.NAME": run["method"]}
    return all(key in values and _has_text(values[key], text) for key, text in keys.items())


def _has_text(value, text: str) -> bool:
    """Whether the value of a config key is the one that a command line has as ``text``."""
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
    add(
        "--without-flag",
        default="",
        metavar="FLAG",
        help="leave a task out where a run of either arm has this flag: chance",
    )


def design_of(args: argparse.Namespace, **more) -> Design:
    arms = dict(_named(text, ":", "--arm NAME:KEY=VALUE,...") for text in args.arm)
    return Design(
        {
            name: dict(_named(pair, "=", f"KEY=VALUE, in --arm {name}") for pair in text.split(","))
            for name, text in arms.items()
        },
        tuple((first, second) for first, second in args.difference),
        sources=dict(_named(text, "=", "--source NAME=PATTERN") for text in args.source),
        without_flag=args.without_flag,
        **more,
    )


def _named(text: str, mark: str, form: str) -> tuple[str, str]:
    name, _, value = text.partition(mark)
    if not name.strip() or not value.strip():
        raise UserError(f"{text} is not {form}")
    return name.strip(), value.strip()
