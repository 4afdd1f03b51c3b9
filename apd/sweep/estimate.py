"""Estimates of a run's time by its encoder passes, before anything has run.

An image's passes through the image encoder and a class's passes through the text encoder are
counted. A backward pass (to the prompts or to the pixels; CLIP's weights are frozen) counts as one
forward pass. ``SPEED`` and ``SURVIVING`` are assumed. Loading of images, starting up, and attacks
other than PGD are not counted. ``apd-sweep --dry-run`` estimates for this machine, from finished
cells and from passes that it times.
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
# share of the test images' attack steps that are run: an image leaves the attack once it is fooled
SURVIVING = 0.4
# tokens of a class that are computed, of 77: our text pass stops at the longest prompt. MMoP's
# computes all, because its routers read them
TOKENS = 16

# 10^9 operations of a forward pass, of an image and of a class of 77 tokens, by OpenCLIP's profile
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
    """The work of a run in forward passes; a backward pass counts as one.

    Attributes:
        images: passes of one image through the image encoder.
        classes: passes of one class's 77 tokens through the text encoder.
    """

    images: float
    classes: float


def gpu_seconds(job: TrainingJob) -> float:
    """The estimate for a whole run, on a GPU of ``SPEED``.

    Raises:
        UserError: the cost of its trainer, data set or backbone is not known.
    """
    cfg, _ = job.setup()
    passes = _passes(job, cfg)
    of_image, of_class = _lookup(_GFLOP, "backbone", cfg.MODEL.BACKBONE.NAME)
    return (passes.images * of_image + passes.classes * of_class) * 1e9 / SPEED


def seconds_here(job: TrainingJob) -> float:
    """The estimate for a whole run on this machine, on which passes of its CLIP are timed now.

    Raises:
        UserError: as of ``gpu_seconds``, or the CLIP would have to be downloaded first.
    """
    cfg, _ = job.setup()
    passes = _passes(job, cfg)
    of_image, of_class = _measured(cfg.MODEL.BACKBONE.NAME, cfg.USE_CUDA)
    return passes.images * of_image + passes.classes * of_class


def _passes(job: TrainingJob, cfg) -> Passes:
    classes, tested = _sizes(cfg)
    method = _lookup(METHODS, "trainer", cfg.TRAINER.NAME)
    if method.defence:
        raise UserError(f"the cost of {cfg.TRAINER.NAME}, a test-time defence, is not known")
    steps = cfg.AT.TEST.STEPS if cfg.AT.TEST.EPS is not None else 0
    of_images, of_classes = tested * (1 + 2 * steps * SURVIVING), classes
    if method.prompts and not job.needs:
        if cfg.DATASET.NUM_SHOTS < 1:
            raise UserError("the cost of training on all images (shots -1) is not known")
        images, epochs = cfg.DATASET.NUM_SHOTS * classes, cfg.OPTIM.MAX_EPOCH
        attacked = 2 * cfg.AT.TRAIN.STEPS if method.adversarial else 0
        # a method that attacks once trains on the stored embeddings of the attacked images
        times = 1 if method.attacks == "once" else epochs
        of_images += times * images * (method.image_passes + attacked)
        batches = epochs * images / cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        of_classes += batches * classes * method.class_passes
    tokens_share = 1 if method.prompts.endswith("mixtures") else TOKENS / 77
    return Passes(of_images, of_classes * tokens_share)


def _sizes(cfg) -> tuple[float, float]:
    """Classes, and images that are tested."""
    from apd.datasets.layout import published
    from apd.host import build_dataset

    if cfg.DATASET.NAME == "Folder":
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = build_dataset(cfg)
        return dataset.num_classes, min(len(dataset.test), cfg.AT.TEST.SUBSET or len(dataset.test))
    counts = {name: (data.counts.classes, data.counts.test) for name, data in published().items()}
    classes, tested = _lookup(_SHIPPED | counts, "data set", cfg.DATASET.NAME)
    share = _share_of_classes(cfg.DATASET, classes)
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
    """The seconds of the fastest call, per row of the batch; the first call warms up."""
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        call().sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds) / batch


def _share_of_classes(dataset, classes: int) -> float:
    """The share of a data set's classes that DATASET.CLASSES and SUBSAMPLE_CLASSES select."""
    share = 1 if dataset.SUBSAMPLE_CLASSES == "all" else 1 / 2
    if chosen_part := partition(dataset.CLASSES):
        return share / chosen_part.parts
    return share * (len(dataset.CLASSES) / classes if dataset.CLASSES else 1)


def _lookup(table: dict, kind: str, name: str):
    if name not in table:
        raise UserError(f"the cost of {kind} {name} is not known; there are {', '.join(table)}")
    return table[name]
