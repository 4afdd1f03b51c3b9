"""The kinds of figures; each function makes the figures of its kind that suit the runs."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apd.figures.draw import (
    Cloud,
    Lines,
    crowd,
    draw_level,
    draw_lines,
    draw_points,
    enlarge,
    label_points,
    widen,
)
from apd.figures.points import (
    Point,
    Setting,
    averages,
    name_runs,
    points,
    setting_of,
    shots_of,
)
from apd.figures.style import legend, look, panels, styles
from apd.results.comparable import shots_rank
from apd.results.history import read_history
from apd.results.words import ALL_IMAGES, described, shots_text

Figures = dict[str, Figure]  # by the stem of its file's name


# -- kinds -----------------------------------------------------------------------------------------


@look
def few_shot(runs: dict[Path, dict]) -> Figures:
    """Accuracy by shots: a panel for clean images and each attack.

    Methods without training are horizontal lines.
    """
    figures, all_points = {}, points(runs)
    looks = styles(point.method for point in all_points)
    for setting, group in _grouped([*averages(all_points), *all_points], "setting"):
        learned = [point for point in group if point.shots is not None]
        ticks = {shots: shots for shots in sorted({p.shots for p in learned} - {ALL_IMAGES})}
        ticks[ALL_IMAGES] = 2 * max(ticks, default=1)
        lines_of_attacks = {}
        for attack, of_attack in _grouped(learned, "attack"):
            lines = _lines(of_attack, lambda point: ticks[point.shots])
            if any(len(line) > 2 for line in lines.values()):  # two points are no curve
                lines_of_attacks[attack] = lines
        if not lines_of_attacks:
            continue
        title = _title(setting, "accuracy by shots", learned)
        figure, all_axes = panels(len(lines_of_attacks), title)
        for axes, (attack, lines) in zip(all_axes, lines_of_attacks.items()):
            zero_shot = [p for p in group if p.shots is None and p.attack == attack]
            for method, of_method in _grouped(zero_shot, "method"):
                draw_level(axes, method, [point.accuracy for point in of_method], looks[method])
            draw_lines(axes, lines, looks)
            drawn = {x for line in lines.values() for x in line}
            axes.set_xscale("log", base=2)
            names = {x: "all" if shots == ALL_IMAGES else shots for shots, x in ticks.items()}
            axes.set_xticks(sorted(drawn), [names[x] for x in sorted(drawn)])
            axes.minorticks_off()
            axes.set(xlabel="shots (images per class)", ylabel="accuracy (%)", title=attack)
        legend(figure)
        figures[_stem("few-shot", setting)] = figure
    return figures


@look
def scatter(runs: dict[Path, dict]) -> Figures:
    """Clean against robust accuracy: a panel for each attack under which at least half as many
    methods were evaluated as under the most common one.

    Bars are one standard deviation over seeds or, where no method has several, one standard error
    over test images.
    """
    figures, all_points = {}, points(runs)
    looks = styles(point.method for point in all_points)
    with_clean = [point for point in averages(all_points) or all_points if point.clean is not None]
    for setting, shots, group in _at_shots(with_clean):
        attacked = [point for point in group if point.evaluation["threat_model"]]
        methods_under = defaultdict(set)
        for point in attacked:
            methods_under[point.attack].add(point.method)
        most = max(map(len, methods_under.values()), default=0)
        attacks = [a for a, methods in methods_under.items() if 2 * len(methods) >= most > 1]
        if not attacks:
            continue
        title = _title(setting, "clean and robust accuracy", group, shots)
        if title.endswith("1 seed"):
            title += "; bars: standard error over test images"
        figure, all_axes = panels(len(attacks), title, 5.0, 3.8)  # labels need room
        for axes, attack in zip(all_axes, attacks):
            axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)", title=attack)
        for axes, attack in zip(all_axes, attacks):  # labels need the axes at their final places
            _scatter_panel(axes, [p for p in attacked if p.attack == attack], looks)
        figures[_stem("scatter", setting, shots)] = figure
    return figures


def _scatter_panel(axes: Axes, group: list[Point], looks: dict[str, dict]) -> None:
    """A point a method, labelled; what outliers squeeze together is drawn larger in a corner."""
    clouds: Cloud = defaultdict(list)
    errors: Cloud = defaultdict(list)
    for point in group:
        if point.clean is not None:
            clouds[point.method].append((point.clean, point.accuracy))
            errors[point.method].append((point.clean_error, point.error))
    several = any(len(cloud) > 1 for cloud in clouds.values())
    draw = partial(draw_points, clouds=clouds, looks=looks, errors=None if several else errors)
    axes.margins(0.12)
    draw(axes)
    widen(axes)
    squeezed = crowd({name: tuple(np.mean(cloud, axis=0)) for name, cloud in clouds.items()})
    if squeezed and (inset := enlarge(axes, squeezed, draw)):
        label_points(inset, squeezed)
        label_points(axes, clouds.keys() - set(squeezed))
    else:
        label_points(axes)


@look
def eps_curves(runs: dict[Path, dict]) -> Figures:
    """Robust accuracy by radius: a panel for each attack with two radii or more.

    Clean accuracy is drawn at eps 0.
    """
    figures, all_points = {}, points(runs)
    looks = styles(point.method for point in all_points)
    for setting, shots, group in _at_shots([*averages(all_points), *all_points]):
        families = defaultdict(list)
        for point in group:
            if point.evaluation["threat_model"]:
                families[_family(point.evaluation)].append(point)
        named_lines = []
        for (name, *_), family in families.items():
            lines = _lines(family, lambda point: point.evaluation["threat_model"]["eps"])
            for point in family:
                if point.clean is not None:
                    lines[point.method].setdefault(0.0, {})[point.seed] = point.clean
            if any(len(line) > 2 for line in lines.values()):  # two points are no curve
                named_lines.append((name, lines))
        if not named_lines:
            continue
        title = _title(setting, "robust accuracy by eps", group, shots)
        figure, all_axes = panels(len(named_lines), title)
        for axes, (name, lines) in zip(all_axes, named_lines):
            draw_lines(axes, lines, looks)
            axes.set(xlabel="eps (1/255)", ylabel="robust accuracy (%)", title=name)
            axes.set_ylim(bottom=0)
        legend(figure)
        figures[_stem("eps", setting, shots)] = figure
    return figures


@look
def training(runs: dict[Path, dict]) -> Figures:
    """Training by epoch: a panel for each logged term, and one for the learning rate."""
    figures, names = {}, name_runs(runs)
    looks = styles(names.values())
    trained: dict[tuple, dict[Path, dict]] = defaultdict(dict)
    for folder, run in runs.items():
        history = read_history(folder)
        if history and len(history["epoch"]) > 2:  # two points are no curve
            trained[setting_of(run), shots_of(run)][folder] = history
    for (setting, shots), histories in sorted(trained.items()):
        terms = {term: None for history in histories.values() for term in history}
        for term in ("epoch", "seconds", "lr"):
            terms.pop(term, None)
        terms["lr"] = None  # as the last panel
        seeds = _seeds(names[folder] for folder in histories)
        figure, all_axes = panels(len(terms), f"{setting}{_shots_suffix(shots)}\ntraining, {seeds}")
        for axes, term in zip(all_axes, terms):
            lines: Lines = defaultdict(lambda: defaultdict(dict))
            for folder, history in histories.items():
                for epoch, value in zip(history["epoch"], history.get(term, ())):
                    if math.isfinite(value):
                        lines[names[folder]][epoch][runs[folder]["seed"]] = value
            draw_lines(axes, lines, looks)
            for line in axes.get_lines():
                line.set_markevery(max(1, np.size(line.get_xdata()) // 8))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axes.set_xlabel("epochs")
            axes.set_ylabel({"lr": "learning rate", "loss": "loss"}.get(term, f"loss term {term}"))
        legend(figure)
        figures[_stem("training", setting, shots)] = figure
    return figures


class Kind(NamedTuple):
    """A kind of figures.

    Attributes:
        draw: the function of runs.
        shows: what its figures show, in words.
        needs: what the runs must have.
    """

    draw: Callable[[dict[Path, dict]], Figures]
    shows: str
    needs: str


KINDS = {
    "scatter": Kind(
        scatter,
        "clean against robust accuracy, of the average where there are several data sets",
        "two methods under one attack",
    ),
    "few-shot": Kind(
        few_shot,
        "accuracy against shots, for each data set and the average of all",
        "three numbers of shots",
    ),
    "eps": Kind(
        eps_curves,
        "robust accuracy against the radius of the attack, evaluations by apd-eval included",
        "two radii",
    ),
    "training": Kind(training, "what history.csv holds, against the epoch", "three epochs"),
}


# -- points and texts ------------------------------------------------------------------------------


def _grouped(points: Iterable[Point], field: str) -> list[tuple]:
    """Pairs of each value of ``field`` and the points that have it."""
    groups = defaultdict(list)
    for point in points:
        groups[getattr(point, field)].append(point)
    return list(groups.items())


def _at_shots(points: list[Point]) -> Iterator[tuple[Setting, int | None, list[Point]]]:
    """Each setting and number of shots (largest first) with its points.

    Points of methods without training are among those of every number.
    """
    for setting, group in _grouped(points, "setting"):
        numbers = {point.shots for point in group} - {None}
        for shots in sorted(numbers, key=shots_rank, reverse=True) or [None]:
            yield setting, shots, [point for point in group if point.shots in (shots, None)]


def _lines(points: list[Point], x: Callable[[Point], float]) -> Lines:
    """Accuracies by method, x of the point, and seed."""
    lines: Lines = defaultdict(lambda: defaultdict(dict))
    for point in points:
        lines[point.method][x(point)][point.seed] = point.accuracy
    return lines


def _family(evaluation: dict) -> tuple:
    """A key that evaluations share if they differ in the radius only, with a step in proportion.

    Its first item is the attack's name with its conditions, without the radius.
    """
    threat = evaluation["threat_model"]
    step = threat["alpha"] and threat["eps"] and round(threat["alpha"] / threat["eps"], 6)
    conditions = {k: v for k, v in threat.items() if k not in ("eps", "alpha", "seed")}
    return described(evaluation, eps=False), step, *sorted(conditions.items())


def _title(setting: Setting, subject: str, points: list[Point], shots: int | None = None) -> str:
    learned = [p for p in points if p.shots is not None]  # zero-shot methods need one seed only
    runs = {(p.method, p.shots, p.seed) for p in learned or points}
    return f"{setting}{_shots_suffix(shots)}\n{subject}, {_seeds(run[:2] for run in runs)}"


def _shots_suffix(shots: int | None) -> str:
    return "" if shots is None else f", {shots_text(shots)}"


def _seeds(runs: Iterable[Hashable]) -> str:
    """The number of seeds, in words.

    Args:
        runs: an item for each run; runs that differ in the seed only have equal items.
    """
    counts = Counter(runs).values()
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "1 seed"
    return f"mean ± std of {most if fewest == most else f'{fewest} to {most}'} seeds"


def _stem(kind: str, setting: Setting, shots: int | None = None) -> str:
    """The name of a figure's file without its suffix."""
    suffix = "" if shots is None else f"_{shots}shots"
    return re.sub(r"[^\w.-]+", "-", f"{kind}_{setting.stem}{suffix}")
