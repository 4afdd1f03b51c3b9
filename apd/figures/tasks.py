"""Figures of arms over tasks: the frontier, and a difference against its moderator.

They show the numbers of the tables ``apd.tables.frontier`` and ``apd.tables.moderator``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from apd.errors import UserError, counted
from apd.figures.style import legend, look, panels, styles
from apd.methods import rank
from apd.tables.arms import Curves, Design, curves
from apd.tables.frontier import backbone
from apd.tables.moderator import STEP, Moderated, tested, zero_shot
from apd.tables.nested import mean_over

Figures = dict[str, Figure]  # by the stem of its file's name
_HALO = [withStroke(linewidth=2, foreground="white")]  # keeps labels legible on lines


@look
def frontier(runs: dict[Path, dict], design: Design) -> Figures:
    """Mean clean against mean robust accuracy of each arm: a panel per attack, a point per radius.

    Only tasks are used on which all these arms have all their radii, so that all points are means
    over the same tasks. A band is the 95 % interval over tasks of the robust accuracy minus the
    task's mean over all drawn points, because tasks differ far more than arms do.

    Raises:
        UserError: the runs cannot be compared, or fewer than two tasks can be used.
    """
    drawn = []
    for curve_set in curves(runs, design):
        arms = _arms(curve_set, design)
        if (tasks := _complete_tasks(curve_set, arms)) and any(
            len(_radii(curve_set, arm)) > 1 for arm in arms
        ):
            drawn.append((curve_set, arms, tasks))
    if not drawn:
        raise UserError("no two tasks have all arms at all their radii, two or more: no frontier")
    figure, all_axes = panels(len(drawn), f"{backbone(runs)}\narms over tasks, by radius", 4.6, 3.6)
    looks = styles(arm for _, arms, _ in drawn for arm in arms)
    for axes, (curve_set, arms, tasks) in zip(all_axes, drawn):
        for arm, (clean, robust, low, high) in _means(curve_set, arms, tasks).items():
            order = np.argsort(clean)
            axes.plot(clean[order], robust[order], **looks[arm], label=arm)
            look_of_band = {"color": looks[arm]["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(clean[order], low[order], high[order], **look_of_band)
            for x, y, radius in zip(clean, robust, _radii(curve_set, arm)):
                axes.annotate(
                    f"{radius:g}",
                    (x, y),
                    (3, 4),
                    textcoords="offset points",
                    fontsize=7,
                    path_effects=_HALO,
                )
        subtitle = f"{len(tasks)} of {counted(len(curve_set.tasks), 'task')}"
        axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
        axes.set_title(f"{curve_set.header.removesuffix(' (%)')}\n{subtitle}")
    legend(figure)
    return {_stem("frontier", runs): figure}


def _arms(curve_set: Curves, design: Design) -> list[str]:
    """The arms of the differences; all arms, if there are no differences."""
    if design.differences or design.baseline:
        return sorted(
            {arm for pair in design.pairs(list(curve_set.points)) for arm in pair}, key=rank
        )
    return list(curve_set.points)


def _radii(curve_set: Curves, arm: str) -> list[float]:
    """The training radii of an arm, ascending, in 1/255."""
    return sorted({p.radius for points in curve_set.points[arm].values() for p in points})


def _complete_tasks(curve_set: Curves, arms: list[str]) -> list[str]:
    """The tasks that have all radii of all arms; none, if they are fewer than two."""
    tasks = [
        task
        for task in curve_set.tasks
        if all(
            len(curve_set.points[arm].get(task, [])) == len(_radii(curve_set, arm)) for arm in arms
        )
    ]
    return tasks if len(tasks) > 1 and all(curve_set.points[arm] for arm in arms) else []


def _means(
    curve_set: Curves, arms: list[str], tasks: list[str]
) -> dict[str, tuple[np.ndarray, ...]]:
    """Arm -> clean accuracy, robust accuracy, lower and upper end of its band: each (radii,)."""
    sources = [curve_set.sources[task] for task in tasks]
    points = {
        arm: np.array([curve_set.points[arm][task] for task in tasks])[..., :2] for arm in arms
    }
    robust = np.concatenate([points[arm][..., 1] for arm in arms], axis=1)
    level = robust.mean(axis=1) - robust.mean()
    means = {}
    for arm, values in points.items():
        clean_and_robust = values.mean(axis=0)
        centred = values[..., 1] - level[:, None]
        half_widths = []
        for column in centred.T:
            estimate, _ = mean_over(column, sources)
            half_widths.append((estimate.high - estimate.low) / 2)
        robust = clean_and_robust[:, 1]
        means[arm] = (*clean_and_robust.T, robust - half_widths, robust + half_widths)
    return means


@look
def moderator(runs: dict[Path, dict], design: Design) -> Figures:
    """Differences of two arms by zero-shot accuracy: a panel for each difference and attack.

    It has a point per task and the fitted line with its 95 % interval.

    Open points are tasks on which the clean accuracies of the two arms do not overlap.

    Raises:
        UserError: the runs cannot be compared, or say nothing of zero-shot accuracy.
    """
    above, lines = zero_shot(runs), []
    for curve_set in curves(tested(runs), design):
        for pair in design.pairs(list(curve_set.points)):
            try:
                lines.append((curve_set, Moderated(curve_set, pair, above)))
            except ValueError:  # there are too few tasks, which the table reports
                continue
    if not lines:
        raise UserError("no difference has tasks enough for a line: --table moderator says why")
    title = f"{backbone(runs)}\ndifferences by zero-shot accuracy"
    figure, all_axes = panels(len(lines), title, 4.6, 3.4)
    looks = _looks({source for _, line in lines for source in line.sources})
    for axes, (curve_set, line) in zip(all_axes, lines):
        _draw_line(axes, line, looks)
        axes.set(
            xlabel="zero-shot accuracy above chance (points)",
            ylabel="robust, at matched clean (points)",
        )
        slope = line.fit.estimate([0, 1])
        interval = f"{slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}] per {STEP}"
        axes.set_title(f"{line.name}, {curve_set.header.removesuffix(' (%)')}\nslope {interval}")
    legend(figure)
    return {_stem("moderator", runs): figure}


def _looks(sources: set[str]) -> dict[str, dict]:
    """The colour and marker of each source, the same in all panels."""
    # the blank keeps a source from getting the style of a method with the same name
    looks = styles(f"{source} " for source in sources)
    return {
        source: {key: looks[f"{source} "][key] for key in ("color", "marker")} for source in sources
    }


def _draw_line(axes: Axes, line: Moderated, looks: dict[str, dict]) -> None:
    """Draw the points of the tasks, and the fitted line with its 95 % interval."""
    for source in dict.fromkeys(line.sources):
        colour = looks[source]
        of_source = np.array([name == source for name in line.sources])
        label: str | None = source
        for overlap, face in ((True, colour["color"]), (False, "white")):
            rows = of_source & np.array([m.overlap == overlap for m in line.matches.values()])
            if rows.any():
                style = {**colour, "markerfacecolor": face, "linestyle": "none", "label": label}
                axes.plot(line.above[rows], line.values[rows], **style)
                label = None
    x = np.linspace(line.above.min(), line.above.max(), 41)
    estimates = np.array([line.fit.estimate([1, at / STEP])[:3] for at in x])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.plot(x, estimates[:, 0], color="black", marker="", linestyle="-")
    axes.fill_between(x, estimates[:, 1], estimates[:, 2], color="black", alpha=0.1, linewidth=0)


def _stem(kind: str, runs: dict[Path, dict]) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{kind}_{backbone(runs)}")
