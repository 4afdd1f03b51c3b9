"""AdvVPT: adversarially trained visual prompts (Mao 2023, arXiv 2212.07016; MAPT)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.vpt import VPT
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class AdvVPT(AdversarialTraining, VPT):
    """VPT's prompts, CE(z(x'), y)."""

    section = "AdvVPT"
