"""Robust accuracy at matched clean accuracy.

With a larger radius of its training attack, a method gains robust and loses clean accuracy. So a
comparison at one radius compares different clean accuracies. Here each arm has a curve over its
radii on each task, and curves are compared where they have the same clean accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from apd.errors import UserError, counted, listed
from apd.files import read_json
from apd.tables.arms import Curves, Design, Point, curves
from apd.tables.cells import Cell, accuracy_cell, number_cell
from apd.tables.nested import Estimate, Fit, holm, mean_over
from apd.tables.write import Table, p_text

MEANING = (
    "matched: on each task, straight lines join an arm's points, one for each training radius, in "
    "the order of clean accuracy. The difference of two arms is the mean gap between their lines "
    "over the clean accuracies that both reach; if there are none, the gap between the two nearest "
    "points (docs/tasks.md)"
)


class Matched(NamedTuple):
    """A difference of two arms on a task, in points of robust accuracy."""

    value: float
    overlap: (
        bool  # whether the curves have clean accuracies in common; else two points are compared
    )
    low: float  # range of clean accuracies: common to both curves, or between the two points
    high: float


def matched(ours: list[Point], theirs: list[Point]) -> Matched:
    """Robust accuracy of ``ours`` minus that of ``theirs``, as ``MEANING`` explains."""
    (x, y), (u, v) = _curve(ours), _curve(theirs)
    low, high = max(x[0], u[0]), min(x[-1], u[-1])
    if low > high:  # no clean accuracy in common: compare the two nearest points
        first, second = (0, -1) if x[0] > u[-1] else (-1, 0)
        return Matched(float(y[first] - v[second]), False, float(high), float(low))
    knots = np.unique([low, high, *(c for c in (*x, *u) if low < c < high)])
    gaps = np.interp(knots, x, y) - np.interp(knots, u, v)
    if low == high:
        return Matched(float(gaps[0]), True, float(low), float(high))
    area = ((gaps[1:] + gaps[:-1]) / 2 * np.diff(knots)).sum()
    return Matched(float(area / (high - low)), True, float(low), float(high))


def _curve(points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    """The points' clean accuracies, ascending, and the mean robust accuracy at each."""
    by_clean: dict[float, list[float]] = {}
    for point in points:
        by_clean.setdefault(point.clean, []).append(point.robust)
    return np.array(sorted(by_clean)), np.array([mean(by_clean[c]) for c in sorted(by_clean)])


def differences(
    curve_set: Curves, first: str, second: str
) -> tuple[dict[str, Matched], dict[str, str]]:
    """The differences of two arms on tasks, and the tasks that are left out with the reason."""
    ours, theirs = curve_set.points[first], curve_set.points[second]
    tasks, left_out = _tasks_of_both(curve_set, first, second)
    return {task: matched(ours[task], theirs[task]) for task in tasks}, left_out


def _tasks_of_both(curve_set: Curves, first: str, second: str) -> tuple[list[str], dict[str, str]]:
    """The tasks on which two arms are compared, and those that are left out with the reason."""
    ours, theirs = curve_set.points[first], curve_set.points[second]
    tasks, left_out = [], {}
    for task in curve_set.tasks:
        if task not in ours or task not in theirs:
            left_out[task] = "without both arms"
        elif {(first, task), (second, task)} & curve_set.flagged:
            left_out[task] = "flagged"
        else:
            tasks.append(task)
    return tasks, left_out


def frontier(runs: dict[Path, dict], design: Design) -> list[Table]:
    """For each attack, the differences over tasks, and the arms and differences at each radius.

    Raises:
        UserError: the runs cannot be compared.
    """
    tables = []
    for curve_set in curves(runs, design):
        if (table := _differences(curve_set, design, runs)) is not None:
            title = f"{curve_set.header}, {backbone(runs)}"
            tables += [table, _levels(curve_set, title)]
            if (table := _same_radius(curve_set, design, title)) is not None:
                tables.append(table)
    if not tables:
        raise UserError("no two tasks have both arms of a difference")
    return tables


