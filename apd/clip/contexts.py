"""The learned context vectors: all that these methods train."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apd.clip.text import tokenizer
from apd.clip.visual import NEEDS_VIT, is_vit
from apd.errors import UserError

_STD = 0.02  # of random context vectors, as in CoOp and MaPLe


class IndependentPrompts(nn.Module):
    """Text and visual context learned side by side (IVLP), or only one of them (CoOp, VPT).

    Args:
        text: J_t tensors (M_t, D_t), the first may be (C, M_t, D_t); none for fixed text.
        visual: J_v tensors (M_v, D_v); none for an unprompted image encoder.
    """

    def __init__(self, text: Sequence[Tensor] = (), visual: Sequence[Tensor] = ()):
        super().__init__()
        self.text = nn.ParameterList(text)
        self.visual = nn.ParameterList(visual)

    def text_contexts(self) -> list[Tensor]:
        return list(self.text)

    def visual_contexts(self) -> list[Tensor]:
        return list(self.visual)


class CoupledPrompts(nn.Module):
    """Text context learned, visual context a linear projection of it (MaPLe, section 3.2.3).

    Args:
        text: J tensors (M, D_t).
        vision_width: D_v (``visual_width``).
    """

    def __init__(self, text: Sequence[Tensor], vision_width: int):
        super().__init__()
        self.text = nn.ParameterList(text)
        width, like = text[0].shape[-1], text[0]
        first, deeper = (
            nn.Linear(width, vision_width).to(like.device, like.dtype) for _ in range(2)
        )
        # MaPLe draws one projection for the deeper layers and starts every one of them from it
        self.projections = nn.ModuleList(
            [first, *(copy.deepcopy(deeper) for _ in range(len(text) - 1))]
        )

    def text_contexts(self) -> list[Tensor]:
        return list(self.text)

    def visual_contexts(self) -> list[Tensor]:
        return [project(context) for project, context in zip(self.projections, self.text)]


class ReverseCoupledPrompts(nn.Module):
    """Visual context learned, deep text context a linear projection of it (FAP, Zhou 2024).

    The first layer is the other way round: its text context is learned and projected to the
    visual one.

    Args:
        text: (M, D_t), of the first layer.
        visual: J - 1 tensors (M, D_v), of layers 2 to J.
        vision_width: D_v (``visual_width``).
    """

    def __init__(self, text: Tensor, visual: Sequence[Tensor], vision_width: int):
        super().__init__()
        self.text = nn.ParameterList([text])
        self.visual = nn.ParameterList(visual)
        first = nn.Linear(text.shape[-1], vision_width).to(text.device, text.dtype)
        deeper = nn.Linear(vision_width, text.shape[-1]).to(text.device, text.dtype)
        # as in MaPLe, every deeper layer starts from the same projection
        self.projections = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in visual)])

    def text_contexts(self) -> list[Tensor]:
        deeper = zip(self.projections[1:], self.visual)
        return [self.text[0], *(project(context) for project, context in deeper)]

    def visual_contexts(self) -> list[Tensor]:
        return [self.projections[0](self.text[0]), *self.visual]


def words_of(n_ctx: int, ctx_init: str) -> str:
    """The words that stand for the context: ``ctx_init``, or n_ctx placeholders.

    As in MaPLe, initial words that are fewer than the vectors asked for are not used.
    """
    words = ctx_init.replace("_", " ")
    return words if len(tokenizer().encode(words)) >= n_ctx else " ".join(["X"] * n_ctx)


def init_text(
    clip_model: nn.Module, n_ctx: int, depth: int, ctx_init: str = "", classes: int = 0
) -> list[Tensor]:
    """Fresh text context for ``depth`` layers: (n_ctx, D) each.

    The first layer starts from the embedding of ``ctx_init`` where that has enough tokens, all
    else from N(0, 0.02). With ``classes`` (CSC) the first layer is (classes, n_ctx, D).
    """
    check_depth("text", depth, len(clip_model.transformer.resblocks))
    embedding = clip_model.token_embedding
    contexts = [_random_like(embedding.weight, n_ctx) for _ in range(depth)]
    tokens = tokenizer().encode(ctx_init.replace("_", " "))
    if tokens and len(tokens) >= n_ctx:
        with torch.no_grad():
            ids = torch.tensor(tokens[:n_ctx], device=embedding.weight.device)
            contexts[0] = embedding(ids).clone()
        if classes:
            contexts[0] = contexts[0].repeat(classes, 1, 1)
    elif classes:
        contexts[0] = _random_like(embedding.weight, classes, n_ctx)
    return contexts


def init_visual(clip_model: nn.Module, n_ctx: int, depth: int) -> list[Tensor]:
    """Fresh visual context for ``depth`` layers of a ViT: (n_ctx, D) each, from N(0, 0.02).

    Raises:
        UserError: the image encoder is a ResNet, or has fewer layers.
    """
    visual_width(clip_model, depth)
    return [_random_like(clip_model.visual.class_embedding, n_ctx) for _ in range(depth)]


def visual_width(clip_model: nn.Module, depth: int) -> int:
    """Token width D of a ViT that has room for visual context in ``depth`` layers.

    Raises:
        UserError: the image encoder is a ResNet, or has fewer layers.
    """
    visual = clip_model.visual
    if not is_vit(visual):
        raise UserError(NEEDS_VIT)
    check_depth("visual", depth, len(visual.transformer.resblocks))
    return visual.class_embedding.shape[-1]


def _random_like(like: Tensor, *shape: int) -> Tensor:
    """N(0, 0.02), width, device and type as ``like``; drawn on the CPU, so that a seed gives
    the same prompts on every device."""
    draw = torch.empty(*shape, like.shape[-1]).normal_(std=_STD)
    return draw.to(like.device, like.dtype)


def check_depth(modality: str, depth: int, layers: int) -> None:
    if not 1 <= depth <= layers:
        raise UserError(
            f"{modality} prompt depth {depth} does not fit an encoder of {layers} layers: "
            f"choose 1 to {layers}"
        )
