"""Zero-shot CLIP (Radford 2021, arXiv 2103.00020) with CoOp's hand-written templates."""

from __future__ import annotations

from apd.catalog import template
from apd.host import TRAINER_REGISTRY, register
from apd.training.untrained import UntrainedTrainer

# the seven of OpenAI's ImageNet templates that CoOp takes
ENSEMBLE = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]


@register(TRAINER_REGISTRY)
class ZeroshotCLIP(UntrainedTrainer):
    """The dataset's template, or TRAINER.PROMPT.TEMPLATES."""

    section = "COOP"  # for PREC only


@register(TRAINER_REGISTRY)
class ZeroshotCLIP2(ZeroshotCLIP):
    """CoOp's ensemble: seven templates and, but for ImageNet, the dataset's own."""

    def prompts(self) -> dict:
        dataset = self.cfg.DATASET
        own = [] if dataset.NAME == "ImageNet" else [template(dataset)]
        return {"templates": ENSEMBLE + own} | super().prompts()
