import os
import random

import pytest
from PIL import Image

from apd.datasets.folder import Folder
from apd.errors import UserError
from apd.host import DataManager


@pytest.fixture
def tree(tmp_path):
    """Return a function: paths below the data root, which become tiny images there."""

    def make(*paths):
        for path in paths:
            path = tmp_path / "data" / path
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = tuple(os.urandom(3))
            Image.new("RGB", (9, 7), colour).save(path, "PNG")
        return tmp_path / "data"

    return make


def names(split):
    """(class, label, file name) of each image."""
    return [(item.classname, item.label, os.path.basename(item.impath)) for item in split]


def test_train_and_test_folders(make_cfg, tree):
    tree(
        "train/dog/b.png",
        "train/dog/a.JPG",
        "train/cat_flap/c.webp",
        "test/dog/d.Tif",
        "test/cat_flap/e.jpeg",
    )
    (tree() / "train" / "dog" / "notes.txt").touch()
    (tree() / "train" / "dog" / ".hidden.png").touch()
    (tree() / "train" / ".cache").mkdir()
    dataset = Folder(make_cfg("Folder"))
    assert dataset.classnames == ["cat_flap", "dog"]
    assert names(dataset.train_x) == [
        ("cat_flap", 0, "c.webp"),
        ("dog", 1, "a.JPG"),
        ("dog", 1, "b.png"),
    ]
    assert names(dataset.test) == [("cat_flap", 0, "e.jpeg"), ("dog", 1, "d.Tif")]
    assert not dataset.val


def test_val_folder_is_used(make_cfg, tree):
    tree("train/a/1.png", "train/b/2.png", "test/a/3.png", "val/b/4.png")
    assert names(Folder(make_cfg("Folder")).val) == [("b", 1, "4.png")]


def test_folder_below_the_root(make_cfg, tree):
    tree("pets/train/a/1.png", "pets/test/a/2.png")
    dataset = Folder(make_cfg("Folder", "DATASET.FOLDER.DIR", "pets"))
    assert names(dataset.train_x) == [("a", 0, "1.png")]


def test_one_tree_is_split_50_20_30_by_the_documented_rule(make_cfg, tree):
    files = [f"{i:02}.png" for i in range(10)]
    tree(*(f"{name}/{file}" for name in "ba" for file in files))
    dataset = Folder(make_cfg("Folder"))
    shuffled = list(files)
    random.Random(0).shuffle(shuffled)
    for split, part in (
        (dataset.train_x, shuffled[:5]),
        (dataset.val, shuffled[5:7]),
        (dataset.test, shuffled[7:]),
    ):
        assert names(split) == [("a", 0, f) for f in part] + [("b", 1, f) for f in part]


def test_split_heeds_neither_seed_nor_random_state_nor_file_system_order(
    make_cfg, tree, monkeypatch
):
    tree(*(f"{name}/{i}.png" for name in "ab" for i in range(12)))

    def splits(seed):
        dataset = Folder(make_cfg("Folder", "SEED", seed))
        return names(dataset.train_x), names(dataset.val), names(dataset.test)

    random.seed(1)
    first = splits(1)
    random.seed(2)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(scandir(path))))
    assert splits(2) == first


@pytest.mark.parametrize("n", range(4, 12))
def test_every_split_has_each_class(make_cfg, tree, n):
    tree(*(f"a/{i}.png" for i in range(n)))
    dataset = Folder(make_cfg("Folder"))
    assert dataset.train_x and dataset.val and dataset.test
    assert len(dataset.train_x) + len(dataset.val) + len(dataset.test) == n


def test_few_shot_and_new_classes(make_cfg, tree):
    tree(*(f"{name}/{i}.png" for name in "abc" for i in range(12)))
    dataset = Folder(make_cfg("Folder", "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "new"))
    assert [item.classname for item in dataset.train_x] == ["c", "c"]
    assert {item.label for item in dataset.test} == {0} and len(dataset.test) == 4


@pytest.mark.parametrize(
    "paths, empty, message",
    [
        ([], None, "no folder .*data: point --root"),
        (["x.png"], None, "no class folders in .*data: expected train/"),
        (["train/a/1.png"], None, "no folder .*test: expected train/"),
        (["test/a/1.png"], None, "no folder .*train: expected train/"),
        (["train/a/1.png", "test/a/1.png"], "train/b", "without images in .*train: b; add"),
        (
            ["train/a/1.png", "test/a/1.png", "test/c/1.png", "test/b/1.png"],
            None,
            "train lacks: b, c",
        ),
        (["train/a/1.png", "test/a/1.png", "val/z/1.png"], None, "train lacks: z"),
        (["a/1.png", "a/2.png", "a/3.png"], None, r"needs 4 images .*: a \(3\)"),
    ],
)
def test_faulty_trees_are_told_in_one_line(make_cfg, tree, paths, empty, message):
    root = tree(*paths)
    if empty:
        (root / empty).mkdir(parents=True)
    with pytest.raises(UserError, match=message) as error:
        Folder(make_cfg("Folder"))
    assert "\n" not in str(error.value)


def test_a_batch_comes_through_the_data_manager(make_cfg, tree):
    tree(
        *(
            f"{split}/{name}/{i}.png"
            for split in ("train", "test")
            for name in "ab"
            for i in range(8)
        )
    )
    manager = DataManager(make_cfg("Folder", "INPUT.TRANSFORMS", ("random_resized_crop",)))
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape == (8, 3, 32, 32)
    assert manager.val_loader is None and len(manager.test_loader.dataset) == 16


def test_a_link_to_no_file_is_told(make_cfg, tree):
    root = tree("train/dog/a.png", "test/dog/b.png")
    (root / "train" / "dog" / "c.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match="1 of 2 images are missing: .*c.png .a link to no file"):
        Folder(make_cfg("Folder"))


def test_a_class_whose_name_is_no_text_is_told(make_cfg, tree):
    root = tree("train/dog/a.png", "test/dog/b.png")
    os.mkdir(os.fsencode(root / "train") + b"/caf\xe9")
    with pytest.raises(UserError, match="caf.* names a class, but is no plain text"):
        Folder(make_cfg("Folder"))


def test_what_is_not_read_is_counted(make_cfg, tree, capsys):
    tree("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    Folder(make_cfg("Folder"))
    assert "not read" not in capsys.readouterr().out
    tree("train/a/5.png", "train/.cat/6.png", "train/7.png", "train/b/in/8.png", "train/b/.9.png")
    for name in ("train/a/10.gif", "train/b/11.GIF", "train/b/notes", "train/b/.DS_Store"):
        (tree() / name).touch()
    assert len(Folder(make_cfg("Folder")).train_x) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not read" in line]
    assert line.endswith(
        "train: 2 .gif files, 1 folders in class folders, 1 hidden folders, 1 hidden images, "
        "1 images in no class folder, 1 other files"
    )
