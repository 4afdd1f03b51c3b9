"""One look for all figures: a method's colour, marker and line, and files that bear no date.

The colours are Okabe and Ito's, which colour-blind readers tell apart; marker and line say the same
again. Methods that train on attacked images have filled markers and solid lines, their
counterparts that train on clean images have the same colour, open markers and dashed lines.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd.errors import UserError
from apd.files import atomic_write
from apd.tables.cells import rank

FORMATS = ("png", "pdf", "svg")

_BLACK, _GREY = "#000000", "#777777"
_ORANGE, _SKY, _GREEN, _BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
_RED, _PURPLE = "#D55E00", "#CC79A7"  # yellow is too pale on white
_SOLID, _DASHED = "-", "--"
_METHODS = {
    "ZeroshotCLIP": (_BLACK, "x", _DASHED),
    "ZeroshotCLIP2": (_BLACK, "+", _DASHED),
    "CoOp": (_ORANGE, "s", _DASHED),
    "VPT": (_SKY, "^", _DASHED),
    "IVLP": (_GREEN, "D", _DASHED),
    "MaPLe": (_BLUE, "v", _DASHED),
    "APT": (_ORANGE, "s", _SOLID),
    "AdvPT": (_GREY, "X", _SOLID),
    "AdvVPT": (_SKY, "^", _SOLID),
    "AdvIVLP": (_GREEN, "D", _SOLID),
    "AdvMaPLe": (_BLUE, "v", _SOLID),
    "FAP": (_PURPLE, "P", _SOLID),
    "APD": (_RED, "o", _SOLID),
}
# of other methods; 7 and 5 have no common divisor, so that 35 of them differ
_COLOURS = (_PURPLE, _BLUE, _ORANGE, _GREEN, _RED, _SKY, _GREY)
_MARKERS = ("<", "p", ">", "h", "d")
_CYCLE = matplotlib.cycler(color=_COLOURS, marker=["o", "s", "^", "D", "v", "P", "X"])

LOOK = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.prop_cycle": _CYCLE,  # of lines that are no methods
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # names may hold a $
    "svg.hashsalt": "apd",
    "pdf.fonttype": 42,  # text that can be searched and edited
}
look = matplotlib.rc_context(LOOK)  # decorates what draws


def styles(methods: Iterable[str]) -> dict[str, dict]:
    """Arguments of ``Axes.plot`` for each method; known ones look the same in every figure."""
    numbers, found = count(), {}
    for method in sorted(set(methods)):
        if method in _METHODS:
            colour, marker, line = _METHODS[method]
        else:
            i = next(numbers)
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            line = _SOLID
        face = "white" if line == _DASHED else colour
        found[method] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "markerfacecolor": face,
        }
    return found


def panels(
    number: int, title: str, width: float = 3.6, height: float = 2.9
) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` axes of this size (inches), three in a row."""
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (width * columns + 1.5, height * rows + 0.5)  # with room for a legend and the title
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def legend(figure: Figure) -> None:
    """One for all panels."""
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    order = sorted(handles, key=rank)
    figure.legend([handles[label] for label in order], order, loc="outside right upper")


@look
def rendered(figure: Figure, form: str) -> bytes:
    """The figure's file; the same figure gives the same bytes.

    Raises:
        UserError: ``form`` is not one of ``FORMATS``.
    """
    if form not in FORMATS:
        raise UserError(f"no figure format {form}: use {', '.join(FORMATS)}")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=undated)
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure, atomically, in the format that the path's end tells.

    Raises:
        UserError: there is no such format.
    """
    path = Path(path)
    content = rendered(figure, path.suffix[1:].lower())
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path
