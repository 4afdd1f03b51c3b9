"""Zero-shot CLIP (Radford 2021, arXiv 2103.00020) with CoOp's hand-written templates."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.base import PromptTrainer


@register(TRAINER_REGISTRY)
class ZeroshotCLIP(PromptTrainer):
    """The dataset's template, nothing trained: "training" goes straight to the evaluation."""

    section = "COOP"  # for PREC only

    def prompts(self) -> dict:
        return {}

    def add_model(self, name, learner) -> None:
        self.register_model(name, learner, None, None)
        self.max_epoch = 0
