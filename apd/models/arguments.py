"""Arguments of commands that take classifiers and images.

This module does not import PyTorch, so that --help is answered at once.
"""

from __future__ import annotations

import argparse
import glob
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from apd.errors import UserError, one_line
from apd.files import read_text
from apd.images import SUFFIXES
from apd.models.description import CONFIG, HUB
from apd.ranges import whole
from apd.results.schema import RESULTS_NAME

if TYPE_CHECKING:
    from apd.models.classifier import PromptedClassifier

SOURCES = "a run's folder, one that save wrote, hf:USER/NAME, or a checkpoint"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``apd.load``."""
    add = parser.add_argument_group("the classifier").add_argument
    add("--classes", default="", metavar="a,b,c|FILE", help="other class names; a file: one a line")
    add("--device", default="", help="default: the GPU, if there is one")
    add("--epoch", type=whole(1), help="whose prompts (default: those that were evaluated)")
    add("--backbone", default="", help="its CLIP, where that lies on this machine")
    add("--robust", default="", help="its robust image encoder, likewise")
    add("--trainer", default="", help="of a checkpoint of another project: that with such prompts")
    add("--revision", help="on the hub: branch, tag or commit")


def classifier(source: str, args: argparse.Namespace) -> PromptedClassifier:
    """Load the classifier ``source`` with a command's flags; warnings go to standard error.

    Raises:
        UserError: as ``apd.load``.
    """
    import torch

    from apd.models.sources import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        model = load(
            source,
            classes=class_names(args.classes),
            device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            epoch=args.epoch,
            trainer=args.trainer,
            backbone=args.backbone,
            robust=args.robust,
            revision=args.revision,
        )
    for warning in caught:
        print(f"warning: {one_line(warning.message)}", file=sys.stderr)
    return model


def class_names(text: str) -> list[str] | None:
    """The class names in ``text``, which has names with commas between them, or names a file with
    a name on each line; None: ``text`` is empty.

    Raises:
        UserError: there is neither a comma in it nor such a file.
    """
    if not text:
        return None
    is_file = os.path.isfile(text)  # Path.is_file raises for a text longer than a file's name
    if not is_file and "," not in text:
        raise UserError(
            f"--classes {one_line(text)}: there is no such file; names have commas between them"
        )
    names = read_text(text).splitlines() if is_file else text.split(",")
    return [name.strip() for name in names if name.strip()]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command's arguments into sources of classifiers and arguments that name images.

    Raises:
        UserError: there is no source.
    """
    sources = [text for text in arguments if _is_source(text)]
    if not sources:
        raise UserError(f"none of {', '.join(arguments)} is a classifier: give {SOURCES}")
    return sources, [text for text in arguments if text not in sources]


def _is_source(text: str) -> bool:
    """Whether ``text`` names a classifier, as ``apd.load`` takes it."""
    path = Path(text)
    if text.startswith(HUB) or (os.path.isfile(text) and ".pth.tar" in path.name):
        return True
    layouts = (RESULTS_NAME, CONFIG, "model*.pth.tar*", "*/model*.pth.tar*")
    return os.path.isdir(text) and any(True for layout in layouts for _ in path.glob(layout))


def check_alike(models: Sequence[PromptedClassifier]) -> None:
    """Raise UserError unless all models have the same classes and the same size of images."""
    for name in ("class_names", "resolution"):
        if len({str(getattr(model, name)) for model in models}) > 1:
            raise UserError(f"these runs differ in {name}: show them one by one")


def short_names(sources: Sequence[str], models: Sequence[PromptedClassifier]) -> list[str]:
    """The shortest names that all differ: methods, methods with seeds, or else the sources."""
    methods = [model.description.method for model in models]
    seeds = [model.results.get("seed") for model in models]
    with_seeds = [f"{method}, seed {seed}" for method, seed in zip(methods, seeds)]
    for names in (methods, with_seeds):
        if len({*names}) == len(names):
            return names
    return list(sources)


def image_paths(arguments: Sequence[str]) -> Iterator[str]:
    """The files that arguments name.

    Args:
        arguments: each a file, a folder with images at any depth, a pattern such as
            ``photos/*.jpg``, or "-": the standard input has a path on each line.

    Raises:
        UserError: an argument other than "-" names no images.
    """
    # named now, so that a wrong argument is refused before the standard input is read
    groups = [["-"] if text == "-" else _files(text) for text in arguments]
    return chain.from_iterable(_input_lines() if paths == ["-"] else paths for paths in groups)


def _files(text: str) -> list[str]:
    """The files that one argument names, sorted."""
    if os.path.isfile(text):
        return [text]
    pattern = f"{glob.escape(text)}/**/*" if os.path.isdir(text) else text
    paths = sorted(glob.glob(pattern, recursive=True))
    images = [path for path in paths if path.lower().endswith(SUFFIXES)]
    if not images:
        raise UserError(f"{text}: there are no images ({', '.join(SUFFIXES)}): check the path")
    return images


def _input_lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # a file's name may have bytes that are not UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
