"""APT: Adversarial Prompt Tuning (Li, CVPR 2024, arXiv 2403.01849)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.adversarial import AdversarialTraining
from apd.trainers.coop import CoOp


@register(TRAINER_REGISTRY)
class APT(AdversarialTraining, CoOp):
    """CoOp's prompts (and its keys, TRAINER.COOP), CE(z(x'), y), attacked "on the fly"."""
