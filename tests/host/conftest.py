"""A toy dataset of real PNG files and a toy trainer, on whichever host is chosen."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from apd.host import (
    DATASET_REGISTRY,
    TRAINER_REGISTRY,
    DatasetBase,
    Datum,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    get_cfg_default,
    register,
    set_random_seed,
)

CLASSES = ("ant", "bee", "cat")


@register(DATASET_REGISTRY)
class ToyImages(DatasetBase):
    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        splits = {
            split: [
                Datum(str(path), CLASSES.index(path.parent.name), classname=path.parent.name)
                for path in sorted((root / split).glob("*/*.png"))
            ]
            for split in ("train", "val", "test")
        }
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])


@register(TRAINER_REGISTRY)
class ToyTrainer(TrainerX):
    """A linear classifier on pixels."""

    def build_model(self):
        pixels = 3 * self.cfg.INPUT.SIZE[0] * self.cfg.INPUT.SIZE[1]
        self.model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, self.num_classes)
        )
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def draw_images(root, counts, size=(20, 14)):
    """Write ``counts[split]`` random images of ``size`` (width, height), classes in turn."""
    pixels = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            path = root / split / CLASSES[i % 3] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = pixels.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(image).save(path)


@pytest.fixture
def make_cfg(tmp_path):
    """Return a function: KEY, value, ... to a config for the toys, with images in tmp_path."""
    draw_images(tmp_path / "data", {"train": 9, "val": 3, "test": 5})

    def make(*options):
        cfg = get_cfg_default()
        cfg.merge_from_list(
            [
                "OUTPUT_DIR",
                str(tmp_path / "output"),
                "SEED",
                1,
                "USE_CUDA",
                False,
                "DATASET.NAME",
                "ToyImages",
                "DATASET.ROOT",
                str(tmp_path / "data"),
                "TRAINER.NAME",
                "ToyTrainer",
                "INPUT.SIZE",
                (8, 8),
                "DATALOADER.NUM_WORKERS",
                0,
                "DATALOADER.TRAIN_X.BATCH_SIZE",
                4,
                "DATALOADER.TEST.BATCH_SIZE",
                4,
                "OPTIM.NAME",
                "sgd",
                "OPTIM.LR",
                0.01,
                "OPTIM.MAX_EPOCH",
                2,
                "OPTIM.LR_SCHEDULER",
                "cosine",
                "OPTIM.WARMUP_EPOCH",
                1,
                "OPTIM.WARMUP_TYPE",
                "constant",
                *options,
            ]
        )
        set_random_seed(cfg.SEED)
        return cfg

    return make
