"""Trainers that train nothing: "training" goes straight to the evaluation."""

from __future__ import annotations

from torch import nn

from apd.training.base import PromptTrainer


class UntrainedTrainer(PromptTrainer):
    """CLIP with the data set's template.

    TRAINER.PROMPT.TEMPLATES takes its place; several templates are an ensemble.
    """

    def prompts(self) -> dict:
        templates = self.cfg.TRAINER.PROMPT.TEMPLATES
        return {"templates": templates} if templates else {}

    def add_model(self, name: str, learner: nn.Module, lr: float = 1.0) -> None:
        self.register_model(name, learner, None, None)
        self.max_epoch = 0
