"""Attribution maps: how much each token contributes to a score of CLIP (Grad-ECLIP).

They are made from the last attention layer of an encoder: the similarity of query and key says how
much the layer attends to a token, the score's gradient says how much the channels of its value
count (Zhao 2024, Grad-ECLIP, ICML; Feng 2026, CBA-FAPT, AAAI, equations 4 to 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.clip import text, visual
from apd.clip.blocks import Attended, Context
from apd.clip.text import ClassPrompts

if TYPE_CHECKING:
    from clip.model import CLIP, VisionTransformer


@dataclass(frozen=True)
class LastAttention:
    """The last attention layer of an encoder of width D, on N inputs, for the token that is read.

    That is the class token or the end-of-text token. All tensors are in the precision of the
    weights; the heads are concatenated.

    Attributes:
        output: (N, D), before the output projection.
        query: (N, D).
        keys, values: (N, L, D), of the tokens in the map.
        shown: (N or 1, L) bool, whether the input has this token in its map.
        embed: makes embeddings (N, embed_dim), not normalised, from ``output``.
    """

    output: Tensor
    query: Tensor
    keys: Tensor
    values: Tensor
    shown: Tensor
    embed: Callable[[Tensor], Tensor]

    def map(self, weight: Tensor) -> Tensor:
        """The map (N, L): sum_c w_c cos(q, k_i) v_ic for token i, 0 for tokens not in the map.

        ``weight`` (N, D) is the gradient of a score with respect to ``output``.
        """
        focus = F.cosine_similarity(self.query[:, None], self.keys, dim=-1)
        decisive = (self.values * weight[:, None]).sum(dim=-1)
        return torch.where(self.shown, focus * decisive, 0)


def image_attention(
    encoder: VisionTransformer, images: Tensor, contexts: Sequence[Context] = ()
) -> LastAttention:
    """The last attention of a ViT's class token; the map is over the image patches, row by row.

    Arguments as ``encode_image``.
    """
    attended = visual.to_last(encoder, images, contexts)
    patches = len(encoder.positional_embedding) - 1
    shown = torch.ones(1, patches, dtype=torch.bool, device=images.device)
    return _last(attended, slice(1, 1 + patches), shown, encoder, visual.embed)


def text_attention(
    clip_model: CLIP,
    prompts: ClassPrompts,
    classes: Tensor,
    contexts: Sequence[Context] = (),
) -> LastAttention:
    """The last attention of the end-of-text token of ``classes`` (N,), which may repeat.

    The map is over the tokens between start and end, context vectors included. Other arguments as
    ``encode_text``.
    """
    group, rows = classes.unique(return_inverse=True)
    end = int(prompts.eot[group].max()) + 1
    past = text.front(clip_model, prompts, contexts)
    attended = text.to_last(clip_model, prompts, contexts, past, group, end)
    by_class = ("tokens", "output", "queries", "keys", "values")
    attended = attended._replace(**{name: getattr(attended, name)[rows] for name in by_class})
    positions = torch.arange(1, end - 1, device=classes.device)
    shown = positions < prompts.eot[classes, None]
    return _last(attended, slice(1, end - 1), shown, clip_model, text.embed)


def _last(
    attended: Attended, tokens: slice, shown: Tensor, encoder: VisionTransformer, embed: Callable
) -> LastAttention:
    dtype = encoder.positional_embedding.dtype
    query, keys, values = (
        heads.transpose(1, 2).flatten(2).to(dtype)
        for heads in (attended.queries, attended.keys, attended.values)
    )
    last_tokens = attended.tokens.to(dtype)

    def embedding(output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return embed(encoder, last_tokens, output[:, None])

    return LastAttention(
        output=attended.output[:, 0].to(dtype),
        query=query[:, 0],
        keys=keys[:, tokens],
        values=values[:, tokens],
        shown=shown,
        embed=embedding,
    )
