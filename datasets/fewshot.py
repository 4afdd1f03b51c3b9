"""The few-shot draw and the base/new split that every data set shares."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from apd.classes import chosen_names
from apd.errors import UserError, listed, one_line
from apd.host import DatasetBase, Datum


class Entry(NamedTuple):
    """The fields of a ``Datum``, for images that may not be drawn.

    A ``Datum`` looks whether its file exists; a million of these take a second.
    """

    impath: str
    label: int
    domain: int
    classname: str


class FewShotDataset(DatasetBase):
    """Takes the whole splits of a data set, and makes those of one run.

    ``cfg.DATASET.NUM_SHOTS`` images per class are drawn from ``train``, then ``min(shots, 4)`` from
    ``val``; NUM_SHOTS below 1 takes all images. Then ``cfg.DATASET.SUBSAMPLE_CLASSES`` selects all
    classes, the base or the new ones. Both are done as in Dassl and CoOp (Zhou et al. 2022), and
    give the same images for the same ``cfg.SEED``. ``cfg.DATASET.VAL_SHOTS`` replaces
    ``min(shots, 4)``; these images have a draw of their own, so that they are the same for every
    number of shots.

    ``cfg.DATASET.CLASSES`` selects classes, and ``SUBSAMPLE_CLASSES`` divides these into base and
    new. Both come after the draw, so a class has the same shots as in the whole data set. The
    selected classes are numbered from 0, in the data set's order. ``cfg.DATASET.VAL_TO_TEST``, from
    0 to 1, moves this share of each class's validation images to the end of the test images, before
    any are drawn for validation.

    Args:
        cfg: the run's config.
        train, val, test: lists of ``Datum`` or ``Entry``. Labels run from 0 to C-1 and each has
            images in ``train``; ``val`` may be empty.
        drawn: ``train`` and ``val`` are this run's draw already.

    Raises:
        UserError: labels with gaps, a label with two names, classes in val or test that are not in
            train, no training or test images, an ``Entry`` whose file is missing, CLASSES that the
            data set does not have, VAL_TO_TEST without VAL_SHOTS or without validation images.
    """

    reads = ("CLASSES", "VAL_SHOTS", "VAL_TO_TEST")  # our keys; Dassl's own data sets ignore them

    def __init__(
        self,
        cfg,
        train: Sequence[Datum | Entry],
        val: Sequence[Datum | Entry],
        test: Sequence[Datum | Entry],
        *,
        drawn: bool = False,
    ) -> None:
        source = type(self).__name__
        check_labels(source, train, val, test)
        if not drawn:
            whole = val
            if cfg.DATASET.NUM_SHOTS >= 1:
                train, val = self.draw(cfg, train, val)
            val, test = self.validation(cfg, whole, val, test)
        try:
            train, val, test = select_classes(train, val, test, classes=cfg.DATASET.CLASSES)
        except UserError as error:
            raise UserError(f"{source}: DATASET.CLASSES: {error}") from error
        train, val, test = subsample_classes(
            train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES
        )
        if not train or not test:
            raise UserError(
                f"{source}: DATASET.SUBSAMPLE_CLASSES {cfg.DATASET.SUBSAMPLE_CLASSES} leaves no "
                "training or no test images: use all"
            )
        # by identity, so that one list is checked once: ImageNet's val is its test, and in the sets
        # that shift its domain train_x is too
        data = {id(split): _as_datums(source, split) for split in (train, val, test)}
        _warn_of_test_images(source, train, test)
        super().__init__(train_x=data[id(train)], val=data[id(val)], test=data[id(test)])

    def draw(self, cfg, train: Sequence, val: Sequence) -> tuple[Sequence, Sequence]:
        """Return this run's training and validation images, drawn in this order."""
        shots = cfg.DATASET.NUM_SHOTS
        _warn_of_shortage(type(self).__name__, train, shots)
        # CoOp draws right after it has seeded everything. Seeding here gives the same draw whatever
        # ran before; _seeded restores the state of ``random`` afterwards.
        with _seeded(cfg.SEED):
            train = self.generate_fewshot_dataset(train, num_shots=shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4))
        return train, val

    def validation(
        self, cfg, whole: Sequence, drawn: Sequence, test: Sequence
    ) -> tuple[Sequence, Sequence]:
        """Return the validation and the test images, as VAL_SHOTS and VAL_TO_TEST say.

        Args:
            whole: all validation images.
            drawn: those that CoOp's rule draws.
        """
        shots, to_test = cfg.DATASET.VAL_SHOTS, cfg.DATASET.VAL_TO_TEST
        if shots < -1:
            raise UserError(f"DATASET.VAL_SHOTS is {shots}: use a number from 0, or -1")
        if to_test:
            if shots == -1:
                raise UserError(
                    "DATASET.VAL_TO_TEST needs DATASET.VAL_SHOTS, 0 for all that remain: CoOp's "
                    "rule draws from all validation images"
                )
            whole, moved = _split_off(whole, to_test)
            if not moved:
                name = type(self).__name__
                raise UserError(
                    f"{name}: DATASET.VAL_TO_TEST {to_test} moves no validation images: use 0"
                )
            test = [*test, *moved]
        if shots == -1:
            return drawn, test
        with _seeded(cfg.SEED):
            return self.generate_fewshot_dataset(whole, num_shots=shots), test


