"""Which classes of a data set a run is about: what ``DATASET.CLASSES`` takes."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from apd.errors import UserError, listed, similar
from apd.files import read_text
from apd.ranges import TEXT, Rule, several

_NAMES = several(TEXT, split=True)


class Partition(NamedTuple):
    """``PART/PARTS/SEED``: one of ``parts`` parts into which the classes fall.

    The class names, sorted, are shuffled by ``random.Random(seed)`` and cut into ``parts`` runs
    whose lengths differ by one at most, the longer ones first: the same on every machine. A class
    belongs to exactly one part.
    """

    part: int  # from 1
    parts: int
    seed: int

    def of(self, names: Iterable[str]) -> set[str]:
        """The names in this part.

        Raises:
            UserError: there are fewer names than parts.
        """
        shuffled = sorted(set(names))
        if len(shuffled) < self.parts:
            raise UserError(f"{len(shuffled)} classes cannot be divided into {self.parts} parts")
        random.Random(self.seed).shuffle(shuffled)
        least, longer = divmod(len(shuffled), self.parts)
        first = (self.part - 1) * least + min(self.part - 1, longer)
        return set(shuffled[first : first + least + (self.part <= longer)])

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}" + (f"/{self.seed}" if self.seed else "")


def partition(values: Sequence[str]) -> Partition | None:
    """The partition that ``values`` of DATASET.CLASSES name; None: they name classes."""
    if len(values) == 1 and (found := re.fullmatch(r"(\d+)/(\d+)/(\d+)", values[0])):
        return Partition(*map(int, found.groups()))
    return None


def wanted(names: Iterable[str], values: Sequence[str]) -> set[str]:
    """Those of a data set's class ``names`` that ``values`` of DATASET.CLASSES keep: all, if empty.

    Raises:
        UserError: a class that the data set has not, or more parts than classes.
    """
    names, values = set(names), RULE.read(values)
    if not values:
        return names
    if which := partition(values):
        return which.of(names)
    unknown = [value for value in values if value not in names]
    if unknown:
        near = similar(unknown[0], names)
        hint = f": did you mean {', '.join(near)}?" if near else f": it has {listed(sorted(names))}"
        raise UserError(f"there is no class {listed(unknown, 3)}{hint}")
    return set(values)


def said(values: str | Sequence[str]) -> str:
    """What ``values`` add to the name of a data set: other classes, another name; none: "".

    Args:
        values: of DATASET.CLASSES; may be a command line's text.
    """
    values = RULE.read(values)
    if not values:
        return ""
    if which := partition(values):
        return f" {which}"
    if len(values) <= 3:
        return f": {', '.join(sorted(values))}"
    digest = hashlib.sha256("\n".join(sorted(values)).encode()).hexdigest()
    return f": {len(values)} classes {digest[:6]}"


def folder_name(dataset: str, values: str | list[str]) -> str:
    """The folder of runs on these classes of a data set.

    Args:
        values: of DATASET.CLASSES; may be a command line's text.
    """
    if isinstance(values, str) and values.endswith(".txt"):
        added = f" {Path(values).stem}"
    else:
        added = said(values)
    return dataset + re.sub(r"[^\w.=-]+", "-", added.replace(":", "")).replace("-", "+", 1)


def _read(value) -> list[str]:
    values = [name for name in _NAMES.read(value) if name]
    if len(values) == 1 and values[0].endswith(".txt"):
        values = [line.strip() for line in read_text(values[0]).splitlines() if line.strip()]
        if not values:
            raise ValueError("no class names")
    which = partition(values)
    if len(values) != len(set(values)) or which and not 1 <= which.part <= which.parts:
        raise ValueError("a class twice, or no such part")
    return values


RULE = Rule(
    "class names, each once, FILE.txt with one a line, or PART/PARTS/SEED as 3/10/0 (part 3 of 10 "
    "into which seed 0 divides the classes)",
    _read,
)
