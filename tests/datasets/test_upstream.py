"""CoOp itself on the same data root. Needs Dassl, and COOP_ROOT naming a checkout of CoOp."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import real_splits
import trees

from apd.doctor.checks import DATASETS

COOP = os.environ.get("COOP_ROOT")
pytestmark = pytest.mark.skipif(
    not COOP or not find_spec("dassl"), reason="needs Dassl and COOP_ROOT"
)
CASES = [
    *(
        (name, shots, seed, "all")
        for name in trees.FEWSHOT
        for shots in (1, 2, 4, 8, 16)
        for seed in (1, 2, 3)
    ),
    *((name, 4, 1, half) for name in trees.FEWSHOT for half in ("base", "new")),
    *((name, -1, 1, "all") for name in trees.CLASSES),
    *((name, 16, 1, "all") for name in trees.SHIFTS),
]


def coops(root, cases):
    command = [sys.executable, str(Path(__file__).with_name("coop_draws.py")), COOP, str(root)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def ours(make_cfg, cases, *options):
    draws = []
    for name, shots, seed, subsample in cases:
        dataset = DATASETS[name](
            make_cfg(
                name,
                *options,
                "DATASET.NUM_SHOTS",
                shots,
                "SEED",
                seed,
                "DATASET.SUBSAMPLE_CLASSES",
                subsample,
            )
        )
        draws.append(
            [
                [[item.impath, item.label, item.classname] for item in split or ()]
                for split in (dataset.train_x, dataset.val, dataset.test)
            ]
        )
    return draws


@pytest.fixture
def root(tmp_path):
    """All data sets; CoOp insists on the 1,000 folders of ImageNetV2."""
    root = tmp_path / "data"
    for name in trees.CLASSES:
        trees.build(name, root, images=40)
    v2 = root / "imagenetv2"
    for label in range(1000):
        trees.image(v2 / "imagenetv2-matched-frequency-format-val" / str(label) / "0.jpeg")
    trees.text(v2 / "classnames.txt", *(f"n{i:08d} class {i}" for i in range(1000)))
    return root


def test_images_labels_names_and_draws_equal_coops(make_cfg, root):
    for name in trees.SPLIT_FILES:
        DATASETS[name].make_split(root / DATASETS[name].dataset_dir, seed=7)
    first = ours(make_cfg, CASES)  # drawn
    assert ours(make_cfg, CASES) == first  # from our caches
    assert coops(root, CASES) == first
    assert list(root.glob("*/split_fewshot/*.pkl"))
    assert (root / "imagenet" / "preprocessed.pkl").exists()
    assert ours(make_cfg, CASES) == first  # from CoOp's caches


@pytest.mark.skipif(not real_splits.NAMES, reason="needs COOP_SPLITS, a folder of split files")
def test_coops_own_splits_give_what_coop_makes_of_them(make_cfg, real_root):
    """Which ``test_real_splits.py`` pins."""
    cases = [
        (name, *case)
        for name in real_splits.NAMES
        for case in (
            (-1, 1, "all"),
            (4, 1, "base"),
            (4, 1, "new"),
            *((shots, seed, "all") for shots in (1, 2, 4, 8, 16) for seed in (1, 2, 3)),
        )
    ]
    own = ours(make_cfg, cases, "DATASET.ROOT", str(real_root))
    assert coops(real_root, cases) == own


def test_splits_equal_those_that_coop_makes(root):
    """With the seed of CoOp's run, where the order of the files is given by a list."""
    listed = ("OxfordPets", "StanfordCars", "OxfordFlowers", "SUN397", "UCF101")
    coops(root, [(name, -1, 5, "all") for name in listed])
    for name in listed:
        path = DATASETS[name].split_path(root / DATASETS[name].dataset_dir)
        theirs = json.loads(path.read_text())
        path.unlink()
        DATASETS[name].make_split(path.parent, seed=5)
        made = json.loads(path.read_text())
        assert all(made[split] == theirs[split] for split in ("train", "val", "test")), name
