"""A few images that a model was evaluated on, and what an attack makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from apd.attacks import ThreatModel, pgd
from apd.evaluate.evaluated import Evaluated

STEPS = 20


class Examples(NamedTuple):
    """N images, clean and attacked, with what the model says of each.

    Attributes:
        clean, attacked: (N, 3, H, W) in [0, 1].
        clean_answers, attacked_answers: for each image the class's name and its probability.
        threat: what the attack might do.
    """

    clean: Tensor
    attacked: Tensor
    clean_answers: list[tuple[str, float]]
    attacked_answers: list[tuple[str, float]]
    threat: ThreatModel


def attacked_examples(run: Evaluated, record: dict, count: int) -> Examples:
    """At most ``count`` images on which the model is right, each of another class.

    The attack is PGD in the ball of ``record``, an evaluation of it, to the last iterate.
    """
    images, labels = _first_right(run, record["split"], count)
    eps = record["threat_model"]["eps"]
    threat = ThreatModel(record["threat_model"]["norm"], eps, 2.5 * eps / STEPS, STEPS)
    attacked = pgd(run.logits, images, labels, threat, generator=torch.Generator().manual_seed(0))
    return Examples(images, attacked, _answers(run, images), _answers(run, attacked), threat)


@torch.no_grad()
def _answers(run: Evaluated, images: Tensor) -> list[tuple[str, float]]:
    shares, labels = run.logits(images).softmax(dim=1).max(dim=1)
    return [(run.classnames[i], share) for i, share in zip(labels.tolist(), shares.tolist())]


def _first_right(run: Evaluated, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Correctly classified images, of as many classes as there are; the first, if none is."""
    images, labels, seen = [], [], set()
    for batch in run.loader(split):
        x, y = run.parse_batch(batch)
        with torch.no_grad():
            right = run.logits(x).argmax(dim=1) == y
        for i in right.nonzero()[:, 0].tolist():
            if int(y[i]) not in seen and len(images) < count:
                seen.add(int(y[i]))
                images.append(x[i])
                labels.append(y[i])
        if len(images) == min(count, len(run.classnames)):
            break
    if not images:
        images, labels = [x[0]], [y[0]]
    return torch.stack(images), torch.stack(labels)
