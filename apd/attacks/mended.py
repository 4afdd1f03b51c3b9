"""torchattacks' attacks by their names there, mended where they need it."""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor
from torchattacks import DIFGSM, FAB, Square

from apd.attacks.library import _Model

__all__ = ["APGD", "APGDT", "CW", "DIFGSM", "FAB", "Square"]


class Dropping:
    """Mixin for APGD: an image costs no pass any more once an iterate has fooled the model.

    torchattacks, as the authors' package, attacks all images of a run to its end, though what an
    image has come to is settled by then. Nothing changes for the others.
    """

    model: _Model

    def attack_single_run(self, x: Tensor, y: Tensor):
        if not self.model.drops:
            return super().attack_single_run(x, y)
        run = self.__dict__["run"] = _Run(x, y)  # torchattacks' __setattr__ compares its values
        try:
            best, right, loss, attacked = super().attack_single_run(x, y)
        except _AllFooled:
            return x, run.standing, None, run.fooling
        finally:
            del self.__dict__["run"]
        standing = run.standing.view(-1, 1, 1, 1)
        return best, right & run.standing, loss, torch.where(standing, attacked, run.fooling)

    def get_logits(self, inputs: Tensor, *args, **more) -> Tensor:
        run = self.__dict__.get("run")
        return run.logits_of(inputs, self.model) if run else super().get_logits(inputs)


class _AllFooled(Exception):
    """No image of a run is left to attack."""


class _Run:
    """Which images of a batch stand, and what fooled the model of the others.

    An image that does not has the logits that fooled the model, whatever becomes of it.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.labels, self.standing = labels, torch.ones_like(labels, dtype=torch.bool)
        self.logits = images.new_empty(0)  # of the last iterate, there from the first call on
        self.fooling = images.clone()

    def logits_of(self, images: Tensor, model: _Model) -> Tensor:
        on = self.standing.nonzero()[:, 0]
        if len(on) == len(images):
            logits = model(images)
        else:
            logits = self.logits.index_put((on,), model(images[on]))
        self.logits = logits.detach()
        wrong = self.standing & (self.logits.argmax(dim=1) != self.labels)
        if wrong.any():
            self.fooling[wrong] = images.detach()[wrong]
            self.standing = self.standing & ~wrong
            if not self.standing.any():
                raise _AllFooled
        return logits


class APGD(Dropping, torchattacks.APGD):
    pass


class APGDT(Dropping, torchattacks.APGDT):
    pass


class CW(torchattacks.CW):
    """Carlini and Wagner's L2 attack, mended in two places.

    torchattacks' cannot move a pixel that is 0 or 1 (its tanh^-1 is infinite there), and takes the
    best wrong logit to be positive.
    """

    def inverse_tanh_space(self, x: Tensor) -> Tensor:
        return super().inverse_tanh_space(x.clamp(1e-4, 1 - 1e-4))

    def f(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().f(outputs - outputs.detach().amin(dim=1, keepdim=True), labels)
