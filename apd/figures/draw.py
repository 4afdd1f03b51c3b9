"""Draws methods as lines and points, with their sample standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from apd.methods import rank

Lines = dict[str, dict[float, dict[int, float]]]  # method -> x -> seed -> y


def draw_lines(axes: Axes, lines: Lines, looks: dict[str, dict]) -> None:
    """Draw each method as a line through its means, with a band of one standard deviation.

    Args:
        looks: by method, arguments of ``Axes.plot`` (``apd.figures.style.styles``).
    """
    for method in sorted(lines, key=rank):
        xs = sorted(lines[method])
        values = [list(lines[method][x].values()) for x in xs]
        means, spreads = [mean(v) for v in values], [_spread(v) for v in values]
        axes.plot(xs, means, **looks[method], label=method)
        if any(spreads):
            low, high = ([m + sign * s for m, s in zip(means, spreads)] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=looks[method]["color"], alpha=0.15, linewidth=0)


def draw_level(axes: Axes, method: str, values: list[float], look: dict) -> None:
    """Draw a horizontal dashed line at the mean, with a band of one standard deviation."""
    middle, spread, colour = mean(values), _spread(values), look["color"]
    axes.axhline(middle, color=colour, linestyle="--", label=method)
    axes.axhspan(middle - spread, middle + spread, color=colour, alpha=0.15, linewidth=0)


Cloud = dict[str, list[tuple[float, float]]]  # method -> (x, y) of each seed


def draw_points(
    axes: Axes, clouds: Cloud, looks: dict[str, dict], errors: Cloud | None = None
) -> None:
    """Draw a point at the mean of each method's (x, y), with bars.

    Args:
        clouds: by method, an (x, y) for each seed.
        looks: as of ``draw_lines``.
        errors: by method, one half length of the bar in x and in y; default: one standard
            deviation over seeds.
    """
    for method in sorted(clouds, key=rank):
        x, y = zip(*clouds[method])
        xerr, yerr = errors[method][0] if errors else (_spread(x), _spread(y))
        bars: dict[str, Any] = {"xerr": xerr or None, "yerr": yerr or None}
        look = looks[method] | {"linestyle": "none", "elinewidth": 0.8}
        axes.errorbar(mean(x), mean(y), **bars, **look, label=method)


def _spread(values) -> float:
    return stdev(values) if len(values) > 1 else 0.0


_SPAN = 10.0  # points that an axis has at least, so that small differences do not look large


def widen(axes: Axes) -> None:
    """Let both axes, of percentages, span ``_SPAN`` points or more."""
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        if (lacking := _SPAN - (high - low)) > 0:
            low = min(max(low - lacking / 2, 0.0), 100.0 - _SPAN)
            put(low, low + _SPAN)


_SQUEEZED = 1 / 3  # of an axis; what takes up less of it, beside an outlier, is drawn larger
_ZOOM, _EDGE = 0.42, 0.09  # size of the inset, and its distance from the edges, in axes


def crowd(points: dict[str, tuple[float, float]]) -> list[str]:
    """The methods that outliers squeeze into a part of an axis; [] if there are no outliers.

    Outliers are those beyond the widest gap of an axis, if they are at most a quarter of all.
    """
    for values in zip(*points.values()):
        ordered = sorted(zip(values, points))
        gaps = [after[0] - before[0] for before, after in zip(ordered, ordered[1:])]
        if not gaps:
            continue
        at = gaps.index(max(gaps)) + 1
        most = max(ordered[:at], ordered[at:], key=len)
        span, whole = most[-1][0] - most[0][0], ordered[-1][0] - ordered[0][0]
        if len(most) >= max(3, 0.75 * len(ordered)) and span < _SQUEEZED * whole and whole > _SPAN:
            return [name for _, name in most]
    return []


def enlarge(axes: Axes, names: list[str], draw: Callable[[Axes], None]) -> Axes | None:
    """Draw the crowd ``names`` again, larger, in an empty corner of the axes.

    Args:
        axes: with the points of ``draw_points``.
        draw: draws these points on other axes.

    Returns:
        The axes in the corner; None: there is no empty corner.
    """
    points = _points(axes)
    at = axes.transAxes.inverted().transform(axes.transData.transform(list(points.values())))
    far = 0.98 - _ZOOM
    for left, low in ((far, _EDGE), (_EDGE, far), (far, far), (_EDGE, _EDGE)):
        corner = Bbox.from_bounds(left, low, _ZOOM, _ZOOM)
        if not corner.padded(_EDGE).count_contains(at):
            break
    else:
        return None
    inset = axes.inset_axes(corner.bounds)
    draw(inset)
    values = np.array([points[name] for name in names])
    inset.set_xlim(*_around(values[:, 0], axes.get_xlim()))
    inset.set_ylim(*_around(values[:, 1], axes.get_ylim()))
    inset.spines[["top", "right"]].set_visible(True)
    inset.tick_params(labelsize=7)
    axes.indicate_inset_zoom(inset, edgecolor="black", alpha=0.4)
    return inset


def _around(values: np.ndarray, limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis around the values, within ``limits``."""
    pad = max(1.0, 0.3 * float(np.ptp(values)))
    return max(values.min() - pad, limits[0]), min(values.max() + pad, limits[1])


def _points(axes: Axes) -> dict[str, tuple[float, float]]:
    """Name -> (x, y) of the points of ``draw_points``."""
    return {
        str(container.get_label()): tuple(np.asarray(container.lines[0].get_xydata())[0])
        for container in axes.containers
        if isinstance(container, ErrorbarContainer)
    }


# offsets of a label from its point, in typographic points; the first free one is used
_PLACES = [
    (x * reach, y * reach - 3)
    for reach in (7, 14, 24, 36, 50)
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3), (1, 0), (-1, 0))
]
_FAR = 20  # typographic points from which on a line leads from the point to its label


def label_points(axes: Axes, names: Collection[str] | None = None) -> None:
    """Write its name beside each point of ``draw_points``, without overlaps if there is room.

    Args:
        names: of the points that get a label; default: all.
    """
    points, figure = _points(axes), axes.get_figure()
    assert isinstance(figure, Figure)  # no figure within a figure
    figure.draw_without_rendering()
    pad = 4 * figure.dpi / 72  # half a marker
    boxes = [Bbox([at, at]).padded(pad) for at in axes.transData.transform(list(points.values()))]
    lines = [line for line in axes.collections if isinstance(line, LineCollection)]
    bars = [bar for line in lines for bar in line.get_segments()]
    boxes += [Bbox(axes.transData.transform(bar)).padded(pad / 4) for bar in bars]
    boxes += [box for inset in axes.child_axes if (box := inset.get_tightbbox())]
    for name, point in points.items():
        if names is None or name in names:
            boxes.append(_label(axes, name, point, boxes))


def _label(axes: Axes, name: str, point: tuple[float, float], boxes: list[Bbox]) -> Bbox:
    """Write a label at the first place that is free of ``boxes``; return its own box."""
    label = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=8.5)
    for x, y in _PLACES:
        label.set_position((x, y))
        label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
        box = label.get_window_extent()
        inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
        if inside and not box.count_overlaps(boxes):
            break
    if max(abs(x), abs(y + 3)) > _FAR:
        line = {"arrowstyle": "-", "alpha": 0.4, "linewidth": 0.7}
        axes.annotate("", point, (x, y + 3), textcoords="offset points", arrowprops=line)
    return box
