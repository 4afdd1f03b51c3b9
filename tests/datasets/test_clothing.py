from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apd.datasets import stored
from apd.datasets.clothing import Clothing
from apd.errors import UserError


def test_its_images_come_with_the_package(make_cfg, written):
    dataset = Clothing(make_cfg("Clothing", "DATASET.ROOT", written))
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test)] == [1021, 684, 372]
    assert dataset.classnames[0] == "dress" and len(dataset.classnames) == 10
    assert all(np.asarray(Image.open(item.impath)).shape == (32, 32, 3) for item in dataset.test)
    assert {path.name for path in Path(written, "clothing").iterdir()} == {
        "train",
        "val",
        "test",
    }


def test_a_later_run_writes_only_what_is_amiss(make_cfg, written, monkeypatch):
    cfg = make_cfg("Clothing", "DATASET.ROOT", written)
    test = [item.impath for item in Clothing(cfg).test]
    whole = open(test[0], "rb").read()
    open(test[0], "wb").close()
    written, replace = [], stored.os.replace
    monkeypatch.setattr(
        stored.os, "replace", lambda old, new: (written.append(str(new)), replace(old, new))
    )
    assert [item.impath for item in Clothing(cfg).test] == test
    assert written == [test[0]] and open(test[0], "rb").read() == whole


def test_sixteen_shots(make_cfg, written):
    dataset = Clothing(make_cfg("Clothing", "DATASET.ROOT", written, "DATASET.NUM_SHOTS", 16))
    assert Counter(item.label for item in dataset.train_x) == {label: 16 for label in range(10)}


def test_root_that_cannot_be_written_is_told(make_cfg, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(UserError, match="Clothing: cannot write .*data/clothing.*--root"):
        Clothing(make_cfg("Clothing"))
