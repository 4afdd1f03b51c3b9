"""Images to show: a seeded sample of a run's test set, with both outcomes of an attack."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from apd.attacks import Attack
from apd.attacks.stream import attack_batch
from apd.errors import UserError
from apd.evaluate.run import Run
from apd.models.classifier import PromptedClassifier

_TRIED = 8  # batches of images, before what was found is shown


class Sample(NamedTuple):
    """N images of a data set.

    Attributes:
        images: (N, 3, R, R) in [0, 1], on the CPU.
        labels: (N,).
        places: (N,) in the data set.
        stands: (N,) bool, whether the classifier withstood the attack.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    stands: Tensor


def draw_sample(
    run: Run, model: PromptedClassifier, attack: Attack, count: int, split: str, seed: int
) -> Sample:
    """Images that ``model`` is right about, in the order of a seeded draw.

    Half of them withstand the attack and half do not, as far as there are both among those that
    are tried.

    Raises:
        UserError: it is right about none.
    """
    dataset = run.trainer.split_loader(split).dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    parts: list[Sample] = []
    size = max(2 * count, 16)
    for places in tqdm(order.split(size)[:_TRIED], desc="apd-show, sample", disable=None):
        parts.append(_attacked(dataset, places, model, attack, seed))
        tried = Sample(*map(torch.cat, zip(*parts)))
        both = [_first(tried.stands == outcome, count) for outcome in (True, False)]
        if min(map(len, both)) >= (count + 1) // 2:
            break
    if not len(tried.labels):
        raise UserError(
            f"{run.folder}: of {len(order)} images, the first {_TRIED * size} drawn are all "
            "misclassified before any attack: name images to show"
        )
    stood, fell = both
    half = count // 2
    stood = stood[: max(count - len(fell), half)]
    rows = torch.cat([stood, fell[: count - len(stood)]]).sort()[0]
    return Sample(*(column[rows] for column in tried))


def _first(which: Tensor, count: int) -> Tensor:
    """Rows where ``which`` holds, ``count`` at most."""
    return which.nonzero()[:count, 0]


def _attacked(
    dataset, places: Tensor, model: PromptedClassifier, attack: Attack, seed: int
) -> Sample:
    """The images at ``places`` that the model is right about, and whether they stand."""
    items = [dataset[i] for i in places.tolist()]
    images = torch.stack([item["img"] for item in items])
    labels = torch.tensor([item["label"] for item in items])
    right = model.probabilities(images).argmax(dim=1) == labels
    images, labels, places = images[right], labels[right], places[right]
    stands = torch.ones(len(labels), dtype=torch.bool)
    if len(labels):
        device = model.text_features().device
        _, stands = attack_batch(
            attack.stages,
            model,
            images.to(device),
            labels.to(device),
            places=places,
            seed=seed,
        )
    return Sample(images, labels, places, stands)
