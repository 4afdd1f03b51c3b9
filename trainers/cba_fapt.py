"""CBA-FAPT: Cross-modal Bidirectional Attribution guided Few-shot Adversarial Prompt Tuning
(Feng, AAAI 2026, doi 10.1609/aaai.v40i5.37396)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.clip.attribution import LastAttention
from apd.host import TRAINER_REGISTRY, register
from apd.training.adversarial import AdversarialTraining
from apd.training.base import PromptTrainer


@register(TRAINER_REGISTRY)
class CBAFAPT(AdversarialTraining, PromptTrainer):
    """FAP's prompts; CE on clean and attacked images, and a loss on attribution maps.

    The score of an image is its similarity to the prompt of its class. The loss keeps the maps of
    the image's patches, and those of the prompt's tokens, under attack as on the clean image.
    """

    section = "CBAFAPT"
    batches = ("adv_full",)  # trains on each image twice, clean and attacked

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        o, text = self.options, self.model.text_features()
        attacked = self.attack(images, labels, text)
        words = self.model.text_attention(labels)
        logits, patches, tokens = self.explained(images, text, words)
        logits_adv, patches_adv, tokens_adv = self.explained(attacked, text, words)

        natural = F.cross_entropy(logits, labels)
        adversarial = F.cross_entropy(logits_adv, labels)
        vaa = (patches - patches_adv).norm(dim=1).mean()
        taa = (tokens.exp() * (tokens - tokens_adv)).sum(dim=1).mean()  # KL of clean to attacked
        loss = natural + o.LAMBDA_ADV * adversarial + o.LAMBDA_VAA * vaa + o.LAMBDA_TAA * taa
        return {"loss": loss, "clean": natural, "adversarial": adversarial, "vaa": vaa, "taa": taa}

    def explained(
        self, images: Tensor, text: Tensor, words: LastAttention
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of images, maps of their patches, and log-softmax of the maps of their words.

        ``words`` is the text encoder's last attention for the prompt of each image's class.
        """
        model, sight = self.model, self.model.image_attention(images)
        features = model.unit(sight.embed(sight.output))
        score = (features * model.unit(words.embed(words.output))).sum()
        if self.options.SCORE == "logit":
            score = model.clip.logit_scale.exp() * score
        # each score depends on its own image and prompt only: the sum's gradient is that of each
        weights = torch.autograd.grad(score, (sight.output, words.output), create_graph=True)
        word_maps = words.map(weights[1]).masked_fill(~words.shown, -torch.inf).log_softmax(dim=1)
        return (
            model.logits(features, text),
            sight.map(weights[0]),
            word_maps.masked_fill(~words.shown, 0),
        )

    def prompts(self) -> dict:
        options = self.options
        return {
            "n_ctx_text": options.N_CTX,
            "depth_text": options.PROMPT_DEPTH,
            "ctx_init": options.CTX_INIT,
            "coupled": "visual-to-text",
        }
