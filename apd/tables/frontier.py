"""Robust accuracy at matched clean accuracy.

Every method exchanges clean for robust accuracy by the radius of its training attack, so that a
comparison at one radius compares different clean accuracies. Here each arm has a curve on each
task, over its radii, and curves are compared where they have the same clean accuracy.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from apd.errors import UserError, counted, listed
from apd.files import read_json
from apd.tables.arms import Curves, Design, Point, curves
from apd.tables.grid import Accuracy, Effect, Numbers
from apd.tables.nested import Estimate, Fit, holm, mean_over
from apd.tables.write import Table, p_said

MEANING = (
    "matched: an arm's points on a task, sorted by clean accuracy whatever their radius (those of "
    "equal clean accuracy: their mean), are joined by straight lines, and the difference of two "
    "arms is averaged over the clean accuracies that both reach. Where they reach none together, "
    "it is that of the two points which face each other, as if the curve of the arm with more "
    "clean accuracy went on level: against that arm, as its curve would rise"
)


class Matched(NamedTuple):
    """A difference of two arms on a task, in points of robust accuracy."""

    value: float
    overlap: bool  # whether both reach some clean accuracy; else the two facing points
    low: float  # clean accuracies that it is of: both curves', or the two points'
    high: float


def matched(ours: list[Point], theirs: list[Point]) -> Matched:
    """Robust accuracy of ``ours`` less that of ``theirs``, see ``MEANING``."""
    (x, y), (u, v) = _curve(ours), _curve(theirs)
    low, high = max(x[0], u[0]), min(x[-1], u[-1])
    if low > high:  # they face each other across a gap
        first, second = (0, -1) if x[0] > u[-1] else (-1, 0)
        return Matched(float(y[first] - v[second]), False, float(high), float(low))
    knots = np.unique([low, high, *(c for c in (*x, *u) if low < c < high)])
    apart = np.interp(knots, x, y) - np.interp(knots, u, v)
    if low == high:
        return Matched(float(apart[0]), True, float(low), float(high))
    area = ((apart[1:] + apart[:-1]) / 2 * np.diff(knots)).sum()
    return Matched(float(area / (high - low)), True, float(low), float(high))


def _curve(points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Clean accuracies, rising, and robust ones."""
    by_clean: dict[float, list[float]] = {}
    for point in points:
        by_clean.setdefault(point.clean, []).append(point.robust)
    return np.array(sorted(by_clean)), np.array([mean(by_clean[c]) for c in sorted(by_clean)])


def differences(found: Curves, first: str, second: str) -> tuple[dict[str, Matched], list[str]]:
    """Of two arms on each task that both have; and the other tasks."""
    ours, theirs = found.points[first], found.points[second]
    both = [task for task in found.tasks if task in ours and task in theirs]
    lacking = [task for task in found.tasks if task not in both]
    return {task: matched(ours[task], theirs[task]) for task in both}, lacking


def frontier(runs: dict[Path, dict], design: Design) -> list[Table]:
    """For each attack, the differences over tasks, and the arms at each radius.

    Raises:
        UserError: the runs cannot be compared.
    """
    tables = []
    for found in curves(runs, design):
        if (table := _differences(found, design, runs)) is not None:
            tables += [table, _levels(found, table.title)]
    if not tables:
        raise UserError("no two tasks have both arms of a difference")
    return tables


