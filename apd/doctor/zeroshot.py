"""The check of ``--zeroshot``: is zero-shot CLIP as good on this machine as published?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from apd.catalog import template
from apd.clip import build_prompted_clip, load_clip
from apd.config import extend_cfg
from apd.datasets.fewshot import FewShotDataset
from apd.datasets.layout import DIFFERS, Published
from apd.host import build_transform, get_cfg_default
from apd.images import read_image
from apd.results.published import papers, read_paper
from apd.results.words import signed

SLACK = 0.5  # points allowed for other versions of Pillow and PyTorch, and papers' half precision


def published_accuracy(backbone: str, dataset: str) -> tuple[float, str] | None:
    """The published clean accuracy of the templates, in percent, and its source."""
    for name in papers():
        paper = read_paper(name)
        for figure in paper.figures:
            if (
                (figure.method, figure.datasets) == ("ZeroshotCLIP", (dataset,))
                and (paper.backbone, figure.subsample) == (backbone, "all")
                and figure.clean is not None
            ):
                return figure.clean, f"{name}, table {figure.table}"
    return None


def zero_shot(
    backbone: str, datasets: list[type[FewShotDataset]], root: Path, subset: int, device: str
) -> Iterator[tuple[str, float, int, str, bool]]:
    """Evaluate the template on each data set's test images.

    Args:
        subset: how many of them, drawn with a fixed seed; 0: all.

    Yields:
        Data set, accuracy (%), number of images, a line that compares it, and whether it is fine.
    """
    clip_model = load_clip(backbone).to(device)
    size = clip_model.visual.input_resolution
    for cls in datasets:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.DATASET.NAME, cfg.DATASET.ROOT = cls.__name__, str(root)
        cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = (size, size), "bicubic", ()
        dataset = cls(cfg)
        items = dataset.test
        if 0 < subset < len(items):
            drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))
            items = [items[i] for i in drawn[:subset].tolist()]
        model = build_prompted_clip(
            clip_model, dataset.classnames, templates=[template(cfg.DATASET)]
        )
        right = _count_right(
            model, _Images(items, build_transform(cfg, is_train=False)), cls.__name__
        )
        accuracy = 100 * right / len(items)
        # data sets that come with this package have none
        figure = published_accuracy(backbone, cls.__name__) if issubclass(cls, Published) else None
        agrees, text = True, f"no published figure of {backbone} here"
        if figure:
            agrees, text = judge(accuracy, len(items), len(dataset.test), *figure)
        if not agrees:
            made = cls.source(root / cls.dataset_dir).made
            text += f": {likely_cause(accuracy, dataset.classnames, made)}"
        yield cls.__name__, accuracy, len(items), text, agrees


def judge(accuracy: float, n: int, total: int, published: float, source: str) -> tuple[bool, str]:
    """Whether an accuracy agrees with the published one, and both in words.

    The bound of the difference is three standard errors of the draw, and a little more.

    Args:
        accuracy, published: in %.
        n: number of images that were evaluated, drawn from ``total``.
        source: of the published accuracy.
    """
    p = published / 100
    error = 100 * math.sqrt(p * (1 - p) / n * (1 - n / total)) if n < total else 0.0
    bound = 3 * error + SLACK
    text = f"{signed(accuracy - published)} to the published {published:.2f} ({source})"
    if abs(accuracy - published) <= bound:
        return True, f"{text}, within {bound:.1f}"
    return False, f"{text}, more than {bound:.1f} apart"


def likely_cause(accuracy: float, classnames: list[str], made: str) -> str:
    """The likely cause of an accuracy that does not agree with the published one, in words.

    Args:
        made: how the split was made, if it is not the published one (``Source.made``).
    """
    if made:
        origin = "it is not CoOp's" if made == DIFFERS else "it was made here"
        return f"the likely cause is the split file: {origin}"
    coded = [name for name in classnames if re.fullmatch(r"n?\d+", name.strip())]
    if coded:
        return f"the likely cause are class names that are codes, such as {coded[0]}"
    if accuracy < 300 / len(classnames):
        return (
            "that is near guessing, and the likely cause are labels that do not go with the class "
            "names (order of classnames.txt, folders renamed), or weights that are not CLIP's"
        )
    return (
        "the likely causes are class names, images that were resized before (interpolation), or "
        "weights with another activation or normalisation than their name says"
    )


class _Images(Dataset):
    def __init__(self, items, transform) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.transform(read_image(self.items[i].impath)), self.items[i].label


@torch.inference_mode()
def _count_right(model, images: _Images, name: str) -> int:
    device, right = model.mean.device, 0
    classify = model.classifier()
    workers = 4 if device.type != "cpu" else 0
    with tqdm(desc=f"zero-shot {name}", total=len(images), unit="image", disable=None) as progress:
        for batch, labels in DataLoader(images, batch_size=128, num_workers=workers):
            right += int((classify(batch.to(device)).argmax(1).cpu() == labels).sum())
            progress.update(len(labels))
    return right
