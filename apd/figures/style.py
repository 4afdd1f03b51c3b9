"""The style of all figures: colour, marker and line of each method; files have no date.

A method can be recognised without its colour, by marker and line. Methods that train on attacked
images have filled markers and solid lines. Their counterparts that train on clean images have the
same colour, open markers and dashed lines (``apd.methods``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import matplotlib
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd.errors import UserError
from apd.files import atomic_write
from apd.methods import BLUE, GREEN, GREY, METHODS, ORANGE, PURPLE, RED, SKY, rank

FORMATS = ("png", "pdf", "svg")

_SOLID, _DASHED = "-", "--"
# for methods that apd.methods does not list: 7 and 5 have no common divisor, so 35 of them differ
_COLOURS = (PURPLE, BLUE, ORANGE, GREEN, RED, SKY, GREY)
_MARKERS = ("<", ">", "d", "p", "h")  # those of one colour, two apart here, do not look alike
_CYCLE = cycler(color=_COLOURS, marker=["o", "s", "^", "D", "v", "P", "X"])

LOOK = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.prop_cycle": _CYCLE,  # for lines that are not methods
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a $ in a name is no formula
    "svg.hashsalt": "apd",
    "pdf.fonttype": 42,  # text that can be searched and edited
}
look = matplotlib.rc_context(LOOK)  # type: ignore[arg-type]  # a decorator of functions that draw


def styles(methods: Iterable[str]) -> dict[str, dict]:
    """Arguments of ``Axes.plot`` for each method.

    Methods that ``apd.methods`` lists look the same in every figure.
    """
    numbers, looks = count(), {}
    for method in sorted(set(methods)):
        if row := METHODS.get(method):
            colour, marker = row.colour, row.marker
            line = _SOLID if row.adversarial else _DASHED
        else:
            i = next(numbers)
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            line = _SOLID
        face = "white" if line == _DASHED else colour
        looks[method] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "markerfacecolor": face,
        }
    return looks


def panels(
    number: int, title: str, width: float = 3.6, height: float = 2.9
) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` axes, three in a row; ``width`` and ``height`` of each in inches."""
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (width * columns + 1.5, height * rows + 0.5)  # room for the legend and the title
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def legend(figure: Figure) -> None:
    """Add one legend for all panels to the figure."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    order = sorted(handles, key=rank)
    shown = [handles[label] for label in order]
    figure.legend(shown, order, loc="outside right upper")  # type: ignore[call-overload]


def check_format(form: str) -> None:
    """Raise UserError unless ``form`` is one of ``FORMATS``."""
    if form not in FORMATS:
        raise UserError(f"no figure format {form}: use {', '.join(FORMATS)}")


@look
def rendered(figure: Figure, form: str) -> bytes:
    """The contents of the figure's file; the same figure gives the same bytes.

    Raises:
        UserError: ``form`` is not one of ``FORMATS``.
    """
    check_format(form)
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=no_date)
    return buffer.getvalue()


@look
def rendered_panels(figure: Figure) -> list[bytes]:
    """Each panel of the figure, and its legend, as an SVG of its own, which a page can stack.

    The figure's title is in none of them.
    """
    figure.draw_without_rendering()  # puts everything at its place
    figure.set_layout_engine("none")  # and leaves it there
    for text in figure.texts:  # the title
        text.set_visible(False)
    pieces: list[Artist] = [*figure.axes, *figure.legends]
    boxes = [piece.get_tightbbox() for piece in pieces]
    svgs = []
    for piece, box in zip(pieces, boxes):
        assert box is not None  # all of them are drawn
        for other in pieces:
            other.set_visible(other is piece)
        inches = box.transformed(figure.dpi_scale_trans.inverted()).padded(0.05)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=inches)
        svgs.append(buffer.getvalue())
    return svgs


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure, atomically, in the format of the path's suffix.

    Raises:
        UserError: the suffix is none of ``FORMATS``.
    """
    path = Path(path)
    content = rendered(figure, path.suffix[1:].lower())
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path
