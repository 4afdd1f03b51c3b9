"""The words nearest to learned text vectors, as in CoOp (Zhou 2022, table 4)."""

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
        class_name: its class, if the context is class-specific, else "".
        words: the nearest tokens of the vocabulary with their Euclidean distances, nearest first.
    """

    number: int
    class_name: str
    words: list[tuple[str, float]]


@torch.no_grad()
def nearest_words(model: PromptedClassifier, count: int = 5) -> list[Vector]:
    """The ``count`` words nearest to each text vector of the first layer.

    Vectors of deeper layers have no nearest word: they replace outputs of the layer before, not
    embeddings of words.

    Raises:
        UserError: no text vectors are learned.
    """
    contexts = model.model.prompt_learner.text_contexts()
    if not contexts:
        raise UserError(f"{model.description.method} learns no text vectors: there are no words")
    vectors = contexts[0]
    assert isinstance(vectors, torch.Tensor)  # only deeper layers have routers in their place
    class_names = model.class_names if vectors.dim() == 3 else [""]
    contexts_of_classes = vectors.reshape(len(class_names), -1, vectors.shape[-1])
    nearest = []
    for class_name, context in zip(class_names, contexts_of_classes):
        to_all = torch.cdist(context, _vocabulary(model))
        distances, tokens = to_all.topk(min(count, to_all.shape[1]), largest=False)
        for number, row in enumerate(zip(tokens.tolist(), distances.tolist()), start=1):
            words = [(word(token), distance) for token, distance in zip(*row)]
            nearest.append(Vector(number, class_name, words))
    return nearest


@torch.no_grad()
def typical_distance(model: PromptedClassifier) -> float:
    """The median distance of a word to its nearest word, over 1,000 words of the vocabulary.

    A vector much farther than this from its nearest word (``nearest_words``) is like no word.
    """
    vocabulary = _vocabulary(model)
    sample = vocabulary[:: max(len(vocabulary) // 1000, 1)]
    return float(torch.cdist(sample, vocabulary).topk(2, largest=False)[0][:, 1].median())


def _vocabulary(model: PromptedClassifier) -> torch.Tensor:
    """The embeddings (V, D) of all tokens."""
    return model.model.clip.token_embedding.weight


def word(token: int) -> str:
    """A token as text, without the mark of a word's end."""
    return tokenizer().decode([token]).strip()
