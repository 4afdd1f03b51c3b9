"""Images to show: a seeded sample of a run's test set, with both outcomes of an attack."""

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
    rows = _of_both(tried.stands, count)
    return Sample(*(column[rows] for column in tried))


def sample_of_verdicts(run: Run, verdicts: Verdicts, count: int, seed: int) -> Sample:
    """Images that the model is right about, in the order of a seeded draw, by what an evaluation
    of it has found: half of them withstand the attack and half do not, as far as there are both.

    Raises:
        UserError: it is right about none, or these are not the images of the evaluation.
    """
    about = verdicts.record["images"]
    loader = run.trainer.split_loader(verdicts.record["split"])
    index = places_of(loader, 0 if about == "all" else about["count"]).index
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
    rows = _of_both(stands, count)
    images, labels = [], []
    for place in index[order[rows]].tolist():
        image, label = run.parse_batch(default_collate([loader.dataset[place]]))
        images.append(image[0].cpu())
        labels.append(int(label))
    if labels != verdicts.labels[order[rows].numpy()].tolist():
        raise UserError(f"{run.folder}: its test images have other classes than when evaluated")
    return Sample(torch.stack(images), torch.tensor(labels), index[order[rows]], stands[rows])


def _of_both(stands: Tensor, count: int) -> Tensor:
    """Rows of ``count`` images at most, as many that stand as that do not, if there are so many."""
    stood, fell = (_first(stands == outcome, count) for outcome in (True, False))
    stood = stood[: max(count - len(fell), count // 2)]
    return torch.cat([stood, fell[: count - len(stood)]]).sort()[0]


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
