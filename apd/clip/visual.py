"""CLIP's image encoder with visual prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apd.clip.blocks import (
    Attended,
    Context,
    attend,
    context_vectors,
    layer_norm,
    residual_block,
    update,
)
from apd.errors import UserError

if TYPE_CHECKING:
    from clip.model import ModifiedResNet, VisionTransformer

NEEDS_VIT = (
    "visual prompts need a ViT backbone, this one is a ResNet: "
    "choose a text-prompt trainer (CoOp, APT) or a ViT"
)


def is_vit(visual: VisionTransformer | ModifiedResNet) -> bool:
    """Whether a ``clip.model`` image encoder is a ViT (else a ModifiedResNet)."""
    return hasattr(visual, "class_embedding")


def encode_image(
    visual: VisionTransformer | ModifiedResNet,
    images: Tensor,
    contexts: Sequence[Context] = (),
    tokens: list[Tensor] | None = None,
) -> Tensor:
    """Image features, not normalised: ``clip.model``'s own when there are no prompts.

    Args:
        visual: ``clip_model.visual``.
        images: (B, 3, R, R), already normalised by CLIP's mean and std.
        contexts: J tensors (M, D) or (B, M, D): ``contexts[0]`` is appended to the patch tokens
            (after the positional embedding, before ``ln_pre``), ``contexts[i]`` replaces it before
            block i (VPT-deep; Jia 2022, section 3.2, and MaPLe's placement). A deeper one may be a
            router (``context_vectors``).
        tokens: a list, to which the input tokens (B, L + M, D) of each block are added (ViTs only).

    Returns:
        (B, embed_dim).

    Raises:
        UserError: prompts on a ResNet, which has no token sequence to append them to.
    """
    images = images.to(visual.conv1.weight.dtype)
    if not is_vit(visual):
        if len(contexts):
            raise UserError(NEEDS_VIT)
        return visual(images)
    attended = to_last(visual, images, contexts, tokens)
    return embed(visual, attended.tokens, attended.output)


def to_last(
    visual: VisionTransformer,
    images: Tensor,
    contexts: Sequence[Context] = (),
    tokens: list[Tensor] | None = None,
) -> Attended:
    """The class token's attention in a ViT's last block; arguments as ``encode_image``.

    Its keys and values are those of the class token, the patches and the prompts, in this order.
    """
    x = patches(images, visual.conv1.kernel_size[0]) @ visual.conv1.weight.flatten(1).t()
    class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = torch.cat([class_token, x], dim=1) + visual.positional_embedding.to(x.dtype)
    length = x.shape[1]
    if len(contexts):
        assert isinstance(contexts[0], Tensor)  # routers are of deeper layers
        x = append(x, contexts[0])
    x = layer_norm(visual.ln_pre, x)
    blocks = visual.transformer.resblocks
    for i, block in enumerate(blocks):
        if 0 < i < len(contexts):
            x = append(x[:, :length], context_vectors(contexts[i], block, x[:, :length]))
        if tokens is not None:
            tokens.append(x)
        if i < len(blocks) - 1:
            x, _ = residual_block(block, x)
    # after the last block only the class token is read
    return attend(blocks[-1], x, select=lambda tokens: tokens[:, :1])


def embed(visual: VisionTransformer, tokens: Tensor, output: Tensor) -> Tensor:
    """(B, embed_dim), from the class tokens and their last attention, each (B, 1, D)."""
    x = update(visual.transformer.resblocks[-1], tokens, output)
    return layer_norm(visual.ln_post, x[:, 0]) @ visual.proj


def patches(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, H / size * W / size, C * size * size), row by row.

    The patch embedding is a convolution whose patches do not overlap. As a matrix product its
    gradient for the images costs a tenth on CPUs (measured: mini CLIP, batch 38).
    """
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def append(tokens: Tensor, context: Tensor) -> Tensor:
    """(B, L, D) and (M, D) or (B, M, D) to (B, L + M, D)."""
    return torch.cat([tokens, context.to(tokens.dtype).expand(tokens.shape[0], -1, -1)], dim=1)
