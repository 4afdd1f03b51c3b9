"""Names, templates and order of the data sets, as plain data that needs no PyTorch.

A data set without a row here can be trained on and shown in tables like any other.
"""

from __future__ import annotations

from apd.classes import name_suffix
from apd.methods import place

DEFAULT = "a photo of a {}."

# Data set -> the template (hand-written prompt) of zero-shot CLIP that CoOp compares with; {} is
# the class name. In the papers' order, which tables use too.
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
    """The template of a data set (cfg.DATASET); ``{}`` stands for the class name."""
    own = dataset.FOLDER.TEMPLATE if dataset.NAME == "Folder" else ""
    return own or TEMPLATES.get(dataset.NAME, DEFAULT)


def dataset_name(dataset) -> str:
    """The name of a data set (cfg.DATASET) in results; a Folder is named by its own name or path.

    DATASET.CLASSES adds the selected classes, as in "Food101 3/10" or "Food101: ramen, sushi".
    DATASET.VAL_TO_TEST adds that validation images are tested on: "Food101+val".
    """
    name = dataset.NAME
    if name == "Folder":
        name = dataset.FOLDER.NAME or dataset.FOLDER.DIR or name
    if dataset.VAL_TO_TEST:
        name += "+val"
    return f"{name}{name_suffix(dataset.CLASSES)}"


def data_rank(name: str) -> tuple[int, str]:
    """A sort key: first the order of ``PUBLISHED``, then other data sets by name."""
    return place(name, PUBLISHED)