def _differences(curve_set: Curves, design: Design, runs: dict[Path, dict]) -> Table | None:
    rows, tests, tasks, notes = [], [], [], [MEANING, *curve_set.notes, *_shapes(curve_set)]
    for first, second in design.pairs(list(curve_set.points)):
        name = f"{first} - {second}"
        matches, left_out = differences(curve_set, first, second)
        for reason in dict.fromkeys(left_out.values()):
            tasks_left_out = [task for task, why in left_out.items() if why == reason]
            count = counted(len(tasks_left_out), "task")
            notes.append(f"{name}: {count} left out, {reason}: {listed(tasks_left_out, 5)}")
        if len(matches) < 2:
            notes.append(f"{name}: no test, of {counted(len(matches), 'task')}")
            continue
        values = [match.value for match in matches.values()]
        estimate, fit = mean_over(values, [curve_set.sources[task] for task in matches])
        no_overlap = [task for task, match in matches.items() if not match.overlap]
        tests.append(as_json(name, "mean", estimate, len(values), fit))
        tests[-1] |= {
            "overlap": len(values) - len(no_overlap),
            "apart": no_overlap,
            "left_out": list(left_out),
        }
        row = {"difference": name, "robust (points)": estimate_cell(estimate)}
        wins, losses = sum(v > 0 for v in values), sum(v < 0 for v in values)
        row |= {"wins : losses": f"{wins} : {losses}"}
        row |= {
            "tasks": f"{len(values)} ({len(no_overlap)} apart)" if no_overlap else f"{len(values)}"
        }
        rows.append(row)
        for task, match in matches.items():
            tasks.append({"difference": name, "task": task, "source": curve_set.sources[task]})
            tasks[-1] |= match._asdict()
    if not rows:
        return None
    title = f"robust accuracy at matched clean accuracy, {curve_set.header}, {backbone(runs)}"
    extra = {
        "differences": tasks,
        "points": [
            {"arm": arm, "task": task, **point._asdict()}
            for arm, of_tasks in curve_set.points.items()
            for task, points in of_tasks.items()
            for point in points
        ],
    }
    table = Table("frontier", title, rows, notes, extra=extra)
    return with_tests(table, curve_set.header, tests, design)


def _levels(curve_set: Curves, title: str) -> Table:
    """The mean over tasks of each arm at each radius."""
    rows = []
    for arm, tasks in curve_set.points.items():
        every = [point for points in tasks.values() for point in points]
        for radius in sorted({point.radius for point in every}):
            points = [point for point in every if point.radius == radius]
            row: dict = {"arm": arm, "trained at (1/255)": f"{radius:g}", "tasks": f"{len(points)}"}
            for kind in ("clean", "robust"):
                value = mean(getattr(point, kind) for point in points)
                row[f"{kind} (%)"] = accuracy_cell(value)
            rows.append(row)
    return Table("frontier points", f"arms by training radius, {title}", rows, ranked=False)


def _same_radius(curve_set: Curves, design: Design, title: str) -> Table | None:
    """The plain differences in clean and robust accuracy at each radius that two arms share."""
    rows = []
    for first, second in design.pairs(list(curve_set.points)):
        tasks, _ = _tasks_of_both(curve_set, first, second)
        pairs: dict[float, dict[str, tuple[Point, Point]]] = {}
        for task in tasks:
            theirs = {point.radius: point for point in curve_set.points[second][task]}
            for point in curve_set.points[first][task]:
                if point.radius in theirs:
                    pairs.setdefault(point.radius, {})[task] = (point, theirs[point.radius])
        for radius, of_tasks in sorted(pairs.items()):
            if len(of_tasks) < 2:
                continue
            sources = [curve_set.sources[task] for task in of_tasks]
            row: dict = {"difference": f"{first} - {second}", "trained at (1/255)": f"{radius:g}"}
            for kind in ("clean", "robust"):
                values = [getattr(a, kind) - getattr(b, kind) for a, b in of_tasks.values()]
                row[f"{kind} (points)"] = estimate_cell(mean_over(values, sources)[0])
            rows.append(row | {"tasks": f"{len(of_tasks)}"})
    if not rows:
        return None
    notes = ["in brackets: 95 % interval, computed as at matched clean accuracy; without a test"]
    title = f"differences at the same training radius, {title}"
    return Table("frontier at a radius", title, rows, notes, ranked=False)


