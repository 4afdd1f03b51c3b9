"""What is known of each data set beside its class in ``datasets/``: plain data.

A data set that has no row here is read, trained on and tabled like any other.
"""

from __future__ import annotations

from apd.classes import said
from apd.methods import place

DEFAULT = "a photo of a {}."

# Data set -> the hand-written prompt of zero-shot CLIP, {} for the class name: those that CoOp
# compares with. In the papers' order, which is that of tables.
PUBLISHED = {
    "ImageNet": DEFAULT,
    "Caltech101": DEFAULT,
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": DEFAULT,
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "Food101": "a photo of {}, a type of food.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "SUN397": DEFAULT,
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNetV2": DEFAULT,
    "ImageNetSketch": DEFAULT,
    "ImageNetA": DEFAULT,
    "ImageNetR": DEFAULT,
}
TEMPLATES = {**PUBLISHED, "Digits": "a photo of the digit {}."}


def template(dataset) -> str:
    """The prompt of a data set (cfg.DATASET), ``{}`` standing for the class name."""
    own = dataset.FOLDER.TEMPLATE if dataset.NAME == "Folder" else ""
    return own or TEMPLATES.get(dataset.NAME, DEFAULT)


def dataset_name(dataset) -> str:
    """The name of a data set (cfg.DATASET) in results, where one Folder is not another.

    Its classes are a part of it, as in "Food101 3/10" or "Food101: ramen, sushi" (DATASET.CLASSES),
    and so are validation images that are tested on: "Food101+val" (DATASET.VAL_TO_TEST).
    """
    name = dataset.NAME
    if name == "Folder":
        name = dataset.FOLDER.NAME or dataset.FOLDER.DIR or name
    if dataset.VAL_TO_TEST:
        name += "+val"
    return f"{name}{said(dataset.CLASSES)}"


def data_rank(name: str) -> tuple[int, str]:
    """Sort key: in the order of ``PUBLISHED``, then others by name."""
    return place(name, PUBLISHED)
