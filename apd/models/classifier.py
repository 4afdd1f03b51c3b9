"""``PromptedClassifier``: CLIP with learned prompts as an image classifier."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from apd.clip import PromptedCLIP, build_prompted_clip
from apd.clip.text import same_prompts
from apd.errors import UserError, listed
from apd.images import as_tensor, read_image
from apd.models.description import Description
from apd.models.saved import write_folder

if TYPE_CHECKING:
    from clip.model import CLIP

ImageLike = str | os.PathLike | Image.Image | Tensor


class Prediction(NamedTuple):
    """A classifier's prediction for one image.

    Attributes:
        label: the class with the largest logit.
        probability: its softmax probability, in [0, 1].
        top: the most probable classes with their probabilities, best first.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]


class PromptedClassifier(nn.Module):
    """A frozen CLIP with learned or hand-written prompts, which classifies images in [0, 1].

    ``apd.load`` and ``apd.zero_shot`` return it. It normalises images inside, so that attacks act
    in pixel space through the whole model; its logits equal those of the run's own evaluation to
    the bit. None of its parameters are trained. Text features are computed once, and move with the
    module (``.to``, ``.half``, ``copy.deepcopy``); ``load_state_dict`` computes them anew.

    Args:
        model: the CLIP with prompts, on the device where the text features are to be computed.
        description: method, class names, prompts, backbone and results.

    Shape:
        images (B, 3, R, R) in [0, 1], R = ``resolution``, to logits (B, C).

    Raises:
        UserError: (``forward``) images of another shape, or integers.
    """

    text: Tensor

    def __init__(self, model: PromptedCLIP, description: Description) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.description = description
        self.register_buffer("text", _text_features(model), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)
        self.eval()

    # -- computing -----------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of ``images`` (B, 3, R, R), floating point in [0, 1]."""
        self._check(images)
        return self.model.logits(self.model.image_features(images), self.text)

    def text_features(self) -> Tensor:
        """(C, embed_dim), unit length: one row per class. The logits are the scaled cosine
        similarities of the image features to these."""
        return self.text

    def preprocess(self, image: Image.Image) -> Tensor:
        """A PIL image as a tensor for the model: (3, R, R) in [0, 1], on the CPU.

        As in evaluation, the shorter edge is resized to R and the centre is cut out. The tensor is
        not normalised: the model does that.

        Raises:
            UserError: the image has more than 8 bits per channel.
        """
        return as_tensor(image, self.resolution, self.description.interpolation)

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, top: int = 5, batch_size: int = 64
    ) -> list[Prediction]:
        """Classify images, in batches, without gradients.

        Args:
            images: one or several: paths of files, PIL images, tensors (3, R, R) in [0, 1], or
                one tensor (B, 3, R, R).
            top: how many classes each prediction lists.
            batch_size: images that go through the model together.

        Raises:
            UserError: a file that cannot be read, a tensor of another shape or range, or a number
                below 1.
        """
        for name, number in (("top", top), ("batch_size", batch_size)):
            if number < 1:
                raise UserError(f"{name} is {number}: use a whole number from 1")
        predictions: list[Prediction] = []
        tensors = self._tensors(images)
        while batch := list(islice(tensors, batch_size)):
            probabilities = self.probabilities(torch.stack(batch))
            values, classes = probabilities.topk(min(top, len(self.class_names)))
            for row, labels in zip(values.tolist(), classes.tolist()):
                best = [(self.class_names[label], value) for label, value in zip(labels, row)]
                predictions.append(Prediction(*best[0], best))
        return predictions

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax probabilities (B, C), on the CPU in float32, without gradients.

        Args:
            images: (B, 3, R, R) in [0, 1] on any device.
        """
        return self(images.to(self.text.device)).float().softmax(dim=1).cpu()

    def _check(self, images: Tensor) -> None:
        """Raise UserError unless they are (B, 3, R, R) of floating point."""
        shape = (3, self.resolution, self.resolution)
        if images.dim() != 4 or images.shape[1:] != shape or not images.is_floating_point():
            raise UserError(
                f"images are {tuple(images.shape)} of {images.dtype}, but the model reads (B, 3, "
                f"{shape[1]}, {shape[2]}) of floating point in [0, 1]: model.preprocess makes them"
            )

    def _tensors(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Tensor]:
        if isinstance(images, (str, os.PathLike, Image.Image)):
            images = [images]
        elif isinstance(images, Tensor) and images.dim() == 3:
            images = images[None]
        for image in images:
            yield self._tensor(image)

    def _tensor(self, image: ImageLike) -> Tensor:
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image)
        if isinstance(image, Image.Image):
            return self.preprocess(image)
        if not isinstance(image, Tensor):
            raise UserError(
                f"an image is a {type(image).__name__}: use paths, PIL images or tensors"
            )
        image = image.detach()
        self._check(image[None])
        low, high = (float(bound) for bound in image.aminmax())
        if not (0 <= low and high <= 1):
            raise UserError(
                f"an image has values from {low:g} to {high:g}, the model reads [0, 1] and "
                "normalises by itself: divide by 255, or leave out your normalisation"
            )
        return image.float().cpu()

    # -- description ---------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """C names, in the order of the logits."""
        return list(self.description.class_names)

    @property
    def resolution(self) -> int:
        """R: height and width of the images, in pixels."""
        return self.model.clip.visual.input_resolution

    @property
    def threat_model(self) -> dict:
        """The threat models of training and evaluation: "train" and "test", each with norm, eps and
        alpha (in units of 1/255), steps, restarts, random_start and loss; None: no attack."""
        return copy.deepcopy(self.description.threat_model)

    @property
    def results(self) -> dict:
        """The contents of the run's results.json: evaluations, data set, shots, seed, ...

        Empty if there is no run, or if the class names are not those of the run.
        """
        return copy.deepcopy(self.description.results)

    def classes(
        self, class_names: Sequence[str], templates: Sequence[str] | str = ()
    ) -> PromptedClassifier:
        """A new module, with a copy of all weights, that has the same prompts for other classes.

        Args:
            class_names: one or more, underscores read as spaces.
            templates: in place of the hand-written ones, with {} for the class name; only where
                no text context is learned.

        Raises:
            UserError: the context is class-specific, a template is of no use, or a name is too
                long for CLIP.
        """
        names = check_class_names(class_names)
        prompts = dict(self.description.prompts)
        if names != self.description.class_names:
            self.description.check_renamed()
        if templates:
            if prompts.get("n_ctx_text"):
                raise UserError("the text context is learned, hand-written templates are not used")
            prompts["templates"] = [templates] if isinstance(templates, str) else list(templates)
        model = prompted(copy.deepcopy(self.model.clip), names, prompts)
        model.prompt_learner.load_state_dict(self.model.prompt_learner.state_dict())
        same = (names, prompts) == (self.description.class_names, self.description.prompts)
        results = self.description.results if same else {}
        return PromptedClassifier(
            model, replace(self.description, class_names=names, prompts=prompts, results=results)
        )

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the classifier without the weights of CLIP to ``folder``, which ``apd.load`` reads.

        It has ``config.json``, which names CLIP with the hash of its weights,
        ``prompts.safetensors``, and ``README.md``, a model card in the format of the Hugging Face
        hub. The folder is written whole or not at all.

        Returns:
            The folder.

        Raises:
            UserError: the folder has something in it, or the module is not in float32.
        """
        return write_folder(self.model, self.description, folder)

    def extra_repr(self) -> str:
        """What ``print`` shows of the module in one line."""
        method, backbone = self.description.method, self.description.backbone.name
        names = self.description.class_names
        return f"{method} on {backbone}, {len(names)} classes: {listed(names, 3)}"

    # -- copies --------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict) -> PromptedClassifier:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce_ex__(self, protocol):
        raise UserError(
            "a classifier is not pickled, because to read a pickle runs what is in it: use "
            "model.save(folder) and apd.load(folder), or torch.save(model.state_dict(), file)"
        )


def prompted(clip_model: CLIP, class_names: Sequence[str], prompts: dict) -> PromptedCLIP:
    """``build_prompted_clip`` that leaves the caller's random state as it is."""
    with torch.random.fork_rng(devices=[]):
        return build_prompted_clip(clip_model, class_names, **prompts)


def check_class_names(class_names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple, with a warning where CLIP reads some of them alike.

    Raises:
        UserError: there are none, a name is no text or empty, or there twice.
    """
    names = () if isinstance(class_names, str) else tuple(class_names)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"class names are {class_names!r}: use a list of one or more texts")
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"class names have {listed(repeated)} twice: use each once")
    if message := same_prompts(names):
        warnings.warn(message, stacklevel=3)
    return names


def _text_features(model: PromptedCLIP) -> Tensor:
    """Text features (C, D) in the precision of the weights.

    Under autocast or inference_mode of the caller they are the same, and may be used where
    gradients are computed.
    """
    no_autocast = torch.autocast(model.mean.device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), no_autocast:
        return model.encode_classes(model.prompt_learner.text_contexts())


def _refresh(module: PromptedClassifier, _) -> None:
    module.text = _text_features(module.model)
