"""IVLP: independent vision-language prompting (Rasheed 2023, arXiv 2212.03640)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class IVLP(PromptTrainer):
    """Text and visual context in the first layers, independent of each other, CE(z(x), y)."""

    section = "IVLP"

    def prompts(self) -> dict:
        options = self.options
        return {
            "n_ctx_text": options.N_CTX_TEXT,
            "depth_text": options.PROMPT_DEPTH_TEXT,
            "ctx_init": options.CTX_INIT,
            "n_ctx_visual": options.N_CTX_VISION,
            "depth_visual": options.PROMPT_DEPTH_VISION,
        }
