"""What a sweep will cost on a GPU, counted in encoder passes: an estimate before anything has run.

    python -m apd.sweep.cost SPEC.yaml [options of apd-sweep]

Counted are an image's passes through the image encoder and a class's through the text encoder; a
backward pass (to the prompts or to the pixels; CLIP's weights have none) counts as one forward
pass. Assumed are ``SPEED`` and ``SURVIVING``. Not counted are loading of images, starting up, and
attacks other than PGD. Once cells have finished, ``apd-sweep --dry-run`` knows better.
"""

from __future__ import annotations

import sys

from tabulate import tabulate

import apd
from apd.classes import partition
from apd.errors import UserError, exit_codes
from apd.methods import METHODS
from apd.sweep.training_job import TrainingJob

SPEED = 10e12  # floating-point operations a second: half of an A100's peak in float32 (no TF32)
SURVIVING = 0.4  # of the test images' attack steps are needed: lost images leave the attack
TOKENS = 16  # of 77 are computed for a class: our text pass stops at the longest prompt (but
# MMoP's, whose routers read all)

# 10^9 operations of an image and of a class of 77 tokens, forward, as OpenCLIP's profile has them
_GFLOP = {
    "RN50": (12.2, 6.0),
    "RN101": (19.5, 6.0),
    "ViT-B/32": (8.8, 6.0),
    "ViT-B/16": (35.1, 6.0),
    "ViT-L/14": (162.0, 13.3),
}


def gpu_seconds(cell: TrainingJob) -> float:
    """The estimate for a cell from nothing to its results.

    Raises:
        UserError: nothing is known of its trainer, data set or backbone.
    """
    from apd.datasets.layout import published
    from apd.train.command import parse_args, setup_cfg

    cfg = setup_cfg(parse_args(list(cell.argv)))
    counts = _known(published(), "data set", cfg.DATASET.NAME).counts
    part = _share(cfg.DATASET, counts.classes)
    classes, tested = counts.classes * part, counts.test * part
    of_image, of_class = _known(_GFLOP, "backbone", cfg.MODEL.BACKBONE.NAME)
    attack = cfg.AT.TRAIN
    method = _known(METHODS, "trainer", cfg.TRAINER.NAME)
    if not method.prompts.endswith("mixtures"):
        of_class *= TOKENS / 77

    steps = cfg.AT.TEST.STEPS if cfg.AT.TEST.EPS is not None else 0
    work = tested * of_image * (1 + 2 * steps * SURVIVING) + classes * of_class
    if method.prompts and not cell.needs:
        if cfg.DATASET.NUM_SHOTS < 1:
            raise UserError("the cost of training on all images (shots -1) is not known")
        images, epochs = cfg.DATASET.NUM_SHOTS * classes, cfg.OPTIM.MAX_EPOCH
        passes = method.image_passes + (2 * attack.STEPS if method.adversarial else 0)
        # what is attacked once is trained on as stored embeddings
        times = 1 if method.attacks == "once" else epochs
        work += times * images * of_image * passes
        batches = epochs * images / cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        work += batches * classes * of_class * method.class_passes
    return work * 1e9 / SPEED


def _share(dataset, classes: int) -> float:
    """Of a data set's classes, those that take part."""
    share = 1 if dataset.SUBSAMPLE_CLASSES == "all" else 1 / 2
    if which := partition(dataset.CLASSES):
        return share / which.parts
    return share * (len(dataset.CLASSES) / classes if dataset.CLASSES else 1)


def _known(table: dict, what: str, name: str):
    if name not in table:
        raise UserError(f"the cost of {what} {name} is not known; there are {', '.join(table)}")
    return table[name]


@exit_codes
def main(argv: list[str] | None = None) -> int:
    from apd.sweep.command import parse_args, read_cells

    apd.register()
    cells = read_cells(parse_args(argv))
    hours: dict[str, list[float]] = {}
    for cell in cells:
        hours.setdefault(cell.similarity_key[2], []).append(gpu_seconds(cell) / 3600)
    hours["all"] = [one for trainer in hours.values() for one in trainer]
    table = [[name, len(cells), f"{sum(cells):,.1f}"] for name, cells in hours.items()]
    print(tabulate(table, ["trainer", "cells", "GPU hours"], colalign=["left", "right", "right"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
