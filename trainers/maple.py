"""MaPLe: Multi-modal Prompt Learning (Khattak 2023, arXiv 2210.03117)."""

from __future__ import annotations

from apd.host import TRAINER_REGISTRY, register
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class MaPLe(PromptTrainer):
    """Deep text context, visual context projected from it layer by layer, CE(z(x), y)."""

    section = "MAPLE"

    def prompts(self) -> dict:
        options = self.options
        return {
            "n_ctx_text": options.N_CTX,
            "depth_text": options.PROMPT_DEPTH,
            "ctx_init": options.CTX_INIT,
            "coupled": "text-to-visual",
        }
