"""Small data roots, each data set in the layout and annotation formats that it is published in.

``build(name, root, images)`` makes one, with so many images per class; ``CLASSES`` has the class
names that CoOp reads from them, in the order of their labels.
"""

import io
import json

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = {
    "ImageNet": ["tench", "goldfish", "great white shark"],
    "Caltech101": ["face", "leopard", "motorbike", "accordion", "airplane"],
    "OxfordPets": ["abyssinian", "american_bulldog", "great_pyrenees"],
    "StanfordCars": ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2009 Ram C/V Minivan"],
    "OxfordFlowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "Food101": ["apple_pie", "waffles"],
    "FGVCAircraft": ["707-320", "Cessna 172", "DHC-8-100"],
    "SUN397": ["abbey", "outdoor apartment_building", "indoor church"],
    "DescribableTextures": ["banded", "cobwebbed", "zigzagged"],
    "EuroSAT": [
        "Annual Crop Land",
        "Forest",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Industrial Buildings",
        "Pasture Land",
        "Permanent Crop Land",
        "Residential Buildings",
        "River",
        "Sea or Lake",
    ],
    "UCF101": ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"],
    "ImageNetV2": ["tench", "goldfish", "great white shark"],
    "ImageNetSketch": ["tench", "goldfish", "great white shark"],
    "ImageNetA": ["goldfish", "great white shark"],
    "ImageNetR": ["goldfish", "great white shark"],
}
SHIFTS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
FEWSHOT = tuple(name for name in CLASSES if name not in SHIFTS)
SPLIT_FILES = tuple(name for name in FEWSHOT if name not in ("ImageNet", "FGVCAircraft"))
WNIDS = ["n01440764", "n01443537", "n01484850"]


