"""Finished runs as figures, by kind: each takes runs, and gives those figures that they suit."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apd.figures.draw import Lines, draw_level, draw_lines, draw_points, label_points
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
from apd.results.history import read_history
from apd.results.words import ALL_IMAGES, described, shots_said

Figures = dict[str, Figure]  # by the stem of its file's name


# -- kinds -----------------------------------------------------------------------------------------


@look
def few_shot(runs: dict[Path, dict]) -> Figures:
    """A panel for clean images and each attack; zero-shot methods are horizontal lines."""
    figures, found = {}, points(runs)
    looks = styles(point.method for point in found)
    for setting, part in _grouped([*averages(found), *found], "setting"):
        learned = [point for point in part if point.shots is not None]
        ticks = {shots: shots for shots in sorted({p.shots for p in learned} - {ALL_IMAGES})}
        ticks[ALL_IMAGES] = 2 * max(ticks, default=1)
        shown = {}
        for attack, some in _grouped(learned, "attack"):
            lines = _lines(some, lambda point: ticks[point.shots])
            if any(len(line) > 1 for line in lines.values()):
                shown[attack] = lines
        if not shown:
            continue
        figure, all_axes = panels(len(shown), _title(setting, "accuracy by shots", learned))
        for axes, (attack, lines) in zip(all_axes, shown.items()):
            zero = [p for p in part if p.shots is None and p.attack == attack]
            for method, some in _grouped(zero, "method"):
                draw_level(axes, method, [point.accuracy for point in some], looks[method])
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
    """A panel for each attack that at least half of the methods were evaluated under."""
    figures, found = {}, points(runs)
    looks = styles(point.method for point in found)
    known = [point for point in averages(found) or found if point.clean is not None]
    for setting, shots, part in _at_shots(known):
        attacked = [point for point in part if point.evaluation["threat_model"]]
        methods = defaultdict(set)
        for point in attacked:
            methods[point.attack].add(point.method)
        most = max(map(len, methods.values()), default=0)
        shown = [attack for attack, some in methods.items() if 2 * len(some) >= most > 1]
        if not shown:
            continue
        title = _title(setting, "clean and robust accuracy", part, shots)
        figure, all_axes = panels(len(shown), title, 5.0, 3.8)  # labels need room
        for axes, attack in zip(all_axes, shown):
            axes.margins(0.12)
            axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)", title=attack)
            clouds = defaultdict(list)
            for point in attacked:
                if point.attack == attack:
                    clouds[point.method].append((point.clean, point.accuracy))
            draw_points(axes, clouds, looks)
        legend(figure)
        for axes in all_axes:  # all else has its place now
            label_points(axes)
        figures[_stem("scatter", setting, shots)] = figure
    return figures


@look
def eps_curves(runs: dict[Path, dict]) -> Figures:
    """A panel for each attack with two radii or more; the clean accuracy is at 0."""
    figures, found = {}, points(runs)
    looks = styles(point.method for point in found)
    for setting, shots, part in _at_shots([*averages(found), *found]):
        families = defaultdict(list)
        for point in part:
            if point.evaluation["threat_model"]:
                families[_family(point.evaluation)].append(point)
        shown = []
        for (name, *_), some in families.items():
            lines = _lines(some, lambda point: point.evaluation["threat_model"]["eps"])
            if any(len(line) > 1 for line in lines.values()):
                for p in some:
                    if p.clean is not None:
                        lines[p.method].setdefault(0.0, {})[p.seed] = p.clean
                shown.append((name, lines))
        if not shown:
            continue
        title = _title(setting, "robust accuracy by eps", part, shots)
        figure, all_axes = panels(len(shown), title)
        for axes, (name, lines) in zip(all_axes, shown):
            draw_lines(axes, lines, looks)
            axes.set(xlabel="eps (1/255)", ylabel="robust accuracy (%)", title=name)
            axes.set_ylim(bottom=0)
        legend(figure)
        figures[_stem("eps", setting, shots)] = figure
    return figures


@look
def training(runs: dict[Path, dict]) -> Figures:
    """A panel for each logged term, and one for the learning rate."""
    figures, names = {}, name_runs(runs)
    looks = styles(names.values())
    trained = defaultdict(dict)
    for folder, run in runs.items():
        if history := read_history(folder):
            trained[setting_of(run), shots_of(run)][folder] = history
    for (setting, shots), histories in sorted(trained.items()):
        terms = {term: None for history in histories.values() for term in history}
        for term in ("epoch", "seconds", "lr"):
            terms.pop(term, None)
        terms["lr"] = None  # last
        seeds = _seeds(names[folder] for folder in histories)
        figure, all_axes = panels(len(terms), f"{setting}{_said(shots)}\ntraining, {seeds}")
        for axes, term in zip(all_axes, terms):
            lines: Lines = defaultdict(lambda: defaultdict(dict))
            for folder, history in histories.items():
                for epoch, value in zip(history["epoch"], history.get(term, ())):
                    if math.isfinite(value):
                        lines[names[folder]][epoch][runs[folder]["seed"]] = value
            draw_lines(axes, lines, looks)
            for line in axes.get_lines():
                line.set_markevery(max(1, len(line.get_xdata()) // 8))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axes.set_xlabel("epochs")
            axes.set_ylabel({"lr": "learning rate", "loss": "loss"}.get(term, f"loss term {term}"))
        legend(figure)
        figures[_stem("training", setting, shots)] = figure
    return figures


KINDS: dict[str, Callable[[dict[Path, dict]], Figures]] = {
    "few-shot": few_shot,
    "scatter": scatter,
    "eps": eps_curves,
    "training": training,
}


# -- their parts -----------------------------------------------------------------------------------


def _grouped(found: Iterable[Point], field: str) -> list[tuple]:
    groups = defaultdict(list)
    for point in found:
        groups[getattr(point, field)].append(point)
    return list(groups.items())


def _at_shots(found: list[Point]) -> Iterator[tuple[Setting, int | None, list[Point]]]:
    """Setting, shots, most first, and points; zero-shot methods are beside all numbers of shots."""
    for setting, part in _grouped(found, "setting"):
        numbers = {point.shots for point in part} - {None}
        for shots in sorted(numbers, key=_most_first) or [None]:
            yield setting, shots, [point for point in part if point.shots in (shots, None)]


def _most_first(shots: int) -> float:
    return -math.inf if shots == ALL_IMAGES else -shots


def _lines(found: list[Point], x: Callable[[Point], float]) -> Lines:
    lines: Lines = defaultdict(lambda: defaultdict(dict))
    for point in found:
        lines[point.method][x(point)][point.seed] = point.accuracy
    return lines


def _family(evaluation: dict) -> tuple:
    """What an attack has in common with itself in a ball of another size; its name first."""
    threat = evaluation["threat_model"]
    step = threat["alpha"] and threat["eps"] and round(threat["alpha"] / threat["eps"], 6)
    rest = {k: v for k, v in threat.items() if k not in ("eps", "alpha", "seed")}
    return described(evaluation, eps=False), step, *sorted(rest.items())


def _title(setting: Setting, what: str, found: list[Point], shots: int | None = None) -> str:
    runs = {(p.method, p.shots, p.seed) for p in found}
    return f"{setting}{_said(shots)}\n{what}, {_seeds(run[:2] for run in runs)}"


def _said(shots: int | None) -> str:
    return "" if shots is None else f", {shots_said(shots)}"


def _seeds(runs: Iterable[Hashable]) -> str:
    """How many times each occurs, once a seed."""
    counts = sorted(set(Counter(runs).values()))
    few, many = counts[0], counts[-1]
    if many == 1:
        return "1 seed"
    return f"mean ± std of {many if few == many else f'{few} to {many}'} seeds"


def _stem(kind: str, setting: Setting, shots: int | None = None) -> str:
    parts = [kind, setting.stem]
    if shots is not None:
        parts.append(f"{shots}shots")
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))