def data_root(cfg, must_exist: bool = True) -> Path:
    """Return the absolute path of ``cfg.DATASET.ROOT``, or raise UserError if it is missing."""
    if not cfg.DATASET.ROOT:
        raise UserError(f"{cfg.DATASET.NAME}: no data root: give it with --root DATA")
    root = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)))
    if must_exist and not root.is_dir():
        raise UserError(
            f"{cfg.DATASET.NAME}: there is no folder {root}: point --root at your data root"
        )
    return root


def select_classes(*splits: Sequence, classes: Sequence[str]) -> Sequence[Sequence]:
    """Select the classes that ``classes`` (DATASET.CLASSES) name; an empty list selects all.

    The first split says which classes there are. The selected ones are numbered from 0.

    Raises:
        UserError: there are no such classes.
    """
    if not classes:
        return splits
    names = {item.label: item.classname for item in splits[0]}
    chosen = chosen_names(names.values(), classes)
    return _numbered([label for label in sorted(names) if names[label] in chosen], splits)


def subsample_classes(*splits: Sequence, subsample: str) -> Sequence[Sequence]:
    """Select "all" classes, the "base" half (the first one, rounded up) or the "new" half.

    The first split says which classes there are. The selected ones are numbered from 0.
    """
    if subsample not in ("all", "base", "new"):
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES is '{subsample}': it must be all, base or new")
    if subsample == "all":
        return splits
    labels = sorted({item.label for item in splits[0]})
    half = (len(labels) + 1) // 2
    return _numbered(labels[:half] if subsample == "base" else labels[half:], splits)


def _numbered(labels: list[int], splits: Sequence[Sequence]) -> Sequence[Sequence]:
    """The items with these labels, which become 0, 1, ...

    Splits that are one and the same list stay one and the same list.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    renumbered = {
        id(split): [
            type(item)(item.impath, numbers[item.label], item.domain, item.classname)
            for item in split
            if item.label in numbers
        ]
        for split in splits
    }
    return [renumbered[id(split)] for split in splits]


def _split_off(items: Sequence, share: float) -> tuple[list, list]:
    """The items that stay, and those that are moved: ``share`` of each class, drawn by seed 0."""
    classes = defaultdict(list)
    for index, item in enumerate(items):
        classes[item.label].append(index)
    rng = random.Random(0)  # not cfg.SEED: every run has the same test images
    moved = {
        i for indices in classes.values() for i in rng.sample(indices, round(share * len(indices)))
    }
    staying = [item for index, item in enumerate(items) if index not in moved]
    return staying, [items[index] for index in sorted(moved)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed ``random`` for the body and restore its state; a negative seed leaves it as it is."""
    if seed < 0:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _as_datums(source: str, items: Sequence[Datum | Entry]) -> list[Datum]:
    entries = [item for item in items if isinstance(item, Entry)]
    missing = [entry.impath for entry in entries if not os.path.isfile(entry.impath)]
    if missing:
        broken = " (a link to no file)" if os.path.islink(missing[0]) else ""
        raise UserError(
            f"{source}: {len(missing)} of {len(items)} images are missing: "
            f"{missing[0]}{broken}; extract the images there again"
        )
    return [Datum(*item) if isinstance(item, Entry) else item for item in items]


