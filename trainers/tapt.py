"""TAPT: test-time adversarial prompt tuning (Wang, CVPR 2025, arXiv 2411.13136).

Formulas and numbers are those of github.com/xinwong/TAPT, trainers/adv_vli.py and configs/ [P].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import pgd
from apd.errors import UserError
from apd.evaluate.request import attack_seed, threat_model
from apd.host import TRAINER_REGISTRY, register
from apd.training.defence import TestTimeDefence, entropy, most_confident
from apd.views import random_views

Statistics = list[tuple[Tensor, Tensor]]  # each layer's mean and variance (L + M, D) of tokens


@register(TRAINER_REGISTRY)
class TAPT(TestTimeDefence):
    """Text and visual prompts tuned to each image by its most confident views.

    AdamW minimises the entropy of their mean prediction, plus DISTR_W times the distance of their
    visual tokens' mean and variance, in each layer, to those of training images: GAMMA times the
    distance to attacked ones, 1 - GAMMA times that to clean ones. The image itself is classified
    with these prompts.
    """

    section = "TAPT"
    adapted = True
    tuned = ("text", "visual")
    statistics: list[tuple[float, Statistics]] | None = None  # each with its weight

    @property
    def views(self) -> int:
        return self.options.VIEWS

    def defended(self, images: Tensor, seeds: Tensor) -> Tensor:
        o, model, exact = self.options, self.model, self.unrolled(images)
        with torch.set_grad_enabled(exact):
            views = self.chosen(random_views(images, seeds, o.VIEWS, False))
        layers = len(self.contexts("text"))

        def loss(contexts: list[Tensor]) -> Tensor:
            text = model.text_features_each(contexts[:layers])
            tokens: list[Tensor] = []
            visual = [c.repeat_interleave(views.shape[1], dim=0) for c in contexts[layers:]]
            features = model.image_features_each(views.flatten(0, 1), visual, tokens)
            logits = self.logits(features.unflatten(0, views.shape[:2]), text)
            return self.marginal_entropy(logits) + o.DISTR_W * self.distance(tokens, len(images))

        contexts = [
            context for side in self.tuned for context in self.contexts_per_image(side, len(images))
        ]
        contexts = self.tune(contexts, loss, exact)
        features = model.image_features_each(images, contexts[layers:])
        return self.logits(features[:, None], model.text_features_each(contexts[:layers]))[:, 0]

    def chosen(self, views: Tensor) -> Tensor:
        """The most confident views, (B, K, 3, R, R); the loss depends on these alone."""
        with torch.no_grad():
            features = self.model.image_features(views.flatten(0, 1))
            logits = self.logits(features.unflatten(0, views.shape[:2]), self.text)
            index = most_confident(logits, self.options.CONFIDENT)
        return views[torch.arange(len(views), device=views.device)[:, None], index]

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """(B, K, C), for features (B, K, d) and text features (C, d) or (B, C, d)."""
        return self.model.clip.logit_scale.exp() * features @ text.mT

    def marginal_entropy(self, logits: Tensor) -> Tensor:
        """The entropy of the mean prediction of each image's views (B, K, C), summed."""
        return entropy(logits.log_softmax(dim=2).logsumexp(dim=1)).sum()

    def distance(self, tokens: list[Tensor], count: int) -> Tensor:
        """The distance of the tokens of ``count`` images' views to those of training images.

        It is summed over the images.
        """
        o, total = self.options, torch.zeros((), device=tokens[0].device)
        for layer in range(o.LAYER_FROM, o.LAYER_TO - 1):
            of_views = tokens[layer].unflatten(0, (count, -1))  # (B, K, L + M, D)
            mean, variance = of_views.mean(dim=1), of_views.var(dim=1, correction=0)
            if own := self.own_context(layer):
                mean = torch.cat([mean[:, :-own], of_views[:, 0, -own:]], dim=1)
                variance = F.pad(variance[:, :-own], (0, 0, 0, own))
            assert self.statistics is not None  # ``image_logits`` has computed them
            for weight, statistics in self.statistics:
                reference = statistics[layer]
                distance = (mean - reference[0]).abs() + (variance - reference[1]).abs()
                total = total + weight * 0.5 * distance.mean(dim=(1, 2)).sum()
        return total / (o.LAYER_TO - o.LAYER_FROM)

    def own_context(self, layer: int) -> int:
        """How many context tokens a layer has that are the same for all images: the last ones.

        Their mean is one of them, and their variance 0. Computed, both would have a rounding error,
        and AdamW would follow the sign of their distance to those of training images, which is 0.
        """
        contexts = self.contexts("visual")
        return len(contexts[layer]) if layer < len(contexts) else 0

    # -- statistics of training images ---------------------------------------------------------

    def image_logits(self):
        model = super().image_logits()
        if self.statistics is None:
            layers = len(self.model.clip.visual.transformer.resblocks)
            if self.options.LAYER_TO - 1 > layers:
                raise UserError(
                    f"TRAINER.TAPT.LAYER_TO is {self.options.LAYER_TO}: the image encoder has "
                    f"{layers} layers, use {layers + 1} or less"
                )
            gamma = self.options.GAMMA
            self.statistics = [
                (gamma, self.tokens_of(attacked=True)),
                (1 - gamma, self.tokens_of(attacked=False)),
            ]
        return model

    @torch.no_grad()
    def tokens_of(self, attacked: bool) -> Statistics:
        """The statistics of this run's training images, clean or under AT.TRAIN's attack."""
        count = 0
        sums = squares = torch.zeros(())
        for images in self.training_images(attacked):
            tokens: list[Tensor] = []
            visual = [c.expand(len(images), *c.shape) for c in self.contexts("visual")]
            self.model.image_features_each(images, visual, tokens)
            batch = torch.stack(tokens, dim=1).double()  # (B, layers, L + M, D)
            count += len(images)
            sums, squares = sums + batch.sum(dim=0), squares + batch.square().sum(dim=0)
        mean = sums / count
        variance = (squares - count * mean.square()) / max(count - 1, 1)
        for layer in range(len(mean)):
            if own := self.own_context(layer):
                mean[layer, -own:], variance[layer, -own:] = batch[0, layer, -own:], 0
        dtype = self.model.mean.dtype
        return list(zip(mean.to(dtype), variance.to(dtype)))

    def training_images(self, attacked: bool) -> Iterator[Tensor]:
        cfg, threat = self.cfg, threat_model(self.cfg, "TRAIN")
        generator = torch.Generator().manual_seed(attack_seed(cfg))
        loader = self.unaugmented_training_images()
        logits = self.model.classifier(self.text)
        for batch in loader:
            images, labels = self.parse_batch_test(batch)
            if attacked:
                images = pgd(logits, images, labels, threat, generator=generator)
            yield images
