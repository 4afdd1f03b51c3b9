"""Figures of evaluated runs: attacked images, accuracy by radius, and accuracy of each class."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from apd.figures.draw import Lines, draw_lines
from apd.figures.style import legend, look, panels, save, styles
from apd.results.comparable import shots_of
from apd.results.verdicts import Verdicts
from apd.results.words import described, shots_text


@look
def draw(evaluated: list[tuple], examples: dict, folder: Path) -> list[Path]:
    """Write PNGs to ``folder``: examples and classes of each run, curves over eps of all.

    Args:
        evaluated: each an ``apd.evaluate.evaluated.Evaluated`` and its records, clean first.
        examples: ``apd.evaluate.examples.Examples`` of each run that was attacked.
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
        if any(len(points) > 1 for points in lines.values()):
            name = re.sub("[:/]", "-", attack).replace(", ", "_").replace(" ", "_").lower()
            written.append(save(_curves(attack, lines), folder / f"eps_{name}.png"))
    return written


def _examples(run, examples) -> Figure:
    """Clean images, attacked images, and their differences, scaled to the full range of colours."""
    delta = examples.attacked - examples.clean
    scale = delta.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8)
    rows = [examples.clean, examples.attacked, 0.5 + 0.5 * delta / scale]
    count, threat = len(examples.clean), examples.threat
    figure = Figure(figsize=(1.7 * count, 5.6), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for j in range(count):
        for i, row in enumerate(rows):
            axes[i, j].imshow(row[j].clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
        for i, answers in enumerate((examples.clean_answers, examples.attacked_answers)):
            name, share = answers[j]
            axes[i, j].set_title(f"{name} ({100 * share:.0f} %)", fontsize=8)
        times = 0.5 / float(scale[j])
        axes[2, j].set_title(f"difference × {times:.0f}", fontsize=8)
    attack = f"PGD-{threat.steps}, {threat.norm} {threat.eps:g}/255"
    for i, text in enumerate(("clean", attack, "difference")):
        axes[i, 0].set_ylabel(text, fontsize=8)
    figure.suptitle(run.name, fontsize=9)
    return figure


def _classes(run, shown: list[Verdicts]) -> Figure:
    """Accuracy of each class under each attack, worst class first."""
    names = run.classnames
    figure = Figure(figsize=(2 + max(4.4, 0.28 * len(names)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    order = None
    for verdicts in shown:
        count = np.bincount(verdicts.labels, minlength=len(names)).clip(min=1)
        share = 100 * np.bincount(verdicts.labels[verdicts.stands], minlength=len(names)) / count
        order = share.argsort(kind="stable") if order is None else order
        axes.plot(share[order], markersize=3, linewidth=1, label=described(verdicts.record))
    axes.set_xticks(range(len(names)), [names[i] for i in order], rotation=90, fontsize=7)
    axes.set_ylabel("robust accuracy (%)")
    axes.set_ylim(0, 100)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    axes.set_title(run.name, fontsize=9)
    return figure


def _by_attack(evaluated: list[tuple]) -> dict[str, Lines]:
    """Attack -> method -> eps -> seed -> accuracy, the clean accuracy at 0."""
    curves: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    several = len({shots_of(run.results) for run, _ in evaluated} - {None}) > 1
    for run, (clean, *records) in evaluated:
        results, shots = run.results, shots_of(run.results)
        name = results["method"]
        if several and shots is not None:
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
