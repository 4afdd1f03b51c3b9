"""What the published data sets share: CoOp's folders, split files, draws and their caches.

A data root that was laid out by CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) needs no change.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from apd.catalog import data_rank
from apd.datasets.caches import cached, digest, read_pickle
from apd.datasets.fewshot import Entry, FewShotDataset, check_labels, data_root
from apd.errors import UserError, listed, one_line
from apd.files import atomic_write, parse_json, read_text

Row = tuple[str, int, str]  # in split files: path below the image folder, label, class name
DRIVE = "https://drive.google.com/file/d/{}/view"
DIFFERS = (
    "not CoOp's published one (other images, labels, class names or another order): few-shot draws "
    "and numbers are not comparable with published ones"
)


class Counts(NamedTuple):
    """Published numbers (CoOp, Zhou et al. 2022, appendix A); None: there is no such split."""

    classes: int
    train: int | None
    val: int | None
    test: int


class Source(NamedTuple):
    """A data set on disk.

    Attributes:
        mark: a hash of its splits.
        train, val, test: functions that list a split's images. ``val`` is None where the test
            images are used for validation, all of them.
        made: how the split was made, in words; "": it is the published one.
    """

    mark: str
    train: Callable[[], list[Entry]]
    val: Callable[[], list[Entry]] | None
    test: Callable[[], list[Entry]]
    made: str = ""


_published: dict[str, type[Published]] = {}


def published() -> dict[str, type[Published]]:
    """The published data sets by name, in the order of tables."""
    import apd.datasets  # noqa: F401  registers all of them

    return {name: _published[name] for name in sorted(_published, key=data_rank)}


class Published(FewShotDataset):
    """A data set in CoOp's layout, with CoOp's images, class names, order and draws.

    The draw is cached in ``split_fewshot/shot_<k>-seed_<s>.json``, with a hash of the splits that
    it was drawn from. Where CoOp's own ``.pkl`` of that name exists, it is used instead, as CoOp
    does; its paths are taken below this data root, and all its images must be in the same split
    here.

    Raises:
        UserError: files are missing or faulty, or CoOp's pickle is from another split.
    """

    dataset_dir: str  # below the data root
    image_dir: str  # below dataset_dir
    layout: dict[str, str]  # paths below dataset_dir -> where they come from
    counts: Counts

    def __init_subclass__(cls) -> None:
        if "counts" in vars(cls):  # classes without counts are bases of others
            _published[cls.__name__] = cls

    def __init__(self, cfg) -> None:
        folder = data_root(cfg) / self.dataset_dir
        source = self.source(folder)
        if source.made:
            print(f"warning: {type(self).__name__}: the split is {source.made}")
        test = source.test()
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self._shots(cfg, folder, source, test)
        else:
            # by identity: where train and test are one list, it is read once
            train = test if source.train is source.test else source.train()
            val = source.val() if source.val else []
        val, test = self.validation(cfg, source.val() if source.val else [], val, test)
        super().__init__(cfg, train, val if source.val else test, test, drawn=True)

    @classmethod
    def source(cls, folder: Path) -> Source:
        """Read what is in ``folder``, ``<data root>/<dataset_dir>``.

        Raises:
            UserError: something is missing or faulty.
        """
        raise NotImplementedError

    @classmethod
    def missing(cls, folder: Path) -> dict[Path, str]:
        """The needed paths that do not exist, each with where to get it."""
        return _missing(folder, cls.layout)

    @classmethod
    def require(cls, folder: Path) -> None:
        """Raise UserError if anything is missing."""
        _require(cls.__name__, cls.missing(folder))

    def _shots(self, cfg, folder: Path, source: Source, test: list[Entry]):
        name = f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}"
        images = folder / self.image_dir
        pickled = folder / "split_fewshot" / f"{name}.pkl"
        if pickled.is_file():
            return self._drawn_by_coop(pickled, images, source, cfg.DATASET.NUM_SHOTS)

        def draw() -> tuple[list[Entry], list[Entry]]:
            train, val = source.train(), source.val() if source.val else []
            check_labels(type(self).__name__, train, val, test)
            return self.draw(cfg, train, val)

        if cfg.SEED < 0:
            return draw()
        path = folder / "split_fewshot" / f"{name}.json"
        drawn = cached(
            path,
            f"{source.mark} {name}",
            lambda: {split: _rows(images, items) for split, items in zip(("train", "val"), draw())},
        )
        try:
            return tuple(entries(images, _checked(drawn[split])) for split in ("train", "val"))
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no draw ({one_line(error)}): remove it, and the images are drawn again"
            ) from error

    def _drawn_by_coop(self, path: Path, images: Path, source: Source, shots: int):
        """The draw in CoOp's pickle ``path``.

        Its paths may have been written on another machine, so only what follows the image folder is
        read of them.
        """
        content = read_pickle(path)
        anchor = f"/{Path(self.dataset_dir, self.image_dir)}/"
        drawn = []
        for split, listing in (("train", source.train), ("val", source.val or list)):
            available = listing()
            items = [
                item._replace(impath=os.path.join(images, item.impath.rpartition(anchor)[2]))
                for item in content.get(split, ())
            ]
            strange = sorted(item.impath for item in set(items).difference(available))
            if strange or (split == "train" and not items):
                raise UserError(
                    f"{path}: {len(strange)} of its {len(items)} {split} images are not {split} "
                    f"images here, or of another class ({listed(strange, most=1)}): it was drawn "
                    "from another split; remove it, and the images are drawn again"
                )
            _check_counts(
                path, split, items, available, shots if split == "train" else min(shots, 4)
            )
            drawn.append(items)
        print(f"Few-shot images: those of {path}")
        return drawn


class SplitFile(Published):
    """A data set with a split file of CoOp's, ``split_zhou_<name>.json``.

    CoOp makes a split file where there is none. Here only ``apd-doctor --make-split`` does, because
    results on such a split cannot be compared with published ones.
    """

    split_id: str  # of the published file on Google Drive
    split_mark = ""  # digest of the published split; "" where we have not seen that file
    annotations: dict[str, str] = {}  # files that make_split needs besides the images

    @classmethod
    def split_path(cls, folder: Path) -> Path:
        return folder / f"split_zhou_{cls.__name__}.json"

    @classmethod
    def missing(cls, folder: Path) -> dict[Path, str]:
        split = {cls.split_path(folder).name: DRIVE.format(cls.split_id)}
        return _missing(folder, {**cls.layout, **split})

    @classmethod
    def require(cls, folder: Path) -> None:
        missing, path = cls.missing(folder), cls.split_path(folder)
        if list(missing) == [path]:
            raise UserError(
                f"{cls.__name__}: there is no split file {path}: download it from {missing[path]} "
                f"to there; or `python -m apd.doctor --root {folder.parent} --dataset "
                f"{cls.__name__} --make-split` makes a seeded one, not comparable with published "
                "numbers"
            )
        _require(cls.__name__, missing)

    @classmethod
    def source(cls, folder: Path) -> Source:
        cls.require(folder)
        path, images = cls.split_path(folder), folder / cls.image_dir
        raw = path.read_bytes()
        splits, made = _parse_split(path, raw)
        mark = digest(json.dumps(splits))  # does not depend on the file's blanks and line breaks
        if not made and cls.split_mark not in ("", mark):
            made = DIFFERS
        train, val, test = (partial(entries, images, splits[s]) for s in ("train", "val", "test"))
        return Source(mark, train, val, test, made)

    @classmethod
    def raw(cls, folder: Path) -> Sequence[list[Row]]:
        """Read the data set's own annotations: one list of all images, or two, of training and
        validation images and of test images."""
        raise NotImplementedError

    @classmethod
    def make_split(cls, folder: Path, seed: int) -> Path:
        """Write a split file by CoOp's rules, drawn by ``random.Random(seed)``; return its path.

        Where the raw data has a test set, 20 % of each class's other images are for validation.
        Without one, 50 % of a class are for training, 20 % for validation and 30 % for the test.

        Raises:
            UserError: there is one already, files are missing or faulty, a class is too small.
        """
        path = cls.split_path(folder)
        if path.exists():
            raise UserError(f"{cls.__name__}: {path} is there already: remove it first")
        _require(cls.__name__, _missing(folder, {**cls.layout, **cls.annotations}))
        rows, random = cls.raw(folder), Random(seed)
        check_labels(cls.__name__, entries(folder, rows[0]), [], entries(folder, rows[-1]))
        if len(rows) == 1:
            train, val, test = _divide(cls.__name__, rows[0], (0.5, 0.2), random)
        else:
            val, train = _divide(cls.__name__, rows[0], (0.2,), random)
            test = rows[1]
        made = (
            f"made by apd.doctor --make-split, seed {seed}: not comparable with published numbers"
        )
        split = {"train": train, "val": val, "test": test, "made": made}
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(split), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror})") from error
        return path


def entries(images: Path, rows: Sequence[Row]) -> list[Entry]:
    """The rows as images of the folder ``images``.

    Raises:
        UserError: a path points outside the folder.
    """
    check_below(images, (path for path, _, _ in rows))
    return [Entry(os.path.join(images, path), label, 0, name) for path, label, name in rows]


def check_below(folder: Path, paths: Iterable[str]) -> None:
    """Raise UserError unless all paths, which a list file names, are below ``folder``.

    So a list file that somebody else wrote cannot make us read other files.
    """
    for path in paths:
        # os.path.isabs takes ten times as long, which is felt on ImageNet's million paths
        absolute = path[:1] in ("/", "\\") or path[1:2] == ":"
        if absolute or (".." in path and ".." in Path(path).parts):
            raise UserError(
                f"{one_line(path)} leads out of {folder}, where this data set's images must lie"
            )


def lines(path: Path, parse: Callable[[str], Any]) -> list:
    """Parse each line of a text file that is not blank.

    Raises:
        UserError: the file is missing, or a line cannot be parsed: ``parse`` raises ValueError,
            KeyError or IndexError.
    """
    parsed = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed.append(parse(line.strip()))
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"{path}, line {number}: cannot read '{line.strip()}' ({one_line(error)})"
            ) from error
    return parsed


def _check_counts(
    path: Path, split: str, items: list[Entry], available: list[Entry], shots: int
) -> None:
    """Raise UserError unless ``items`` has ``shots`` different images of each class in
    ``available``, or all images of a class that has fewer there."""
    counts = Counter(item.label for item in set(items))
    available_counts = Counter(item.label for item in available)
    for item in available:
        expected = min(shots, available_counts[item.label])
        if counts[item.label] != expected or len(items) != len(set(items)):
            raise UserError(
                f"{path}: class '{item.classname}' has {counts[item.label]} {split} images in it, "
                f"where a draw of that name gives {expected}, all different: remove it, and the "
                "images are drawn again"
            )


def _missing(folder: Path, layout: dict[str, str]) -> dict[Path, str]:
    return {folder / p: origin for p, origin in layout.items() if not (folder / p).exists()}


def _require(name: str, missing: dict[Path, str]) -> None:
    for path, origin in missing.items():
        raise UserError(
            f"{name}: there is no {path}: get it from {origin}; python -m apd.doctor "
            "lists all that a data root lacks"
        )


def _rows(images: Path, items: list[Entry]) -> list[Row]:
    prefix = os.path.join(images, "")
    return [(item.impath.removeprefix(prefix), item.label, item.classname) for item in items]


def _parse_split(path: Path, raw: bytes) -> tuple[dict[str, list[Row]], str]:
    """The rows of each split, and the file's note on how it was made ("": it has none)."""
    try:
        content = parse_json(raw)
        splits = {split: _checked(content[split]) for split in ("train", "val", "test")}
        return splits, str(content.get("made", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path} ({type(error).__name__}: {one_line(error)}): it must be JSON with "
            "train, val and test, each a list of [image, label, class name]; download it again"
        ) from error


def _checked(rows: list) -> list[Row]:
    """The rows of a JSON list; ValueError or TypeError unless each is a ``Row``."""
    for row in rows:
        image, label, name = row
        if (type(image), type(label), type(name)) != (str, int, str):
            raise ValueError(f"{json.dumps(row)} is no [image, whole number, class name]")
    return [tuple(row) for row in rows]


def _divide(name: str, rows: list[Row], shares: Sequence[float], random: Random) -> list[list[Row]]:
    """Shuffle each class, in the order of first appearance, and divide it by ``shares``.

    Returns a list of rows for each share, and one of what remains.
    """
    classes = defaultdict(list)
    for row in rows:
        classes[row[1]].append(row)
    divided: list[list[Row]] = [[] for _ in range(len(shares) + 1)]
    for group in classes.values():
        random.shuffle(group)
        total, remaining = len(group), group
        for share, target in zip(shares, divided):
            count = round(total * share)
            cut, remaining = remaining[:count], remaining[count:]
            target += cut
            if not cut or not remaining:
                raise UserError(
                    f"{name}: class '{group[0][2]}' has {total} images, too few for a split"
                )
        divided[-1].extend(remaining)
    return divided
