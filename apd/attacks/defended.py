"""Models with a test-time defence: randomised, adapted to each image, or not differentiable.

An attack that does not take a defence into account measures the attack, not the model (Athalye et
al. 2018, arXiv 1802.00420; Tramer et al. 2020, arXiv 2002.08347). A ``DefendedModel`` tells the
attack about its defence. Models without one are plain callables, from images to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from apd.attacks.draws import Draws
from apd.attacks.gradient import check_finite
from apd.attacks.stream import LogitsFn, row_seed
from apd.choices import BACKWARDS
from apd.errors import UserError

_ATTACK, _VERDICT = 1, 2  # two kinds of draws: an attacker does not know those of the verdict


@dataclass(frozen=True)
class DefendedModel:
    """A model with a test-time defence.

    Args:
        logits: images (B, 3, H, W) in [0, 1] and seeds (B,), int64 on the CPU, to logits (B, C).
            Row i depends on image i and seed i only, so that verdicts do not depend on batches.
        randomised: whether logits depend on the seeds.
        adapted: whether the model is tuned to each image.
        backward: the gradient that autograd computes: "exact", through all steps of the defence;
            "surrogate", with a replacement for steps without a useful gradient (BPDA); or "none".
        views: how many images the encoder processes for one image; batches are divided by it.
    """

    logits: Callable[[Tensor, Tensor], Tensor]
    randomised: bool
    adapted: bool = False
    backward: str = "exact"
    views: int = 1

    def __post_init__(self) -> None:
        if self.backward not in BACKWARDS:
            raise ValueError(f"backward is {self.backward!r}: use {', '.join(BACKWARDS)}")

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (B, C) of one draw, the same for all images and at every call."""
        return self.logits(images, torch.zeros(len(images), dtype=torch.long))

    def asdict(self) -> dict:
        """The fields of a record that describe the model."""
        return {
            "randomised": self.randomised,
            "adapted": self.adapted,
            "backward": self.backward,
        }


def is_randomised(model: LogitsFn) -> bool:
    return isinstance(model, DefendedModel) and model.randomised


def batch_of(model: LogitsFn, batch_size: int) -> int:
    """How many images of ``model`` are as much work as ``batch_size`` images of a plain model."""
    views = model.views if isinstance(model, DefendedModel) else 1
    return max(1, batch_size // views)


def check_gradient(model: LogitsFn, attack: str) -> None:
    """Raise UserError if ``model`` has no gradient."""
    if isinstance(model, DefendedModel) and model.backward == "none":
        raise UserError(f"{attack} needs gradients, and the model has none: use square")


def attack_logits(
    model: LogitsFn, images: Tensor, places: Tensor, seed: int, moment: Tensor, draw: int
) -> Tensor:
    """Logits (B, C) for an attack's gradient, at one of its draws.

    ``places`` (B,) and ``moment`` (B,), on the CPU, are the image's place in the data and its step,
    counted over restarts.
    """
    if not isinstance(model, DefendedModel):
        return model(images)
    rows = zip(places.tolist(), moment.tolist())
    seeds = [row_seed(seed, _ATTACK, place, when, draw) for place, when in rows]
    return model.logits(images, torch.tensor(seeds))


def call_logits(model: DefendedModel, images: Tensor, seed: int, call: int) -> Tensor:
    """Logits (B, C) at an attack's ``call``-th call, with the same draw for all images.

    It is for attacks that do not tell which images are in their batch. With one draw for all, an
    image's logits do not depend on the others.
    """
    shared_seed = row_seed(seed, _ATTACK, call)
    return model.logits(images, torch.full((len(images),), shared_seed))


def predictions(
    model: LogitsFn, images: Tensor, labels: Tensor, places: Tensor, seed: int, draws: Draws
) -> Tensor:
    """The predicted classes (B,): ``labels`` where ``model`` is right by the rule of ``draws``.

    Elsewhere it is the first wrong class among the draws. In float32, without gradients.

    Raises:
        NonFiniteLoss: logits that are NaN or infinite.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        drawn = torch.stack(
            [
                check_finite(logits).argmax(dim=1)
                for logits in _verdict_logits(model, images, places, seed, draws)
            ]
        )
    right = drawn == labels
    needed = {"all": len(drawn), "one": 1, "majority": len(drawn) // 2 + 1}[draws.rule]
    first_wrong = drawn.gather(0, right.long().argmin(dim=0, keepdim=True))[0]
    return torch.where(right.sum(dim=0) >= needed, labels, first_wrong)


def _verdict_logits(
    model: LogitsFn, images: Tensor, places: Tensor, seed: int, draws: Draws
) -> Iterator[Tensor]:
    if not isinstance(model, DefendedModel):
        yield model(images)
        return
    count = draws.verdict if model.randomised and draws.rule != "one" else 1
    for k in range(count):
        seeds = [row_seed(seed, _VERDICT, place, k) for place in places.tolist()]
        yield model.logits(images, torch.tensor(seeds))
