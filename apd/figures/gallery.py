"""A figure of images before and under attack, with the predictions of each classifier."""

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
_CELL, _GAP, _LEFT = 1.6, 0.15, 0.5  # inches: an image with its gap, the gap, and the captions
_LINE = 10.5  # typographic points from one line of text to the next
_LONGEST = 16  # letters of a class name; a longer one is cut


@dataclass(frozen=True)
class Attacked:
    """N images after an attack on one classifier.

    Attributes:
        images: (N, 3, R, R) in [0, 1]; the clean image, where the classifier was wrong before.
        answers: of each classifier: its N answers on these images.
    """

    images: Tensor
    answers: list[list[Answer]]


@dataclass(frozen=True)
class Gallery:
    """N images under an attack on each of several classifiers.

    Attributes:
        names: of the classifiers.
        captions: of the images.
        labels: of each classifier: N classes, by which its answers are right or wrong: the true
            ones, or, where they are not known, its answers on the clean images.
        clean: (N, 3, R, R) in [0, 1].
        answers: of each classifier: its N answers on the clean images.
        attacked: the images after the attack on each classifier.
        title: the attack with its conditions, and where the images are from.
    """

    names: list[str]
    captions: list[str]
    labels: list[list[str]]
    clean: Tensor
    answers: list[list[Answer]]
    attacked: list[Attacked]
    title: str


@look
def draw(gallery: Gallery) -> Figure:
    """Draw a row per image: clean, then for each classifier the perturbation and attacked image.

    A mark, a frame (solid or dashed) and a colour distinguish right from wrong.
    """
    rows, runs = len(gallery.captions), len(gallery.names)
    width = _LEFT + (1 + 2 * runs) * _CELL + _GAP
    title = textwrap.fill(gallery.title, int(13 * width)).splitlines()
    top = 0.3 + 0.18 * len(title)
    row_height = _CELL + 0.1 + runs * _LINE / 72
    figure = Figure(figsize=(width, top + rows * row_height))
    figure.text(0.5, 1 - 0.08 / (top + rows * row_height), "\n".join(title), ha="center", va="top")

    def cell(row: int, column: int) -> Axes:
        """Axes for an image, _CELL inches less a gap wide and high; text goes below them."""
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
        _write_answers(clean, gallery, gallery.answers, i)
        for run, (name, attacked) in enumerate(zip(gallery.names, gallery.attacked)):
            delta, after = cell(i, 1 + 2 * run), cell(i, 2 + 2 * run)
            if gallery.answers[run][i][0] != gallery.labels[run][i]:
                text = "wrong before\nthe attack"
                delta.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color=GREY)
                delta.spines[:].set_visible(False)
                after.set_axis_off()
            else:
                _image(delta, magnified(gallery, run, i))
                _image(after, attacked.images[i])
                _frame(after, attacked.answers[run][i][0] == gallery.labels[run][i])
                _write_answers(after, gallery, attacked.answers, i, attacked_run=run)
            if i == 0:
                clean.set_title("clean")
                delta.set_title(f"perturbation \N{MULTIPLICATION SIGN} {factor}")
                after.set_title("attacked" + (f", on {name}" if runs > 1 else ""))
    return figure


def magnification(gallery: Gallery) -> int:
    """The factor by which perturbations are drawn larger: it makes the largest of all 0.5."""
    largest = max(float((a.images - gallery.clean).abs().max()) for a in gallery.attacked)
    return max(int(0.5 / largest), 1) if largest else 1


def magnified(gallery: Gallery, run: int, image: int) -> Tensor:
    """The perturbation of one image by the attack on one classifier, as an image.

    Returns:
        (3, R, R) in [0, 1]: 0.5, a grey, plus ``magnification(gallery)`` times the perturbation.
    """
    delta = gallery.attacked[run].images[image] - gallery.clean[image]
    return (0.5 + magnification(gallery) * delta).clamp(0, 1)


def _image(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _frame(axes: Axes, stands: bool) -> None:
    """Draw a frame: solid and blue if the image withstands the attack, else dashed and red."""
    axes.spines[:].set_visible(True)
    axes.spines[:].set(linewidth=3, color=BLUE if stands else RED, capstyle="butt")
    if not stands:
        axes.spines[:].set(linestyle=(0, (2, 1.2)))


def _write_answers(
    axes: Axes,
    gallery: Gallery,
    answers: list[list[Answer]],
    image: int,
    attacked_run: int | None = None,
) -> None:
    """Write a line for each classifier: mark, name, label and probability.

    That of the classifier which was attacked is bold.
    """
    for run, (name, of_classifier) in enumerate(zip(gallery.names, answers)):
        label, probability = of_classifier[image]
        right = label == gallery.labels[run][image]
        prefix = f"{name}: " if len(gallery.names) > 1 else ""
        if len(label) > _LONGEST:
            label = f"{label[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
        axes.annotate(
            f"{_RIGHT if right else _WRONG} {prefix}{label} {probability:.0%}",
            (0.5, 0),
            (0, -5 - _LINE * run),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=BLUE if right else RED,
            fontweight="bold" if run == attacked_run and len(gallery.names) > 1 else "normal",
        )
