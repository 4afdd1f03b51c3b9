"""ImageNet and the test sets that shift its domain, under CoOp's names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from apd.datasets.caches import cached, digest, read_pickle
from apd.datasets.fewshot import Entry
from apd.datasets.folder import subfolders
from apd.datasets.layout import DRIVE, Counts, Published, Source, check_below, lines
from apd.errors import UserError, listed
from apd.host import DATASET_REGISTRY, register

Tree = dict[str, list[str]]  # class folder -> its files; the n-th folder has label n, from 0
CLASSNAMES = DRIVE.format("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")
COPY = {"classnames.txt": f"imagenet/classnames.txt, or from {CLASSNAMES}"}


@register(DATASET_REGISTRY)
class ImageNet(Published):
    """ILSVRC 2012 (Deng et al. 2009): its validation images are both the test and the val split.

    Files are listed in the file system's order, as in CoOp, so that the draw is CoOp's on the same
    disk. ``preprocessed.json`` caches the list until a class folder changes. Where CoOp's
    ``preprocessed.pkl`` exists, the list and its order are read from there.
    """

    dataset_dir, image_dir = "imagenet", "images"
    layout = {
        "images/train": "https://image-net.org (ILSVRC 2012, one folder per class)",
        "images/val": "https://image-net.org (ILSVRC 2012), sorted into one folder per class",
        "classnames.txt": CLASSNAMES,
    }
    counts = Counts(1000, 1281167, None, 50000)

    @classmethod
    def source(cls, folder: Path) -> Source:
        cls.require(folder)
        names = read_classnames(folder / "classnames.txt")
        trees = [folder / "images" / split for split in ("train", "val")]
        pickled = folder / "preprocessed.pkl"
        if pickled.is_file():
            listing = partial(_coops_list, pickled)
            state: list[Path | os.DirEntry] = [pickled]
        else:
            state = [f for tree in trees for f in class_folders(tree)]
            listing = partial(_list_trees, trees)
        key = digest(*(f"{os.fspath(path)} {path.stat().st_mtime_ns}" for path in state))
        files_by_tree = cached(folder / "preprocessed.json", key, listing)
        odd = files_by_tree["train"].keys() ^ files_by_tree["val"].keys()
        if odd:
            raise UserError(
                f"{folder / 'images'}: train and val must have the same class folders; look at "
                f"{listed(sorted(odd), most=3)}"
            )
        folders = named_folders(files_by_tree["train"], names, folder / "classnames.txt")
        train, test = (
            partial(list_tree, tree, files_by_tree[tree.name], folders) for tree in trees
        )
        mark = digest(
            *(
                "\0".join((name, folders[name], *images))
                for name, images in files_by_tree["train"].items()
            )
        )
        return Source(mark, train, None, test)


class _Shift(Published):
    """A test set for prompts that were trained on ImageNet.

    As in CoOp, all images are both ``train_x`` (which gives the class names) and ``test``; no shots
    are drawn. ``DATASET.SUBSAMPLE_CLASSES`` must be all.
    """

    def __init__(self, cfg) -> None:
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise UserError(
                f"{cfg.DATASET.NAME} is a test set with all its classes: "
                "DATASET.SUBSAMPLE_CLASSES must be all"
            )
        super().__init__(cfg)

    @classmethod
    def source(cls, folder: Path) -> Source:
        cls.require(folder)
        images, path = folder / cls.image_dir, folder / "classnames.txt"
        folders = cls.folders(images, read_classnames(path), path)
        tree = {name: files(images / name) for name in folders}
        everything = partial(list_tree, images, tree, folders)
        return Source("", everything, list, everything)

    @classmethod
    def folders(cls, images: Path, names: dict[str, str], path: Path) -> dict[str, str]:
        """Class folder to class name, in the order of the labels."""
        return named_folders((folder.name for folder in class_folders(images)), names, path)

    def _shots(self, cfg, folder, source, test) -> tuple[list[Entry], list[Entry]]:
        return test, []


@register(DATASET_REGISTRY)
class ImageNetV2(_Shift):
    """New images, collected as ImageNet's were (Recht et al. 2019): folder i is class i."""

    dataset_dir, image_dir = "imagenetv2", "imagenetv2-matched-frequency-format-val"
    layout = {
        image_dir: "imagenetv2-matched-frequency.tar.gz of "
        "https://github.com/modestyachts/ImageNetV2",
        **COPY,
    }
    counts = Counts(1000, None, None, 10000)

    @classmethod
    def folders(cls, images: Path, names: dict[str, str], path: Path) -> dict[str, str]:
        return {str(label): name for label, name in enumerate(names.values())}


