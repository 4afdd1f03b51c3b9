"""Hand-written prompts for zero-shot CLIP, one a data set, the ones that CoOp compares with; and
the names that tell data sets apart."""

from __future__ import annotations

DEFAULT = "a photo of a {}."

TEMPLATES = {
    "DescribableTextures": "{} texture.",
    "Digits": "a photo of the digit {}.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "UCF101": "a photo of a person doing {}.",
}


def template(dataset) -> str:
    """Return the prompt of a data set (cfg.DATASET), ``{}`` standing for the class name."""
    own = dataset.FOLDER.TEMPLATE if dataset.NAME == "Folder" else ""
    return own or TEMPLATES.get(dataset.NAME, DEFAULT)


def dataset_name(dataset) -> str:
    """Return the name of a data set (cfg.DATASET) in results, where one Folder is not another."""
    if dataset.NAME != "Folder":
        return dataset.NAME
    return dataset.FOLDER.NAME or dataset.FOLDER.DIR or "Folder"
