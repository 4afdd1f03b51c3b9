"""A seeded sample of a run's test images to show, half of which withstand an attack."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from apd.attacks import Attack
from apd.attacks.stream import attack_batch
from apd.errors import UserError
from apd.evaluate.loop import places_of
from apd.evaluate.run import Run
from apd.models.classifier import PromptedClassifier
from apd.results.verdicts import Verdicts

_MAX_BATCHES = 8  # after so many, the sample is taken from the images that were attacked


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
    """At most ``count`` images that ``model`` classifies correctly, in the order of a seeded draw.

    Half of them withstand the attack and half do not, if enough of both are among the first images
    of the draw, which are attacked until there are.

    Raises:
        UserError: it classifies none of them correctly.
    """
    dataset = run.trainer.split_loader(split).dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    batches: list[Sample] = []
    size = max(2 * count, 16)
    for places in tqdm(order.split(size)[:_MAX_BATCHES], desc="apd-show, sample", disable=None):
        batches.append(_attacked(dataset, places, model, attack, seed))
        attacked = Sample(*map(torch.cat, zip(*batches)))
        standing = int(attacked.stands.sum())
        if min(standing, len(attacked.stands) - standing) >= (count + 1) // 2:
            break
    if not len(attacked.labels):
        raise UserError(
            f"{run.folder}: of {len(order)} images, the first {_MAX_BATCHES * size} drawn are all "
            "misclassified before any attack: name images to show"
        )
    rows = _of_both_outcomes(attacked.stands, count)
    return Sample(*(column[rows] for column in attacked))


def sample_of_verdicts(run: Run, verdicts: Verdicts, count: int, seed: int) -> Sample:
    """At most ``count`` images that the model classifies correctly, in the order of a seeded draw.

    Half of them withstand the attack of an evaluation and half do not, by its stored ``verdicts``,
    if there are enough of both.

    Raises:
        UserError: it classifies none correctly, or the run's images are not those that were
            evaluated.
    """
    stated = verdicts.record["images"]
    loader = run.trainer.split_loader(verdicts.record["split"])
    index = places_of(loader, 0 if stated == "all" else stated["count"]).index
    index = torch.arange(len(loader.dataset)) if index is None else index
    if len(index) != len(verdicts.labels):
        raise UserError(
            f"{run.folder} was evaluated on {len(verdicts.labels)} images, but here are "
            f"{len(index)}: give the folder that holds its data set by --root"
        )
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    order = order[torch.from_numpy(verdicts.was_right)[order]]
    if not len(order):
        raise UserError(f"{run.folder} is right about no image before the attack")
    stands = torch.from_numpy(verdicts.stands)[order]
    rows = _of_both_outcomes(stands, count)
    images, labels = [], []
    for place in index[order[rows]].tolist():
        image, label = run.parse_batch(default_collate([loader.dataset[place]]))
        images.append(image[0].cpu())
        labels.append(int(label))
    if labels != verdicts.labels[order[rows].numpy()].tolist():
        raise UserError(f"{run.folder}: its test images have other classes than when evaluated")
    return Sample(torch.stack(images), torch.tensor(labels), index[order[rows]], stands[rows])


def _of_both_outcomes(stands: Tensor, count: int) -> Tensor:
    """The first ``count`` rows, half of them standing and half fallen, if there are enough."""
    standing, fallen = (rows.nonzero()[:count, 0] for rows in (stands, ~stands))
    standing = standing[: max(count - len(fallen), count // 2)]
    return torch.cat([standing, fallen[: count - len(standing)]]).sort()[0]


def _attacked(
    dataset, places: Tensor, model: PromptedClassifier, attack: Attack, seed: int
) -> Sample:
    """The images at ``places`` that the model classifies correctly, and whether they stand."""
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
