"""VPT: Visual Prompt Tuning, deep (Jia 2022, arXiv 2203.12119), on CLIP."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class VPT(PromptTrainer):
    """Visual context in the first layers, hand-written text, CE(z(x), y)."""

    section = "VPT"

    def prompts(self) -> dict:
        options = self.options
        prompts = {
            "n_ctx_visual": options.N_CTX_VISION,
            "depth_visual": options.PROMPT_DEPTH_VISION,
        }
        if options.CTX_INIT:  # else the dataset's template
            prompts["templates"] = [options.CTX_INIT.replace("_", " ") + " {}."]
        return prompts
