"""Figures of evaluated runs: attacked images, accuracy by radius, and accuracy of each class."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from apd.figures.draw import Lines, draw_lines
from apd.figures.gallery import Attacked, Gallery
from apd.figures.gallery import draw as draw_gallery
from apd.figures.style import legend, look, panels, save, styles
from apd.results.comparable import shots_of
from apd.results.verdicts import Verdicts
from apd.results.words import attack_text, described, shots_text


@look
def draw(evaluated: list[tuple], examples: dict, folder: Path) -> list[Path]:
    """Write figures as PNG to ``folder``: examples and classes of each run, and curves over eps.

    Args:
        evaluated: pairs of an ``apd.evaluate.evaluated.Evaluated`` and its records, clean first.
        examples: ``apd.evaluate.examples.Examples`` of each run that was attacked.

    Returns:
        The paths of the files.
    """
    written = []
    for run, records in evaluated:
        stem = "_".join((run.results["method"], f"seed{run.results['seed']}"))
        attacks = records[1:]
        if not attacks:
            continue
        written.append(save(_examples(run, examples[run]), folder / f"{stem}_examples.png"))
        stored = {verdicts.record["key"]: verdicts for verdicts in run.stored()}
        shown = [stored[record["key"]] for record in attacks]
        written.append(save(_classes(run, shown), folder / f"{stem}_classes.png"))
    curves = _by_attack(evaluated)
    for attack, lines in curves.items():
        if any(len(points) > 2 for points in lines.values()):  # two points are no curve
            name = re.sub("[:/]", "-", attack).replace(", ", "_").replace(" ", "_").lower()
            written.append(save(_curves(attack, lines), folder / f"eps_{name}.png"))
    return written


def _examples(run, examples) -> Figure:
    return draw_gallery(
        Gallery(
            names=[run.results["method"]],
            captions=examples.labels,
            labels=[examples.labels],
            clean=examples.clean.cpu(),
            answers=[examples.clean_answers],
            attacked=[Attacked(examples.attacked.cpu(), [examples.attacked_answers])],
            title=f"{run.name}: {attack_text(examples.attack.name, examples.attack.conditions)}",
        )
    )


def _classes(run, shown: list[Verdicts]) -> Figure:
    """Accuracy of each class under each attack, the class that is worst under the first on the
    left."""
    names = run.classnames
    figure = Figure(figsize=(2 + max(4.4, 0.28 * len(names)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    order = np.arange(0)
    width = 0.8 / len(shown)
    for number, verdicts in enumerate(shown):
        count = np.bincount(verdicts.labels, minlength=len(names)).clip(min=1)
        stands = np.bincount(verdicts.labels[verdicts.stands], minlength=len(names))
        accuracy = 100 * stands / count
        order = order if len(order) else accuracy.argsort(kind="stable")
        places = np.arange(len(names)) + width * (number - (len(shown) - 1) / 2)
        axes.bar(places, accuracy[order], width, label=described(verdicts.record))
    axes.set_xticks(range(len(names)), [names[i] for i in order], rotation=90, fontsize=7)
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(0, 100)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    axes.set_title(run.name, fontsize=9)
    return figure


def _by_attack(evaluated: list[tuple]) -> dict[str, Lines]:
    """Attack -> method -> eps -> seed -> accuracy in percent; the clean accuracy is at eps 0."""
    curves: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    name_shots = len({shots_of(run.results) for run, _ in evaluated} - {None}) > 1
    for run, (clean, *records) in evaluated:
        results, shots = run.results, shots_of(run.results)
        name = results["method"]
        if name_shots and shots is not None:
            name += f", {shots_text(shots)}"
        for record in records:
            points = curves[described(record, eps=False)][name]
            points[0.0][results["seed"]] = clean["accuracy"]
            points[record["threat_model"]["eps"]][results["seed"]] = record["accuracy"]
    return curves


def _curves(attack: str, lines: Lines) -> Figure:
    figure, (axes,) = panels(1, attack)
    draw_lines(axes, lines, styles(lines))
    axes.set_xlabel("eps (1/255)")
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(0, 100)
    legend(figure)
    return figure