def _differences(found: Curves, design: Design, runs: dict[Path, dict]) -> Table | None:
    rows, tests, tasks, notes = [], [], [], [MEANING, *found.notes, *_shapes(found)]
    for first, second in design.pairs(list(found.points)):
        name = f"{first} - {second}"
        matches, lacking = differences(found, first, second)
        if lacking:
            count = counted(len(lacking), "task")
            notes.append(f"{name}: {count} left out, without both arms: {listed(lacking, 5)}")
        if len(matches) < 2:
            notes.append(f"{name}: no test, of {counted(len(matches), 'task')}")
            continue
        values = [match.value for match in matches.values()]
        estimate, fit = mean_over(values, [found.sources[task] for task in matches])
        apart = [task for task, match in matches.items() if not match.overlap]
        tests.append(as_json(name, "mean", estimate, len(values), fit))
        tests[-1] |= {"overlap": len(values) - len(apart), "apart": apart, "left_out": lacking}
        row = {"difference": name, "robust (points)": Effect.of(estimate)}
        wins, losses = sum(v > 0 for v in values), sum(v < 0 for v in values)
        row |= {"wins : losses": f"{wins} : {losses}"}
        row |= {"tasks": f"{len(values)} ({len(apart)} apart)" if apart else f"{len(values)}"}
        rows.append(row)
        for task, match in matches.items():
            tasks.append({"difference": name, "task": task, "source": found.sources[task]})
            tasks[-1] |= match._asdict()
    if not rows:
        return None
    title = f"robust accuracy at matched clean accuracy, {found.header}, {backbone(runs)}"
    table = Table("frontier", title, rows, notes)
    table.extra = {"evaluation": found.header, "tests": tests, "differences": tasks}
    table.extra["points"] = [
        {"arm": arm, "task": task, **point._asdict()}
        for arm, of_tasks in found.points.items()
        for task, points in of_tasks.items()
        for point in points
    ]
    finish(table, design)
    return table


def _levels(found: Curves, title: str) -> Table:
    """The mean over tasks of each arm at each radius."""
    rows = []
    for arm, tasks in found.points.items():
        every = [point for points in tasks.values() for point in points]
        for radius in sorted({point.radius for point in every}):
            points = [point for point in every if point.radius == radius]
            row = {"arm": arm, "trained at (1/255)": f"{radius:g}", "tasks": f"{len(points)}"}
            for kind in ("clean", "robust"):
                value = mean(getattr(point, kind) for point in points)
                row[f"{kind} (%)"] = Numbers([Accuracy(value)])
            rows.append(row)
    table = Table("frontier points", f"arms by training radius: {title}", rows)
    table.ranked = False
    return table


def _shapes(found: Curves) -> list[str]:
    """What a reader must know of the curves, in lines."""
    notes, rising, all_of_them, few, uneven = [], [], 0, [], []
    for arm, tasks in found.points.items():
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


def as_json(name: str, what: str, estimate: Estimate, tasks: int, fit: Fit) -> dict:
    """A test as JSON has it."""
    return {
        "difference": name,
        "of": what,
        **estimate._asdict(),
        "tasks": tasks,
        "sources": len(fit.groups),
        "by_task": fit.by_task,
        "correlation": fit.correlation,
    }


def finish(table: Table, design: Design) -> None:
    """Give a table its p-values, as they are and by Holm, and say how they are made."""
    tests = table.extra["tests"]
    others = design.family.get(table.extra["evaluation"], [])
    adjusted = holm([one["p"] for one in tests] + others)
    for row, one, p in zip(table.rows, tests, adjusted):
        one["p_holm"] = p
        row["p"] = p_said(one["p"])
        if len(adjusted) > 1:
            row["p (Holm)"] = p_said(p)
    sources = "; ".join(
        dict.fromkeys(
            "each task for itself, as there is one source"
            if one["by_task"]
            else f"{one['tasks']} tasks in {one['sources']} sources"
            for one in tests
        )
    )
    table.notes.append(
        f"in brackets: 95 % interval, {sources}: random intercept of the source (REML), "
        "cluster-robust (CR2, t with Satterthwaite's degrees of freedom); p is of the same test"
    )
    if len(adjusted) > 1:
        elsewhere = f", {len(others)} of them elsewhere" if others else ""
        table.notes.append(f"Holm: over {len(adjusted)} tests{elsewhere}")
    table.ranked = False


def family(files: list[str]) -> dict[str, list[float]]:
    """The p-values of the tests in tables written as JSON, by evaluation.

    Raises:
        UserError: a file is no such table.
    """
    found: dict[str, list[float]] = {}
    for file in files:
        try:
            for table in read_json(file)["tables"]:
                ps = [float(one["p"]) for one in table.get("tests", [])]
                if ps:
                    found.setdefault(table["evaluation"], []).extend(ps)
        except OSError as error:
            raise UserError(f"--family {file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--family {file} is no table in JSON: apd-table --table frontier --json makes one"
            ) from error
    return found


def backbone(runs: dict[Path, dict]) -> str:
    return listed(sorted({run["backbone"] for run in runs.values()}))
