"""``UntrainedTrainer``, the base class of methods without training: runs only evaluate."""

from __future__ import annotations

from torch import nn

from apd.training.base import PromptTrainer


class UntrainedTrainer(PromptTrainer):
    """CLIP with the data set's template, or with those of TRAINER.PROMPT.TEMPLATES.

    Several templates are an ensemble: their text features are averaged.
    """

    def prompts(self) -> dict:
        templates = self.cfg.TRAINER.PROMPT.TEMPLATES
        return {"templates": templates} if templates else {}

    def add_model(self, name: str, learner: nn.Module, lr: float = 1.0) -> None:
        self.register_model(name, learner, None, None)
        self.max_epoch = 0
