"""How fast data sets are listed, drawn from and read, beside the least that the work needs.

    python benchmarks/data.py [--images 100000] [--jpegs 512] [--output FILE.json]

* list: ImageNet, 16 shots, on a generated tree of empty files (1,000 classes, 4 % of the
  files for validation): the first run, which lists the tree and draws; a run with another seed,
  which draws from the list that the first one kept; and the first run again, from the kept draw.
  Beside them, one bare ``os.listdir`` of each class folder.
* read: decode and transform, in images/s: ``DataManager``'s loader beside PIL and torchvision
  called bare, with the same transform, without workers and with two. JPEGs of noise on a
  gradient, 500x375 pixels, as ImageNet's are on average.

Times are the best of several rounds in which the variants take turns. Where other programs are
busy, the ratio of CPU seconds, workers included, says more than that of the clock's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader

from apd.config import default
from apd.datasets.folder import Folder
from apd.datasets.imagenet import ImageNet
from apd.files import write_json
from apd.host import HOST, build_data_loader, build_transform

CLASSES, BATCH = 1000, 32


def config(root: Path, **options):
    cfg = default()
    cfg.DATASET.ROOT = str(root)
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (224, 224), "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip")
    cfg.USE_CUDA = False
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return cfg


def make_tree(root: Path, images: int) -> list[Path]:
    """ImageNet's layout, with empty files. Returns the class folders."""
    folders, names = [], []
    for label in range(CLASSES):
        wnid = f"n{label:08d}"
        names.append(f"{wnid} class {label}\n")
        for split, share in (("train", 0.96), ("val", 0.04)):
            folder = root / "imagenet" / "images" / split / wnid
            folder.mkdir(parents=True)
            folders.append(folder)
            for i in range(max(1, round(images * share / CLASSES))):
                (folder / f"{wnid}_{i}.JPEG").touch()
    (root / "imagenet" / "classnames.txt").write_text("".join(names))
    return folders


def listing(images: int) -> list[dict]:
    """Seconds of each way to the 16 shots; one row a variant."""
    with tempfile.TemporaryDirectory() as scratch:
        root, rows = Path(scratch), []
        folders = make_tree(root, images)

        def build(seed: int) -> ImageNet:
            options = {"DATASET.NAME": "ImageNet", "DATASET.NUM_SHOTS": 16, "SEED": seed}
            with contextlib.redirect_stdout(io.StringIO()):
                return ImageNet(config(root, **options))

        for variant, run in (
            ("os.listdir alone", lambda: [os.listdir(folder) for folder in folders]),
            ("list and draw", lambda: build(1)),
            ("kept list, draw", lambda: build(2)),
            ("kept draw", lambda: build(1)),
        ):
            began = time.perf_counter()
            built = run()
            seconds = time.perf_counter() - began
            rows.append(
                {"what": f"ImageNet of {images:,} files", "variant": variant, "seconds": seconds}
            )
        assert len(built.train_x) == 16 * CLASSES
        return rows


def make_jpegs(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 500)[None, :, None] + np.linspace(0, 40, 375)[:, None, None]
    for split in ("train", "test"):
        (folder / split / "noise").mkdir(parents=True)
        for i in range(count if split == "train" else 1):
            pixels = ramp + draw.normal(0, 12, (375, 500, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / split / "noise" / f"{i}.jpg", quality=90)


class Bare(torch.utils.data.Dataset):
    """Paths and labels, PIL, torchvision, and nothing else."""

    def __init__(self, paths: list[str], transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB")), 0


def plain(dataset: Bare) -> Iterable[torch.Tensor]:
    """Batches without a loader."""
    for first in range(0, len(dataset), BATCH):
        indices = range(first, min(first + BATCH, len(dataset)))
        yield torch.stack([dataset[i][0] for i in indices])


def reading(count: int, rounds: int) -> list[dict]:
    """Images/s of the loader and of the bare pipeline; one row a transform and worker count."""
    with tempfile.TemporaryDirectory() as scratch:
        make_jpegs(Path(scratch), count)
        rows = []
        for is_train in (True, False):
            for workers in (0, 2):
                cfg = config(Path(scratch), **{"DATALOADER.NUM_WORKERS": workers})
                items, transform = Folder(cfg).train_x, build_transform(cfg, is_train=is_train)
                bare = Bare([item.impath for item in items], transform)
                ours = build_data_loader(
                    cfg,
                    "SequentialSampler",
                    items,
                    batch_size=BATCH,
                    tfm=transform,
                    is_train=is_train,
                )
                floor = DataLoader(bare, BATCH, num_workers=workers) if workers else None
                seconds, cpu = best_of(
                    rounds,
                    ours=lambda: exhaust(ours),
                    bare=lambda: exhaust(floor if floor else plain(bare)),
                )
                rows.append(
                    {
                        "transform": "train" if is_train else "test",
                        "workers": workers,
                        "loader, images/s": count / seconds["ours"],
                        "bare, images/s": count / seconds["bare"],
                        "ratio": seconds["bare"] / seconds["ours"],
                        "CPU ratio": cpu["bare"] / cpu["ours"],
                    }
                )
        return rows


def exhaust(batches: Iterable) -> None:
    for _ in batches:
        pass


def best_of(rounds: int, **variants: Callable[[], object]) -> tuple[dict[str, float], ...]:
    """Seconds of each variant, by the clock and of CPU (with those of finished workers)."""
    wall, cpu = (dict.fromkeys(variants, float("inf")) for _ in range(2))
    for _ in range(rounds):
        for name, run in variants.items():
            began, spent = time.perf_counter(), sum(os.times()[:4])
            run()
            wall[name] = min(wall[name], time.perf_counter() - began)
            cpu[name] = min(cpu[name], sum(os.times()[:4]) - spent)
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000, help="empty files")
    parser.add_argument("--jpegs", type=int, default=512, help="images to decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="output/benchmarks/data.json")
    args = parser.parse_args()
    if args.images < 20 * CLASSES:
        parser.error(f"--images must be at least {20 * CLASSES}: 16 shots of {CLASSES} classes")
    torch.set_num_threads(1)
    jpegs = args.jpegs // BATCH * BATCH or BATCH  # a training loader drops what is left over
    lists = listing(args.images)
    print(tabulate(lists, headers="keys", floatfmt=".2f"), end="\n\n")
    sys.stdout.flush()
    reads = reading(jpegs, args.rounds)
    print(tabulate(reads, headers="keys", floatfmt=("", "", ".0f", ".0f", ".3f", ".3f")))
    write_json(
        args.output,
        {
            "host": HOST,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "list": lists,
            "read": reads,
        },
    )


if __name__ == "__main__":
    main()
