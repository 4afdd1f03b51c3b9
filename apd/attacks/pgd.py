"""Projected gradient descent (Madry 2018, arXiv 1706.06083): to train on, and to evaluate with.

Start points and updates are those of torchattacks' PGD and PGDL2, except that the loss is summed
over the batch, so that an image's attack does not depend on the batch it is in. The model is any
callable; put it in evaluation mode before, and let it normalise inside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from apd.attacks.threat import ThreatModel
from apd.errors import NonFiniteLoss, UserError

_TINY = 1e-10  # keeps a zero norm from dividing


@torch.enable_grad()
def pgd(
    logits_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    reference: Tensor | None = None,
    start: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Attack every image to the end and return the last iterate, (B, 3, H, W) in [0, 1].

    Gradients are taken for the images only: no parameter's ``.grad`` changes. Works under
    ``torch.no_grad()`` too. Where a gradient is not finite, the result is NaN, and so is the
    loss on it.

    Args:
        logits_fn: images (B, 3, H, W) to logits (B, C).
        images: (B, 3, H, W) in [0, 1].
        labels: (B,).
        reference: logits (B, C) that a "kl" attack moves away from:
            it maximises KL(softmax(reference) || softmax(logits)).
        start: where to start, in the ball and the box, in place of the random start.
        generator: source of the random start; may live on another device than the images.

    Raises:
        UserError: restarts without a start; they have a meaning in ``surviving`` only.
        ValueError: a "kl" attack without ``reference``.
    """
    if threat.loss == "kl" and reference is None:
        raise ValueError('an attack with loss "kl" needs reference logits')
    if threat.restarts > 1 and start is None:
        raise UserError(f"attack restarts is {threat.restarts}: training attacks once, use 1")
    images = images.detach()
    attacked = _start(images, threat, generator) if start is None else start.detach().clone()
    for _ in range(threat.steps if len(images) else 0):
        logits = logits_fn(attacked.requires_grad_())
        attacked = _step(logits, attacked, images, labels, reference, threat)
    return attacked


@torch.enable_grad()
def surviving(
    logits_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    last_iterate: bool = False,
    clean_logits: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Which images the model still classifies correctly under attack, (B,) bool.

    An image is lost, and leaves the batch, as soon as the model errs on the clean image, on a
    start point or on any later iterate of any restart. This costs ``steps`` forward and backward
    passes and one forward pass a restart, at most; predictions come with the gradients' logits.

    Args:
        logits_fn, images, labels, generator: as for ``pgd``.
        last_iterate: attack everything to the end and look at the last iterate only, as most
            papers do. Not a worst case: an image that was wrong before may count as right.
        clean_logits: (B, C) logits of ``images``, if known; a "kl" attack moves away from them.

    Raises:
        NonFiniteLoss: a logit or gradient is NaN or infinite: that image is neither right nor
            wrong.
        UserError: a "kl" attack that starts at the image, where its gradient is zero.
    """
    if threat.loss == "kl" and not threat.random_start:
        raise UserError('attack loss "kl" is flat at the clean image: use a random start')
    images = images.detach()
    if clean_logits is None:
        with torch.no_grad():
            clean_logits = logits_fn(images)
    clean = correct(clean_logits, labels)
    alive = torch.ones_like(clean) if last_iterate else clean
    for _ in range(threat.restarts):
        # drawn for the whole batch, so that no verdict depends on which images have left it
        attacked = _start(images, threat, generator)
        left = alive.nonzero()[:, 0]
        batch = [t[left] for t in (attacked, images, labels, clean_logits)]
        for _ in range(threat.steps if len(left) else 0):
            logits = logits_fn(batch[0].requires_grad_())
            keep = correct(logits, batch[2]) | last_iterate
            if not keep.any():
                left = left[:0]
                break
            batch[0] = _step(logits, *batch, threat)
            left, *batch = (t[keep] for t in (left, *batch))
        alive = torch.zeros_like(alive)
        if len(left):
            with torch.no_grad():
                alive[left] = correct(logits_fn(batch[0]), batch[2])
    return alive


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right, (B,) bool; NonFiniteLoss where logits (B, C) have none."""
    if not torch.isfinite(logits).all():
        raise NonFiniteLoss(
            "the model's logits are NaN or infinite: the prompts or weights are damaged, or half "
            "precision overflows"
        )
    return logits.argmax(dim=1) == labels


def _start(images: Tensor, threat: ThreatModel, generator: Generator | None) -> Tensor:
    if not threat.random_start:
        return images.clone()
    eps = threat.eps / 255
    device = generator.device if generator else images.device
    noise = torch.empty(images.shape, dtype=images.dtype, device=device)
    if threat.norm == "linf":
        noise.uniform_(-eps, eps, generator=generator)
    else:
        noise.normal_(generator=generator)
        radius = noise.new_empty(len(noise), 1, 1, 1).uniform_(0, eps, generator=generator)
        noise *= radius / _norm(noise)
    return (images + noise.to(images.device)).clamp(0, 1)


def _step(
    logits: Tensor,
    attacked: Tensor,
    images: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    threat: ThreatModel,
) -> Tensor:
    """One step up the loss of ``logits`` = f(attacked), then back into the ball and the box."""
    if threat.loss == "ce":
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        p, target = logits.log_softmax(dim=1), reference.detach().log_softmax(dim=1)
        loss = F.kl_div(p, target, reduction="sum", log_target=True)
    (gradient,) = torch.autograd.grad(loss, attacked)
    eps, alpha = threat.eps / 255, threat.alpha / 255
    if threat.norm == "linf":
        # torch's sign(NaN) is 0: a broken gradient must not pass for an image that stands
        sign = gradient.sign() + 0 * gradient
        delta = attacked.detach() + alpha * sign - images
        delta = delta.clamp(-eps, eps)
    else:
        delta = attacked.detach() + alpha * gradient / (_norm(gradient) + _TINY) - images
        delta = delta * (eps / _norm(delta).clamp_min(_TINY)).clamp_max(1)
    return (images + delta).clamp(0, 1)


def _norm(images: Tensor) -> Tensor:
    """Euclidean norm of each image, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
