"""What an evaluation is asked for, and where its findings are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from apd.attacks import PRECISIONS, Attack, ThreatModel, find_attack
from apd.errors import UserError
from apd.evaluate.state import digest

LogitsFn = Callable[[Tensor], Tensor]

SHARDS = "shards"  # folder, in that of the evaluations, of those not merged yet
CLEAN = Attack("clean", (), {})


@dataclass(frozen=True)
class Source:
    """Where attacks are made, if not on the target alone.

    Args:
        name: as the record states it: "transfer:...", "adaptive".
        logits_fns: models whose losses are summed; the target among them must be the first.
        fingerprint: of all that made them.
    """

    name: str
    logits_fns: tuple[LogitsFn, ...]
    fingerprint: str


class Shard(NamedTuple):
    """One of ``count`` parts of the images: the ``number``-th (from 1) and each ``count``-th on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def rows(self) -> slice:
        """Of all images, in their order."""
        return slice(self.number - 1, None, self.count)

    @property
    def folder(self) -> str:
        return f"{SHARDS}/{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From i/N."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: use i/N, with i from 1 to N")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def all(cls, count: int) -> list[Shard]:
        return [cls(number, count) for number in range(1, count + 1)]


class Kept(NamedTuple):
    """The files of one attack on some images; None: it is not kept."""

    key: str
    identity: dict
    adv: Path | None  # folder for the images that decided
    folders: tuple[Path, ...]  # that get the finished evaluation; the first has the state too
    shard: Shard | None

    @property
    def unfinished(self) -> Path | None:
        return self.folders[0] / f"{self.key}.pt" if self.folders else None

    @property
    def finished(self) -> Path | None:
        """Verdicts of all images, or the state of a shard that has ended."""
        suffix = "done.pt" if self.shard else "json"
        return self.folders[0] / f"{self.key}.{suffix}" if self.folders else None


@dataclass(frozen=True)
class Plan:
    """The attacks of an evaluation and their conditions; arguments as of ``evaluate``."""

    attacks: tuple[Attack, ...]
    source: Source | None
    precision: str
    seed: int
    fingerprint: str
    store: Path | None
    save_adv: Path | None

    @classmethod
    def of(
        cls,
        threat: ThreatModel | None,
        attacks: Sequence[str | Attack],
        last_iterate: bool,
        source: Source | None,
        precision: str,
        seed: int,
        fingerprint: str,
        store: Path | None,
        save_adv: Path | None,
    ) -> Plan:
        if precision not in PRECISIONS:
            raise UserError(f"attack precision is {precision}: use {', '.join(PRECISIONS)}")
        wanted = list(attacks) or ([threat.name] if threat else [])
        found = (
            a if isinstance(a, Attack) else find_attack(a, threat, last_iterate) for a in wanted
        )
        with_stages = tuple(attack for attack in found if attack.stages)
        save_adv = save_adv and Path(save_adv)
        return cls(with_stages, source, precision, seed, fingerprint, store, save_adv)

    def conditions(self, attack: Attack) -> dict:
        """What the record of an attack states as its threat model."""
        return {
            **attack.conditions,
            "units": "1/255",
            "source": self.source.name if self.source else "white-box",
            "precision": self.precision,
            "seed": self.seed,
        }

    def kept(
        self, attack: Attack, images: str, places: str | dict, shard: Shard | None = None
    ) -> Kept:
        """Where an attack is kept.

        Args:
            images: their digest (of a shard: of its images).
            places: which of the data set's images all shards together are about.
        """
        identity = {
            "attack": attack.name,
            "threat_model": self.conditions(attack),
            "model": self.fingerprint,
            "made_on": self.source.fingerprint if self.source else self.fingerprint,
            "images": images,
            "places": places,
        }
        if shard:
            identity["shard"] = str(shard)
        key = digest(identity)
        adv = self.save_adv and attack.stages and self.save_adv / f"{attack.name}-{key}"
        store = self.store / shard.folder if self.store and shard else self.store
        if adv and shard:
            store = None  # its state is of use only beside the images that were written with it
        folders = tuple(folder for folder in (adv, store) if folder)
        return Kept(key, identity, adv or None, folders, shard)
