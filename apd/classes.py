"""The classes of a data set that a run uses: what ``DATASET.CLASSES`` takes."""

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
    """``PART/PARTS/SEED``: one of ``parts`` disjoint parts of a data set's classes.

    The class names, sorted, are shuffled by ``random.Random(seed)`` and cut into ``parts`` pieces
    whose lengths differ by one at most, the longer ones first. This is the same on every machine.
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
    """The part that ``values`` of DATASET.CLASSES name; None: they name classes."""
    if len(values) == 1 and (match := re.fullmatch(r"(\d+)/(\d+)/(\d+)", values[0])):
        return Partition(*map(int, match.groups()))
    return None


def chosen_names(names: Iterable[str], values: Sequence[str]) -> set[str]:
    """The classes that DATASET.CLASSES selects.

    Args:
        names: all class names of the data set.
        values: of DATASET.CLASSES; empty: all classes are selected.

    Raises:
        UserError: the data set has no such class, or fewer classes than parts.
    """
    names, values = set(names), RULE.read(values)
    if not values:
        return names
    if chosen_part := partition(values):
        return chosen_part.of(names)
    unknown = [value for value in values if value not in names]
    if unknown:
        near = similar(unknown[0], names)
        hint = f": did you mean {', '.join(near)}?" if near else f": it has {listed(sorted(names))}"
        raise UserError(f"there is no class {listed(unknown, 3)}{hint}")
    return set(values)


def name_suffix(values: str | Sequence[str]) -> str:
    """The suffix of a data set's name that states which classes are selected; "": all are.

    Args:
        values: of DATASET.CLASSES, also as the text of a command line.
    """
    values = RULE.read(values)
    if not values:
        return ""
    if chosen_part := partition(values):
        return f" {chosen_part}"
    if len(values) <= 3:
        return f": {', '.join(sorted(values))}"
    digest = hashlib.sha256("\n".join(sorted(values)).encode()).hexdigest()
    return f": {len(values)} classes {digest[:6]}"


def folder_name(dataset: str, values: str | list[str]) -> str:
    """The folder of runs on these classes of a data set.

    Args:
        values: of DATASET.CLASSES, also as the text of a command line.
    """
    if isinstance(values, str) and values.endswith(".txt"):
        added = f" {Path(values).stem}"
    else:
        added = name_suffix(values)
    return dataset + re.sub(r"[^\w.=-]+", "-", added.replace(":", "")).replace("-", "+", 1)


def _read(value) -> list[str]:
    values = [name for name in _NAMES.read(value) if name]
    if len(values) == 1 and values[0].endswith(".txt"):
        values = [line.strip() for line in read_text(values[0]).splitlines() if line.strip()]
        if not values:
            raise ValueError("no class names")
    chosen_part = partition(values)
    if (
        len(values) != len(set(values))
        or chosen_part
        and not 1 <= chosen_part.part <= chosen_part.parts
    ):
        raise ValueError("a class twice, or no such part")
    return values


RULE = Rule(
    "class names, each once, FILE.txt with one a line, or PART/PARTS/SEED as 3/10/0 (part 3 of 10 "
    "into which seed 0 divides the classes)",
    _read,
)
