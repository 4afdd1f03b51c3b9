"""``EvaluatedModel``: any model from images to logits, with the images that it is evaluated on."""

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
    """How tables and reports name a model that is not a run's.

    Attributes:
        name: in the place of a run's method.
        dataset, backbone: names, as in a run's results.json; "": the data's own name, and ``name``.
        seed: of the attacks; it is in the place of a run's seed.
    """

    name: str
    dataset: str = ""
    backbone: str = ""
    seed: int = 1


class EvaluatedModel(Evaluated):
    """Any model on labelled images.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K); a module is in evaluation mode.
        data: its images are those of every split.
        folder: stores verdicts and results.json.
        device: where images are moved to; None: to the module's weights; for a function, they are
            not moved.
        persistent: whether the folder outlives this process, so that the model needs a
            fingerprint. That of a function is of its name and of its predictions on all clean
            images, which takes a pass; that of a module is of its weights, buffers, plain
            attributes and code.

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
        persistent: bool = True,
    ) -> None:
        if isinstance(model, nn.Module) and model.training:
            raise UserError("the model is in training mode: call model.eval() first")
        self.logits, self.data, self.folder = model, data, folder
        self.device = device_of(model) if device is None else torch.device(device)
        self.cfg = default()
        self.cfg.SEED = about.seed
        with full_float32():
            classes = self._try()
            self.fingerprint = self._fingerprint(about.name) if persistent else "not kept"
        self.classnames = list(data.class_names or map(str, range(classes)))
        self.results = self._results(about, classes)
        self._check_folder()

    def _try(self) -> int:
        """Check data and model on the first images, which are read twice.

        Returns:
            How many classes the model has.
        """
        if not len(self.data.loader):
            raise UserError("there are no images to evaluate on")
        (images, labels), again = (self.parse_batch(next(iter(self.data.loader))) for _ in "12")
        if not all(map(torch.equal, (images, labels), again)):
            raise UserError(
                "the data gives other images in each pass: take what is random out of its "
                "transforms, and shuffling out of its loader"
            )
        check_range(images)
        with torch.random.fork_rng(devices=_gpus(images)), torch.enable_grad():
            logits = self._checked_logits(images.clone().requires_grad_())
        check_classes(logits, labels)
        # attacks that need gradients refuse a model that says that it has none
        says_so = isinstance(self.logits, DefendedModel) and self.logits.backward == "none"
        if not logits.requires_grad and not says_so:
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

    def _checked_logits(self, images: Tensor) -> Tensor:
        """The model's logits; UserError if it fails or returns something else."""
        try:
            logits = self.logits(images)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
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
        """Of a module its weights and structure, of a function its name and predictions."""
        if isinstance(self.logits, nn.Module):
            return fingerprint(self.logits, structure(self.logits))
        hash_ = hashlib.blake2b(name.encode(), digest_size=16)
        for batch in self.data.loader:
            images, _ = self.parse_batch(batch)
            with torch.random.fork_rng(devices=_gpus(images)), torch.no_grad():
                torch.manual_seed(0)  # for a model that draws random numbers
                hash_.update(tensor_bytes(self._checked_logits(images).argmax(dim=1)))
        return hash_.hexdigest()

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
        """Take over this model's evaluations that are in the folder.

        Raises:
            UserError: the folder has results of another model or data.
        """
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
        for verdicts in stored:
            split, places = verdicts.record["split"], verdicts.record["images"]
            same = (split, places) == (request.split, images.places.stated)
            if same and verdicts.identity["images"] != images.digest:
                raise UserError(
                    f"{self.folder} has evaluations of this model on other images: choose another "
                    "folder"
                )

    def flagged(self, records: list[dict]) -> list[dict]:
        """As of the base class; the records are also written to results.json."""
        records = super().flagged(records)
        by_name = {_unique_name(record): record for record in self.results["evaluations"]}
        by_name |= {_unique_name(record): record for record in records}
        evaluations = sorted(by_name.values(), key=lambda r: r["threat_model"] is not None)
        seconds = sum(record["seconds"] for record in evaluations)
        self.results |= {"evaluations": evaluations, "seconds": seconds}
        write_results(self.folder, self.results)
        return records


def _unique_name(record: dict) -> str:
    """The same for two records of one model if they are of the same evaluation."""
    return record.get("key") or f"{record['attack']} {record['split']} {record['images']}"


def device_of(model: LogitsFn) -> torch.device | None:
    """The device of a module's first weight or buffer; None: it has none, or is no module."""
    if not isinstance(model, nn.Module):
        return None
    tensors: Iterator[Tensor] = (t for kind in (model.parameters(), model.buffers()) for t in kind)
    first = next(tensors, None)
    return None if first is None else first.device


def _gpus(images: Tensor) -> list[torch.device]:
    return [images.device] if images.is_cuda else []
