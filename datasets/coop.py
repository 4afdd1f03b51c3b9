"""Ten of CoOp's eleven data sets, under CoOp's names (ImageNet is in ``imagenet.py``).

Each class says where its files lie. Where CoOp made a split file from the raw data, ``raw`` reads
that data, so that a split can be made without CoOp's file.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from apd.datasets.caches import digest
from apd.datasets.folder import image_names, report_unread, subfolders
from apd.datasets.layout import (
    DRIVE,
    Counts,
    Published,
    Row,
    Source,
    SplitFile,
    entries,
    lines,
)
from apd.errors import UserError, one_line
from apd.files import read_json
from apd.host import DATASET_REGISTRY, register

CARS = "http://ai.stanford.edu/~jkrause/car196"
FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"


class _Tree(SplitFile):
    """One folder of images per class; it gives the class its name, unless ``renamed`` has one."""

    ignored: tuple[str, ...] = ()
    renamed: dict[str, str] = {}

    @classmethod
    def raw(cls, folder: Path) -> tuple[list[Row]]:
        images = folder / cls.image_dir
        classes = [f.name for f in subfolders(images) if f.name not in cls.ignored]
        if not classes:
            raise UserError(f"{cls.__name__}: no class folders in {images}")
        report_unread(cls.__name__, images)
        rows = []
        for label, name in enumerate(classes):
            # CoOp takes the file system's order; sorted, the split is the same on every machine
            files = image_names(images / name)
            if not files:
                raise UserError(f"{cls.__name__}: no images in {images / name}")
            rows += [(f"{name}/{file}", label, cls.renamed.get(name, name)) for file in files]
        return (rows,)


@register(DATASET_REGISTRY)
class Caltech101(_Tree):
    """Objects (Fei-Fei et al. 2004), without the background and one of two classes of faces."""

    dataset_dir, image_dir = "caltech-101", "101_ObjectCategories"
    layout = {
        image_dir: "101_ObjectCategories.tar.gz in caltech-101.zip of "
        "https://data.caltech.edu/records/mzrjq-6wc02"
    }
    split_id = "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"
    split_mark = "a6fbd99988c9d79a31b1958dafe2555a"
    counts = Counts(100, 4128, 1649, 2465)
    ignored = ("BACKGROUND_Google", "Faces_easy")
    renamed = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }


@register(DATASET_REGISTRY)
class DescribableTextures(_Tree):
    """DTD: textures by the adjective that describes them (Cimpoi et al. 2014)."""

    dataset_dir, image_dir = "dtd", "images"
    layout = {image_dir: "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"}
    split_id = "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"
    split_mark = "787096538adea4ea0b23d0133dc35229"
    counts = Counts(47, 2820, 1128, 1692)


@register(DATASET_REGISTRY)
class EuroSAT(_Tree):
    """Land use from the satellite Sentinel-2, RGB (Helber et al. 2019)."""

    dataset_dir, image_dir = "eurosat", "2750"
    layout = {image_dir: "http://madm.dfki.de/files/sentinel/EuroSAT.zip"}
    split_id = "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"
    split_mark = "f46201083fafeb7b58c3eb1db546786c"
    counts = Counts(10, 13500, 5400, 8100)
    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }


@register(DATASET_REGISTRY)
class Food101(_Tree):
    """Dishes (Bossard et al. 2014)."""

    dataset_dir, image_dir = "food-101", "images"
    layout = {
        image_dir: "food-101.tar.gz of https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"
    }
    split_id = "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"
    counts = Counts(101, 50500, 20200, 30300)


@register(DATASET_REGISTRY)
class OxfordPets(SplitFile):
    """Breeds of cats and dogs (Parkhi et al. 2012)."""

    dataset_dir, image_dir = "oxford_pets", "images"
    layout = {image_dir: f"{PETS}/images.tar.gz"}
    annotations = {
        f"annotations/{name}.txt": f"{PETS}/annotations.tar.gz" for name in ("trainval", "test")
    }
    split_id = "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"
    split_mark = "fe5ebce961ab9f4290d0604369b727dc"
    counts = Counts(37, 2944, 736, 3669)

    @classmethod
    def raw(cls, folder: Path) -> list[list[Row]]:
        def row(line: str) -> Row:
            image, label, _, _ = line.split(" ")  # and the species, and the breed within it
            return f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()

        return [lines(folder / path, row) for path in cls.annotations]


@register(DATASET_REGISTRY)
class StanfordCars(SplitFile):
    """Cars by make, model and year (Krause et al. 2013); the year comes first in a class name."""

    dataset_dir, image_dir = "stanford_cars", ""
    layout = {"cars_train": f"{CARS}/cars_train.tgz", "cars_test": f"{CARS}/cars_test.tgz"}
    annotations = {
        "devkit/cars_train_annos.mat": "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
        "devkit/cars_meta.mat": "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
        "cars_test_annos_withlabels.mat": f"{CARS}/cars_test_annos_withlabels.mat",
    }
    split_id = "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"
    split_mark = "0ddbc8e843bfda34727f4094ade301c3"
    counts = Counts(196, 6509, 1635, 8041)

    @classmethod
    def raw(cls, folder: Path) -> list[list[Row]]:
        train, meta, test = (folder / path for path in cls.annotations)
        names = {}
        for label, name in enumerate(_matlab(meta, "class_names"), start=1):
            model, _, year = name.item().rpartition(" ")
            names[label] = f"{year} {model}"

        def rows(path: Path, images: str) -> list[Row]:
            try:
                return [
                    (f"{images}/{image['fname'].item()}", label - 1, names[label])
                    for image in _matlab(path, "annotations")
                    for label in [int(image["class"].item())]
                ]
            except (KeyError, ValueError) as error:  # ValueError: no such field
                raise UserError(
                    f"{path}: an image has no class, or one that {meta.name} does not name "
                    f"({one_line(error)})"
                ) from error

        return [rows(train, "cars_train"), rows(test, "cars_test")]


@register(DATASET_REGISTRY)
class OxfordFlowers(SplitFile):
    """Flowers102: flowers that are common in the UK (Nilsback and Zisserman 2008)."""

    dataset_dir, image_dir = "oxford_flowers", "jpg"
    layout = {image_dir: f"{FLOWERS}/102flowers.tgz"}
    annotations = {
        "imagelabels.mat": f"{FLOWERS}/imagelabels.mat",
        "cat_to_name.json": DRIVE.format("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"),
    }
    split_id = "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"
    split_mark = "933f7538b3fa950790a10549225c0b19"
    counts = Counts(102, 4093, 1633, 2463)

    @classmethod
    def raw(cls, folder: Path) -> tuple[list[Row]]:
        labels, path = _matlab(folder / "imagelabels.mat", "labels"), folder / "cat_to_name.json"
        try:
            names = read_json(path)
            return (
                [
                    (f"image_{i:05d}.jpg", int(label) - 1, names[str(int(label))])
                    for i, label in enumerate(labels, start=1)
                ],
            )
        except KeyError as error:
            raise UserError(
                f"{path} has no name for label {one_line(error)}, which imagelabels.mat uses"
            ) from error
        except ValueError as error:
            raise UserError(f"cannot read {path} ({one_line(error)})") from error


@register(DATASET_REGISTRY)
class SUN397(SplitFile):
    """Scenes (Xiao et al. 2010), the first of its partitions; "indoor" and "outdoor" come first."""

    dataset_dir, image_dir = "sun397", "SUN397"
    layout = {image_dir: "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"}
    annotations = {
        f"{name}.txt": "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
        for name in ("ClassName", "Training_01", "Testing_01")
    }
    split_id = "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"
    counts = Counts(397, 15880, 3970, 19850)

    @classmethod
    def raw(cls, folder: Path) -> list[list[Row]]:
        labels = _numbered(folder / "ClassName.txt", lambda line: line[1:])  # /a/abbey

        def row(line: str) -> Row:  # /a/abbey/sun_aaalbzqrimafwbiv.jpg
            scene = os.path.dirname(line[1:])
            return line[1:], labels[scene], " ".join(reversed(scene.split("/")[1:]))

        return [lines(folder / f"{name}_01.txt", row) for name in ("Training", "Testing")]


@register(DATASET_REGISTRY)
class UCF101(SplitFile):
    """Actions (Soomro et al. 2012): the middle frame of each video of the first partition."""

    dataset_dir, image_dir = "ucf101", "UCF-101-midframes"
    layout = {
        image_dir: f"UCF-101-midframes.zip, {DRIVE.format('10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O')}"
    }
    annotations = {
        f"ucfTrainTestlist/{name}.txt": "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"
        for name in ("classInd", "trainlist01", "testlist01")
    }
    split_id = "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"
    split_mark = "f81c773ec5dc0cd3f1a7f16aecae4ae8"
    counts = Counts(101, 7639, 1898, 3783)

    @classmethod
    def raw(cls, folder: Path) -> list[list[Row]]:
        classes, *lists = (folder / path for path in cls.annotations)

        def labelled(line: str) -> tuple[str, int]:  # 1 ApplyEyeMakeup
            label, action = line.split(" ")
            return action, int(label) - 1

        labels = dict(lines(classes, labelled))

        def row(line: str) -> Row:  # YoYo/v_YoYo_g08_c01.avi 101
            action, video = line.split(" ")[0].split("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            return f"{name}/{video.replace('.avi', '.jpg')}", labels[action], name

        return [lines(path, row) for path in lists]


@register(DATASET_REGISTRY)
class FGVCAircraft(Published):
    """Aircraft variants (Maji et al. 2013), in the splits that it was published with."""

    dataset_dir, image_dir = "fgvc_aircraft", "images"
    layout = {
        path: "data/ in https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
        "fgvc-aircraft-2013b.tar.gz, renamed fgvc_aircraft"
        for path in (
            "images",
            "variants.txt",
            *(f"images_variant_{split}.txt" for split in ("train", "val", "test")),
        )
    }
    counts = Counts(100, 3334, 3333, 3333)

    @classmethod
    def source(cls, folder: Path) -> Source:
        cls.require(folder)
        _, variants, *lists = (folder / path for path in cls.layout)
        labels = _numbered(variants, str)

        def row(line: str) -> Row:  # 1025794 707-320
            image, _, variant = line.partition(" ")
            return f"{image}.jpg", labels[variant], variant

        splits = [lines(path, row) for path in lists]
        mark = digest(*(path.read_bytes() for path in (variants, *lists)))
        return Source(mark, *(partial(entries, folder / cls.image_dir, rows) for rows in splits))


def _numbered(path: Path, name) -> dict[str, int]:
    """Class names, one per line, to their numbers from 0."""
    labels: dict[str, int] = {}
    for line in lines(path, name):
        if line in labels:
            raise UserError(f"{path} names the class '{line}' twice")
        labels[line] = len(labels)
    return labels


def _matlab(path: Path, variable: str):
    """The elements of a row vector in a .mat file."""
    from scipy.io import loadmat  # slow to import, and only two splits are made from such files

    try:
        return loadmat(path)[variable].ravel()
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(
            f"cannot read '{variable}' in {path} ({type(error).__name__}: {one_line(error)}): "
            "download it again"
        ) from error
