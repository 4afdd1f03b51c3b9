"""Gradients of logits with respect to the images alone, in any precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apd.errors import NonFiniteLoss

NOT_FINITE = (
    "the model's logits are NaN or infinite: the prompts or weights are damaged, or half precision "
    "overflows"
)


def check_finite(logits: Tensor) -> Tensor:
    """``logits`` as they are; NonFiniteLoss if any is NaN or infinite."""
    # 0 times NaN or infinity is NaN; isfinite() of all logits costs ten times as much
    if not (0 * logits).sum().isfinite():
        raise NonFiniteLoss(NOT_FINITE)
    return logits


def image_gradient(logits: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """Gradient of ``(weights * logits).sum()`` for ``images``; no parameter's ``.grad`` changes.

    ``weights`` (B, C) is the gradient of the loss with respect to the logits. For each image it is
    scaled so that its largest entry is between 1/2 and 1, and the result is scaled back. The scales
    are powers of two, so that float32 gives the same bits as without them. In half precision,
    images with a large margin have tiny ``weights``, whose gradients would underflow to zero inside
    the model.
    """
    _, exponent = torch.frexp(weights.detach().abs().amax(dim=1, keepdim=True))
    scale = torch.pow(2.0, exponent.clamp(-100, 100))
    (gradient,) = torch.autograd.grad(logits, images, (weights / scale).to(logits.dtype))
    return gradient * scale.view(-1, 1, 1, 1)


class ImageGradient(torch.autograd.Function):
    """``logits_fn(images)`` with ``image_gradient`` as its backward pass, for library attacks."""

    @staticmethod
    def forward(ctx, images: Tensor, logits_fn: Callable[[Tensor], Tensor]) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return logits_fn(images)
        with torch.enable_grad():
            ctx.images = images.detach().requires_grad_()
            ctx.logits = logits_fn(ctx.images)
        return ctx.logits.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, weights: Tensor) -> tuple[Tensor, None]:
        return image_gradient(ctx.logits, ctx.images, weights), None
