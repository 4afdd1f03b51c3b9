"""MirrorIVLP: IVLP's prompts, trained on attacked images and on mirrored clean ones (made up)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from apd.host import TRAINER_REGISTRY, register
from apd.trainers.ivlp import IVLP
from apd.training.adversarial import AdversarialTraining


@register(TRAINER_REGISTRY)
class MirrorIVLP(AdversarialTraining, IVLP):
    """CE(z(x'), y) + LAMBDA_MIRROR CE(z(mirrored x), y)."""

    section = "MirrorIVLP"

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        text = self.model.text_features()
        adversarial = self.attack(images, labels, text)
        attacked = self.model.logits(self.model.image_features(adversarial), text)
        mirrored = self.model.logits(self.model.image_features(images.flip(-1)), text)
        mirror = F.cross_entropy(mirrored, labels)
        loss = F.cross_entropy(attacked, labels) + self.options.LAMBDA_MIRROR * mirror
        return {"loss": loss, "mirror": mirror}