def _jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 36), (90, 120, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = _jpeg()


def build(name, root, images=10):
    """Make data set ``name`` below ``root``; return its folder."""
    return globals()[f"_{name.lower()}"](root, images)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _tree(folder, classes, images):
    for name in classes:
        for i in range(images):
            image(folder / name / f"image_{i:04d}.jpg")
        (folder / name / ".directory").touch()  # DTD has such


def _caltech101(root, n):
    folder = root / "caltech-101"
    names = [
        "BACKGROUND_Google",
        "Faces",
        "Faces_easy",
        "Leopards",
        "Motorbikes",
        "accordion",
        "airplanes",
    ]
    _tree(folder / "101_ObjectCategories", names, n)
    return folder


def _describabletextures(root, n):
    _tree(root / "dtd" / "images", CLASSES["DescribableTextures"], n)
    text(root / "dtd" / "labels" / "train1.txt", "banded/image_0000.jpg")
    return root / "dtd"


def _eurosat(root, n):
    names = """
        AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop
        Residential River SeaLake
    """.split()
    _tree(root / "eurosat" / "2750", names, n)
    return root / "eurosat"


def _food101(root, n):
    folder = root / "food-101"
    _tree(folder / "images", CLASSES["Food101"], n)
    text(folder / "meta" / "classes.txt", *CLASSES["Food101"])
    return folder


def _oxfordpets(root, n):
    folder = root / "oxford_pets"
    lists = {"trainval": [], "test": []}
    for label, name in enumerate(["Abyssinian", "american_bulldog", "great_pyrenees"], start=1):
        for i in range(2 * n):
            image(folder / "images" / f"{name}_{i}.jpg")
            species = 1 if name[0].isupper() else 2
            lists["test" if i % 2 else "trainval"].append(f"{name}_{i} {label} {species} 1")
    for split, lines in lists.items():
        text(folder / "annotations" / f"{split}.txt", *lines)
    text(folder / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID")
    text(folder / "annotations" / "xmls" / "Abyssinian_1.xml", "<annotation></annotation>")
    return folder


def _stanfordcars(root, n):
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Minivan 2009"]
    labels = [label for _ in range(n) for label in (2, 1, 3)]
    for split in ("train", "test"):
        for i in range(len(labels)):
            image(folder / f"cars_{split}" / f"{i + 1:05d}.jpg")
    (folder / "devkit").mkdir()
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    save_car_labels(folder / "devkit" / "cars_train_annos.mat", labels)
    save_car_labels(folder / "cars_test_annos_withlabels.mat", labels)
    return folder


def save_car_labels(path, labels):
    annotations = np.zeros(
        (1, len(labels)), dtype=[(key, object) for key in ("bbox_x1", "class", "fname")]
    )
    for i, label in enumerate(labels):
        annotations[0, i] = (np.uint16(1), np.uint8(label), f"{i + 1:05d}.jpg")
    savemat(path, {"annotations": annotations})


def _oxfordflowers(root, n):
    folder = root / "oxford_flowers"
    labels = [label for _ in range(n) for label in (3, 1, 2)]  # 77 comes first in the real one
    for i in range(len(labels)):
        image(folder / "jpg" / f"image_{i + 1:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    names = {str(i): name for i, name in enumerate(CLASSES["OxfordFlowers"], start=1)}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    return folder


def _sun397(root, n):
    folder = root / "sun397"
    scenes = ["/a/abbey", "/a/apartment_building/outdoor", "/c/church/indoor"]
    text(folder / "ClassName.txt", *scenes)
    for split in ("Training", "Testing"):
        paths = [f"{scene}/sun_{split.lower()}{i}.jpg" for scene in scenes for i in range(n)]
        text(folder / f"{split}_01.txt", *paths)
        for path in paths:
            image(folder / "SUN397" / path[1:])
    return folder


def _ucf101(root, n):
    folder = root / "ucf101"
    actions = {
        "ApplyEyeMakeup": "Apply_Eye_Makeup",
        "HandstandPushups": "Handstand_Pushups",
        "YoYo": "Yo_Yo",
    }
    lists = folder / "ucfTrainTestlist"
    text(lists / "classInd.txt", *(f"{i} {action}" for i, action in enumerate(actions, start=1)))
    for split, groups in (("train", range(8, 8 + n)), ("test", range(1, 6))):
        lines = []
        for label, (action, frames) in enumerate(actions.items(), start=1):
            for group in groups:
                video = f"v_{action.replace('stand', 'Stand')}_g{group:02d}_c01"
                image(folder / "UCF-101-midframes" / frames / f"{video}.jpg")
                lines.append(f"{action}/{video}.avi" + f" {label}" * (split == "train"))
        text(lists / f"{split}list01.txt", *lines)
    return folder


def _fgvcaircraft(root, n):
    folder, count = root / "fgvc_aircraft", 1000
    text(folder / "variants.txt", *CLASSES["FGVCAircraft"])
    for split in ("train", "val", "test"):
        lines = []
        for _ in range(n):
            for variant in reversed(CLASSES["FGVCAircraft"]):
                image(folder / "images" / f"{count:07d}.jpg")
                lines.append(f"{count:07d} {variant}")
                count += 1
        text(folder / f"images_variant_{split}.txt", *lines)
    return folder


def _classnames(folder):
    text(
        folder / "classnames.txt",
        *(f"{wnid} {name}" for wnid, name in zip(WNIDS, CLASSES["ImageNet"])),
    )
    return folder


def _imagenet(root, n):
    images = root / "imagenet" / "images"
    for i, wnid in enumerate(WNIDS):
        for j in range(n):
            image(images / "train" / wnid / f"{wnid}_{j * 7919 % 1000}.JPEG")
        for j in range(5):
            image(images / "val" / wnid / f"ILSVRC2012_val_{i * 5 + j:08d}.JPEG")
    return _classnames(root / "imagenet")


def _imagenetv2(root, n):
    folder = root / "imagenetv2"
    _tree(folder / "imagenetv2-matched-frequency-format-val", ["0", "1", "2"], n)
    return _classnames(folder)


def _imagenetsketch(root, n):
    _tree(root / "imagenet-sketch" / "images", WNIDS, n)
    return _classnames(root / "imagenet-sketch")


def _imageneta(root, n):
    return _two_hundred(root / "imagenet-adversarial", "imagenet-a", n)


def _imagenetr(root, n):
    return _two_hundred(root / "imagenet-rendition", "imagenet-r", n)


def _two_hundred(folder, images, n):
    _tree(folder / images, WNIDS[1:], n)
    text(folder / images / "README.txt", "not a class")
    return _classnames(folder)