@register(DATASET_REGISTRY)
class ImageNetSketch(_Shift):
    """Sketches of ImageNet's classes (Wang et al. 2019)."""

    dataset_dir, image_dir = "imagenet-sketch", "images"
    layout = {image_dir: "https://github.com/HaohanWang/ImageNet-Sketch", **COPY}
    counts = Counts(1000, None, None, 50889)


@register(DATASET_REGISTRY)
class ImageNetA(_Shift):
    """Images that fool ResNet-50, of 200 classes (Hendrycks et al. 2021)."""

    dataset_dir, image_dir = "imagenet-adversarial", "imagenet-a"
    layout = {image_dir: "https://github.com/hendrycks/natural-adv-examples", **COPY}
    counts = Counts(200, None, None, 7500)


@register(DATASET_REGISTRY)
class ImageNetR(_Shift):
    """Renditions (art, toys, graffiti, ...) of 200 classes (Hendrycks et al. 2021)."""

    dataset_dir, image_dir = "imagenet-rendition", "imagenet-r"
    layout = {image_dir: "https://github.com/hendrycks/imagenet-r", **COPY}
    counts = Counts(200, None, None, 30000)


def read_classnames(path: Path) -> dict[str, str]:
    """Read lines such as "n01440764 tench" into a dict, folder to class name, in their order."""
    names: dict[str, str] = {}

    def add(line: str) -> None:
        folder, _, name = line.partition(" ")
        if not name or folder in names:
            raise ValueError("no class name" if not name else f"{folder} has a name already")
        names[folder] = name

    lines(path, add)
    return names


def named_folders(folders: Iterable[str], names: dict[str, str], path: Path) -> dict[str, str]:
    """Class folder to class name; UserError if ``names``, read from ``path``, lack one."""
    folders = list(folders)
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise UserError(f"{path} has no name for the class folders {listed(unnamed, most=3)}")
    return {folder: names[folder] for folder in folders}


def class_folders(tree: Path) -> list[os.DirEntry]:
    """The folders in a tree, sorted by name, without hidden ones.

    Raises:
        UserError: there are none.
    """
    folders = subfolders(tree)
    if not folders:
        raise UserError(f"no class folders in {tree}: it must hold one folder of images per class")
    return folders


def files(folder: str | os.PathLike) -> list[str]:
    """Names of the files of one class, in the file system's order, which CoOp draws from.

    Raises:
        UserError: there are none.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(folder)} ({error.strerror})") from error
    if not names:
        raise UserError(f"{os.fspath(folder)} is empty: extract its images again")
    return names


def list_tree(images: Path, tree: Tree, names: dict[str, str]) -> list[Entry]:
    check_below(images, chain(tree, *tree.values()))
    return [
        Entry(f"{images}/{folder}/{file}", label, 0, names[folder])
        for label, (folder, files) in enumerate(tree.items())
        for file in files
    ]


def _list_trees(trees: list[Path]) -> dict[str, Tree]:
    return {tree.name: {f.name: files(f) for f in class_folders(tree)} for tree in trees}


def _coops_list(path: Path) -> dict[str, Tree]:
    """The trees in CoOp's preprocessed.pkl; its paths may have been written on another machine."""
    content = read_pickle(path)
    trees: dict[str, Tree] = {}
    for split, folder in (("train", "train"), ("test", "val")):
        tree = trees.setdefault(folder, {})
        for item in content.get(split, ()):
            _, anchor, tail = item.impath.rpartition(f"/images/{folder}/")
            name, _, file = tail.partition("/")
            tree.setdefault(name, []).append(file)
            if not (anchor and file) or item.label != len(tree) - 1:
                raise UserError(
                    f"{path}: {item.impath} with label {item.label} is not an image of ImageNet "
                    "in its place: remove this file, and the images are listed again"
                )
    return trees
