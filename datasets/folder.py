"""Any images, sorted into one folder per class."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from apd.datasets.fewshot import Entry, FewShotDataset, data_root
from apd.errors import UserError, listed, one_line
from apd.host import DATASET_REGISTRY, register
from apd.images import SUFFIXES

TRAIN, VAL = 0.5, 0.2  # shares of a class in a tree without splits, as CoOp divides such trees
SPLIT_SEED = 0  # not cfg.SEED: every run has the same test set
LAYOUTS = "expected train/<class>/* and test/<class>/* (val/ optional), or <class>/*"


@register(DATASET_REGISTRY)
class Folder(FewShotDataset):
    """Images under ``ROOT/DATASET.FOLDER.DIR``, one folder per class, which names the class.

    Either ``train/<class>/*``, ``test/<class>/*`` and, if there is one, ``val/<class>/*``; or one
    tree ``<class>/*``, which is split 50/20/30 within each class: its file names are sorted,
    shuffled by ``random.Random(0)``, and the first round(0.5 n) are for training, the next
    round(0.2 n) for validation, the others for the test. Classes are numbered in sorted order.

    Raises:
        UserError: no such folder, a class without images, too few images to split, a class in
            val or test that training lacks.
    """

    def __init__(self, cfg) -> None:
        folder = self.folder(cfg)
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            train, test = class_folders(folder / "train"), class_folders(folder / "test")
            val = class_folders(folder / "val") if (folder / "val").is_dir() else {}
        else:
            train, val, test = _split(class_folders(folder))
        unknown = sorted((val.keys() | test.keys()) - train.keys())
        if unknown:
            raise UserError(
                f"Folder: classes in val or test that {folder / 'train'} lacks: {listed(unknown)}"
            )
        labels = {name: label for label, name in enumerate(train)}
        super().__init__(
            cfg,
            *(
                [
                    Entry(path, labels[name], 0, name)
                    for name, paths in split.items()
                    for path in paths
                ]
                for split in (train, val, test)
            ),
        )

    def folder(self, cfg) -> Path:
        return data_root(cfg) / cfg.DATASET.FOLDER.DIR


def report_unread(source: str, folder: Path) -> None:
    """Print in one line which files in a tree of class folders are not read, if there are any."""
    counts: Counter[str] = Counter()
    for entry in os.scandir(folder):
        hidden = entry.name.startswith(".")
        if not entry.is_dir():
            counts["images in no class folder"] += not hidden and _is_image(entry.name)
        elif hidden:
            counts["hidden folders"] += 1
        else:
            counts.update(map(_unread_kind, os.scandir(entry.path)))
    unread = [f"{count:,} {kind}" for kind, count in sorted(counts.items()) if kind and count]
    if unread:
        print(f"note: {source}: not read below {folder}: {listed(unread)}")


def _unread_kind(entry: os.DirEntry) -> str:
    """What to call an entry of a class folder that is not read; "": an image, or a hidden file
    that is not one."""
    if entry.is_dir():
        return "folders in class folders"
    if entry.name.startswith("."):
        return "hidden images" if _is_image(entry.name) else ""
    return "" if _is_image(entry.name) else f"{Path(entry.name).suffix.lower() or 'other'} files"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def subfolders(folder: Path) -> list[os.DirEntry]:
    """The folders in a folder, sorted by name, without hidden ones."""
    entries = (e for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def image_names(folder: str | os.PathLike) -> list[str]:
    """The image files in a folder, sorted, without hidden ones."""
    return sorted(
        name for name in os.listdir(folder) if _is_image(name) and not name.startswith(".")
    )


def class_folders(folder: Path) -> dict[str, list[str]]:
    """The image paths of each class; classes and paths are sorted by name."""
    if not folder.is_dir():
        raise UserError(f"Folder: there is no folder {folder}: {LAYOUTS}")
    classes = {
        entry.name: [os.path.join(entry.path, name) for name in image_names(entry.path)]
        for entry in subfolders(folder)
    }
    for name in classes:
        if not name.isprintable():  # such as bytes that are not UTF-8
            raise UserError(
                f"Folder: {one_line(folder / name)} names a class, but is no plain text"
            )
    report_unread("Folder", folder)
    if not classes:
        raise UserError(f"Folder: no class folders in {folder}: {LAYOUTS}")
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise UserError(
            f"Folder: class folders without images in {folder}: {listed(empty)}; add images "
            f"({', '.join(SUFFIXES)}) or remove them"
        )
    return classes


def _split(classes: dict[str, list[str]]) -> tuple[dict[str, list[str]], ...]:
    few = [f"{name} ({len(paths)})" for name, paths in classes.items() if len(paths) < 4]
    if few:
        raise UserError(
            f"Folder: a class needs 4 images to be split into train, val and test: {listed(few)}"
        )
    train, val, test = {}, {}, {}
    for name, paths in classes.items():
        shuffled = list(paths)
        random.Random(SPLIT_SEED).shuffle(shuffled)
        first, second = round(TRAIN * len(paths)), round(VAL * len(paths))
        train[name] = shuffled[:first]
        val[name] = shuffled[first : first + second]
        test[name] = shuffled[first + second :]
    return train, val, test
