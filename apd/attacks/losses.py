"""What attackers maximise, by name (``apd.choices.LOSSES``).

Each function takes logits (B, C), labels (B,) and reference logits (B, C) or None, and returns the
loss, summed over the images, so that an image's gradient does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def divergence(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    """KL(softmax(reference) || softmax(logits)); the reference is a constant."""
    assert reference is not None  # ``pgd`` has checked it
    target = reference.detach().log_softmax(dim=1)
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="sum", log_target=True)


def margin(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Tensor:
    """The best wrong logit minus the right one (Carlini and Wagner 2017)."""
    right = F.one_hot(labels, logits.shape[1]).bool()
    best_wrong = logits.masked_fill(right, -torch.inf).amax(dim=1)
    return (best_wrong - logits[right]).sum()


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "kl": divergence, "margin": margin}


def loss_gradient(logits: Tensor, labels: Tensor, reference: Tensor | None, loss: str) -> Tensor:
    """The gradient of the loss of that name for ``logits`` (B, C), which have no graph."""
    if loss == "ce":  # the function that autograd calls: same bits, but no graph has to be made
        minus_one = torch.zeros_like(logits).scatter_(1, labels[:, None], -1)
        return torch.ops.aten._log_softmax_backward_data(
            minus_one, logits.log_softmax(dim=1), 1, logits.dtype
        )
    with torch.enable_grad():
        value = LOSSES[loss](logits.requires_grad_(), labels, reference)
        (gradient,) = torch.autograd.grad(value, logits)
    return gradient
