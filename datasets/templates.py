"""Hand-written prompts for zero-shot CLIP, one a data set, the ones that CoOp compares with."""

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


def template(dataset_name: str) -> str:
    """Return the prompt of a data set, ``{}`` standing for the class name."""
    return TEMPLATES.get(dataset_name, DEFAULT)
