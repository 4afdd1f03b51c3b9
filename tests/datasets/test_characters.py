"""The rendered characters that prompts trained on the digits are tested on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import apd
from apd.config import default
from apd.host import build_dataset


@pytest.fixture
def dataset(written):
    def dataset(name):
        apd.register()
        cfg = default()
        cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = name, written, 1
        return build_dataset(cfg)

    return dataset


@pytest.mark.parametrize(
    "name, classes, first", [("Letters", 26, "letter a"), ("RenderedDigits", 10, "zero")]
)
def test_each_class_has_16_faces_and_no_image_twice(dataset, name, classes, first):
    data = dataset(name)
    assert (data.num_classes, data.classnames[0]) == (classes, first)
    splits = (data.train_x, data.val, data.test)
    assert [len(split) for split in splits] == [16 * classes, 16 * classes, 32 * classes]
    paths = [item.impath for split in splits for item in split]
    assert len(set(paths)) == len(paths)
    image = np.asarray(Image.open(paths[0]))
    assert (image.shape, image.dtype) == ((8, 8), np.uint8) and image.max() > 128


def test_they_are_drawn_alike_every_time(dataset, written):
    first = {i.impath: Image.open(i.impath).tobytes() for i in dataset("RenderedDigits").test}
    for path in Path(written, "rendered_digits").iterdir():
        path.unlink()
    again = {i.impath: Image.open(i.impath).tobytes() for i in dataset("RenderedDigits").test}
    assert first == again and len({*first.values()}) > 300
