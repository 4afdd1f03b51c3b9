"""Images attacked on each of several classifiers, with the predictions of all of them."""

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
    """An attack on ``model``; arguments that are left out are those of its own evaluation.

    Args:
        name: as of ``find_attack``; "": PGD with as many steps as the evaluation had.
        eps: radius, in units of 1/255.
        norm: "linf" or "l2".

    Raises:
        UserError: neither ``eps`` nor the evaluation states a radius, or no attack has this name.
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
    """Attack images on each of the models, and let all models classify the attacked images.

    Args:
        names: of the models.
        images: (N, 3, R, R) in [0, 1].
        truth: the classes of the images; None: not known, so the attack is to change the model's
            answer.
        captions, title: of the gallery.
        places, seed: as of ``attack_batch``.
    """
    clean = [answers(model, images) for model in models]
    labels = [[true or answer for true, (answer, _) in zip(truth, of_model)] for of_model in clean]
    attacked = []
    for model, of_model, targets in zip(models, clean, labels):
        right = torch.tensor([answer == label for (answer, _), label in zip(of_model, targets)])
        adversarial = images.clone()
        if right.any():
            rows = right.nonzero()[:, 0].tolist()
            classes = torch.tensor([model.class_names.index(targets[row]) for row in rows])
            device = model.text_features().device
            adversarial[right] = attack_batch(
                attack.stages,
                model,
                images[right].to(device),
                classes.to(device),
                places=None if places is None else places[right],
                seed=seed,
            )[0].cpu()
        attacked.append(Attacked(adversarial, [answers(each, adversarial) for each in models]))
    return Gallery(list(names), list(captions), labels, images, clean, attacked, title)


def answers(model: PromptedClassifier, images: Tensor) -> list[Answer]:
    """The model's answer on each of the images, (B, 3, R, R) in [0, 1]."""
    return [(answer.label, answer.probability) for answer in model.predict(images, top=1)]
