"""A few images of an evaluation, clean and attacked, with the model's predictions for figures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from apd.attacks import Attack, ThreatModel, find_attack
from apd.attacks.stream import attack_batch
from apd.choices import LOSSES
from apd.evaluate.evaluated import Evaluated


class Examples(NamedTuple):
    """N images, clean and attacked, with the model's predictions.

    Attributes:
        clean, attacked: (N, 3, H, W) in [0, 1].
        labels: the names of their classes.
        clean_answers, attacked_answers: for each image the predicted class's name and its
            probability.
        attack: that made the attacked images, white-box.
    """

    clean: Tensor
    attacked: Tensor
    labels: list[str]
    clean_answers: list[tuple[str, float]]
    attacked_answers: list[tuple[str, float]]
    attack: Attack


def attacked_examples(run: Evaluated, record: dict, count: int) -> Examples:
    """At most ``count`` images of different classes that the model classifies correctly, attacked.

    If it is right on none, the example is one image of the last batch that was looked at.

    Args:
        run: the model with its images.
        record: of an evaluation of it, whose attack is made again, white-box in float32.
    """
    images, labels = _first_right(run, record["split"], count)
    attack = attack_of(record)
    seed = record["threat_model"]["seed"]
    attacked, _ = attack_batch(attack.stages, run.logits, images, labels, seed=seed)
    names = [run.classnames[label] for label in labels.tolist()]
    return Examples(images, attacked, names, _answers(run, images), _answers(run, attacked), attack)


def attack_of(record: dict) -> Attack:
    """The attack of an evaluation's record, made again.

    Raises:
        UserError: no attack has the record's name any more.
    """
    threat = record["threat_model"]
    return find_attack(
        record["attack"],
        ThreatModel(
            norm=threat["norm"],
            eps=threat["eps"],
            alpha=threat["alpha"] or threat["eps"] / 4,  # None: the attack has its own step size
            steps=threat["steps"],
            restarts=threat["restarts"] or 1,
            random_start=bool(threat["random_start"]),
            loss=threat["loss"] if threat["loss"] in LOSSES else "ce",
        ),
        threat["last_iterate"],
    )


@torch.no_grad()
def _answers(run: Evaluated, images: Tensor) -> list[tuple[str, float]]:
    probabilities, labels = run.logits(images).softmax(dim=1).max(dim=1)
    return [(run.classnames[i], p) for i, p in zip(labels.tolist(), probabilities.tolist())]


def _first_right(run: Evaluated, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first correctly classified image of each class, until there are ``count``."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    classes: set[int] = set()
    for batch in run.loader(split):
        x, y = run.parse_batch(batch)
        with torch.no_grad():
            right = run.logits(x).argmax(dim=1) == y
        for i in right.nonzero()[:, 0].tolist():
            if int(y[i]) not in classes and len(images) < count:
                classes.add(int(y[i]))
                images.append(x[i])
                labels.append(y[i])
        if len(images) == min(count, len(run.classnames)):
            break
    if not images:
        images, labels = [x[0]], [y[0]]
    return torch.stack(images), torch.stack(labels)
