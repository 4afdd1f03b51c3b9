"""A few images that a model was evaluated on, and what an attack makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from apd.attacks import Attack, ThreatModel, find_attack
from apd.attacks.stream import attack_batch
from apd.choices import LOSSES
from apd.evaluate.evaluated import Evaluated


class Examples(NamedTuple):
    """N images, clean and attacked, with what the model says of each.

    Attributes:
        clean, attacked: (N, 3, H, W) in [0, 1].
        labels: the names of their classes.
        clean_answers, attacked_answers: for each image the class's name and its probability.
        attack: what made the attacked images, on the model alone.
    """

    clean: Tensor
    attacked: Tensor
    labels: list[str]
    clean_answers: list[tuple[str, float]]
    attacked_answers: list[tuple[str, float]]
    attack: Attack


def attacked_examples(run: Evaluated, record: dict, count: int) -> Examples:
    """At most ``count`` images on which the model is right, each of another class.

    The attack is that of ``record``, an evaluation, on the model alone (white-box).
    """
    images, labels = _first_right(run, record["split"], count)
    attack = attack_of(record)
    seed = record["threat_model"]["seed"]
    attacked, _ = attack_batch(attack.stages, run.logits, images, labels, seed=seed)
    names = [run.classnames[label] for label in labels.tolist()]
    said = _answers(run, images), _answers(run, attacked)
    return Examples(images, attacked, names, *said, attack)


def attack_of(record: dict) -> Attack:
    """The attack that an evaluation's record is about."""
    threat = record["threat_model"]
    return find_attack(
        record["attack"],
        ThreatModel(
            norm=threat["norm"],
            eps=threat["eps"],
            alpha=threat["alpha"] or threat["eps"] / 4,  # None: the attack brings its own
            steps=threat["steps"],
            restarts=threat["restarts"] or 1,
            random_start=bool(threat["random_start"]),
            loss=threat["loss"] if threat["loss"] in LOSSES else "ce",
        ),
        threat["last_iterate"],
    )


@torch.no_grad()
def _answers(run: Evaluated, images: Tensor) -> list[tuple[str, float]]:
    shares, labels = run.logits(images).softmax(dim=1).max(dim=1)
    return [(run.classnames[i], share) for i, share in zip(labels.tolist(), shares.tolist())]


def _first_right(run: Evaluated, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Correctly classified images, of as many classes as there are; the first, if none is."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    seen: set[int] = set()
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
