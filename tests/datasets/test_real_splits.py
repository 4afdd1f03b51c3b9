"""CoOp's own split files through our loaders. Needs COOP_SPLITS, a folder with split_zhou_*.json.

What is pinned here was compared with CoOp's loaders on upstream Dassl (``test_upstream.py``).
"""

import json
import os

import pytest
from real_splits import FOLDER, NAMES

from apd.datasets.caches import digest
from apd.doctor.checks import DATASETS, examine

pytestmark = pytest.mark.skipif(not NAMES, reason="needs COOP_SPLITS, a folder of split files")

# class names in the order of their labels; images drawn for 1, 2, 4, 8, 16 shots x seeds 1, 2, 3
PINNED = {
    "Caltech101": ("b09cb61fecbc1503", "f6bba5bde450e276"),
    "OxfordPets": ("7226975acdb0b67a", "d0f2ee81f2f8813f"),
    "StanfordCars": ("9870d25fc3a23f82", "4468512155ebade0"),
    "OxfordFlowers": ("3e4cc7138f4f0bd2", "dd067d0ae4665380"),
    "DescribableTextures": ("ffa989b5fc658d82", "9120b605f57a72c8"),
    "EuroSAT": ("0975c12bea806732", "68a36784c68ee83a"),
    "UCF101": ("0b39993762e82805", "41f75d05144d44ba"),
}


def hashed(value):
    return digest(json.dumps(value))[:16]


@pytest.fixture
def load(make_cfg, real_root):
    """Return a function: data set name and config options to the data set."""
    return lambda name, *options: DATASETS[name](
        make_cfg(name, "DATASET.ROOT", str(real_root), *options)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_published_split_has_the_published_counts_and_mark(real_root, name):
    finding = examine(DATASETS[name], real_root)
    assert (finding.state, finding.counts) == ("ok", DATASETS[name].counts)
    assert finding.split_file == "CoOp's"


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_in_the_published_order(load, name):
    dataset = load(name)
    assert len(dataset.classnames) == DATASETS[name].counts.classes
    assert hashed(dataset.classnames) == PINNED[name][0]


@pytest.mark.parametrize("name", NAMES)
def test_few_shot_draws_are_those_of_coop(load, real_root, name):
    images = os.path.join(real_root, DATASETS[name].dataset_dir, DATASETS[name].image_dir, "")
    draws = []
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            dataset = load(name, "DATASET.NUM_SHOTS", shots, "SEED", seed)
            draws.append(
                [
                    [[item.impath.removeprefix(images), item.label] for item in split]
                    for split in (dataset.train_x, dataset.val)
                ]
            )
    assert hashed(draws) == PINNED[name][1]


@pytest.mark.parametrize("name", NAMES[:1])
def test_a_changed_split_file_is_told(real_root, tmp_path, name):
    dataset = DATASETS[name]
    folder = tmp_path / dataset.dataset_dir
    folder.mkdir()
    for entry in (real_root / dataset.dataset_dir).iterdir():
        if entry.name != "split_fewshot":
            os.symlink(entry, folder / entry.name)
    path = dataset.split_path(folder)
    split = json.loads((FOLDER / path.name).read_bytes())
    split["train"][0], split["train"][1] = split["train"][1], split["train"][0]
    path.unlink()
    path.write_text(json.dumps(split))
    finding = examine(dataset, tmp_path)
    assert finding.usable and (finding.state, finding.split_file) == ("split differs", "not CoOp's")
    assert "few-shot draws and numbers are not comparable" in "\n".join(finding.advice)
