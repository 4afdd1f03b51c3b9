"""Images attacked on each of several classifiers, all of which say what they see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apd.attacks import Attack, ThreatModel, find_attack
from apd.attacks.stream import attack_batch
from apd.errors import UserError
from apd.figures.gallery import Answer, Attacked, Gallery
from apd.models.classifier import PromptedClassifier


def find_attack_on(
    model: PromptedClassifier, name: str = "", eps: float | None = None, norm: str | None = None
) -> Attack:
    """An attack; what is not said is as in the model's own evaluation.

    Args:
        name: as of ``find_attack``; "": PGD with as many steps as the evaluation had.
        eps: radius, in units of 1/255.
        norm: "linf" or "l2".

    Raises:
        UserError: nothing says the radius, or no attack has this name.
    """
    own = model.threat_model["test"] or {}
    eps = own.get("eps") if eps is None else eps
    if eps is None:
        raise UserError("nothing says how far the attack may go: give --eps, in units of 1/255")
    ratio = own["alpha"] / own["eps"] if own.get("eps") else 0.25
    threat = ThreatModel(
        norm=norm or own.get("norm", "linf"),
        eps=float(eps),
        alpha=ratio * float(eps),
        steps=own.get("steps", 100),
        restarts=own.get("restarts", 1),
        loss=own.get("loss", "ce"),
    )
    return find_attack(name or threat.name, threat)


def attack_all(
    models: Sequence[PromptedClassifier],
    names: Sequence[str],
    attack: Attack,
    images: Tensor,
    truth: Sequence[str | None],
    *,
    captions: Sequence[str],
    title: str,
    places: Tensor | None = None,
    seed: int = 0,
) -> Gallery:
    """Attack images on each of the models; all of them say what they see.

    Args:
        images: (N, 3, R, R) in [0, 1].
        truth: the classes of the images; None: not known, then the attack is to change what a
            model says.
        places, seed: as of ``attack_batch``.
    """
    said = [answers(model, images) for model in models]
    labels = [[true or label for true, (label, _) in zip(truth, row)] for row in said]
    attacked = []
    for model, row, wanted in zip(models, said, labels):
        right = torch.tensor([said == label for (said, _), label in zip(row, wanted)])
        made = images.clone()
        if right.any():
            rows = right.nonzero()[:, 0].tolist()
            numbers = torch.tensor([model.class_names.index(wanted[row]) for row in rows])
            device = model.text_features().device
            made[right] = attack_batch(
                attack.stages,
                model,
                images[right].to(device),
                numbers.to(device),
                places=None if places is None else places[right],
                seed=seed,
            )[0].cpu()
        attacked.append(Attacked(made, [answers(other, made) for other in models]))
    return Gallery(list(names), list(captions), labels, images, said, attacked, title)


def answers(model: PromptedClassifier, images: Tensor) -> list[Answer]:
    """What the model says of each image (B, 3, R, R)."""
    return [(found.label, found.probability) for found in model.predict(images, top=1)]
