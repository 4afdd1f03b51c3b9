"""Show what an attack does to images, or which words are nearest to learned vectors.

    apd-show RUN [RUN...] [IMAGE...] --attack pgd-100 --eps 4 -o gallery.png
    apd-show --words RUN [RUN...]

A row per image: clean, and for each RUN the perturbation of the attack on it and the attacked
image; below, the class that each RUN predicts, with its probability. A check mark and a solid
frame: it is right (if the class is not known: it predicts the same as before). A cross and a dashed
frame: it is fooled.

RUN is a run's folder, one that save wrote, hf:USER/NAME, or a checkpoint of another project. IMAGE
is a file, a folder or a pattern; the class of an image is known where its folder has the name of a
class. Without images, a seeded draw from the test set of the first RUN is shown, half of which it
withstands; the share that it withstands of all images is measured by apd-eval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from apd.commandline import Parser
from apd.errors import UserError, exit_codes
from apd.files import check_writable
from apd.models.arguments import add_flags, check_alike, classifier, image_paths, short_names, split
from apd.ranges import number, per_255, whole
from apd.results.schema import RESULTS_NAME, SPLITS, read_results
from apd.results.words import attack_text

if TYPE_CHECKING:
    from apd.figures.gallery import Gallery
    from apd.models.classifier import PromptedClassifier


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-show", description=__doc__)
    add = parser.add_argument
    add("arguments", nargs="+", metavar="RUN|IMAGE", help="runs, then images")
    add("-o", "--output", metavar="FILE", help="the figure: png, pdf or svg")
    add("--attack", default="", help="default: PGD with the steps of the first run's evaluation")
    add("--eps", type=per_255(number(0)), help="in 1/255 (default: that of its evaluation)")
    add("--norm", choices=("linf", "l2"), help="default: that of its evaluation")
    add("--images", type=whole(1), default=6, help="how many to draw (default: 6)")
    add("--split", choices=SPLITS, default="test", help="to draw from (default: test)")
    add("--seed", type=whole(0), default=0, help="of the draw and of the attack (default: 0)")
    add("--root", default="", help="folder that holds the datasets (default: the run's)")
    add("--words", action="store_true", help="the words nearest to the learned text vectors")
    add("--top", type=whole(1), default=5, help="how many words (default: 5)")
    add_flags(parser)
    return parser.parse_args(argv)


def words(model: PromptedClassifier, source: str, count: int) -> str:
    """A table of the ``count`` words nearest to each vector, and a distance to compare with."""
    from apd.show.words import nearest_words, typical_distance

    rows = [
        [
            vector.class_name,
            vector.number,
            ", ".join(f"{word} {distance:.3f}" for word, distance in vector.words),
        ]
        for vector in nearest_words(model, count)
    ]
    headers = ["class", "vector", "nearest words and their distances"]
    if not any(row[0] for row in rows):
        rows, headers = [row[1:] for row in rows], headers[1:]
    return (
        f"{source}\n{tabulate(rows, headers)}\n"
        f"(Euclidean, of the first layer; half of all words have another one within "
        f"{typical_distance(model):.3f})"
    )


def gallery_of_files(
    models: Sequence[PromptedClassifier], names: Sequence[str], paths: list[str], args
) -> Gallery:
    """A gallery of the user's own images; the class of an image is its folder's name, if the
    models have such a class."""
    import torch

    from apd.images import read_image
    from apd.show.attack import attack_all, find_attack_on

    attack = find_attack_on(models[0], args.attack, args.eps, args.norm)
    classes = {name.replace("_", " ").lower(): name for name in models[0].class_names}
    folders = [Path(path).absolute().parent.name for path in paths]
    truth = [classes.get(folder.replace("_", " ").lower()) for folder in folders]
    return attack_all(
        models,
        names,
        attack,
        torch.stack([models[0].preprocess(read_image(path)) for path in paths]),
        truth,
        captions=[f"{Path(path).name}\n{name or ''}".strip() for path, name in zip(paths, truth)],
        title=attack_text(attack.name, attack.conditions),
        seed=args.seed,
    )


def gallery_of_test_set(
    models: Sequence[PromptedClassifier], names: Sequence[str], source: str, args
) -> Gallery:
    """A gallery of test images of the run in ``source``, whose model is the first one.

    Raises:
        UserError: ``source`` is no run, or there are no suitable images.
    """
    import apd
    from apd.evaluate.run import Run, SavedRun
    from apd.show.attack import attack_all, find_attack_on
    from apd.show.sample import draw_sample

    if not (Path(source) / RESULTS_NAME).is_file():
        raise UserError(f"{source} has no test set: name images to show")
    attack = find_attack_on(models[0], args.attack, args.eps, args.norm)
    apd.register()
    run = Run(SavedRun(Path(source), read_results(source), args.root))
    sample = draw_sample(run, models[0], attack, args.images, args.split, args.seed)
    classes = [models[0].class_names[label] for label in sample.labels.tolist()]
    kind = {"test": "test", "val": "validation"}[args.split]
    subject = names[0] if len(names) > 1 else "it"
    title = (
        f"{attack_text(attack.name, attack.conditions)}: {len(classes)} {kind} images of "
        f"{run.results['dataset']}, drawn with seed {args.seed}, of which "
        f"{subject} withstands {int(sample.stands.sum())}: not a measure of how many of all"
    )
    return attack_all(
        models,
        names,
        attack,
        sample.images,
        classes,
        captions=[f"{name}\nno. {place}" for name, place in zip(classes, sample.places.tolist())],
        title=title,
        places=sample.places,
        seed=args.seed,
    )


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from apd.figures.style import check_format, save  # matplotlib is slow to import

    sources, arguments = split(args.arguments)
    if not args.words:
        if not args.output:
            raise UserError("where is the figure to go? Give -o gallery.png")
        check_writable(Path(args.output).absolute().parent, "-o")
        check_format(Path(args.output).suffix[1:].lower())
    paths = list(image_paths(arguments)) if arguments else []
    models = [classifier(source, args) for source in sources]
    if args.words:
        print("\n\n".join(words(model, s, args.top) for model, s in zip(models, sources)))
        return 0
    check_alike(models)
    names = short_names(sources, models)
    if paths:
        gallery = gallery_of_files(models, names, paths, args)
    else:
        gallery = gallery_of_test_set(models, names, sources[0], args)
    from apd.figures.gallery import draw

    print(save(draw(gallery), args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