def _shapes(curve_set: Curves) -> list[str]:
    """Notes on curves that rise, have fewer radii, or have different numbers of seeds."""
    notes, rising, all_of_them, few, uneven = [], [], 0, [], []
    for arm, tasks in curve_set.points.items():
        most = max(map(len, tasks.values()), default=0)
        for task, points in tasks.items():
            _, robust = _curve(points)
            all_of_them += len(points) > 1
            if (np.diff(robust) > 0).any():
                rising.append(f"{arm} on {task}")
            if len({point.seeds for point in points}) > 1:
                uneven.append(f"{arm} on {task}")
            if len(points) < most:
                few.append(f"{arm} on {task} ({len(points)} of {most})")
    if rising:
        notes.append(
            f"in {len(rising)} of {counted(all_of_them, 'curve')} robust accuracy rises with clean "
            f"accuracy somewhere; they are taken as they are: {listed(rising, 3)}"
        )
    if few:
        notes.append(f"with fewer radii than the arm has elsewhere: {listed(few, 3)}")
    if uneven:
        notes.append(f"with more seeds at some radii than at others: {listed(uneven, 3)}")
    return notes


# -- what the moderator's table shares -------------------------------------------------------------


def as_json(name: str, quantity: str, estimate: Estimate, tasks: int, fit: Fit) -> dict:
    """A test, as it is written to JSON.

    Args:
        name: of the difference.
        quantity: that is estimated, such as a mean or a slope.
        tasks: their number.
    """
    return {
        "difference": name,
        "of": quantity,
        **estimate._asdict(),
        "tasks": tasks,
        "sources": len(fit.groups),
        "by_task": fit.by_task,
        "correlation": fit.correlation,
    }


def estimate_cell(estimate: Estimate) -> Cell:
    """An estimate in points, with its 95 % interval."""
    return number_cell([estimate.value], interval=(estimate.low, estimate.high))


def with_tests(table: Table, evaluation: str, tests: Sequence[dict], design: Design) -> Table:
    """A table with the p-values of its rows' tests, and notes on how they are computed.

    Args:
        evaluation: the column whose tests these are, by which further ones of a family are found.
        tests: of each row, as ``as_json`` gives them; the p-values by Holm are added.
    """
    elsewhere_ps = design.family.get(evaluation, [])
    adjusted = holm([entry["p"] for entry in tests] + elsewhere_ps)
    several = len(adjusted) > 1
    tests = [{**entry, "p_holm": p} for entry, p in zip(tests, adjusted)]
    rows = [
        {**row, "p": p_text(entry["p"])}
        | ({"p (Holm)": p_text(entry["p_holm"])} if several else {})
        for row, entry in zip(table.rows, tests)
    ]
    sources = "; ".join(
        dict.fromkeys(
            "each task for itself, as there is one source"
            if entry["by_task"]
            else f"{entry['tasks']} tasks in {entry['sources']} sources"
            for entry in tests
        )
    )
    notes = [
        f"in brackets: 95 % interval, {sources}: random intercept of the source (REML), "
        "cluster-robust (CR2, t with Satterthwaite's degrees of freedom); p is of the same test"
    ]
    if several:
        elsewhere = f", {len(elsewhere_ps)} of them elsewhere" if elsewhere_ps else ""
        notes.append(f"Holm: over {len(adjusted)} tests{elsewhere}")
    extra = {"evaluation": evaluation, "tests": tests, **table.extra}
    return replace(table, rows=rows, extra=extra, ranked=False).with_notes(*notes)


def family(files: list[str]) -> dict[str, list[float]]:
    """The p-values of the tests in tables that were written as JSON, by evaluation.

    Raises:
        UserError: a file has no such table.
    """
    p_values: dict[str, list[float]] = {}
    for file in files:
        try:
            for table in read_json(file)["tables"]:
                ps = [float(entry["p"]) for entry in table.get("tests", [])]
                if ps:
                    p_values.setdefault(table["evaluation"], []).extend(ps)
        except OSError as error:
            raise UserError(f"--family {file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--family {file} is no table in JSON: apd-table --table frontier --json makes one"
            ) from error
    return p_values


def backbone(runs: dict[Path, dict]) -> str:
    return listed(sorted({run["backbone"] for run in runs.values()}))
