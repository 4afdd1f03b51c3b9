"""Any model from images to logits, as something that can be evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from apd.attacks import DefendedModel
from apd.config import default
from apd.errors import UserError, listed, one_line
from apd.evaluate.data import LabelledImages
from apd.evaluate.evaluated import Evaluated
from apd.evaluate.loop import check_classes, check_range
from apd.evaluate.request import EvaluationRequest, LogitsFn
from apd.evaluate.shards import Images
from apd.evaluate.state import fingerprint, structure, tensor_bytes
from apd.host import HOST, HOST_VERSION
from apd.precision import full_float32
from apd.results import RESULTS_NAME, read_results, write_results


@dataclass(frozen=True)
class About:
    """What tables and reports say of a model.

    Attributes:
        name: stands where a run's method does.
        dataset, backbone: as a run's results.json has them; "": the data's own name, and ``name``.
        seed: of the attacks; stands where a run's seed does.
    """

    name: str
    dataset: str = ""
    backbone: str = ""
    seed: int = 1


class EvaluatedModel(Evaluated):
    """Any model on labelled images.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K); a module in evaluation mode.
        data: all its images; every split is these.
        folder: where verdicts are kept.
        device: where images go; None: where the module's weights are, or they stay where they are.
        kept: whether the folder outlives this process. A function is then known by its name and by
            its predictions on all clean images, which takes a pass; a module by its weights,
            buffers, plain attributes and code.

    Raises:
        UserError: the model is in training mode, fails on the first images or gives no logits for
            them; the data is not of its classes, not in [0, 1], or changes from pass to pass; the
            folder has results of another model.
    """

    def __init__(
        self,
        model: LogitsFn,
        data: LabelledImages,
        folder: Path,
        about: About,
        *,
        device: torch.device | str | None = None,
        kept: bool = True,
    ) -> None:
        if isinstance(model, nn.Module) and model.training:
            raise UserError("the model is in training mode: call model.eval() first")
        self.logits, self.data, self.folder = model, data, folder
        self.device = device_of(model) if device is None else torch.device(device)
        self.cfg = default()
        self.cfg.SEED = about.seed
        with full_float32():
            classes = self._try()
            self.fingerprint = self._fingerprint(about.name) if kept else "not kept"
        self.classnames = list(data.class_names or map(str, range(classes)))
        self.results = self._results(about, classes)
        self._check_folder()

    def _try(self) -> int:
        """How many classes the model has, after a try on the first images, read twice."""
        if not len(self.data.loader):
            raise UserError("there are no images to evaluate on")
        (images, labels), again = (self.parse_batch(next(iter(self.data.loader))) for _ in "12")
        if not all(torch.equal(one, other) for one, other in zip((images, labels), again)):
            raise UserError(
                "the data gives other images in each pass: take what is random out of its "
                "transforms, and shuffling out of its loader"
            )
        check_range(images)
        with torch.random.fork_rng(devices=_gpus(images)), torch.enable_grad():
            logits = self._called(images.clone().requires_grad_())
        check_classes(logits, labels)
        if not logits.requires_grad and not _is_black_box(self.logits):
            raise UserError(
                "the model's logits have no gradient for the images, which attacks need: take "
                "torch.no_grad, detach and numpy out of its way"
            )
        names, classes = self.data.class_names, logits.shape[1]
        if names and len(names) != classes:
            raise UserError(
                f"the model has {classes:,} classes, the data {len(names):,} ({listed(names, 3)}): "
                "give the names of the model's classes, in the order of its logits"
            )
        return classes

    def _called(self, images: Tensor) -> Tensor:
        try:
            logits = self.logits(images)
        except UserError:
            raise
        except Exception as error:  # anything, for it is the user's code
            raise UserError(
                f"the model fails on images {tuple(images.shape)} of {images.dtype} on "
                f"{images.device}: {type(error).__name__}: {one_line(error)}"
            ) from error
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the model gives a {type(logits).__name__}, but must give a tensor of logits: "
                "wrap it in a function that returns them"
            )
        return logits

    def _fingerprint(self, name: str) -> str:
        if isinstance(self.logits, nn.Module):
            return fingerprint(self.logits, structure(self.logits))
        found = hashlib.blake2b(name.encode(), digest_size=16)
        for batch in self.data.loader:
            images, _ = self.parse_batch(batch)
            with torch.random.fork_rng(devices=_gpus(images)), torch.no_grad():
                torch.manual_seed(0)  # of a model that draws random numbers
                found.update(tensor_bytes(self._called(images).argmax(dim=1)))
        return found.hexdigest()

    def _results(self, about: About, classes: int) -> dict:
        return {
            "method": about.name,
            "modality": "none",
            "trainable_parameters": 0,
            "dataset": about.dataset or self.data.name,
            "classes": classes,
            "subsample": "all",
            "shots": 0,
            "seed": about.seed,
            "backbone": about.backbone or about.name,
            "host": f"{HOST} {HOST_VERSION}",
            "evaluations": [],
            "train_seconds": 0.0,
            "seconds": 0.0,
            "config": {},
            "fingerprint": self.fingerprint,
            "class_names": self.classnames,
            "trained_on": None,
        }

    def _check_folder(self) -> None:
        """Take over the evaluations of this model that its folder has; refuse another's."""
        if not (self.folder / RESULTS_NAME).exists():
            return
        before = read_results(self.folder)
        for key in ("method", "dataset", "classes", "seed", "fingerprint"):
            if before.get(key) != (ours := self.results[key]):
                raise UserError(
                    f"{self.folder} has results of another model or data ({key} "
                    f"{before.get(key)}, not {ours}): choose another folder"
                )
        self.results["evaluations"] = before["evaluations"]

    def loader(self, split: str) -> Iterable:
        return self.data.loader

    def parse_batch(self, batch) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise UserError("a batch of the data is no pair (images, labels)")
        images, labels = map(torch.as_tensor, batch)
        device = self.device or images.device
        return images.to(device), labels.to(device)

    def evaluate(self, request: EvaluationRequest) -> list[dict]:
        self.check_images(request)
        with full_float32():
            return super().evaluate(request)

    def check_images(self, request: EvaluationRequest) -> None:
        """Raise UserError if the folder has evaluations of other images than the request's."""
        if not (stored := self.stored()):
            return
        images = Images(self.loader(request.split), request.subset, 1, self.parse_batch)
        asked = request.split, images.places.stated
        for one in stored:
            said = one.record["split"], one.record["images"]
            if said == asked and one.identity["images"] != images.digest:
                raise UserError(
                    f"{self.folder} has evaluations of this model on other images: choose another "
                    "folder"
                )

    def flagged(self, records: list[dict]) -> list[dict]:
        """As of the base class; results.json is written too."""
        records = super().flagged(records)
        known = {_told_apart(record): record for record in self.results["evaluations"]}
        known |= {_told_apart(record): record for record in records}
        evaluations = sorted(known.values(), key=lambda r: r["threat_model"] is not None)
        seconds = sum(record["seconds"] for record in evaluations)
        self.results |= {"evaluations": evaluations, "seconds": seconds}
        write_results(self.folder, self.results)
        return records


def _told_apart(record: dict) -> str:
    """Of evaluations of one model: those with equal texts are one."""
    return record.get("key") or f"{record['attack']} {record['split']} {record['images']}"


def _is_black_box(model: LogitsFn) -> bool:
    """Whether it says itself that it has no gradients; attacks that need them then say so."""
    return isinstance(model, DefendedModel) and model.backward == "none"


def device_of(model: LogitsFn) -> torch.device | None:
    """Of a module's first weight or buffer; None: it has none, or is no module."""
    if not isinstance(model, nn.Module):
        return None
    tensors: Iterator[Tensor] = (t for kind in (model.parameters(), model.buffers()) for t in kind)
    first = next(tensors, None)
    return None if first is None else first.device


def _gpus(images: Tensor) -> list[torch.device]:
    return [images.device] if images.is_cuda else []
