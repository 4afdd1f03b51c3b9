"""The images that CoOp's own split files name, made: a data root as CoOp has it.

The split files are not part of this project: $COOP_SPLITS names a folder with some of them.
"""

import json
import os
import shutil
from pathlib import Path

import trees

from apd.doctor.checks import DATASETS

FOLDER = Path(os.environ.get("COOP_SPLITS", "/dev/null"))
NAMES = [name for name in trees.SPLIT_FILES if (FOLDER / f"split_zhou_{name}.json").is_file()]


def build(name, root):
    """Lay out data set ``name`` below ``root``, a link to one image for each that its split has."""
    dataset = DATASETS[name]
    folder = root / dataset.dataset_dir
    path = FOLDER / dataset.split_path(folder).name
    folder.mkdir(parents=True)
    shutil.copy(path, folder)
    for needed in dataset.layout:
        (folder / needed).mkdir(exist_ok=True)
    trees.image(root / "one.jpg")
    made = set()
    for rows in json.loads(path.read_bytes()).values():
        for image, _, _ in rows:
            target = os.path.join(folder, dataset.image_dir, image)
            if (parent := os.path.dirname(target)) not in made:
                os.makedirs(parent, exist_ok=True)
                made.add(parent)
            os.symlink(root / "one.jpg", target)
