"""What the commands that take classifiers and images are given.

Without PyTorch, so that a command tells its flags at once.
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
    """The classifier that a command's arguments name; a warning is one line of standard error.

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
    """Names with commas between, or the lines of a file; None: none are given.

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
    """Sources of classifiers, and the other arguments, which are of images.

    Raises:
        UserError: there is no source.
    """
    sources = [text for text in arguments if _is_source(text)]
    if not sources:
        raise UserError(f"none of {', '.join(arguments)} is a classifier: give {SOURCES}")
    return sources, [text for text in arguments if text not in sources]


def _is_source(text: str) -> bool:
    path = Path(text)
    if text.startswith(HUB) or (os.path.isfile(text) and ".pth.tar" in path.name):
        return True
    layouts = (RESULTS_NAME, CONFIG, "model*.pth.tar*", "*/model*.pth.tar*")
    return os.path.isdir(text) and any(True for layout in layouts for _ in path.glob(layout))


def check_alike(models: Sequence[PromptedClassifier]) -> None:
    """Raise UserError unless one image can be shown to all of the models, as the same classes."""
    for what in ("class_names", "resolution"):
        if len({str(getattr(model, what)) for model in models}) > 1:
            raise UserError(f"these runs differ in {what}: show them one by one")


def short_names(sources: Sequence[str], models: Sequence[PromptedClassifier]) -> list[str]:
    """What to call each: its method, with its seed, or its source, whatever tells them apart."""
    methods = [model.description.method for model in models]
    seeds = [model.results.get("seed") for model in models]
    both = [f"{method}, seed {seed}" for method, seed in zip(methods, seeds)]
    for names in (methods, both):
        if len({*names}) == len(names):
            return names
    return list(sources)


def image_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Files that arguments name: a file, a folder with images at any depth, a pattern such as
    ``photos/*.jpg``, or "-" for the lines of the standard input.

    Raises:
        UserError: one of the others than "-" names nothing.
    """
    found = [["-"] if text == "-" else _files(text) for text in arguments]
    return chain.from_iterable(_lines() if paths == ["-"] else paths for paths in found)


def _files(text: str) -> list[str]:
    if os.path.isfile(text):
        return [text]
    pattern = f"{glob.escape(text)}/**/*" if os.path.isdir(text) else text
    paths = sorted(glob.glob(pattern, recursive=True))
    images = [path for path in paths if path.lower().endswith(SUFFIXES)]
    if not images:
        raise UserError(f"{text}: there are no images ({', '.join(SUFFIXES)}): check the path")
    return images


def _lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # the name of a file may hold any byte
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
