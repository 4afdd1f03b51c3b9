"""An evaluation in shards: which of them have not ended, and one record from all of them."""

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
from apd.evaluate.loop import Data, attack_record, clean_record, finish, places_of, subset_loader
from apd.evaluate.request import SHARDS, EvaluationRequest, Shard, Source
from apd.evaluate.state import AttackState, Clean, ImageDigest
from apd.jobs.lock import owner


class Images:
    """Places and digests of an evaluation's images, which are read once.

    Args:
        loader, parse_batch: as of ``evaluate``.
        subset: how many of the loader's images; 0: all.
        count: number of shards.

    Attributes:
        places: which of the data set's images they are.
        digest: of all images.
        digests: of the images of each shard.

    Raises:
        UserError: more shards than images.
    """

    def __init__(
        self,
        loader: Iterable,
        subset: int,
        count: int,
        parse_batch: Callable[..., tuple[Tensor, Tensor]] = tuple,
    ) -> None:
        self.places = places_of(loader, subset)
        subset_loader(loader, self.places, Shard(1, count))  # raises if there are too many shards
        data = Data(*subset_loader(loader, self.places, None), parse_batch)
        all_images = ImageDigest()
        of_shards = {shard: ImageDigest() for shard in Shard.all(count)}
        first = 0
        for images, labels in data.batches():
            all_images.update(images, labels)
            for shard, digest in of_shards.items():
                rows = torch.arange(len(labels))[(shard.number - 1 - first) % count :: count]
                digest.update(images[rows], labels[rows])
            first += len(labels)
        self.digest = str(all_images)
        self.digests = {shard: str(digest) for shard, digest in of_shards.items()}


class Merger:
    """Makes one evaluation of all images from what ``evaluate`` has stored of each shard.

    The names of files depend on model, images and attack, so that shards of another evaluation are
    never taken for shards of this one.

    Args:
        request: for all images, with a ``store``.
        fingerprint: of the model.
    """

    def __init__(self, request: EvaluationRequest, images: Images, fingerprint: str) -> None:
        self.request, self.images, self.fingerprint = request, images, fingerprint

    def unfinished(self) -> tuple[Attack, ...]:
        """The attacks that have no verdicts on all images yet."""
        return tuple(a for a in self.request.attacks if not self._files(a).ended)

    @property
    def finished(self) -> bool:
        """Whether there are attacks, and every one has verdicts on all images."""
        return bool(self.request.attacks) and not self.unfinished()

    def shard_request(self, shard: Shard) -> EvaluationRequest | None:
        """The request that brings this shard to its end; None: it has ended.

        Its source is a name only: the process that evaluates it loads the models.
        """
        if self.missing_files(shard):
            source = Source(self.request.source.name)
            return replace(self.request, attacks=self.unfinished(), shard=shard, source=source)
        return None

    def missing_files(self, shard: Shard) -> list[Path]:
        """The files that a shard has yet to write; none if every attack is finished."""
        if self.finished:
            return []
        of_attacks = [self._shard_files(attack, shard) for attack in (CLEAN, *self.unfinished())]
        return [files.finished for files in of_attacks if not files.ended]

    def missing(self) -> list[Shard]:
        """The shards that have not ended."""
        return [shard for shard in self.images.digests if self.missing_files(shard)]

    def records(self, on_clean: Callable[[Tensor, Tensor], None] | None = None) -> list[dict]:
        """Merge the shards, store the verdicts, and delete the shards' files.

        All shards must have ended, and the evaluation must not be ``finished``.

        Args:
            on_clean: as of ``evaluate``, but it is given the predictions as one-hot logits, because
                shards do not store logits.

        Returns:
            As of ``evaluate``; "seconds" is the sum over the shards.
        """
        shards = list(self.images.digests)
        clean = Clean.join(
            [self._shard_files(CLEAN, shard).finished for shard in shards], self.images.digest
        )
        if on_clean:
            on_clean(F.one_hot(clean.predicted).float(), clean.labels)
        records, fresh = [clean_record(clean)], []
        for attack in self.request.attacks:
            files = self._files(attack)
            if files.ended:
                records.append(files.read().record)
                continue
            of_shards = [self._shard_files(attack, shard) for shard in shards]
            state = AttackState.join([shard_files.finished for shard_files in of_shards])
            if files.adv:
                _move_images(of_shards, files.adv)
            records.append(attack_record(self.request, attack, files.key, state, clean))
            fresh.append((records[-1], files, state))
        finish(records, self.request.split, self.images.places, fresh, clean.labels)
        self.clear()
        return records

    def clear(self) -> None:
        """Delete the shards' files, and their folders unless another evaluation uses them."""
        for shard in self.images.digests:
            for attack in (CLEAN, *self.request.attacks):
                files = self._shard_files(attack, shard)
                for path in (files.unfinished, files.finished):
                    path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty, or not there
                    files.finished.parent.rmdir()
        assert self.request.store is not None
        _clear_folders(self.request.store, self.images.digests)

    def _files(self, attack: Attack) -> EvaluationFiles:
        places = self.images.places.stated
        return evaluation_files(self.request, attack, self.fingerprint, self.images.digest, places)

    def _shard_files(self, attack: Attack, shard: Shard) -> EvaluationFiles:
        request, places = replace(self.request, shard=shard), self.images.places.stated
        return evaluation_files(
            request, attack, self.fingerprint, self.images.digests[shard], places
        )


def _clear_folders(store: Path, shards: Iterable[Shard]) -> None:
    """Delete the folders of merged shards, with the logs and states of their workers.

    A folder that a process works in, or that has states of another evaluation, stays.
    """
    for shard in shards:
        folder = store / shard.folder
        if not owner(folder) and not list(folder.glob("*.pt")):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


def _move_images(of_shards: list[EvaluationFiles], folder: Path) -> None:
    """Move the adversarial images of all shards into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for files in of_shards:
        assert files.adv and files.shard
        for path in sorted(files.adv.glob("*.npz")):
            os.replace(path, folder / f"{files.shard.number}-of-{files.shard.count}-{path.name}")


def shard_counts(store: Path) -> list[int]:
    """The numbers of shards of evaluations in ``store`` that are not merged yet, ascending."""
    names = (path.parent.name for path in store.glob(f"{SHARDS}/*-of-*/*.done.pt"))
    return sorted({int(name.rpartition("-")[2]) for name in names})
