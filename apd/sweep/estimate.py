"""What a run will cost, counted in encoder passes: an estimate before anything has run.

Counted are an image's passes through the image encoder and a class's through the text encoder; a
backward pass (to the prompts or to the pixels; CLIP's weights have none) counts as one forward
pass. Assumed are ``SPEED`` and ``SURVIVING``. Not counted are loading of images, starting up, and
attacks other than PGD. ``apd-sweep --dry-run`` estimates for this machine, from finished cells and
from passes that it times.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apd.classes import partition
from apd.errors import UserError
from apd.methods import METHODS
from apd.sweep.training_job import TrainingJob

if TYPE_CHECKING:
    from torch import Tensor

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

_SHIPPED = {  # classes and test images of the data sets that come with the package
    "Clothing": (10, 372),
    "Digits": (10, 800),
    "Letters": (26, 832),
    "RenderedDigits": (10, 320),
}


class Passes(NamedTuple):
    """Work of a cell: forward passes, of which a backward pass counts as one."""

    images: float  # of an image through the image encoder
    classes: float  # of a class's 77 tokens through the text encoder


def gpu_seconds(cell: TrainingJob) -> float:
    """The estimate for a cell from nothing to its results.

    Raises:
        UserError: nothing is known of its trainer, data set or backbone.
    """
    cfg, _ = cell.setup()
    passes = _passes(cell, cfg)
    of_image, of_class = _known(_GFLOP, "backbone", cfg.MODEL.BACKBONE.NAME)
    return (passes.images * of_image + passes.classes * of_class) * 1e9 / SPEED


def seconds_here(cell: TrainingJob) -> float:
    """The estimate on this machine: as ``gpu_seconds``, by passes of its CLIP that are timed now.

    Raises:
        UserError: as of ``gpu_seconds``, or the CLIP would have to be downloaded first.
    """
    cfg, _ = cell.setup()
    passes = _passes(cell, cfg)
    of_image, of_class = _measured(cfg.MODEL.BACKBONE.NAME, cfg.USE_CUDA)
    return passes.images * of_image + passes.classes * of_class


def _passes(cell: TrainingJob, cfg) -> Passes:
    classes, tested = _sizes(cfg)
    method = _known(METHODS, "trainer", cfg.TRAINER.NAME)
    if method.defence:
        raise UserError(f"the cost of {cfg.TRAINER.NAME}, a test-time defence, is not known")
    steps = cfg.AT.TEST.STEPS if cfg.AT.TEST.EPS is not None else 0
    of_images, of_classes = tested * (1 + 2 * steps * SURVIVING), classes
    if method.prompts and not cell.needs:
        if cfg.DATASET.NUM_SHOTS < 1:
            raise UserError("the cost of training on all images (shots -1) is not known")
        images, epochs = cfg.DATASET.NUM_SHOTS * classes, cfg.OPTIM.MAX_EPOCH
        attacked = 2 * cfg.AT.TRAIN.STEPS if method.adversarial else 0
        # what is attacked once is trained on as stored embeddings
        times = 1 if method.attacks == "once" else epochs
        of_images += times * images * (method.image_passes + attacked)
        batches = epochs * images / cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        of_classes += batches * classes * method.class_passes
    share = 1 if method.prompts.endswith("mixtures") else TOKENS / 77
    return Passes(of_images, of_classes * share)


def _sizes(cfg) -> tuple[float, float]:
    """Classes, and images that are tested."""
    from apd.datasets.layout import published
    from apd.host import build_dataset

    if cfg.DATASET.NAME == "Folder":
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = build_dataset(cfg)
        return dataset.num_classes, min(len(dataset.test), cfg.AT.TEST.SUBSET or len(dataset.test))
    known = {name: (data.counts.classes, data.counts.test) for name, data in published().items()}
    classes, tested = _known(_SHIPPED | known, "data set", cfg.DATASET.NAME)
    share = _share(cfg.DATASET, classes)
    tested *= share
    return classes * share, min(tested, cfg.AT.TEST.SUBSET or tested)


@cache
def _measured(backbone: str, cuda: bool) -> tuple[float, float]:
    """Seconds of an image's and of a class's forward pass, here and now, in batches of 32."""
    import torch

    from apd.clip import load_clip
    from apd.clip.load import SHIPPED

    if backbone not in SHIPPED and not Path(backbone).is_file():
        raise UserError(f"only CLIPs that are on this machine are timed, not {backbone}")
    device = torch.device("cuda" if cuda and torch.cuda.is_available() else "cpu")
    model = load_clip(backbone, device=device)
    size = model.visual.input_resolution
    images = torch.rand(32, 3, size, size, device=device)
    tokens = torch.randint(1, 1000, (32, model.context_length), device=device)
    with torch.no_grad():
        return _timed(lambda: model.encode_image(images)), _timed(lambda: model.encode_text(tokens))


def _timed(call: Callable[[], Tensor], batch: int = 32, tries: int = 5) -> float:
    """Of the fastest try, per row of the batch; the first one warms up."""
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        call().sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds) / batch


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
