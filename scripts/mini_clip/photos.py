"""Lay the photographs out: what the mini CLIP may see, what few-shot draws pick from, what is left.

    python scripts/mini_clip/photos.py ZIPS DATA [--pack clothing apd/assets/clothing.zip]

ZIPS holds ``<set>.zip`` of ``<set>/train/<class>/*.jpg`` and ``test/`` (``val/`` optional), and
``cifar10.zip`` or ``../cifar10.zip`` of ``train/`` and ``test/``. DATA gets, for each set, disjoint
``pretrain/``, ``train/``, ``val/`` and ``test/``: pretraining reads ``pretrain/`` only, the dataset
``Folder`` never does. ``--pack`` puts a set without its ``pretrain/`` into an archive, for the
package.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from apd.errors import UserError, exit_codes
from apd.files import atomic_write

# share of each class's training images that pretraining sees; of the rest, 60 % are for few-shot
# draws and 40 % for validation, where the source has no validation images of its own
PRETRAIN = {
    "tiny_imagenet": 1.0,
    "cifar10": 0.4,
    "clothing": 0.5,
    "dtd10": 0.5,
    "flowers5": 0.5,
    "food101": 0.5,
    "gtsrb": 0.5,
    "scene15": 0.5,
    "sign_digits": 0.5,
    "trashnet": 0.5,
    "ucmerced": 0.5,
    # never seen, neither images nor captions
    "caltech101": 0.0,
    "cub100": 0.0,
    "pacs_photo": 0.0,
    "pacs_art_painting": 0.0,
    "pacs_cartoon": 0.0,
    "pacs_sketch": 0.0,
}
VAL = 0.4


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zips", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pack", nargs=2, metavar=("SET", "FILE"), help="after that")
    args = parser.parse_args(argv)
    for name in tqdm(PRETRAIN, "sets"):
        if not (args.data / name / "test").is_dir():
            lay_out(find(args.zips, name), name, args.data)
    if args.pack:
        pack(args.data / args.pack[0], Path(args.pack[1]))
    return 0


def find(zips: Path, name: str) -> Path:
    for path in (zips / f"{name}.zip", zips.parent / f"{name}.zip"):
        if path.is_file():
            return path
    raise UserError(f"there is no {name}.zip in {zips}, nor beside it")


def lay_out(archive: Path, name: str, data: Path) -> None:
    """Unpack one set; ``test/`` appears last, so a set that has it is whole."""
    scratch = data / f".{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    with zipfile.ZipFile(archive) as file:
        members = [m for m in file.namelist() if m.endswith(".jpg")]
        classes = defaultdict(list)
        for member in sorted(members):
            split, label, _ = member.removeprefix(f"{name}/").split("/")
            classes[split, label].append(member)
        has_val = any(split == "val" for split, _ in classes)
        for (split, label), images in classes.items():
            parts = {split: images}
            if split == "train":
                parts = divide(images, PRETRAIN[name], 0 if has_val else VAL)
            for part, chosen in parts.items():
                folder = scratch / part / label
                if chosen:
                    folder.mkdir(parents=True)
                for member in chosen:
                    (folder / Path(member).name).write_bytes(file.read(member))
    (data / name).mkdir(exist_ok=True)
    for part in sorted(scratch.iterdir(), key=lambda part: part.name == "test"):
        shutil.rmtree(data / name / part.name, ignore_errors=True)
        part.rename(data / name / part.name)
    scratch.rmdir()


def pack(folder: Path, out: Path) -> None:
    """The same bytes each time: in sorted order, without times."""
    with atomic_write(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(folder.glob("[!p]*/*/*.jpg")):  # train, val and test, not pretrain
            archive.writestr(
                zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes()
            )


def divide(images: list[str], pretrain: float, val: float) -> dict[str, list[str]]:
    """Seeded by nothing but the sorted names: the same parts on every machine."""
    images = sorted(images)
    random.Random(0).shuffle(images)
    first = round(pretrain * len(images))
    second = first + round(val * (len(images) - first))
    return {"pretrain": images[:first], "val": images[first:second], "train": images[second:]}


if __name__ == "__main__":
    sys.exit(main())
