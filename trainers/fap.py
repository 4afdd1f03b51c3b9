"""FAP: Few-shot Adversarial Prompt learning (Zhou, NeurIPS 2024, arXiv 2403.14774)."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from apd.catalog import template
from apd.host import TRAINER_REGISTRY, register
from apd.training.adversarial import AdversarialTraining
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class FAP(AdversarialTraining, PromptTrainer):
    """Deep visual context projected to text; clean CE, and consistency under attack.

    CE(z(x), y) + lambda mean[KL(p(x) || p(x')) (cos(v(x), v(x')) + 1)], with x' from PGD on that
    KL. Images whose features stay similar while their predictions change count most.
    """

    section = "FAP"
    batches = ("adv_full",)  # trains on each image twice, clean and attacked

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        model = self.model
        text = model.text_features()
        clean = model.image_features(images)
        clean_logits = model.logits(clean, text)
        attacked = self.attack(images, labels, text, reference=clean_logits.detach())
        adversarial = model.image_features(attacked)
        logits = model.logits(adversarial, text)

        log_p, log_q = clean_logits.log_softmax(dim=1), logits.log_softmax(dim=1)
        kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
        consistency = (kl * (F.cosine_similarity(clean, adversarial) + 1)).mean()
        natural = F.cross_entropy(clean_logits, labels)
        loss = natural + self.options.LAMBDA * consistency
        return {"loss": loss, "clean": natural, "consistency": consistency}

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.train_threat = replace(self.train_threat, loss="kl")

    def prompts(self) -> dict:
        options = self.options
        return {
            "n_ctx_text": options.N_CTX,
            "depth_text": options.PROMPT_DEPTH,
            "ctx_init": options.CTX_INIT or template(self.cfg.DATASET),
            "coupled": "visual-to-text",
        }
