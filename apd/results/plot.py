"""Clean against robust accuracy, one point a method."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from apd.errors import UserError
from apd.files import atomic_write

# Okabe and Ito's colours, which colour-blind readers tell apart; the shapes say the same again
_STYLES = {
    "none": ("o", "#000000"),
    "text": ("s", "#E69F00"),
    "visual": ("^", "#56B4E9"),
    "text + visual": ("D", "#0072B2"),
}
_OTHER = ("v", "#CC79A7")
# where a label may stand, in points from its point: the first free place is taken
_PLACES = [(7, 4), (7, -11), (-7, 4), (-7, -11), (0, 10), (0, -18), (7, 18), (7, -26)]


def plot(rows: list[dict], path: str | Path) -> None:
    """Plot the first robust column of ``apd.results.table.build_table``'s rows as a PNG.

    Raises:
        UserError: no run has both evaluations, or ``path`` does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"--plot {path}: the plot is a PNG, name it so")
    columns = [h for h in rows[0] if h.endswith("(%)")]
    clean = "clean (%)"
    robust = next((h for h in columns if h != clean), None)
    rows = [row for row in rows if robust and row.get(clean) and row[robust]]
    if not rows:
        raise UserError("nothing to plot: no run has a clean and a robust evaluation")

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel(f"robust accuracy, {robust}")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    points = []
    for row in rows:
        marker, colour = _STYLES.get(row["prompts"], _OTHER)
        points.append((mean(row[clean]), mean(row[robust])))
        axes.errorbar(
            *points[-1],
            xerr=stdev(row[clean]) if len(row[clean]) > 1 else None,
            yerr=stdev(row[robust]) if len(row[robust]) > 1 else None,
            fmt=marker,
            color=colour,
            label=row["prompts"],
        )
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    figure.legend(
        *(unique.values(), unique.keys()),
        title="prompts",
        loc="outside upper center",
        ncols=len(unique),
        frameon=False,
    )
    _label(axes, points, [row["method"] for row in rows])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _label(axes, points: list[tuple], names: list[str]) -> None:
    """Put each name beside its point, off the other names and points where there is room."""
    axes.figure.draw_without_rendering()
    pad = 4 * axes.figure.dpi / 72  # half a marker
    taken = [
        Bbox.from_extents(x - pad, y - pad, x + pad, y + pad)
        for x, y in axes.transData.transform(points)
    ]
    for point, name in zip(points, names):
        label = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=9)
        for x, y in _PLACES:
            label.set_position((x, y))
            label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
            box = label.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)
