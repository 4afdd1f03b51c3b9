"""A model whose gradients mislead, each kind of them one attack more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KINDS = ("sound", "saturated", "misled", "blind")


def masked(logits_fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``logits_fn``, whose predictions stay, with gradients that the first pixel masks.

    An image's kind is round(3 * first pixel), which no attack within 1/6 changes (``mark``):

    * 0, sound: nothing is masked.
    * 1, saturated: logits times 10,000. Cross-entropy has a gradient of zeros (apgd-ce fails); the
      DLR loss does not change (apgd-t works).
    * 2, misled: also, all logits but the best two fall, by an amount that grows along a fixed
      pattern of pixels. The DLR loss divides by that amount, so it follows the pattern (apgd-t
      fails); FAB looks at the best two alone (fab-t works).
    * 3, blind: the gradient is that of fixed patterns, whatever the image. Only Square works, which
      asks for none.

    Args:
        logits_fn: images (B, 3, H, W) in [0, 1] to logits (B, C), with C of 4 or more.
    """

    def logits(images: Tensor) -> Tensor:
        kind = (3 * images.detach()[:, 0, 0, 0]).round()[:, None]
        z = logits_fn(images)
        flat = images.flatten(1)
        pixels = torch.arange(flat.shape[1], device=images.device)
        pattern = (pixels * 7 // 3 % 2 * 2 - 1) * 400 / flat.shape[1]
        scaled = 10_000 * z
        two = scaled.topk(2, dim=1)
        pull = ((pattern * flat).sum(dim=1, keepdim=True) + 15).exp()
        low = (two.values[:, :1].detach() - pull).expand_as(z)
        classes = torch.arange(z.shape[1], device=images.device)[:, None]
        patterns = ((pixels * (classes + 3)) % 7 - 3.0).t()
        blind = z.detach() + (flat - flat.detach()) @ patterns
        z = torch.where(kind == 1, scaled, z)
        z = torch.where(kind == 2, low.scatter(1, two.indices, two.values), z)
        return torch.where(kind == 3, blind, z)

    return logits


def mark(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images, with their kinds in turn in the first pixel, and these kinds (B,)."""
    images, kinds = images.clone(), torch.arange(len(images)) % len(KINDS)
    images[:, 0, 0, 0] = kinds / (len(KINDS) - 1)
    return images, kinds
