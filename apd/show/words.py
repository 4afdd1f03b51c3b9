"""The words that learned text vectors are near to, as CoOp (Zhou 2022, table 4) looked for them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from apd.clip.text import tokenizer
from apd.errors import UserError
from apd.models.classifier import PromptedClassifier


class Vector(NamedTuple):
    """One learned vector of the first layer.

    Attributes:
        number: among the context vectors, from 1.
        class_name: whose it is, where the context is class-specific, else "".
        words: the nearest tokens of the vocabulary with their Euclidean distances, nearest first.
    """

    number: int
    class_name: str
    words: list[tuple[str, float]]


@torch.no_grad()
def nearest_words(model: PromptedClassifier, count: int = 5) -> list[Vector]:
    """The words nearest to each text vector of the first layer, which takes the place of words.

    Vectors of deeper layers take the place of what layers before them have computed: no word's
    embedding is there to be compared with.

    Raises:
        UserError: no text vectors are learned.
    """
    contexts = model.model.prompt_learner.text_contexts()
    if not contexts:
        raise UserError(f"{model.description.method} learns no text vectors: there are no words")
    vectors = contexts[0]
    assert isinstance(vectors, torch.Tensor)  # routers are of deeper layers
    owners = model.class_names if vectors.dim() == 3 else [""]
    found = []
    for owner, context in zip(owners, vectors.reshape(len(owners), -1, vectors.shape[-1])):
        every = torch.cdist(context, _vocabulary(model))
        distances, ids = every.topk(min(count, every.shape[1]), largest=False)
        for number, (row, near) in enumerate(zip(distances.tolist(), ids.tolist()), start=1):
            words = [(word(token), distance) for token, distance in zip(near, row)]
            found.append(Vector(number, owner, words))
    return found


@torch.no_grad()
def typical_distance(model: PromptedClassifier) -> float:
    """The median distance of a word to the one nearest to it, over 1,000 words of the vocabulary.

    What a distance of ``nearest_words`` is to be compared with.
    """
    vocabulary = _vocabulary(model)
    some = vocabulary[:: max(len(vocabulary) // 1000, 1)]
    return float(torch.cdist(some, vocabulary).topk(2, largest=False)[0][:, 1].median())


def _vocabulary(model: PromptedClassifier) -> torch.Tensor:
    return model.model.clip.token_embedding.weight


def word(token: int) -> str:
    """A token as text, without the mark of a word's end."""
    return tokenizer().decode([token]).strip()
