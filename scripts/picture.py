"""The picture of the README: test digits under attack, beside clean and robust accuracy.

    mkdir -p output/study && tar -xzf docs/study/runs.tar.gz -C output/study
    python scripts/picture.py output/digits/{CoOp,APD}/mini_16shots/seed1 \
        --study output/study/photos_*/*/mini_photo_16shots -o docs/images/overview.png

Left, on each of two runs (those of the README's quick start): digits that both classify correctly,
attacked as in the runs' own evaluation: the first of a seeded draw, one of a class, that the first
run loses and the second withstands. Right, all methods of the study's third confirmation.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.figure import Figure

import apd
from apd.errors import exit_codes
from apd.evaluate.run import Run, SavedRun
from apd.figures.draw import draw_points, label_points
from apd.figures.gallery import Gallery
from apd.figures.points import averages, points
from apd.figures.style import look, save, styles
from apd.methods import BLUE, RED
from apd.results.runs import load_runs
from apd.results.schema import read_results
from apd.results.words import attack_text
from apd.show.attack import attack_all, find_attack_on

TRIED = 60  # images of the draw that are attacked
ATTACK = "pgd-100"  # of the scatter


def gallery_of(folders: list[Path], root: str, count: int) -> Gallery:
    """``count`` test images that the first run loses to its attack and the second withstands."""
    models = [apd.load(folder) for folder in folders]
    run = Run(SavedRun(folders[0], read_results(folders[0]), root))
    dataset = run.trainer.split_loader("test").dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:TRIED]
    items = [dataset[place] for place in order.tolist()]
    attack = find_attack_on(models[0])
    names = [models[0].class_names[item["label"]] for item in items]
    gallery = attack_all(
        models,
        [read_results(folder)["method"] for folder in folders],
        attack,
        torch.stack([item["img"] for item in items]),
        names,
        captions=names,
        title=attack_text(attack.name, attack.conditions),
        places=order,
    )
    outcomes = [
        [row[i][0] == name for row in gallery.answers]
        + [gallery.attacked[run].answers[run][i][0] == name for run in range(2)]
        for i, name in enumerate(names)
    ]
    of_class = {names[i]: i for i, o in reversed([*enumerate(outcomes)]) if o == [1, 1, 0, 1]}
    return rows_of(gallery, sorted(of_class.values())[:count])


def rows_of(gallery: Gallery, rows: list[int]) -> Gallery:
    """The gallery with these images only."""

    def chosen(values):
        return values[rows] if isinstance(values, torch.Tensor) else [values[row] for row in rows]

    return Gallery(
        gallery.names,
        chosen(gallery.captions),
        [chosen(labels) for labels in gallery.labels],
        chosen(gallery.clean),
        [chosen(answers) for answers in gallery.answers],
        [
            type(a)(chosen(a.images), [chosen(answers) for answers in a.answers])
            for a in gallery.attacked
        ],
        gallery.title,
    )


def draw_images(all_axes, gallery: Gallery) -> None:
    """A row per image: clean, attacked on the first run, attacked on the second."""
    for i, axes_of_row in enumerate(all_axes):
        shown = [(gallery.clean[i], f"a {gallery.captions[i]}", "#777777", "-")]
        for run, attacked in enumerate(gallery.attacked):
            label, probability = attacked.answers[run][i]
            right = label == gallery.labels[run][i]
            mark, colour, line = (
                ("\N{CHECK MARK}", BLUE, "-") if right else ("\N{BALLOT X}", RED, "--")
            )
            shown.append((attacked.images[i], f"{mark} {label} {probability:.0%}", colour, line))
        for axes, (image, text, colour, line) in zip(axes_of_row, shown):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set(visible=True, color=colour, linewidth=2, linestyle=line)
            axes.set_xlabel(text, color=colour, labelpad=3)
    titles = ["clean", *(f"attacked,\n{name} says" for name in gallery.names)]
    for axes, title in zip(all_axes[0], titles):
        axes.set_title(title)


def draw_scatter(axes, runs: dict[Path, dict]) -> None:
    """Clean and robust accuracy of each method: mean and standard deviation over seeds."""
    averaged = [p for p in averages(points(runs)) if p.evaluation["attack"] == ATTACK]
    clouds = defaultdict(list)
    for point in averaged:
        clouds[point.method].append((point.clean, point.accuracy))
    (sets,) = {point.setting.averaged for point in averaged}
    axes.margins(0.12)
    axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
    axes.set_title(f"average of {sets} sets of photographs, {ATTACK.upper()}, eps 2/255")
    draw_points(axes, clouds, styles(clouds))
    label_points(axes)


@look
def draw(gallery: Gallery, runs: dict[Path, dict]) -> Figure:
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    grid = figure.add_gridspec(len(gallery.captions), 4, width_ratios=[1, 1, 1, 3.4])
    rows = range(len(gallery.captions))
    draw_images([[figure.add_subplot(grid[i, j]) for j in range(3)] for i in rows], gallery)
    scatter = figure.add_subplot(grid[:, 3])
    draw_scatter(scatter, runs)
    return figure


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs=2, type=Path, metavar="RUN", help="folders of two runs on the digits")
    add("--study", nargs="+", required=True, metavar="RUN", help="the study's runs")
    add("--root", default="", help="folder that holds the digits (default: the runs')")
    add("-o", "--output", required=True, metavar="FILE")
    args = parser.parse_args(argv)
    apd.register()
    print(save(draw(gallery_of(args.runs, args.root, 2), load_runs(args.study)), args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
