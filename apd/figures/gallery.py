"""Images under attack, and what each classifier says of them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd.figures.style import look
from apd.methods import BLUE, GREY, RED

if TYPE_CHECKING:
    from torch import Tensor

Answer = tuple[str, float]  # the name of a class, and its probability
_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
_CELL, _GAP, _LEFT = 1.6, 0.15, 0.5  # inches: of an image and what is between, and of captions
_LINE = 10.5  # points from one line of text to the next
_LONGEST = 16  # letters of a class name


@dataclass(frozen=True)
class Attacked:
    """What an attack on one classifier made of N images.

    Attributes:
        images: (N, 3, R, R); where the classifier was wrong before it, the clean image.
        said: what each classifier says of each image: N answers, for each classifier.
    """

    images: Tensor
    said: list[list[Answer]]


@dataclass(frozen=True)
class Gallery:
    """N images under an attack on each of several classifiers.

    Attributes:
        names: of the classifiers.
        captions: of the images.
        labels: of the images, for each classifier: the truth, or where it is not known what that
            classifier says of the clean image.
        clean: (N, 3, R, R) in [0, 1].
        said: of the clean images, for each classifier.
        attacked: by the attack on each classifier.
        title: the attack and its conditions, and where the images are from.
    """

    names: list[str]
    captions: list[str]
    labels: list[list[str]]
    clean: Tensor
    said: list[list[Answer]]
    attacked: list[Attacked]
    title: str


@look
def draw(gallery: Gallery) -> Figure:
    """A row per image: clean, then of each classifier the perturbation and the attacked image.

    Right and wrong are told apart by a mark, a frame (solid or dashed) and a colour.
    """
    rows, runs = len(gallery.captions), len(gallery.names)
    width = _LEFT + (1 + 2 * runs) * _CELL + _GAP
    title = textwrap.fill(gallery.title, int(13 * width)).splitlines()
    top = 0.3 + 0.18 * len(title)
    row_height = _CELL + 0.1 + runs * _LINE / 72
    figure = Figure(figsize=(width, top + rows * row_height))
    figure.text(0.5, 1 - 0.08 / (top + rows * row_height), "\n".join(title), ha="center", va="top")

    def cell(row: int, column: int) -> Axes:
        """Of images of _CELL inches less a gap, whatever stands below them."""
        side, height = _CELL - _GAP, figure.get_figheight()
        bottom = height - top - row * row_height - side
        left = _LEFT + column * _CELL
        box = (left / width, bottom / height, side / width, side / height)
        return figure.add_axes(box, xticks=[], yticks=[])

    factor = magnification(gallery)
    for i in range(rows):
        clean = cell(i, 0)
        _image(clean, gallery.clean[i])
        clean.set_ylabel(gallery.captions[i], fontsize=8)
        _say(clean, gallery, gallery.said, i)
        for run, (name, attacked) in enumerate(zip(gallery.names, gallery.attacked)):
            delta, after = cell(i, 1 + 2 * run), cell(i, 2 + 2 * run)
            if gallery.said[run][i][0] != gallery.labels[run][i]:
                _note(delta, "wrong before\nthe attack")
                after.set_axis_off()
            else:
                _image(delta, magnified(gallery, run, i))
                _image(after, attacked.images[i])
                _frame(after, attacked.said[run][i][0] == gallery.labels[run][i])
                _say(after, gallery, attacked.said, i, own=run)
            if i == 0:
                clean.set_title("clean")
                delta.set_title(f"perturbation \N{MULTIPLICATION SIGN} {factor}")
                after.set_title("attacked" + (f", on {name}" if runs > 1 else ""))
    return figure


def magnification(gallery: Gallery) -> int:
    """What perturbations are multiplied with: the largest of all fills half the range of grey."""
    largest = max(float((a.images - gallery.clean).abs().max()) for a in gallery.attacked)
    return max(int(0.5 / largest), 1) if largest else 1


def magnified(gallery: Gallery, run: int, image: int) -> Tensor:
    """The perturbation of one image by the attack on one classifier, to be looked at: (3, R, R) in
    [0, 1], times ``magnification(gallery)`` around a grey that means no change."""
    delta = gallery.attacked[run].images[image] - gallery.clean[image]
    return (0.5 + magnification(gallery) * delta).clamp(0, 1)


def _image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color=GREY)
    axes.spines[:].set_visible(False)


def _frame(axes: Axes, stands: bool) -> None:
    axes.spines[:].set_visible(True)
    axes.spines[:].set(linewidth=3, color=BLUE if stands else RED, capstyle="butt")
    if not stands:
        axes.spines[:].set(linestyle=(0, (2, 1.2)))


def _say(
    axes: Axes, gallery: Gallery, said: list[list[Answer]], image: int, own: int | None = None
) -> None:
    """A line for each classifier: mark, name, label and probability; in bold, that which was
    attacked."""
    for run, (name, row) in enumerate(zip(gallery.names, said)):
        label, probability = row[image]
        right = label == gallery.labels[run][image]
        who = f"{name}: " if len(gallery.names) > 1 else ""
        if len(label) > _LONGEST:
            label = f"{label[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
        axes.annotate(
            f"{_RIGHT if right else _WRONG} {who}{label} {probability:.0%}",
            (0.5, 0),
            (0, -5 - _LINE * run),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=BLUE if right else RED,
            fontweight="bold" if run == own and len(gallery.names) > 1 else "normal",
        )
