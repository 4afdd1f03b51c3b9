"""APT: Adversarial Prompt Tuning (Li, CVPR 2024, arXiv 2403.01849)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from apd import ranks
from apd.errors import UserError
from apd.host import TRAINER_REGISTRY, register
from apd.trainers.coop import CoOp
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class APT(AdversarialTraining, CoOp):
    """CoOp's prompts (and its keys, TRAINER.COOP), CE(z(x'), y).

    AT.TRAIN.PROMPT says which prompts the attack uses: the current ones (onfly), "a photo of a
    <class>" (constant), or a copy of the current ones that is moved up the loss together with the
    images (perturbed, with learning rate AT.TRAIN.PALPHA).
    """

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.strategy = cfg.AT.TRAIN.PROMPT
        if self.strategy == "perturbed" and cfg.AT.TRAIN.PALPHA is None:
            raise UserError("AT.TRAIN.PROMPT is perturbed: set AT.TRAIN.PALPHA, its learning rate")

    def build_model(self) -> None:
        super().build_model()
        if self.strategy == "constant":
            constant = self.build_prompted_clip(self.clip_model, templates=["a photo of a {}"])
            self.constant_text = constant.text_features()

    def attack(
        self, images: Tensor, labels: Tensor, text: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        if self.strategy == "constant":
            return super().attack(images, labels, self.constant_text, reference)
        if self.strategy == "perturbed":
            return self.attack_with_prompts(images, labels, reference)
        return super().attack(images, labels, text, reference)

    def attack_with_prompts(
        self, images: Tensor, labels: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        """PGD in which a copy of the prompts makes a step up the mean loss at each step."""
        model = self.model
        perturbed = copy.deepcopy(model.prompt_learner)
        contexts = list(perturbed.parameters())
        own = self.batch_slice
        weight = own.after(self.unattacked(own.count)).weight if own else 1

        def logits(images: Tensor) -> Tensor:
            text = model.text_features(perturbed)
            image = model.image_features(images)
            # the image encoder runs once: its features are constant for the prompts' gradient
            loss = F.cross_entropy(model.logits(image.detach(), text), labels)
            gradients = ranks.total_of(torch.autograd.grad(weight * loss, contexts))
            with torch.no_grad():
                for context, gradient in zip(contexts, gradients):
                    context.add_(self.cfg.AT.TRAIN.PALPHA * gradient)
            return model.logits(image, text.detach())

        return self.pgd(logits, images, labels, reference)
