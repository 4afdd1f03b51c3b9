"""The adversarial training loop, once for all methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import ThreatModel, pgd
from apd.ranks import BatchSlice
from apd.training.base import PromptTrainer


class AdversarialTraining(PromptTrainer):
    """Put before a method whose prompts it trains on attacked images.

    Madry 2018: minimise CE(z(x'), y) with x' from PGD on the current prompts. Which images of a
    batch are attacked is AT.TRAIN.AT_LOSS_TYPE, as in MAPT: all (adv_full), the second half
    (adv_half), none (clean).
    """

    adversarial = True

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        text = self.model.text_features()
        own = self.batch_slice or BatchSlice(len(images))
        first = own.before(self.unattacked(own.count))
        adversarial = self.attack(images[first:], labels[first:], text)
        images = torch.cat([images[:first], adversarial])
        logits = self.model.logits(self.model.image_features(images), text)
        return {"loss": F.cross_entropy(logits, labels)}

    def unattacked(self, count: int) -> int:
        """How many images of a batch of ``count``, its first ones, are not attacked."""
        kinds = {"adv_full": 0, "adv_half": count // 2, "clean": count}
        return kinds[self.cfg.AT.TRAIN.AT_LOSS_TYPE]

    def attack(
        self, images: Tensor, labels: Tensor, text: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        """PGD on the current prompts; ``text`` features are computed once for it.

        ``reference``: logits that a "kl" attack moves away from.
        """
        return self.pgd(self.model.classifier(text.detach()), images, labels, reference)

    def pgd(
        self,
        logits_fn: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
    ) -> Tensor:
        """PGD of AT.TRAIN, in its own precision whatever training has."""
        own = self.batch_slice
        attacked = own and own.after(self.unattacked(own.count))
        with self.autocast(self.cfg.AT.TRAIN.PREC):
            return pgd(
                logits_fn,
                images,
                labels,
                self.threat(),
                reference=reference,
                rows=attacked and (attacked.count, attacked.rows),
            )

    def threat(self) -> ThreatModel:
        """AT.TRAIN's; over the first EPS_WARMUP of the epochs its ball grows to its size."""
        epochs = self.cfg.AT.TRAIN.EPS_WARMUP * self.max_epoch
        if self.epoch + 1 >= epochs:
            return self.train_threat
        return self.train_threat.scaled((self.epoch + 1) / epochs)
