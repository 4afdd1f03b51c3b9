import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from sklearn.datasets import load_digits

from apd.datasets import stored as module
from apd.datasets.digits import Digits
from apd.errors import UserError
from apd.host import DataManager

FORK = multiprocessing.get_context("fork")


def stored(dataset):
    items = dataset.train_x + dataset.val + dataset.test
    return np.stack([np.asarray(Image.open(item.impath)) for item in items])


PIXELS = np.array(
    [
        [[round(v * 255 / 16) for v in row] for row in image]
        for image in load_digits().images.tolist()
    ],
    dtype=np.uint8,
)


@pytest.fixture
def few(monkeypatch):
    """The first 1,050 digits alone, of all three splits: enough to be killed or damaged among."""
    digits = load_digits()
    digits.images, digits.target = digits.images[:1050], digits.target[:1050]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    return PIXELS[:1050]


def test_files_hold_load_digits_in_its_order(make_cfg, written):
    dataset = Digits(make_cfg("Digits", "DATASET.ROOT", written))
    assert np.array_equal(stored(dataset), PIXELS)
    assert np.array_equal(np.round(stored(dataset) * (16 / 255)), load_digits().images)
    labels = [item.label for item in dataset.train_x + dataset.val + dataset.test]
    assert labels == load_digits().target.tolist()
    assert [len(dataset.train_x), len(dataset.val), len(dataset.test)] == [797, 200, 800]
    names = "zero one two three four five six seven eight nine"
    assert dataset.classnames == names.split()
    assert sorted(os.listdir(Path(written, "digits"))) == [f"{i:04}.png" for i in range(1797)]


def test_a_later_run_writes_nothing(make_cfg, written, monkeypatch):
    Digits(make_cfg("Digits", "DATASET.ROOT", written))
    monkeypatch.setattr(module.os, "replace", lambda *_: pytest.fail("wrote again"))
    Digits(make_cfg("Digits", "DATASET.ROOT", written))


def test_sixteen_shots(make_cfg, written):
    dataset = Digits(make_cfg("Digits", "DATASET.ROOT", written, "DATASET.NUM_SHOTS", 16))
    assert Counter(item.label for item in dataset.train_x) == {label: 16 for label in range(10)}
    assert Counter(item.label for item in dataset.val) == {label: 4 for label in range(10)}
    assert len(dataset.test) == 800


def die_at_write(cfg, n):
    writes = iter(range(n))
    replace = os.replace
    module.os.replace = lambda *paths: (
        replace(*paths) if next(writes, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
    )
    Digits(cfg)


@pytest.mark.parametrize("writes", [0, 700])
def test_a_killed_first_run_leaves_what_the_second_completes(make_cfg, few, tmp_path, writes):
    killed = FORK.Process(target=die_at_write, args=(make_cfg("Digits"), writes))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "data" / "digits").glob("*.png"))) == writes
    assert np.array_equal(stored(Digits(make_cfg("Digits"))), few)


def test_damaged_files_are_written_again(make_cfg, few, tmp_path):
    Digits(make_cfg("Digits"))
    folder = tmp_path / "data" / "digits"
    whole = (folder / "0000.png").read_bytes()
    (folder / "0000.png").write_bytes(b"")
    (folder / "0001.png").write_bytes(whole[:-30])  # cut in its pixels
    (folder / "0002.png").write_bytes(whole)  # another digit
    (folder / "0003.png").unlink()
    assert np.array_equal(stored(Digits(make_cfg("Digits"))), few)


def build_at_once(cfg, barrier, pixels):
    barrier.wait()
    assert np.array_equal(stored(Digits(cfg)), pixels)


def test_processes_may_start_at_once(make_cfg, few):
    barrier = FORK.Barrier(3)
    arguments = make_cfg("Digits"), barrier, few
    builders = [FORK.Process(target=build_at_once, args=arguments) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]


def test_root_that_cannot_be_written_is_told(make_cfg, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write .*data/digits.*--root"):
        Digits(make_cfg("Digits"))
    with pytest.raises(UserError, match="--root"):
        Digits(make_cfg("Digits", "DATASET.ROOT", ""))


def test_batches_come_through_the_data_manager(make_cfg, written):
    options = ("DATASET.NUM_SHOTS", 2, "INPUT.TRANSFORMS", ("random_resized_crop",))
    manager = DataManager(make_cfg("Digits", "DATASET.ROOT", written, *options))
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape == (8, 3, 32, 32) and batch["label"].shape == (8,)
    assert 0 <= batch["img"].min() < batch["img"].max() <= 1
    test = next(iter(manager.test_loader))
    assert test["label"].tolist() == load_digits().target[997:1005].tolist()
    assert torch.equal(test["img"][:, 0], test["img"][:, 2])  # grey
    assert manager.num_classes == 10 and manager.lab2cname[7] == "seven"
