"""A frozen CLIP with learned prompts: the model that all methods train and attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.clip.attribution import LastAttention, image_attention, text_attention
from apd.clip.blocks import Context
from apd.clip.contexts import (
    CoupledPrompts,
    IndependentPrompts,
    ReverseCoupledPrompts,
    RoutedPrompts,
    check_depth,
    init_experts,
    init_text,
    init_visual,
    visual_width,
    words_of,
)
from apd.clip.foreign import MEAN, STD
from apd.clip.text import ClassPrompts, encode_text, encode_text_each
from apd.clip.visual import encode_image
from apd.errors import UserError, one_line

if TYPE_CHECKING:
    from clip.model import CLIP

PromptLearner = IndependentPrompts | CoupledPrompts | ReverseCoupledPrompts | RoutedPrompts


class PromptedCLIP(nn.Module):
    """CLIP classifying images in [0, 1] by prompted class names; only prompts are trained.

    Normalisation by CLIP's mean and std is inside, so attacks act in pixel space through the
    whole model. With no context vectors it equals CLIP's ``encode_image`` and ``encode_text``.

    Args:
        clip_model: a ``clip.model.CLIP``; frozen here.
        class_prompts: the classes' token sequences; several of them are an ensemble, whose unit
            features are averaged (Radford 2021, section 3.1.4).
        prompt_learner: gives ``text_contexts()`` and ``visual_contexts()``.
        text_chunk: see ``encode_text``.
    """

    clip: CLIP
    class_prompts: Sequence[ClassPrompts]
    prompt_learner: PromptLearner
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip_model: CLIP,
        class_prompts: Sequence[ClassPrompts],
        prompt_learner: PromptLearner,
        text_chunk: int = 0,
    ):
        super().__init__()
        self.clip = clip_model.requires_grad_(False).eval()
        self.class_prompts = nn.ModuleList(class_prompts)  # type: ignore[assignment]
        self.prompt_learner = prompt_learner
        self.text_chunk = text_chunk
        weight = clip_model.positional_embedding
        for name, openais in (("mean", MEAN), ("std", STD)):
            values = getattr(clip_model, name, openais)
            value = torch.tensor(values, device=weight.device, dtype=weight.dtype)
            self.register_buffer(name, value.view(3, 1, 1), persistent=False)
        self._fixed_text: Tensor | None = None
        self._compiled: Callable | None = None  # the image encoder, for training

    def text_features(self, prompt_learner: PromptLearner | None = None) -> Tensor:
        """(C, embed_dim), unit length. Run it once per step, never inside an attack.

        ``prompt_learner``: other prompts, used instead of the model's own.
        """
        contexts = (prompt_learner or self.prompt_learner).text_contexts()
        if contexts:
            return self.encode_classes(contexts)
        fixed = self._fixed_text  # a template's features never change
        if fixed is None or (fixed.device, fixed.dtype) != (self.mean.device, self.mean.dtype):
            # cached in full precision, and not as an inference tensor, because training may use it
            plain = torch.autocast(self.mean.device.type, enabled=False)
            with torch.inference_mode(False), torch.no_grad(), plain:
                fixed = self._fixed_text = self.encode_classes(())
        return fixed

    def encode_classes(self, contexts: Sequence[Context]) -> Tensor:
        """(C, embed_dim), unit length, with these context vectors; () for templates."""
        features = [
            self.unit(encode_text(self.clip, prompts, contexts, chunk=self.text_chunk))
            for prompts in self.class_prompts
        ]
        return (
            features[0] if len(features) == 1 else self.unit(sum(features[1:], start=features[0]))
        )

    def text_features_each(self, contexts: Sequence[Tensor]) -> Tensor:
        """(B, C, embed_dim), unit length, for B images with contexts (B, M, D) of their own."""
        (prompts,) = self.class_prompts
        return self.unit(encode_text_each(self.clip, prompts, contexts))

    def image_features_each(
        self, images: Tensor, contexts: Sequence[Tensor], tokens: list[Tensor] | None = None
    ) -> Tensor:
        """(B, embed_dim), unit length, of images with contexts (B, M, D) of their own.

        ``tokens``: see ``encode_image``.
        """
        images = (images - self.mean) / self.std
        return self.unit(encode_image(self.clip.visual, images, contexts, tokens))

    def image_embeddings(self, images: Tensor) -> Tensor:
        """(B, embed_dim), not normalised, of images (B, 3, R, R) in [0, 1]."""
        images = (images - self.mean) / self.std
        encode = encode_image
        if self._compiled and self.prompt_learner.training:
            encode = self._compiled
        return encode(self.clip.visual, images, self.prompt_learner.visual_contexts())

    def image_features(self, images: Tensor) -> Tensor:
        """(B, embed_dim), unit length, of images (B, 3, R, R) in [0, 1]."""
        return self.unit(self.image_embeddings(images))

    def image_attention(self, images: Tensor) -> LastAttention:
        """The image encoder's last attention, for maps of images (B, 3, R, R) in [0, 1]."""
        images = (images - self.mean) / self.std
        return image_attention(self.clip.visual, images, self.prompt_learner.visual_contexts())

    def text_attention(self, classes: Tensor) -> LastAttention:
        """The text encoder's last attention, for maps of the prompts of ``classes`` (B,)."""
        (prompts,) = self.class_prompts
        return text_attention(self.clip, prompts, classes, self.prompt_learner.text_contexts())

    def unit(self, features: Tensor) -> Tensor:
        """Features scaled to unit length, computed in the precision of the weights."""
        return F.normalize(features.to(self.mean.dtype), dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, C): cosine similarity times CLIP's temperature.

        They are computed in the precision of the weights, also under autocast: bfloat16 rounds a
        logit of 20 to steps of 1/8.
        """
        with torch.autocast(image_features.device.type, enabled=False):
            return self.clip.logit_scale.exp() * image_features @ text_features.t()

    def classifier(self, text_features: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """A function from images to logits, as ``forward``, with text features computed once."""
        text = self.text_features() if text_features is None else text_features
        return lambda images: self.logits(self.image_features(images), text)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C) logits of images (B, 3, R, R) in [0, 1]."""
        return self.logits(self.image_features(images), self.text_features())

    def compile_training(self) -> None:
        """Use a compiled image encoder (``torch.compile``) while the prompts are in training mode.

        The image encoder runs in every step of an attack. The text encoder runs once a training
        step, and is not compiled. Evaluation does not use it, so that verdicts do not change.
        """
        self._compiled = compiled(encode_image, "TRAINER.PROMPT.COMPILE")

    def train(self, mode: bool = True) -> PromptedCLIP:
        """As ``nn.Module.train``, but CLIP stays in eval mode (its ResNets have batch norm)."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def modality(self) -> str:
        """Which encoders have learned prompts: "none", "text", "visual" or "text + visual"."""
        learner = self.prompt_learner
        contexts = {"text": learner.text_contexts(), "visual": learner.visual_contexts()}
        return " + ".join(name for name, context in contexts.items() if context) or "none"


def compiled(function: Callable, setting: str, **options) -> Callable:
    """``torch.compile`` of a function, which compiles at its first call.

    Args:
        setting: the key or flag that switches it on, for the error.

    Raises:
        UserError: (raised by the returned function) the compiler fails.
    """
    from torch._dynamo.exc import TorchDynamoException  # its import takes seconds

    run = torch.compile(function, **options)

    def call(*args):
        try:
            return run(*args)
        except TorchDynamoException as error:
            raise UserError(f"{setting}: {one_line(error)}") from error

    return call


def build_prompted_clip(
    clip_model: CLIP,
    classnames: Sequence[str],
    *,
    n_ctx_text: int = 0,
    depth_text: int = 1,
    ctx_init: str = "",
    class_specific: bool = False,
    position: str = "end",
    n_ctx_visual: int = 0,
    depth_visual: int = 1,
    coupled: str = "",
    experts: int = 0,
    templates: Sequence[str] = ("a photo of a {}.",),
    text_chunk: int = 0,
) -> PromptedCLIP:
    """A frozen CLIP with fresh prompts.

    Args:
        n_ctx_text: context vectors before the class name; 0: none, ``templates`` are used.
        depth_text, depth_visual: how many layers have context vectors of their own.
        ctx_init: words the first layer's text context starts from.
        class_specific: one text context per class (CSC).
        position: of the class name: "end", "middle" or "front".
        n_ctx_visual: context vectors after the patch tokens; 0: none.
        coupled: "text-to-visual": the visual context is projected from the text context (MaPLe);
            "visual-to-text": the other way round in all layers but the first (FAP). Both have
            n_ctx_text vectors in depth_text layers on either side. "": independent.
        experts: of each deeper layer's context, mixed by a router (MMoP), for independent prompts
            on both sides; 0: one context, no router.
        templates: with "{}" for the class name; several are an ensemble.

    Raises:
        UserError: a template without "{}", or prompts that do not fit the encoders.
    """
    if n_ctx_text:
        words = words_of(n_ctx_text, ctx_init)
        prompts = ClassPrompts(
            clip_model,
            classnames,
            n_ctx=n_ctx_text,
            words=words,
            position=position,
            class_specific=class_specific,
            routed=bool(experts),
        )
        classes = len(classnames) if class_specific else 0
        depth = 1 if coupled == "visual-to-text" or experts else depth_text
        text = init_text(clip_model, n_ctx_text, depth, ctx_init, classes)
        class_prompts = [prompts]
    else:
        class_prompts = [_hand_written(clip_model, classnames, form) for form in templates]
        text = []
    learner: PromptLearner
    if coupled:
        width = visual_width(clip_model, depth_text)
    if coupled == "text-to-visual":
        learner = CoupledPrompts(text, width)
    elif coupled == "visual-to-text":
        check_depth("text", depth_text, len(clip_model.transformer.resblocks))
        visual = init_visual(clip_model, n_ctx_text, depth_text)[1:]
        learner = ReverseCoupledPrompts(text[0], visual, width)
    elif experts:
        check_depth("text", depth_text, len(clip_model.transformer.resblocks))
        visual = init_visual(clip_model, n_ctx_visual, depth_visual)[:1]
        text += init_experts(text[0], experts, n_ctx_text, depth_text - 1)
        visual += init_experts(visual[0], experts, n_ctx_visual, depth_visual - 1)
        learner = RoutedPrompts(text, visual)
    else:
        visual = init_visual(clip_model, n_ctx_visual, depth_visual) if n_ctx_visual else []
        learner = IndependentPrompts(text, visual)
    return PromptedCLIP(clip_model, class_prompts, learner, text_chunk)


def _hand_written(clip_model: CLIP, classnames: Sequence[str], template: str) -> ClassPrompts:
    if template.count("{}") != 1:
        raise UserError(f'the template "{template}" needs one {{}} where the class name goes')
    before, after = template.split("{}")
    return ClassPrompts(clip_model, classnames, words=before.strip(), ending=after)
