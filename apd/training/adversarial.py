"""Adversarial training, a base class that turns a method's clean training into it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import ThreatModel, pgd
from apd.ranks import BatchSlice
from apd.training.base import PromptTrainer


class AdversarialTraining(PromptTrainer):
    """Trains a method's prompts on attacked images: ``class AdvVPT(AdversarialTraining, VPT)``.

    It minimises CE(z(x'), y) with x' from PGD on the current prompts (Madry 2018, arXiv
    1706.06083). AT.TRAIN.AT_LOSS_TYPE says, as in MAPT, which images of a batch are attacked: all
    (adv_full), the second half (adv_half) or none (clean).
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
        """The images after PGD on the current prompts.

        Args:
            images: (B, 3, R, R) in [0, 1]; labels: (B,).
            text: features (C, D), computed once for all steps.
            reference: logits (B, C) from which a "kl" attack moves away.
        """
        return self.pgd(self.model.classifier(text.detach()), images, labels, reference)

    def pgd(
        self,
        logits_fn: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The images after PGD of AT.TRAIN on ``logits_fn``, in the precision AT.TRAIN.PREC."""
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
        """The threat model of this epoch.

        It is AT.TRAIN's, whose radius grows linearly over the first share AT.TRAIN.EPS_WARMUP of
        the epochs.
        """
        epochs = self.cfg.AT.TRAIN.EPS_WARMUP * self.max_epoch
        if self.epoch + 1 >= epochs:
            return self.train_threat
        return self.train_threat.scaled((self.epoch + 1) / epochs)
