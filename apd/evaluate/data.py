"""Labelled images as batches in a fixed order, made of tensors, loaders, data sets or folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from apd.errors import UserError, listed
from apd.images import as_tensor, read_image

Preprocess = Callable[[Image.Image], Tensor]
FORMS = "(images, labels), a DataLoader, a data set of (image, label), or a folder of class folders"


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, as ``labelled_images`` makes them.

    Attributes:
        loader: batches of images (B, C, H, W) in [0, 1] and labels (B,).
        name: of the data set.
        class_names: in the order of the labels; empty: not known.
    """

    loader: DataLoader
    name: str
    class_names: tuple[str, ...] = ()


def labelled_images(
    data,
    *,
    batch_size: int = 64,
    workers: int = 0,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
) -> LabelledImages:
    """``data`` as a loader that gives the same batches in every pass.

    Args:
        data: images (N, C, H, W) and labels (N,); a DataLoader of such batches; a data set of
            (image, label), torchvision's for example, whose images are tensors or PIL images; or a
            folder of class folders, or of train/ and test/ with class folders, of which test/ is
            taken.
        batch_size, workers: of the loader; a DataLoader keeps its own.
        preprocess: from a PIL image to a tensor (C, H, W) in [0, 1]. Default: the pixels as they
            are, and all images must have one size.
        class_names: of the model, in the order of its logits. The classes of a folder are looked
            up among them, with underscores read as spaces; without them, the folder's classes are
            numbered in sorted order.

    Raises:
        UserError: another form of data, a loader that shuffles or leaves images out, class names
            that do not fit.
    """
    if isinstance(data, DataLoader):
        return LabelledImages(_in_order(data), *_name_and_classes(data.dataset, class_names))
    name_and_classes = "images", tuple(class_names)
    if isinstance(data, (str, os.PathLike)):
        files = _FolderImages(Path(data), class_names)
        dataset: Dataset = Prepared(files, preprocess)
        name_and_classes = Path(data).absolute().name, files.class_names
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        images, labels = map(torch.as_tensor, data)
        if images.dim() == 0 or labels.dim() == 0 or len(images) != len(labels):
            raise UserError(
                f"images are {tuple(images.shape)} and labels {tuple(labels.shape)}: there must be "
                "one label per image"
            )
        dataset = TensorDataset(images, labels)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        dataset = Prepared(data, preprocess)
        name_and_classes = _name_and_classes(data, class_names)
    else:
        raise UserError(f"data is a {type(data).__name__}: use {FORMS}")
    return LabelledImages(DataLoader(dataset, batch_size, num_workers=workers), *name_and_classes)


class Prepared(Dataset):
    """A data set of (image, label) whose PIL images are made tensors.

    Raises:
        UserError: on access: an item is no such pair, or images have different shapes.
    """

    def __init__(self, dataset, preprocess: Preprocess | None) -> None:
        self.dataset, self.preprocess = dataset, preprocess or as_tensor
        self.shape: torch.Size | None = None  # of the first image that was read

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        item = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"item {index} of the data set is no pair (image, label)")
        image, label = item
        if isinstance(image, Image.Image):
            image = self.preprocess(image)
        shape = torch.as_tensor(image).shape
        self.shape = self.shape or shape
        if shape != self.shape:
            raise UserError(
                f"image {index} is {tuple(shape)}, another one {tuple(self.shape)}: give "
                "preprocess (apd-eval: --size), which brings all images to one size"
            )
        return image, label


class _FolderImages(Dataset):
    """PIL images of a folder of class folders, with labels in the order of ``class_names``."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        from apd.datasets.folder import class_folders  # late: it registers data sets with the host

        tree = folder / "test" if (folder / "train").is_dir() else folder
        paths = class_folders(tree)
        self.class_names = tuple(class_names or paths)
        labels = {_spaced(name): label for label, name in enumerate(self.class_names)}
        if unknown := [name for name in paths if _spaced(name) not in labels]:
            raise UserError(
                f"{tree} has classes that the model lacks: {listed(unknown, 5)}; the model has "
                f"{listed(self.class_names, 5)}"
            )
        self.items = [
            (path, labels[_spaced(name)]) for name, files in paths.items() for path in files
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.items[index]
        return read_image(path), label


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _name_and_classes(dataset, class_names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """A data set's name, and the names of its classes in the order of its labels.

    Raises:
        UserError: they contradict ``class_names``, those of the model.
    """
    if isinstance(dataset, TensorDataset):
        return "images", tuple(class_names)
    ours, theirs = tuple(class_names), getattr(dataset, "classes", ())
    theirs = tuple(theirs) if isinstance(theirs, (list, tuple)) else ()
    same = sorted(map(str, ours)) == sorted(map(str, theirs))
    if ours and theirs and (len(ours) != len(theirs) or (same and ours != theirs)):
        raise UserError(
            f"the data set has {len(theirs):,} classes in the order {listed(map(str, theirs), 3)}, "
            f"but the model {len(ours):,}: {listed(ours, 3)}; its labels must be the model's"
        )
    return type(dataset).__name__, ours or theirs


def _in_order(loader: DataLoader) -> DataLoader:
    """The loader itself; UserError if it shuffles or leaves images out."""
    if (
        isinstance(loader.dataset, IterableDataset)
        or not isinstance(loader.sampler, SequentialSampler)
        or loader.batch_size is None
        or loader.drop_last
    ):
        raise UserError(
            "the DataLoader shuffles, draws or leaves out images: give it a data set with "
            "shuffle=False and drop_last=False, without a sampler, so that all are evaluated"
        )
    return loader
