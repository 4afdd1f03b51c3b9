"""CoOp: Context Optimization (Zhou 2022, arXiv 2109.01134)."""

from __future__ import annotations

from apd.clip.text import tokenizer
from apd.host import TRAINER_REGISTRY, register
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class CoOp(PromptTrainer):
    """Context vectors before (or around, or behind) the class name, CE(z(x), y)."""

    section = "COOP"

    def prompts(self) -> dict:
        options = self.options
        words = tokenizer().encode(options.CTX_INIT.replace("_", " "))
        return {
            "n_ctx_text": len(words) or options.N_CTX,  # initial words decide the length (CoOp)
            "ctx_init": options.CTX_INIT,
            "class_specific": options.CSC,
            "position": options.CLASS_TOKEN_POSITION,
        }
