"""``apd.robustness``: any model under attack, with the same verdicts and flags as runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from apd.attacks import Draws, ThreatModel, find_attack
from apd.attacks.threat import UNITS
from apd.errors import UserError, listed
from apd.evaluate.data import labelled_images
from apd.evaluate.model import About, EvaluatedModel
from apd.evaluate.request import EvaluationRequest, Shard
from apd.evaluate.table import table
from apd.files import check_writable
from apd.results import EVALUATIONS, environment
from apd.results.verdicts import Verdicts

STEPS = 100  # of an attack whose name states none: cw


@dataclass(frozen=True)
class RobustnessReport:
    """The result of ``apd.robustness``; printed, it is a table with footnotes for its flags.

    Attributes:
        name, dataset: of the model and the data.
        evaluations: records as in results.json: the clean one, then one for each attack and eps.
        verdicts: of each attack, by its record's key: image by image, see ``survivors``.
        results: the contents of results.json without environment.
    """

    name: str
    dataset: str
    evaluations: list[dict]
    verdicts: dict[str, Verdicts]
    results: dict

    @property
    def clean_accuracy(self) -> float:
        """In percent."""
        return self.evaluations[0]["accuracy"]

    def robust_accuracy(self, eps: float | None = None) -> float:
        """In percent: the images that stand under every attack of radius ``eps``.

        Args:
            eps: in pixel units; default: the largest one.

        Raises:
            UserError: there was no attack of this radius.
        """
        largest = max((self._eps(record) for record in self.evaluations[1:]), default=0.0)
        eps = largest if eps is None else UNITS * eps
        stands = [
            self.verdicts[record["key"]].stands
            for record in self.evaluations[1:]
            if np.isclose(self._eps(record), eps)
        ]
        if not stands:
            raise UserError(f"there was no attack within eps {eps:g}/255")
        return 100 * float(np.logical_and.reduce(stands).mean())

    def survivors(self, attack: str, eps: float | None = None) -> np.ndarray:
        """(N,) bool: the images that the model is right on, clean and under the attack.

        Args:
            attack: its name, as in ``attacks`` of ``apd.robustness``.
            eps: in pixel units; may be left out if there was only one.

        Raises:
            UserError: there was no such evaluation, or there were several.
        """
        matching = [
            record
            for record in self.evaluations[1:]
            if record["attack"] == attack
            and (eps is None or np.isclose(self._eps(record), UNITS * eps))
        ]
        if len(matching) != 1:
            names = listed(
                f"{r['attack']} (eps {self._eps(r):g}/255)" for r in self.evaluations[1:]
            )
            raise UserError(f"{attack}: name one evaluation of {names}, and its eps")
        return self.verdicts[matching[0]["key"]].stands

    @property
    def flags(self) -> dict[str, str]:
        """Signs that a number says more about the attack than the model; each with a sentence."""
        return {name: text for record in self.evaluations for name, text in record["flags"].items()}

    def to_dict(self) -> dict:
        """The contents of results.json, JSON-ready."""
        return {**self.results, "evaluations": self.evaluations, **environment()}

    @staticmethod
    def _eps(record: dict) -> float:  # in units of 1/255
        return record["threat_model"]["eps"]

    def __str__(self) -> str:
        return f"{self.name} on {self.dataset}\n{table([(self.results, self.evaluations)])}"


def robustness(
    model: nn.Module | Callable[[Tensor], Tensor],
    data,
    *,
    eps: float | Sequence[float],
    attacks: Sequence[str] = ("pgd-100", "autoattack"),
    norm: str = "linf",
    alpha: float | None = None,
    restarts: int = 1,
    last_iterate: bool = False,
    precision: str = "fp32",
    eot: int = 1,
    draws: int = 1,
    rule: str = "majority",
    seed: int = 1,
    subset: int = 0,
    split: str = "test",
    store: str | os.PathLike | None = None,
    save_adv: str | os.PathLike | None = None,
    shard: str | None = None,
    merge: bool = False,
    name: str = "",
    dataset: str = "",
    backbone: str = "",
    classes: Sequence[str] | None = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> RobustnessReport:
    """Measure clean and robust accuracy of any model, with the same verdicts and flags as runs.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K), differentiable. It normalises
            inside; a module is in evaluation mode.
        data: images (N, C, H, W) in [0, 1] and labels (N,); a DataLoader of such batches; a data
            set of (image, label), such as torchvision's; or a folder of class folders (of train/
            and test/, test/ is taken). Its order has to be the same in each pass.
        eps: radius of the ball, or several, in pixel units, as a difference of values in [0, 1]:
            4/255 (RobustBench, torchattacks). Records and tables have it in units of 1/255.
        attacks: names, see ``apd-eval --help`` and docs/evaluation.md.
        norm: "linf" or "l2".
        alpha: step size of PGD, in pixel units; default: eps / 4.
        restarts: of each attack.
        last_iterate: count PGD's last iterate only.
        precision: of the attacks' passes: fp32, bf16, amp. Verdicts are in float32.
        eot, draws, rule: of a ``DefendedModel`` whose logits are random (docs/evaluation.md): draws
            of a gradient and of a verdict, and when a verdict is right.
        seed: of the attacks; it stands in tables as a run's seed does.
        subset: how many of the images, drawn with a fixed seed; 0: all.
        split: "test" or "val": what the records say that the images are.
        store: folder for verdicts and results.json. The same call goes on there if it was killed,
            and ``apd-table`` and ``apd-report`` read it. Default: nothing is kept.
        save_adv: folder for the attacked images (npz).
        shard: "i/N": evaluate this part of the images only, for a later call with ``merge``.
        merge: make one evaluation of the shards in ``store``, which have all ended.
        name: of the model, in tables and reports; default: a module's class. A function needs one
            if there is a ``store``: stored verdicts are recognised as its own by this name and its
            predictions on the clean images; those of a module by weights, buffers, plain
            attributes and code.
        dataset, backbone: names as in results.json of runs, if the model is to be in one table
            with these; default: the data's own name, and ``name``.
        classes: names of the model's classes in the order of its logits; default: the model's
            ``class_names``. A folder's classes are looked up among them.
        preprocess: PIL image to tensor (C, H, W) in [0, 1]; default: the model's ``preprocess``,
            or the pixels as they are.
        batch_size, workers: for other data than a DataLoader.
        device: where the model is; default: where the module's weights are.

    Returns:
        Records, verdicts and flags.

    Raises:
        UserError: an argument, the model or the data does not fit; one line says how to mend it.
        NonFiniteLoss: logits that are NaN or infinite.
    """
    if (shard or merge) and store is None:
        raise UserError("shards are kept in a folder: give store")
    persistent = store is not None or save_adv is not None
    if persistent and not name and not isinstance(model, nn.Module):
        raise UserError("to keep evaluations of a function, give its name")
    threats = _threats(eps, alpha, norm, restarts)
    names = attacks.split(",") if isinstance(attacks, str) else attacks
    opened = nullcontext(store) if store is not None else tempfile.TemporaryDirectory()
    with opened as folder, torch.random.fork_rng(devices=[]):  # loaders draw numbers
        check_writable(folder, "store")
        request = EvaluationRequest(
            tuple(find_attack(n, threat, last_iterate) for threat in threats for n in names),
            split=split,
            subset=subset,
            precision=precision,
            seed=seed,
            draws=Draws(eot, draws, rule),
            store=Path(folder, EVALUATIONS),
            save_adv=None if save_adv is None else Path(save_adv),
            shard=Shard.parse(shard) if shard else None,
        )
        class_names: Sequence[str] = classes or getattr(model, "class_names", None) or ()
        evaluated = EvaluatedModel(
            model,
            labelled_images(
                data,
                batch_size=batch_size,
                workers=workers,
                preprocess=preprocess or getattr(model, "preprocess", None),
                class_names=class_names,
            ),
            Path(folder),
            About(
                name or getattr(model, "__name__", type(model).__name__), dataset, backbone, seed
            ),
            device=device,
            persistent=persistent,
        )
        return _report(evaluated, request, merge)


def _report(evaluated: EvaluatedModel, request: EvaluationRequest, merge: bool) -> RobustnessReport:
    """Evaluate the request, or merge its shards, and read the verdicts that are stored."""
    mergers = evaluated.ended_shards([request]) if merge else ()
    records = evaluated.records([request], mergers)
    if not request.shard:
        records = evaluated.flagged(records)
    results, keys = evaluated.results, {record.get("key") for record in records}
    verdicts = {v.record["key"]: v for v in evaluated.stored() if v.record["key"] in keys}
    return RobustnessReport(results["method"], results["dataset"], records, verdicts, results)


def _threats(
    eps: float | Sequence[float], alpha: float | None, norm: str, restarts: int
) -> list[ThreatModel]:
    """A threat model for each radius; ``eps`` and ``alpha`` are in pixel units."""
    radii = list(eps) if isinstance(eps, Sequence) else [eps]
    for radius in radii:
        _check_unit("eps", radius, norm)
    if alpha is not None:
        _check_unit("alpha", alpha, norm)
    steps = [radius / 4 if alpha is None else alpha for radius in radii]
    return [
        ThreatModel(norm, _per_255(radius), _per_255(step), STEPS, restarts)
        for radius, step in zip(radii, steps)
    ]


def _check_unit(name: str, value: float, norm: str) -> None:
    """Raise UserError unless the argument called ``name`` can be a distance in pixel units."""
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise UserError(f"{name} is {value!r}: use a number >= 0 in pixel units, such as 4/255")
    if norm == "linf" and value >= 1:
        raise UserError(
            f"{name} is {value:g}: its unit is a difference of pixel values in [0, 1], so write "
            f"{value:g}/255"
        )


def _per_255(value: float) -> float:
    return round(UNITS * float(value), 9)  # rounded, for 255 * (k / 255) is not always k
