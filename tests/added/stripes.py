"""Stripes that lie or stand, drawn where they are asked for (made up)."""

from __future__ import annotations

import numpy as np

from apd.datasets.digits import stored
from apd.datasets.fewshot import FewShotDataset, data_root
from apd.host import DATASET_REGISTRY, Datum, register

SPLITS = {"train": 3, "val": 2, "test": 2}  # images of a class
CLASSNAMES = ("lying stripes", "standing stripes")


@register(DATASET_REGISTRY)
class Stripes(FewShotDataset):
    def __init__(self, cfg) -> None:
        noise = np.random.default_rng(0)
        drawn, images = [], []
        for split, count in SPLITS.items():
            for label in (0, 1) * count:
                lying = np.tile(np.arange(8)[:, None] % 2 * 200, 8) + noise.integers(0, 50, (8, 8))
                images.append((lying.T if label else lying).astype(np.uint8))
                drawn.append((split, label))
        paths = stored(cfg, data_root(cfg, must_exist=False) / "stripes", np.stack(images))
        splits: dict[str, list[Datum]] = {split: [] for split in SPLITS}
        for path, (split, label) in zip(paths, drawn):
            splits[split].append(Datum(impath=path, label=label, classname=CLASSNAMES[label]))
        super().__init__(cfg, splits["train"], splits["val"], splits["test"])
