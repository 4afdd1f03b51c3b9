"""TTC: test-time counterattacks (Xing, CVPR 2025; github.com/Sxing2/CLIP-Test-time-Counterattacks).

Formulas and numbers are those of its code/test_time_counterattack.py [P].
"""

from __future__ import annotations

import torch
from torch import Tensor

from apd.attacks.threat import UNITS
from apd.host import TRAINER_REGISTRY, register
from apd.training.defence import TestTimeDefence
from apd.views import seeded_uniform


@register(TRAINER_REGISTRY)
class TTC(TestTimeDefence):
    """Moves an image's embedding away from where it is, if random noise hardly moves it.

    The counterattack maximises |f(x + d) - f(x)|^2 by signed steps from random noise d_0; its
    iterates are averaged with weights exp(BETA t). If the noise moves the embedding by more than
    TAU of its length, the image gets the noise alone.
    """

    section = "TTC"
    backward = "surrogate"  # signs have no useful gradient: the counterattack counts as a constant

    def defended(self, images: Tensor, seeds: Tensor) -> Tensor:
        counterattack = self.counterattack(images.detach(), seeds)
        return self.model.logits(self.model.image_features(images + counterattack), self.text)

    def counterattack(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The perturbation that is added to the images, (B, 3, R, R)."""
        o, embed = self.options, self.model.image_embeddings
        eps, alpha = o.EPS / UNITS, o.ALPHA / UNITS
        with torch.no_grad():
            embeddings = embed(images)
            noise = eps * (2 * seeded_uniform(seeds, *images.shape[1:], like=images) - 1)
            deltas = [(images + noise).clamp(0, 1) - images]
            still = (self.drift(images, deltas[0], embeddings) < o.TAU).view(-1, 1, 1, 1)
        for _ in range(o.STEPS):
            with torch.enable_grad():
                delta = deltas[-1].detach().requires_grad_()
                moved = (embed(images + delta) - embeddings).square().sum()
                (gradient,) = torch.autograd.grad(moved, delta)
            delta = (deltas[-1] + alpha * gradient.sign()).clamp(-eps, eps)
            deltas.append((images + delta).clamp(0, 1) - images)
        steps = torch.arange(o.STEPS + 1, dtype=images.dtype, device=images.device)
        weights = (o.BETA * steps).softmax(dim=0)
        counter = torch.einsum("t,tbchw->bchw", weights, torch.stack(deltas))
        return torch.where(still, counter, deltas[0])

    def drift(self, images: Tensor, noise: Tensor, embeddings: Tensor) -> Tensor:
        """|f(x + noise) - f(x)| / |f(x)|, (B,).

        f is plain CLIP's embedding, also with visual prompts: the published code does so for
        encoders that were trained further.
        """
        embed = self.model.image_embeddings
        if self.contexts("visual"):
            embed = self.plain.image_embeddings
            embeddings = embed(images)
        return (embed(images + noise) - embeddings).norm(dim=1) / embeddings.norm(dim=1)

    def image_logits(self):
        self.plain = self.build_prompted_clip(self.clip_model).eval()
        return super().image_logits()
