"""Handwritten digits that come with scikit-learn: real images, nothing to download."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from apd.datasets.fewshot import FewShotDataset, data_root
from apd.errors import UserError
from apd.host import DATASET_REGISTRY, Datum, register

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, VAL = 797, 200  # the other 800 images are the test set


@register(DATASET_REGISTRY)
class Digits(FewShotDataset):
    """scikit-learn's ``load_digits``: 1,797 digits of 8x8 pixels (UCI optdigits, Alpaydin 1998).

    They are written once to ``ROOT/digits/<index>.png``, 8-bit grey, value v of 0 to 16 as
    round(v * 255 / 16); the root is made if it is missing. Split by index: [0, 797) for training,
    [797, 997) for validation, [997, 1797) for the test. That split is our choice: the images come
    writer after writer, about 130 each, so most of the test images are by other hands than those
    trained on.

    Raises:
        UserError: the images cannot be written under the data root.
    """

    def __init__(self, cfg) -> None:
        from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

        digits = load_digits()
        images = np.round(digits.images * 255 / 16).astype(np.uint8)
        paths = stored(cfg, data_root(cfg, must_exist=False) / "digits", images)
        items = [
            Datum(impath=path, label=int(label), classname=CLASSNAMES[label])
            for path, label in zip(paths, digits.target)
        ]
        super().__init__(cfg, items[:TRAIN], items[TRAIN : TRAIN + VAL], items[TRAIN + VAL :])


def stored(cfg, folder: Path, images: np.ndarray) -> list[str]:
    """Write images, (N, H, W) uint8, to ``folder/<index>.png`` if need be; return the paths.

    Raises:
        UserError: they cannot be written.
    """
    paths = [folder / f"{i:04d}.png" for i in range(len(images))]
    try:
        _store(folder, paths, images)
    except OSError as error:
        raise UserError(
            f"{cfg.DATASET.NAME}: cannot write {folder} ({error.strerror}): point --root at a "
            "folder that you may write to"
        ) from error
    return [str(path) for path in paths]


def _store(folder: Path, paths: list[Path], images: np.ndarray) -> None:
    """Write those images, (N, H, W) uint8, that are not there yet or not intact.

    Each appears whole or not at all, and nothing is trusted unread: a killed run leaves what the
    next one completes, and two at once write the same pixels.
    """
    amiss = [(path, image) for path, image in zip(paths, images) if not _holds(path, image)]
    if not amiss:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        for path, image in amiss:
            whole = Path(scratch, path.name)
            Image.fromarray(image).save(whole)
            os.replace(whole, path)


def _holds(path: Path, image: np.ndarray) -> bool:
    try:
        with Image.open(path) as stored:
            return np.array_equal(np.asarray(stored), image)
    except (OSError, SyntaxError, ValueError):  # absent, or what Pillow says of a broken PNG
        return False
