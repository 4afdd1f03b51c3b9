"""A model, the images that it is evaluated on, and the folder where that is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from yacs.config import CfgNode

from apd.errors import UserError, listed
from apd.evaluate.flags import add_flags
from apd.evaluate.loop import evaluate
from apd.evaluate.request import WHITE_BOX, EvaluationRequest, LogitsFn
from apd.evaluate.shards import Images, Merger, shard_counts
from apd.results.verdicts import (
    EVALUATIONS,
    Verdicts,
    read_verdicts,
    verdicts_keys,
    verdicts_path,
    write_verdicts,
)


class Saved(Protocol):
    """What another process needs to load something that can be evaluated."""

    @property
    def folder(self) -> Path: ...

    def load(self) -> Evaluated: ...


class Evaluated(ABC):
    """What can be evaluated: a run's model (``Run``), or any other (``EvaluatedModel``).

    Attributes:
        folder: has evaluations/, and results.json in the end.
        results: what results.json says, or at least its method, seed and evaluations.
        cfg: its AT.TEST and TEST.SPLIT are what an evaluation is asked for by default.
        logits: the model, from images (B, 3, H, W) in [0, 1] to logits (B, C).
        fingerprint: of the model.
        classnames: in the order of the logits.
        saved: what another process needs to load it; None: it cannot.
    """

    saved: Saved | None = None

    folder: Path
    results: dict
    cfg: CfgNode
    logits: LogitsFn
    fingerprint: str
    classnames: list[str]

    @abstractmethod
    def loader(self, split: str) -> Iterable:
        """Batches of a split's images, in the same order in every pass."""

    @abstractmethod
    def parse_batch(self, batch) -> tuple[Tensor, Tensor]:
        """A batch's images and labels, on the model's device."""

    def resolved(self, request: EvaluationRequest) -> EvaluationRequest:
        """The request with the models of its source loaded.

        Raises:
            UserError: there is no such source for this model.
        """
        if request.source != WHITE_BOX:
            raise UserError(f"source {request.source.name}: only runs have others than white-box")
        return request

    @property
    def name(self) -> str:
        return f"{self.results['method']}, seed {self.results['seed']}"

    def evaluate(self, request: EvaluationRequest) -> list[dict]:
        """The clean record, and those of all attacks; the source may be a name only."""
        request = self.resolved(request)
        desc = f"{self.name} {request.source.name}"
        with torch.no_grad():
            return evaluate(
                self.logits,
                self.loader(request.split),
                request,
                parse_batch=self.parse_batch,
                fingerprint=self.fingerprint,
                desc=desc + (f", shard {request.shard}" if request.shard else ""),
            )

    def records(
        self, requests: Sequence[EvaluationRequest], mergers: Sequence[Merger] = ()
    ) -> list[dict]:
        """The clean record, and those of all attacks of all requests, about the same images.

        Args:
            mergers: one for each request, whose shards have ended; none: there are no shards.
        """
        records: list[dict] = []
        for place, request in enumerate(requests):
            merger = mergers[place] if mergers else None
            if merger and not merger.finished:
                found = merger.records()
            else:
                found = self.evaluate(request)
                if merger:
                    merger.clear()  # shards whose verdicts another run had
            records += found[1:] if records else found
        return records

    def mergers(self, requests: Sequence[EvaluationRequest], count: int) -> list[Merger]:
        """One for each request, which are all about the same images, in ``count`` shards."""
        first = requests[0]
        images = Images(self.loader(first.split), first.subset, count, self.parse_batch)
        return [Merger(self.resolved(r), images, self.fingerprint) for r in requests]

    def ended_shards(self, requests: Sequence[EvaluationRequest]) -> list[Merger]:
        """A merger for each request, of shards that have all ended.

        Raises:
            UserError: some have not.
        """
        counts, missing = shard_counts(self.folder / EVALUATIONS), []
        for count in counts or [1]:
            mergers = self.mergers(requests, count)
            missing = sorted({shard for merger in mergers for shard in merger.missing()})
            if not missing:
                return mergers
        same = "with the same other options"
        if not counts:
            raise UserError(f"{self.folder} has no shards: run --shard i/N first, {same}")
        raise UserError(
            f"{self.folder}: of its shards, {listed(map(str, missing))} of this evaluation have "
            f"not ended: run --shard {missing[0]}, {same}"
        )

    def stored(self) -> list[Verdicts]:
        """All finished evaluations of this model."""
        paths = [verdicts_path(self.folder, key) for key in verdicts_keys(self.folder)]
        verdicts = [read_verdicts(path) for path in paths]
        return [v for v in verdicts if v.identity["model"] == self.fingerprint]

    def flagged(self, records: list[dict]) -> list[dict]:
        """Records whose flags come from all that is known of this model, and are stored."""
        stored = self.stored()
        keys = {one.record["key"] for one in stored}
        together = [one.record for one in stored]
        together += [record for record in records if record.get("key") not in keys]
        together += [r for r in self.results["evaluations"] if r.get("images") and "key" not in r]
        before = [dict(one.record["flags"]) for one in stored]
        add_flags(together, {one.record["key"]: one.stands for one in stored})
        for one, flags in zip(stored, before):
            if one.record["flags"] != flags:
                write_verdicts(verdicts_path(self.folder, one.record["key"]), one)
        fresh = {one.record["key"]: one.record for one in stored}
        return [fresh.get(record.get("key"), record) for record in records]