def check_labels(source: str, train: Sequence, val: Sequence, test: Sequence) -> None:
    """Raise UserError, naming ``source``, unless labels are as ``FewShotDataset`` needs them."""
    if not train or not test:
        raise UserError(f"{source}: no images for {'training' if not train else 'the test'}")
    names: dict[int, str] = {}
    for item in train:
        if names.setdefault(item.label, item.classname) != item.classname:
            raise UserError(
                f"{source}: label {item.label} has two class names, '{names[item.label]}' and "
                f"'{item.classname}': give each class a label of its own"
            )
    amiss = sorted(names.keys() ^ set(range(len(names))))
    if amiss:
        raise UserError(
            f"{source}: labels must run from 0 to {len(names) - 1} for {len(names)} classes with "
            f"training images; look at label {listed(map(str, amiss))}"
        )
    unknown = {
        item.classname for item in chain(val, test) if names.get(item.label) != item.classname
    }
    if unknown:
        raise UserError(
            f"{source}: val or test has classes that training lacks, or under another label: "
            f"{listed(sorted(unknown))}"
        )


_MOST_READ = 100_000  # of more images than this, only the paths are compared, not the bytes


def test_images_in_training(train: Sequence, test: Sequence) -> list[str]:
    """Paths of training images that are test images too: the same path or the same bytes.

    Only files are read whose size in bytes is that of a file in the other split.
    """
    trained, tested = ({item.impath for item in split} for split in (train, test))
    trained, tested = _in_common(os.path.getsize, trained, tested)
    if len(trained) + len(tested) > _MOST_READ:
        return sorted(trained & tested)
    for mark in (_middle_bytes, _digest):
        trained, tested = _in_common(mark, trained, tested)
    return sorted(trained)


def _in_common(mark: Callable, left: set[str], right: set[str]) -> tuple[set[str], set[str]]:
    """The paths on each side whose mark (size, bytes, hash) a file on the other side has too."""
    marks: dict[str, object] = {}
    for path in left | right:
        try:
            marks[path] = mark(path)
        except OSError:
            marks[path] = path  # unreadable: equal to the same path only
    common = {marks[path] for path in left} & {marks[path] for path in right}
    left, right = ({path for path in side if marks[path] in common} for side in (left, right))
    return left, right


def _middle_bytes(path: str) -> bytes:
    """256 bytes from the middle of the file, which differ in nearly all images."""
    with open(path, "rb") as file:
        file.seek(os.path.getsize(path) // 2)
        return file.read(256)


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


def _warn_of_test_images(source: str, train: Sequence, test: Sequence) -> None:
    if train is not test and (shared := test_images_in_training(train, test)):
        print(
            f"warning: {source}: {len(shared):,} of {len(train):,} training images are test images "
            f"too (the same file or the same bytes), such as {one_line(shared[0])}: accuracy "
            "counts images that were trained on"
        )


def _warn_of_shortage(source: str, train: Sequence, shots: int) -> None:
    counts = Counter(item.classname for item in train)
    short = [f"{name} ({count})" for name, count in counts.items() if count < shots]
    if short:
        print(
            f"warning: {source}: fewer than {shots} training images, all are used: {listed(short)}"
        )
