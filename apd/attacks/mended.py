"""torchattacks' attacks, under the names that they have there; three are corrected here."""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor

from apd.attacks.library import _Model


class Dropping:
    """Mixin for APGD: an image is left out of further passes once an iterate fools the model.

    torchattacks, like the authors' package, attacks all images of a restart to its end, although
    an image's result cannot change any more. The results are the same.
    """

    model: _Model

    def attack_single_run(self, x: Tensor, y: Tensor):
        if not self.model.drops:
            return super().attack_single_run(x, y)  # type: ignore[misc]  # APGD's
        run = self.__dict__["run"] = _Run(x, y)  # torchattacks' __setattr__ compares its values
        try:
            best, right, loss, attacked = super().attack_single_run(x, y)  # type: ignore[misc]
        except _AllFooled:
            return x, run.standing, None, run.fooling
        finally:
            del self.__dict__["run"]
        standing = run.standing.view(-1, 1, 1, 1)
        return best, right & run.standing, loss, torch.where(standing, attacked, run.fooling)

    def get_logits(self, inputs: Tensor, *args, **more) -> Tensor:
        run = self.__dict__.get("run")
        if run:
            return run.logits_of(inputs, self.model)
        return super().get_logits(inputs)  # type: ignore[misc]


class _AllFooled(Exception):
    """No image of a run still stands."""


class _Run:
    """The state of a batch: which images stand, and the iterates that fooled the model.

    Images that do not stand are not passed to the model any more: they get the logits of the
    iterate that fooled it.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.labels, self.standing = labels, torch.ones_like(labels, dtype=torch.bool)
        self.index: Tensor | None = None  # of the images that stand; None: all of them
        self.logits = images.new_empty(0)  # of the last iterate; empty before the first call
        self.fooling = images.clone()

    def logits_of(self, images: Tensor, model: _Model) -> Tensor:
        if self.index is None:
            logits = model(images)
        else:
            logits = self.logits.index_put((self.index,), model(images[self.index]))
        self.logits = logits.detach()
        wrong = self.standing & (self.logits.argmax(dim=1) != self.labels)
        if wrong.any():
            self.fooling[wrong] = images.detach()[wrong]
            self.standing = self.standing & ~wrong
            self.index = self.standing.nonzero()[:, 0]
            if not len(self.index):
                raise _AllFooled
        return logits


class APGD(Dropping, torchattacks.APGD):
    pass


class APGDT(Dropping, torchattacks.APGDT):
    pass


class CW(torchattacks.CW):
    """Carlini and Wagner's L2 attack, corrected in two places.

    torchattacks' cannot change pixels that are 0 or 1 (where its tanh^-1 is infinite), and assumes
    that the best wrong logit is positive.
    """

    def inverse_tanh_space(self, x: Tensor) -> Tensor:
        return super().inverse_tanh_space(x.clamp(1e-4, 1 - 1e-4))

    def f(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().f(outputs - outputs.detach().amin(dim=1, keepdim=True), labels)


_CORRECTED = {corrected.__name__: corrected for corrected in (APGD, APGDT, CW)}


def attack_class(name: str) -> type:
    """The class of that name in torchattacks, corrected if it has to be."""
    return _CORRECTED.get(name) or getattr(torchattacks, name)
