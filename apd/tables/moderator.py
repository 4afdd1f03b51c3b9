"""When does a method help: the slope of a difference of two arms over a property of the tasks.

The difference is that of ``frontier``, in robust accuracy at matched clean accuracy. The property,
called moderator, is zero-shot CLIP's accuracy above chance. It is measured on validation images,
because the difference is measured on test images: by runs of ZeroshotCLIP with TEST.SPLIT val, or,
on tasks without one, of APD with TEACHER.MODE auto, which counts correct ones before it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from apd.errors import UserError, counted, listed
from apd.results.comparable import learns
from apd.tables.arms import Curves, Design, curves
from apd.tables.cells import Cell, number_cell
from apd.tables.frontier import (
    MEANING,
    Matched,
    as_json,
    backbone,
    differences,
    estimate_cell,
    with_tests,
)
from apd.tables.nested import Fit
from apd.tables.write import Table

STEP = 10  # points of the moderator's accuracy that slopes are reported for


def zero_shot(runs: dict[Path, dict]) -> dict[str, float]:
    """Task -> zero-shot CLIP's clean accuracy above chance, in points, on validation images.

    Raises:
        UserError: there is none, or two that differ.
    """
    above_chance = {**_above_chance(runs, _judged), **_above_chance(runs, _evaluated)}
    if not above_chance:
        raise UserError("no zero-shot accuracy: run ZeroshotCLIP on the tasks with TEST.SPLIT val")
    return above_chance


def _above_chance(
    runs: dict[Path, dict], accuracies: Callable[[dict], Iterator[float]]
) -> dict[str, float]:
    by_task: dict[str, float] = {}
    for folder, run in runs.items():
        for accuracy in accuracies(run):
            above = accuracy - 100 / run["classes"]
            if abs(by_task.setdefault(run["dataset"], above) - above) > 1e-6:
                raise UserError(
                    f"two zero-shot accuracies of {run['dataset']}, the second of {folder}: give "
                    "runs with the same validation images"
                )
    return by_task


def _evaluated(run: dict) -> Iterator[float]:
    """The accuracies, in percent, of a run of ZeroshotCLIP."""
    if run["method"] == "ZeroshotCLIP":
        for evaluation in run["evaluations"]:
            if evaluation["split"] == "val" and not evaluation["threat_model"]:
                yield evaluation["accuracy"]


def _judged(run: dict) -> Iterator[float]:
    """Zero-shot CLIP's accuracy, in percent, that a run measured to choose its teacher."""
    if counts := run.get("teacher"):
        yield 100 * counts["right"]["frozen"] / counts["images"]


MODERATORS = {"zero-shot": zero_shot}


class Moderated:
    """A difference of two arms over n tasks, and the line fitted to it over the moderator.

    Attributes:
        above: (n,), the moderator of each task.
        matches: the difference on each task.
        lacking: tasks that are left out, each with the reason.

    Raises:
        ValueError: too few sources for a line.
    """

    def __init__(self, curve_set: Curves, pair: tuple[str, str], above: dict[str, float]) -> None:
        matches, left_out = differences(curve_set, *pair)
        self.name = " - ".join(pair)
        self.lacking = [f"{task} ({reason})" for task, reason in left_out.items()]
        self.lacking += [f"{task} (no zero-shot accuracy)" for task in matches if task not in above]
        self.matches: dict[str, Matched] = {t: m for t, m in matches.items() if t in above}
        self.above = np.array([above[task] for task in self.matches])
        self.values = np.array([match.value for match in self.matches.values()])
        self.sources = [curve_set.sources[task] for task in self.matches]
        if len(set(self.above)) < 2:
            raise ValueError("tasks do not differ in it")
        X = np.stack([np.ones(len(self.above)), self.above / STEP], axis=1)
        self.fit = Fit(self.values, X, self.sources)


def moderator(
    runs: dict[Path, dict], design: Design, by: str = "zero-shot", at: tuple[float, ...] = ()
) -> list[Table]:
    """For each attack, the slope of each difference.

    Args:
        at: values of the moderator at which the line is read, in points above chance.

    Raises:
        UserError: the runs cannot be compared, or say nothing of the moderator.
    """
    above = MODERATORS[by](runs)
    tables, reasons = [], []
    for curve_set in curves(tested(runs), design):
        rows, tests, tasks, notes = [], [], [], [MEANING, *curve_set.notes]
        for pair in design.pairs(list(curve_set.points)):
            try:
                line = Moderated(curve_set, pair, above)
            except ValueError as error:
                reasons.append(f"{' - '.join(pair)}, {curve_set.header}: {error}")
                continue
            slope = line.fit.estimate([0, 1])
            row: dict = {
                "difference": line.name,
                f"slope (points per {STEP})": estimate_cell(slope),
            }
            row["correlation"] = _correlation(line)
            for x in at:
                row[f"at {x:g} (points)"] = estimate_cell(line.fit.estimate([1, x / STEP]))
            rows.append(row | {"tasks": f"{len(line.values)}"})
            tests.append(as_json(line.name, f"slope per {STEP}", slope, len(line.values), line.fit))
            tests[-1]["left_out"] = line.lacking
            tests[-1]["at"] = {f"{x:g}": line.fit.estimate([1, x / STEP])._asdict() for x in at}
            tasks += [
                {"difference": line.name, "task": task, "source": source, by: x, **match._asdict()}
                for (task, match), source, x in zip(line.matches.items(), line.sources, line.above)
            ]
            if line.lacking:
                count = counted(len(line.lacking), "task")
                notes.append(f"{line.name}: {count} left out: {listed(line.lacking, 5)}")
        if rows:
            title = (
                f"robust accuracy at matched clean accuracy by {by} accuracy, {curve_set.header}"
            )
            low, high = min(t[by] for t in tasks), max(t[by] for t in tasks)
            notes.append(
                f"{by}: CLIP's clean accuracy with hand-written prompts on validation images, less "
                f"chance, in points; from {low:.1f} to {high:.1f} here"
            )
            if extrapolated := [f"{x:g}" for x in at if not low <= x <= high]:
                notes.append(f"at {listed(extrapolated)}: the line goes on beyond all tasks")
            title = f"{title}, {backbone(runs)}"
            table = Table("moderator", title, rows, notes, extra={"differences": tasks})
            tables.append(with_tests(table, curve_set.header, tests, design))
    if not tables:
        raise UserError(f"no line over tasks: {listed(reasons, 3)}")
    return tables


def tested(runs: dict[Path, dict]) -> dict[Path, dict]:
    """The runs that learn, with their evaluations on test images (or validation, if all are)."""
    learning = {folder: run for folder, run in runs.items() if learns(run)}
    splits = {evaluation["split"] for run in learning.values() for evaluation in run["evaluations"]}
    split = "test" if "test" in splits else "val"
    return {
        folder: {**run, "evaluations": [o for o in run["evaluations"] if o["split"] == split]}
        for folder, run in learning.items()
    }


def _correlation(line: Moderated) -> Cell:
    if line.values.std() == 0:
        return Cell()
    return number_cell([float(np.corrcoef(line.above, line.values)[0, 1])])
