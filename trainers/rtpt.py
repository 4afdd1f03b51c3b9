"""R-TPT: robust test-time prompt tuning (Sheng, CVPR 2025, arXiv 2504.11195).

Formulas and numbers are those of github.com/TomSheng21/R-TPT, rtpt.py [P].
"""

from __future__ import annotations

import torch
from torch import Tensor

from apd.host import TRAINER_REGISTRY, register
from apd.training.defence import TestTimeDefence, entropy, most_confident
from apd.views import random_views


@register(TRAINER_REGISTRY)
class RTPT(TestTimeDefence):
    """Text prompts are tuned to each image's views, whose logits are averaged by their similarity.

    Tuning: AdamW minimises the mean entropy of the most confident views. Average: the weights are
    softmax(mean cosine to the NEIGHBOURS nearest views / TEMPERATURE).
    """

    section = "RTPT"
    adapted = True
    tuned = ("text",)

    @property
    def views(self) -> int:
        return self.options.VIEWS

    def own_prompts(self) -> dict:
        return {"n_ctx_text": self.options.N_CTX, "ctx_init": self.options.CTX_INIT}

    def defended(self, images: Tensor, seeds: Tensor) -> Tensor:
        o, model = self.options, self.model
        views = random_views(images, seeds, o.VIEWS, o.AUGMIX)
        features = model.image_features(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        logits = self.logits(features, self.tuned_text(features, self.unrolled(images)))
        weights = (self.agreement(features) / o.TEMPERATURE).softmax(dim=1)
        return (weights[..., None] * logits).sum(dim=1)

    def tuned_text(self, features: Tensor, exact: bool) -> Tensor:
        """Text features (B, C, d), tuned to the features (B, V, d) of each image's views."""
        o, model = self.options, self.model
        features = features if exact else features.detach()
        chosen = most_confident(self.logits(features, self.text), o.CONFIDENT)
        features = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))

        def loss(contexts: list[Tensor]) -> Tensor:
            logits = self.logits(features, model.text_features_each(contexts))
            return entropy(logits).mean(dim=1).sum()

        contexts = self.contexts_per_image("text", len(features))
        return model.text_features_each(self.tune(contexts, loss, exact))

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """(B, V, C), for features (B, V, d) and text features (C, d) or (B, C, d)."""
        return self.model.clip.logit_scale.exp() * features @ text.mT

    def agreement(self, features: Tensor) -> Tensor:
        """(B, V): the mean cosine of each view to the views nearest to it."""
        itself = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
        cosines = (features @ features.mT).masked_fill(itself, -torch.inf)
        nearest = min(self.options.NEIGHBOURS, features.shape[1] - 1)
        return cosines.topk(nearest, dim=-1)[0].mean(dim=-1)
