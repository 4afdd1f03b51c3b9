"""Handwritten digits that come with scikit-learn: real images, nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from apd.datasets.fewshot import FewShotDataset, data_root
from apd.datasets.stored import store
from apd.host import DATASET_REGISTRY, Datum, register

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, VAL = 797, 200  # the other 800 images are the test set


@register(DATASET_REGISTRY)
class Digits(FewShotDataset):
    """scikit-learn's ``load_digits``: 1,797 digits of 8x8 pixels (UCI optdigits, Alpaydin 1998).

    They are written once to ``ROOT/digits/<index>.png``, 8-bit grey: a value v from 0 to 16 becomes
    round(v * 255 / 16). A missing root is made. The split is by index: [0, 797) for training,
    [797, 997) for validation, [997, 1797) for the test. [O] The images are sorted by writer, about
    130 of each, so that most test images were written by people who wrote no training image.

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
    """Write images, (N, H, W) uint8, to ``folder/<index>.png``; return the paths.

    Files that hold these images already are left alone; missing and damaged ones are written.

    Raises:
        UserError: they cannot be written.
    """
    paths = [folder / f"{i:04d}.png" for i in range(len(images))]
    store(
        cfg.DATASET.NAME,
        folder,
        {
            path: Image.fromarray(image).save
            for path, image in zip(paths, images)
            if not _holds(path, image)
        },
    )
    return [str(path) for path in paths]


def _holds(path: Path, image: np.ndarray) -> bool:
    try:
        with Image.open(path) as stored:
            return np.array_equal(np.asarray(stored), image)
    except (OSError, SyntaxError, ValueError):  # absent, or what Pillow says of a broken PNG
        return False
