"""MMoP: multimodal mixture of prompts (Wang 2026; github.com/xinwong/MMoP, its MoEAdvIVLP)."""

from __future__ import annotations

from torch import nn

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.ivlp import IVLP
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class MMoP(AdversarialTraining, IVLP):
    """IVLP's prompts, those of the deeper layers mixed from experts by routers; CE(z(x'), y).

    A router reads the input tokens of its layer. So every image and every class has prompts of its
    own, and the attack's gradient goes through the routers.
    """

    section = "MMoP"

    def prompts(self) -> dict:
        return {**super().prompts(), "experts": self.options.NUM_EXPERTS}

    def parameter_groups(self, learner: nn.Module) -> list[dict]:
        """All parameters, without weight decay for the scales of the mixtures [P]."""
        scales: list[nn.Parameter] = []
        weights: list[nn.Parameter] = []
        for name, parameter in learner.named_parameters():
            (scales if name.endswith((".tau", ".alpha")) else weights).append(parameter)
        return [{"params": weights}, {"params": scales, "weight_decay": 0.0}]
