"""What a CoOp checkout makes of a data root: python coop_draws.py COOP ROOT < cases > draws.json

Run as a process of its own, because CoOp's package is called ``datasets`` and registers the same
names. Each case is [name, shots, seed, subsample]; each result a list of [path, label, class
name] for train_x, val and test.
"""

import contextlib
import json
import sys
from types import SimpleNamespace

coop, root = sys.argv[1:]
sys.path.insert(0, coop)

from dassl.data.datasets import DATASET_REGISTRY  # noqa: E402
from dassl.utils import set_random_seed  # noqa: E402

draws = []
with contextlib.redirect_stdout(sys.stderr):
    for module in """
        caltech101 dtd eurosat fgvc_aircraft food101 imagenet imagenet_a imagenet_r
        imagenet_sketch imagenetv2 oxford_flowers oxford_pets stanford_cars sun397
        ucf101
    """.split():
        __import__(f"datasets.{module}")
    for name, shots, seed, subsample in json.load(sys.stdin):
        options = SimpleNamespace(ROOT=root, NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
        set_random_seed(seed)
        dataset = DATASET_REGISTRY.get(name)(SimpleNamespace(DATASET=options, SEED=seed))
        draws.append(
            [
                [[item.impath, item.label, item.classname] for item in split or ()]
                for split in (dataset.train_x, dataset.val, dataset.test)
            ]
        )
json.dump(draws, sys.stdout)
