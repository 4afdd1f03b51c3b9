"""An evaluation in parts: which shards are missing, and one record from all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import Attack, ThreatModel
from apd.evaluate.loop import Data, attack_record, clean_record, finish, part_of, places_of
from apd.evaluate.plan import CLEAN, SHARDS, Kept, Plan, Shard, Source
from apd.evaluate.state import AttackState, Clean, ImageDigest
from apd.results.verdicts import read_verdicts
from apd.sweep.lock import owner


class Images:
    """What the images of an evaluation are: read once, and shown to no model.

    Args:
        loader, parse_batch, subset: as of ``evaluate``.
        count: of shards.

    Attributes:
        places: which of the data set's images they are.
        digest: of all of them.
        digests: of each shard's.
    """

    def __init__(
        self,
        loader: Iterable,
        parse_batch: Callable[..., tuple[Tensor, Tensor]],
        subset: int,
        count: int,
    ) -> None:
        self.places = places_of(loader, subset)
        whole, parts = ImageDigest(), {shard: ImageDigest() for shard in Shard.all(count)}
        part_of(loader, self.places, Shard(1, count))  # are there enough?
        first = 0
        for images, labels in Data(*part_of(loader, self.places, None), parse_batch).batches():
            whole.update(images, labels)
            for shard, digest in parts.items():
                mine = torch.arange((shard.number - 1 - first) % count, len(labels), count)
                digest.update(images[mine], labels[mine])
            first += len(labels)
        self.digest = str(whole)
        self.digests = {shard: str(digest) for shard, digest in parts.items()}


class Merger:
    """What ``evaluate`` has left of each shard, as the evaluation of all images.

    Files are found by the model, the images and the attack that they are about, so shards of
    another evaluation are never taken for one of this.

    Args:
        threat to save_adv: as of ``evaluate``.
    """

    def __init__(
        self,
        images: Images,
        threat: ThreatModel | None = None,
        attacks: Sequence[str | Attack] = (),
        *,
        split: str = "test",
        last_iterate: bool = False,
        source: Source | None = None,
        precision: str = "fp32",
        seed: int = 0,
        store: Path,
        fingerprint: str,
        save_adv: Path | None = None,
    ) -> None:
        self.images, self.split = images, split
        self.plan = Plan.of(
            threat, attacks, last_iterate, source, precision, seed, fingerprint, store, save_adv
        )

    def open(self) -> list[Attack]:
        """The attacks that are not finished."""
        found = ((attack, self._whole(attack)) for attack in self.plan.attacks)
        return [attack for attack, kept in found if not kept.finished.exists()]

    def wanted(self, shard: Shard) -> list[Kept]:
        """What a shard has to leave; nothing if every attack is finished."""
        attacks = self.open()
        if self.plan.attacks and not attacks:
            return []
        return [self._part(attack, shard) for attack in (CLEAN, *attacks)]

    def missing(self) -> list[Shard]:
        """The shards that have not ended."""
        return [
            shard
            for shard in self.images.digests
            if not all(kept.finished.exists() for kept in self.wanted(shard))
        ]

    def records(self, on_clean: Callable[[Tensor, Tensor], None] | None = None) -> list[dict]:
        """As of ``evaluate``, "seconds" being those of all shards together.

        All shards must have ended, and one attack at least must have been open. Then their files
        are deleted. ``on_clean`` is given the predictions, one-hot, for want of logits.
        """
        shards = list(self.images.digests)
        parts = [self._part(CLEAN, shard).finished for shard in shards]
        clean = Clean.join(parts, self.images.digest)
        if on_clean:
            on_clean(F.one_hot(clean.predicted).float(), clean.labels)
        records, files = [clean_record(clean)], []
        for attack in self.plan.attacks:
            whole = self._whole(attack)
            if whole.finished.exists():
                records.append(read_verdicts(whole.finished).record)
                continue
            parts = [self._part(attack, shard) for shard in shards]
            state = AttackState.join([part.finished for part in parts])
            if whole.adv:
                _move_images(parts, whole.adv)
            records.append(attack_record(self.plan, whole, attack, state, clean))
            files.append((records[-1], whole, state))
        finish(records, self.split, self.images.places, files, clean.labels)
        for shard in shards:
            self._clear(shard)
        _clear_folders(self.plan.store, shards)
        return records

    def _whole(self, attack: Attack) -> Kept:
        return self.plan.kept(attack, self.images.digest, self.images.places.told)

    def _part(self, attack: Attack, shard: Shard) -> Kept:
        digest = self.images.digests[shard]
        return self.plan.kept(attack, digest, self.images.places.told, shard)

    def _clear(self, shard: Shard) -> None:
        for attack in (CLEAN, *self.plan.attacks):
            kept = self._part(attack, shard)
            for path in (kept.unfinished, kept.finished):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or not there
                kept.finished.parent.rmdir()


def _clear_folders(store: Path, shards: Iterable[Shard]) -> None:
    """Delete what the workers of merged shards have left beside their findings."""
    for shard in shards:
        place = store / shard.folder
        if not owner(place) and not list(place.glob("*.pt")):  # no other evaluation's
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(place)


def _move_images(parts: list[Kept], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for path in sorted(part.adv.glob("*.npz")):
            os.replace(path, folder / f"{part.shard.number}-of-{part.shard.count}-{path.name}")


def shard_counts(store: Path) -> list[int]:
    """Into how many shards the evaluations in ``store`` that are not merged were split."""
    names = (path.parent.name for path in store.glob(f"{SHARDS}/*-of-*/*.done.pt"))
    return sorted({int(name.rpartition("-")[2]) for name in names})
