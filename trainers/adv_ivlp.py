"""AdvIVLP: adversarially trained independent bimodal prompts (MAPT)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.ivlp import IVLP
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class AdvIVLP(AdversarialTraining, IVLP):
    """IVLP's prompts, CE(z(x'), y)."""

    section = "AdvIVLP"
