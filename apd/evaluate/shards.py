"""An evaluation in parts: which shards are missing, and one record from all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import Attack
from apd.evaluate.files import CLEAN, EvaluationFiles, evaluation_files
from apd.evaluate.loop import Data, attack_record, clean_record, finish, part_of, places_of
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard, Source
from apd.evaluate.state import AttackState, Clean, ImageDigest
from apd.jobs.lock import owner


class Images:
    """What the images of an evaluation are: read once, and shown to no model.

    Args:
        loader, parse_batch: as of ``evaluate``.
        subset: how many of the loader's images; 0: all.
        count: of shards.

    Attributes:
        places: which of the data set's images they are.
        digest: of all of them.
        digests: of each shard's.
    """

    def __init__(
        self,
        loader: Iterable,
        subset: int,
        count: int,
        parse_batch: Callable[..., tuple[Tensor, Tensor]] = tuple,
    ) -> None:
        self.places = places_of(loader, subset)
        whole, parts = ImageDigest(), {shard: ImageDigest() for shard in Shard.all(count)}
        part_of(loader, self.places, Shard(1, count))  # are there enough?
        first = 0
        for images, labels in Data(*part_of(loader, self.places, None), parse_batch).batches():
            whole.update(images, labels)
            for shard, digest in parts.items():
                mine = torch.arange(len(labels))[(shard.number - 1 - first) % count :: count]
                digest.update(images[mine], labels[mine])
            first += len(labels)
        self.digest = str(whole)
        self.digests = {shard: str(digest) for shard, digest in parts.items()}


class Merger:
    """What ``evaluate`` has left of each shard, as the evaluation of all images.

    Files are found by the model, the images and the attack that they are about, so shards of
    another evaluation are never taken for one of this.

    Args:
        request: for all images, with a ``store``.
        fingerprint: of the model.
    """

    def __init__(self, request: EvaluationRequest, images: Images, fingerprint: str) -> None:
        self.request, self.images, self.fingerprint = request, images, fingerprint

    def unfinished(self) -> tuple[Attack, ...]:
        """The attacks that have no verdicts on all images yet."""
        return tuple(a for a in self.request.attacks if not self._whole(a).ended)

    @property
    def finished(self) -> bool:
        """Whether there are attacks, and every one has verdicts on all images."""
        return bool(self.request.attacks) and not self.unfinished()

    def shard_request(self, shard: Shard) -> EvaluationRequest | None:
        """What a process has to be asked for so that this shard ends; None: nothing is left to do.

        The source is only named: the process loads it itself.
        """
        if self.missing_files(shard):
            source = Source(self.request.source.name)
            return replace(self.request, attacks=self.unfinished(), shard=shard, source=source)
        return None

    def missing_files(self, shard: Shard) -> list[Path]:
        """What a shard has yet to leave; nothing if every attack is finished."""
        if self.finished:
            return []
        parts = [self._part(attack, shard) for attack in (CLEAN, *self.unfinished())]
        return [files.finished for files in parts if not files.ended]

    def missing(self) -> list[Shard]:
        """The shards that have not ended."""
        return [shard for shard in self.images.digests if self.missing_files(shard)]

    def records(self, on_clean: Callable[[Tensor, Tensor], None] | None = None) -> list[dict]:
        """As of ``evaluate``, "seconds" being those of all shards together.

        All shards must have ended, and the evaluation must not be ``finished``. Then their files
        are deleted. ``on_clean`` is given the predictions, one-hot, for want of logits.
        """
        shards = list(self.images.digests)
        passes = [self._part(CLEAN, shard).finished for shard in shards]
        clean = Clean.join(passes, self.images.digest)
        if on_clean:
            on_clean(F.one_hot(clean.predicted).float(), clean.labels)
        records, fresh = [clean_record(clean)], []
        for attack in self.request.attacks:
            whole = self._whole(attack)
            if whole.ended:
                records.append(whole.read().record)
                continue
            parts = [self._part(attack, shard) for shard in shards]
            state = AttackState.join([part.finished for part in parts])
            if whole.adv:
                _move_images(parts, whole.adv)
            records.append(attack_record(self.request, attack, whole.key, state, clean))
            fresh.append((records[-1], whole, state))
        finish(records, self.request.split, self.images.places, fresh, clean.labels)
        self.clear()
        return records

    def clear(self) -> None:
        """Delete what the shards have left."""
        for shard in self.images.digests:
            for attack in (CLEAN, *self.request.attacks):
                files = self._part(attack, shard)
                for path in (files.unfinished, files.finished):
                    path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty, or not there
                    files.finished.parent.rmdir()
        assert self.request.store is not None
        _clear_folders(self.request.store, self.images.digests)

    def _whole(self, attack: Attack) -> EvaluationFiles:
        return self._files(self.request, attack, self.images.digest)

    def _part(self, attack: Attack, shard: Shard) -> EvaluationFiles:
        return self._files(replace(self.request, shard=shard), attack, self.images.digests[shard])

    def _files(self, request: EvaluationRequest, attack: Attack, digest: str) -> EvaluationFiles:
        places = self.images.places.stated
        return evaluation_files(request, attack, self.fingerprint, digest, places)


def _clear_folders(store: Path, shards: Iterable[Shard]) -> None:
    """Delete what the workers of merged shards have left beside their findings."""
    for shard in shards:
        place = store / shard.folder
        if not owner(place) and not list(place.glob("*.pt")):  # no other evaluation's
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(place)


def _move_images(parts: list[EvaluationFiles], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        assert part.adv and part.shard
        for path in sorted(part.adv.glob("*.npz")):
            os.replace(path, folder / f"{part.shard.number}-of-{part.shard.count}-{path.name}")


def shard_counts(store: Path) -> list[int]:
    """Into how many shards the evaluations in ``store`` that are not merged were split."""
    names = (path.parent.name for path in store.glob(f"{SHARDS}/*-of-*/*.done.pt"))
    return sorted({int(name.rpartition("-")[2]) for name in names})
