"""The learned context vectors (prompts), which are all that these methods train."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.clip.text import tokenizer
from apd.clip.visual import NEEDS_VIT, is_vit
from apd.errors import UserError

if TYPE_CHECKING:
    from clip.model import CLIP

_STD = 0.02  # of random context vectors, as in CoOp and MaPLe
_TAU, _ALPHA = (0.7, 1.3), (0.0, 2.0)  # MMoP's TAU_MIN, TAU_MAX, ALPHA_MIN, ALPHA_MAX [P]


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
        width, first_text = text[0].shape[-1], text[0]
        first, deeper = (
            nn.Linear(width, vision_width).to(first_text.device, first_text.dtype) for _ in range(2)
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


class Mixture(nn.Module):
    """The context of one layer, which a router mixes from E experts by the layer's tokens (MMoP).

    base + alpha (sum_e w_e expert_e - base), w = softmax(gate(mean of the tokens) / tau), with a
    learned base, tau in [0.7, 1.3] and alpha in [0, 2]; both start from 1. As in the published
    code: xinwong/MMoP, ``ResidualAttentionBlock_IVLP_MoE`` with GATE_MODE token_mean.

    Args:
        experts: (E, M, D); the base starts from their mean.
    """

    tau: nn.Parameter
    alpha: nn.Parameter

    def __init__(self, experts: Tensor):
        super().__init__()
        self.base = nn.Parameter(experts.mean(dim=0))
        self.experts = nn.Parameter(experts)
        count, _, width = experts.shape
        self.gate = nn.Linear(width, count).to(experts.device, experts.dtype)
        for name in ("tau", "alpha"):  # the value is the softplus of the parameter
            start = experts.new_full((1,), math.log(math.expm1(1)))
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, M, D), for tokens (N, L, D) without context, after the block's layer norm."""
        tau, alpha = F.softplus(self.tau).clamp(*_TAU), F.softplus(self.alpha).clamp(*_ALPHA)
        weights = (self.gate(tokens.mean(dim=1)) / tau).softmax(dim=-1)
        mixed = torch.einsum("ne,emd->nmd", weights, self.experts)
        return self.base + alpha * (mixed - self.base)


class RoutedPrompts(nn.Module):
    """Text and visual context side by side, that of the deeper layers mixed by routers (MMoP).

    Args:
        text, visual: (M, D) of the first layer, then (E, M, D) of each deeper one: the experts.
    """

    def __init__(self, text: Sequence[Tensor], visual: Sequence[Tensor]):
        super().__init__()
        self.text, self.visual = _Layers(*text), _Layers(*visual)

    def text_contexts(self) -> list[Tensor | Mixture]:
        return self.text.contexts()

    def visual_contexts(self) -> list[Tensor | Mixture]:
        return self.visual.contexts()


class _Layers(nn.Module):
    """The contexts of all layers, named "0", "1", ... as in a ``ParameterList``."""

    def __init__(self, first: Tensor, *deeper: Tensor):
        super().__init__()
        self.register_parameter("0", nn.Parameter(first))
        for i, experts in enumerate(deeper, start=1):
            self.add_module(str(i), Mixture(experts))

    def contexts(self) -> list:
        return [*self.parameters(recurse=False), *self.children()]


def words_of(n_ctx: int, ctx_init: str) -> str:
    """The words whose positions the context vectors take: ``ctx_init``, or n_ctx placeholders.

    As in MaPLe, initial words with fewer than n_ctx tokens are not used.
    """
    words = ctx_init.replace("_", " ")
    return words if len(tokenizer().encode(words)) >= n_ctx else " ".join(["X"] * n_ctx)


def init_text(
    clip_model: CLIP, n_ctx: int, depth: int, ctx_init: str = "", classes: int = 0
) -> list[Tensor]:
    """Fresh text context for ``depth`` layers: (n_ctx, D) each.

    The first layer starts from the embedding of ``ctx_init`` if that has enough tokens, otherwise
    from N(0, 0.02), as the deeper layers do. With ``classes`` (CSC) it is (classes, n_ctx, D).
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


def init_visual(clip_model: CLIP, n_ctx: int, depth: int) -> list[Tensor]:
    """Fresh visual context for ``depth`` layers of a ViT: (n_ctx, D) each, from N(0, 0.02).

    Raises:
        UserError: the image encoder is a ResNet, or has fewer layers.
    """
    visual_width(clip_model, depth)
    return [_random_like(clip_model.visual.class_embedding, n_ctx) for _ in range(depth)]


def init_experts(reference: Tensor, experts: int, n_ctx: int, layers: int) -> list[Tensor]:
    """(experts, n_ctx, D) for each of ``layers``, from N(0, 0.02); D and type as ``reference``."""
    return [_random_like(reference, experts, n_ctx) for _ in range(layers)]


def visual_width(clip_model: CLIP, depth: int) -> int:
    """Token width D of a ViT with at least ``depth`` layers.

    Raises:
        UserError: the image encoder is a ResNet, or has fewer layers.
    """
    visual = clip_model.visual
    if not is_vit(visual):
        raise UserError(NEEDS_VIT)
    check_depth("visual", depth, len(visual.transformer.resblocks))
    return visual.class_embedding.shape[-1]


def _random_like(reference: Tensor, *shape: int) -> Tensor:
    """Drawn from N(0, 0.02); width, device and type as ``reference``.

    It is drawn on the CPU, so that a seed gives the same prompts on every device.
    """
    draw = torch.empty(*shape, reference.shape[-1]).normal_(std=_STD)
    return draw.to(reference.device, reference.dtype)


def check_depth(modality: str, depth: int, layers: int) -> None:
    if not 1 <= depth <= layers:
        raise UserError(
            f"{modality} prompt depth {depth} does not fit an encoder of {layers} layers: "
            f"choose 1 to {layers}"
        )
