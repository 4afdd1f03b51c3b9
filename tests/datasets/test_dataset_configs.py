from pathlib import Path

import pytest

from apd.config import extend_cfg
from apd.datasets.templates import template
from apd.host import DATASET_REGISTRY, get_cfg_default

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
NAMES = {  # as in CoOp, and ours
    "caltech101": "Caltech101",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "fgvc_aircraft": "FGVCAircraft",
    "food101": "Food101",
    "imagenet": "ImageNet",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
    "imagenet_sketch": "ImageNetSketch",
    "imagenetv2": "ImageNetV2",
    "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "sun397": "SUN397",
    "ucf101": "UCF101",
    "digits": "Digits",
    "folder": "Folder",
    "letters": "Letters",
    "rendered_digits": "RenderedDigits",
}


def test_every_data_set_has_a_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("stem", NAMES)
def test_config_merges_and_names_the_data_set(stem):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
    assert cfg.DATASET.NAME == NAMES[stem]


def test_ours_are_registered():
    import apd.datasets  # noqa: F401

    assert set(NAMES.values()) <= set(DATASET_REGISTRY.registered_names())


def test_templates_take_a_class_name_and_none_is_left_over():
    assert template("OxfordPets").format("cat") == "a photo of a cat, a type of pet."
    assert template("Digits").format("seven") == "a photo of the digit seven."
    assert template("anything else").format("cat") == "a photo of a cat."
    assert all(template(name).count("{}") == 1 for name in NAMES.values())
