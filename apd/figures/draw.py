"""Draws methods as lines and points, with their sample standard deviation over seeds."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
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


def draw_points(
    axes: Axes, clouds: dict[str, list[tuple[float, float]]], looks: dict[str, dict]
) -> None:
    """Draw a point at the mean of each method's (x, y), with bars of one standard deviation.

    Args:
        clouds: by method, an (x, y) for each seed.
        looks: as of ``draw_lines``.
    """
    for method in sorted(clouds, key=rank):
        x, y = zip(*clouds[method])
        bars: dict[str, Any] = {"xerr": _spread(x) or None, "yerr": _spread(y) or None}
        look = looks[method] | {"linestyle": "none"}
        axes.errorbar(mean(x), mean(y), **bars, **look, label=method)


def _spread(values) -> float:
    return stdev(values) if len(values) > 1 else 0.0


# offsets of a label from its point, in typographic points; the first one without overlap is used
_OFFSETS = [(7, 4), (7, -11), (-7, 4), (-7, -11), (0, 10), (0, -18), (7, 18), (7, -26)]


def label_points(axes: Axes) -> None:
    """Write the method's name beside each point of ``draw_points``.

    Names do not overlap if there is room.
    """
    containers = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    names = [str(container.get_label()) for container in containers]
    points = [tuple(np.asarray(container.lines[0].get_xydata())[0]) for container in containers]
    figure = axes.get_figure()
    assert isinstance(figure, Figure)  # not a SubFigure
    figure.draw_without_rendering()
    pad = 4 * figure.dpi / 72  # half a marker
    boxes = [
        Bbox.from_extents(x - pad, y - pad, x + pad, y + pad)
        for x, y in axes.transData.transform(points)
    ]
    for point, name in zip(points, names):
        label = axes.annotate(name, point, (0, 0), textcoords="offset points")
        for x, y in _OFFSETS:
            label.set_position((x, y))
            label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
            box = label.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(boxes):
                break
        boxes.append(box)
