"""Photographs of clothes that come with the package: real images, nothing to download."""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from pathlib import Path

from apd.about import ASSETS
from apd.datasets.fewshot import data_root
from apd.datasets.folder import Folder
from apd.datasets.stored import store
from apd.host import DATASET_REGISTRY, register

ARCHIVE = ASSETS / "clothing.zip"


@register(DATASET_REGISTRY)
class Clothing(Folder):
    """Clothes of ten kinds, 32x32 (Grigorev 2020, public domain: CC0).

    1,021 images for training, 684 for validation, 372 for the test. They are written once to
    ``ROOT/clothing/<split>/<class>/``; a missing root is made. The mini CLIP of photographs was
    pretrained on other images of these classes (scripts/mini_clip/README.md).

    Raises:
        UserError: the images cannot be written under the data root.
    """

    def folder(self, cfg) -> Path:
        folder = data_root(cfg, must_exist=False) / "clothing"
        with zipfile.ZipFile(ARCHIVE) as archive:
            store(
                cfg.DATASET.NAME,
                folder,
                {
                    folder / member.filename: partial(_write, archive, member)
                    for member in archive.infolist()
                    if not _holds(folder / member.filename, member)
                },
            )
        return folder


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.write_bytes(archive.read(member))


def _holds(path: Path, member: zipfile.ZipInfo) -> bool:
    try:
        return zlib.crc32(path.read_bytes()) == member.CRC
    except OSError:
        return False
