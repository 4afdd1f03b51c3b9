from pathlib import Path

from apd.catalog import dataset_name, template
from apd.config import default
from apd.host import DATASET_REGISTRY

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
    "clothing": "Clothing",
    "digits": "Digits",
    "folder": "Folder",
    "letters": "Letters",
    "rendered_digits": "RenderedDigits",
}
PHOTOS = {  # by the words of their prompts, as the mini CLIP of photographs read them in captions
    "a photo of a {}.": (
        *("caltech101", "cifar10", "clothing", "cub100", "scene15", "trashnet"),
        *("pacs_photo", "pacs_art_painting", "pacs_cartoon", "pacs_sketch"),
    ),
    "{} texture.": ("dtd10",),
    "a photo of a {}, a type of flower.": ("flowers5",),
    "a photo of {}, a type of food.": ("food101",),
    "a photo of a {} traffic sign.": ("gtsrb",),
    "a hand showing the number {}.": ("sign_digits",),
    "a satellite photo of {}.": ("ucmerced",),
}
PROMPTS = {name: prompt for prompt, names in PHOTOS.items() for name in names}
STEMS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def merged(stem):
    cfg = default()
    cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
    return cfg


def test_every_data_set_has_a_config():

    registered = {name for name in DATASET_REGISTRY.registered_names() if of_ours(name)}
    assert registered == {merged(stem).DATASET.NAME for stem in STEMS}
    assert {*NAMES, *(f"photos_{name}" for name in PROMPTS)} <= {*STEMS}


def test_every_data_set_is_in_the_documentation():
    text = (CONFIGS.parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")
    names = {name for name in DATASET_REGISTRY.registered_names() if of_ours(name)}
    assert [name for name in names if f"`{name}`" not in text] == []


def of_ours(name):
    """Whether a data set is of this package; the toolbox may have others."""
    return DATASET_REGISTRY.get(name).__module__.startswith("apd.datasets.")


def test_configs_merge_and_name_the_data_set():
    for stem, name in NAMES.items():
        cfg = merged(stem)
        assert cfg.DATASET.NAME == dataset_name(cfg.DATASET) == name


def test_photographs_are_folders_with_their_own_prompt():
    for name, prompt in PROMPTS.items():
        cfg = merged(f"photos_{name}")
        assert cfg.DATASET.NAME == "Folder" and cfg.DATASET.FOLDER.DIR == name
        assert template(cfg.DATASET) == prompt


def test_no_two_data_sets_have_one_name():
    names = {dataset_name(merged(stem).DATASET) for stem in STEMS}
    assert len(names) == len(STEMS) - 1  # photos_clothing lays out what Clothing brings
    assert not any(set(name) & set(" /") for name in names)  # figures are named after them


def test_a_folder_without_a_name_is_called_after_its_place():
    cfg = merged("folder")
    assert dataset_name(cfg.DATASET) == "Folder"
    cfg.DATASET.FOLDER.DIR = "birds"
    assert dataset_name(cfg.DATASET) == "birds"


def test_templates_take_a_class_name_and_none_is_left_over():
    pets, digits, folder = (
        template(merged(n).DATASET) for n in ("oxford_pets", "digits", "folder")
    )
    assert pets.format("cat") == "a photo of a cat, a type of pet."
    assert digits.format("seven") == "a photo of the digit seven."
    assert folder.format("cat") == "a photo of a cat."
    assert all(template(merged(stem).DATASET).count("{}") == 1 for stem in STEMS)
