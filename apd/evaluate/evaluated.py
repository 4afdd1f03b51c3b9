"""A model, the images that it is evaluated on, and the folder that stores its evaluations."""

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
    """What another process needs to load a model that can be evaluated."""

    @property
    def folder(self) -> Path:
        """That of the model's evaluations."""

    def load(self) -> Evaluated:
        """The model; this takes seconds."""


class Evaluated(ABC):
    """A model that can be evaluated: a run's (``Run``), or any other (``EvaluatedModel``).

    Attributes:
        folder: has the folder evaluations, and in the end the file results.json.
        results: the contents of results.json, or at least its method, seed and evaluations.
        cfg: its AT.TEST and TEST.SPLIT are the defaults of an evaluation.
        logits: the model, from images (B, 3, H, W) in [0, 1] to logits (B, C).
        fingerprint: of the model.
        classnames: in the order of the logits.
        saved: what another process needs to load the model; None: it cannot be loaded.
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
        """Method and seed, for people."""
        return f"{self.results['method']}, seed {self.results['seed']}"

    def evaluate(self, request: EvaluationRequest) -> list[dict]:
        """The clean record and those of all attacks, of a request whose source may be a name."""
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
        """The clean record, and those of all attacks of all requests, which have the same images.

        Args:
            mergers: one for each request, whose shards have all ended; empty: the requests are
                evaluated here.
        """
        records: list[dict] = []
        for number, request in enumerate(requests):
            merger = mergers[number] if mergers else None
            if merger and not merger.finished:
                clean, *attacked = merger.records()
            else:
                clean, *attacked = self.evaluate(request)
                if merger:
                    merger.clear()  # a run with the same predictions has left the verdicts
            records += attacked if records else [clean, *attacked]
        return records

    def mergers(self, requests: Sequence[EvaluationRequest], count: int) -> list[Merger]:
        """A merger of ``count`` shards for each request; all requests have the same images."""
        first = requests[0]
        images = Images(self.loader(first.split), first.subset, count, self.parse_batch)
        return [Merger(self.resolved(r), images, self.fingerprint) for r in requests]

    def ended_shards(self, requests: Sequence[EvaluationRequest]) -> list[Merger]:
        """A merger for each request, whose shards have all ended.

        Raises:
            UserError: there are no shards, or some have not ended.
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
        """The records with flags from a comparison with all stored evaluations of this model.

        Where a stored evaluation's flags change by it, its file is written again.
        """
        stored = {verdicts.record["key"]: verdicts for verdicts in self.stored()}
        compared = [verdicts.record for verdicts in stored.values()]
        compared += [record for record in records if record.get("key") not in stored]
        compared += [r for r in self.results["evaluations"] if r.get("images") and "key" not in r]
        flags_before = {key: dict(verdicts.record["flags"]) for key, verdicts in stored.items()}
        add_flags(compared, {key: verdicts.stands for key, verdicts in stored.items()})
        for key, verdicts in stored.items():
            if verdicts.record["flags"] != flags_before[key]:
                write_verdicts(verdicts_path(self.folder, key), verdicts)
        return [stored[r["key"]].record if r.get("key") in stored else r for r in records]
