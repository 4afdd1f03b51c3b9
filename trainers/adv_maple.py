"""AdvMaPLe: adversarially trained coupled bimodal prompts (MAPT)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.maple import MaPLe
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class AdvMaPLe(AdversarialTraining, MaPLe):
    """MaPLe's prompts, CE(z(x'), y)."""

    section = "AdvMaPLe"
