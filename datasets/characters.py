"""Characters rendered from matplotlib's fonts: data sets to transfer prompts to from the digits."""

from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apd.datasets.digits import CLASSNAMES, stored
from apd.datasets.fewshot import FewShotDataset, data_root
from apd.host import DATASET_REGISTRY, Datum, register

FACES = (
    *(
        f"DejaVu{family}{style}.ttf"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)
VARIANTS = ("train", "val", "test", "test")  # the splits of a character's images in each font face


class _Characters(FewShotDataset):
    """White characters on black, 8x8 pixels like the handwritten digits.

    Each of 16 font faces gives one training, one validation and two test images of a character,
    rotated by a random angle. The images are the same on every machine with the same fonts and
    Pillow. They are written once to ``ROOT/<folder>/<index>.png``.

    [O] These sets let the transfer protocols run where nothing can be downloaded. The mini CLIP was
    pretrained on such images, so they do not measure transfer to images that CLIP does not know.
    """

    folder: str
    characters: dict[str, str]  # class name -> character

    def __init__(self, cfg) -> None:
        draws = [
            (label, face, split)
            for label in range(len(self.characters))
            for face in FACES
            for split in VARIANTS
        ]
        source, drawn = random.Random(0), list(self.characters.values())
        images = np.stack([_render(drawn[label], face, source) for label, face, _ in draws])
        paths = stored(cfg, data_root(cfg, must_exist=False) / self.folder, images)
        names = list(self.characters)
        splits: dict[str, list[Datum]] = {split: [] for split in VARIANTS}
        for path, (label, _, split) in zip(paths, draws):
            splits[split].append(Datum(impath=path, label=label, classname=names[label]))
        super().__init__(cfg, splits["train"], splits["val"], splits["test"])


@register(DATASET_REGISTRY)
class Letters(_Characters):
    """Small letters a to z: cross-dataset for prompts that were trained on ``Digits``."""

    folder = "letters"
    characters = {f"letter {c}": c for c in string.ascii_lowercase}


@register(DATASET_REGISTRY)
class RenderedDigits(_Characters):
    """The digits' ten classes in print: a domain shift from ``Digits``."""

    folder = "rendered_digits"
    characters = dict(zip(CLASSNAMES, string.digits))


def _render(character: str, face: str, source: random.Random) -> np.ndarray:
    """(8, 8) uint8, made as the handwritten digits were: the mean of each 4x4 block of a 32x32
    bitmap."""
    from matplotlib import get_data_path  # slow to import

    path = Path(get_data_path(), "fonts", "ttf", face)
    image = Image.new("L", (64, 64))
    draw = ImageDraw.Draw(image)
    draw.text((32, 32), character, fill=255, font=ImageFont.truetype(str(path), 40), anchor="mm")
    image = image.rotate(source.uniform(-10, 10), Image.Resampling.BICUBIC)
    image = image.crop(image.getbbox())
    scale = 32 / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    bitmap = Image.new("L", (32, 32))
    bitmap.paste(image, ((32 - image.width) // 2, (32 - image.height) // 2))
    return np.asarray(bitmap).reshape(8, 4, 8, 4).mean(axis=(1, 3)).round().astype(np.uint8)
