"""The accuracies of many runs, as points to draw."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from apd.errors import UserError, listed
from apd.results.comparable import settings, shots_of
from apd.results.runs import clean_accuracy
from apd.results.words import described


class Setting(NamedTuple):
    """What runs must have in common to be drawn in one figure."""

    dataset: str  # "" for an average
    subsample: str
    backbone: str
    host: str
    averaged: int = 1  # data sets

    def __str__(self) -> str:
        data = self.dataset if self.averaged == 1 else f"Average of {self.averaged} data sets"
        half = "" if self.subsample == "all" else f" ({self.subsample} classes)"
        return f"{data}{half}, {self.backbone}, {self.host}"

    @property
    def stem(self) -> str:
        """The setting as part of a file's name."""
        half = [] if self.subsample == "all" else [self.subsample]
        data = self.dataset if self.averaged == 1 else "average"
        return "_".join([data, *half, self.backbone, self.host])


class Point(NamedTuple):
    """One evaluation of one run, or its average over data sets."""

    setting: Setting
    method: str
    shots: int | None  # None: zero-shot, the same for every number
    seed: int
    attack: str  # with its conditions
    accuracy: float  # %
    clean: float | None  # %, of the same images; None: not known
    evaluation: dict


def setting_of(run: dict) -> Setting:
    host = run["host"].split()[0]  # of any version
    return Setting(run["dataset"], run["subsample"], run["backbone"], host)


def points(runs: dict[Path, dict]) -> list[Point]:
    """All evaluations of all runs.

    Raises:
        UserError: two threat models with the same name in ``described``, or a run twice.
    """
    names = name_runs(runs)
    by_key: dict[tuple, tuple[Path, Point | None]] = {}
    first: dict[tuple, tuple[Path, dict]] = {}
    for folder, run in runs.items():
        setting, shots = setting_of(run), shots_of(run)
        for evaluation in run["evaluations"]:
            attack = described(evaluation)
            threat = {k: v for k, v in (evaluation["threat_model"] or {}).items() if k != "seed"}
            where, expected = first.setdefault((setting[1:], attack), (folder, threat))
            if threat != expected:
                keys = [key for key in threat if threat[key] != expected.get(key)]
                values, earlier = ({key: t.get(key) for key in keys} for t in (threat, expected))
                raise UserError(
                    f"one figure cannot hold two threat models of {attack}: {earlier} in {where}, "
                    f"{values} in {folder}"
                )
            key = (setting, names[folder], shots, run["seed"], attack)
            where, _ = by_key.setdefault(key, (folder, None))
            if where != folder and shots is not None:
                raise UserError(f"{names[folder]} has seed {run['seed']} twice: {where}, {folder}")
            clean = clean_accuracy(folder, run, evaluation)
            by_key[key] = folder, Point(*key, evaluation["accuracy"], clean, evaluation)
    return [point for _, point in by_key.values() if point]


def averages(points: list[Point]) -> list[Point]:
    """The averages over data sets of points that every data set has."""
    sets, members_of = defaultdict(set), defaultdict(list)
    for point in points:
        everywhere = point.setting[1:]
        sets[everywhere].add(point.setting.dataset)
        members_of[(everywhere, *point[1:5])].append(point)
    averaged = []
    for (everywhere, *_), members in members_of.items():
        count = len(sets[everywhere])
        if 1 < count == len(members):
            clean = [p.clean for p in members if p.clean is not None]
            averaged.append(
                members[0]._replace(
                    setting=Setting("", *everywhere[:3], count),
                    accuracy=mean(p.accuracy for p in members),
                    clean=mean(clean) if len(clean) == count else None,
                )
            )
    return averaged


def name_runs(runs: dict[Path, dict]) -> dict[Path, str]:
    """The name of each run: its method, and the config keys in which runs of the method differ."""
    names = {folder: run["method"] for folder, run in runs.items()}
    alike, varied = defaultdict(list), defaultdict(set)
    for run in runs.values():
        alike[run["method"], setting_of(run), shots_of(run), run["seed"]].append(settings(run))
    for (method, *_), configs in alike.items():
        for key in {key for config in configs for key in config}:
            if any(config.get(key) != configs[0].get(key) for config in configs):
                varied[method].add(key)
    for method, keys in varied.items():
        for folder, run in runs.items():
            if run["method"] == method:
                own = settings(run)
                texts = (f"{key.rpartition('.')[2]} {own.get(key)}" for key in sorted(keys))
                names[folder] = f"{method} ({listed(texts)})"
    return names
