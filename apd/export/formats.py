"""Writes a classifier in one of the formats, and compares the file's logits with its own."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from apd.errors import ImpossibleResult, UserError
from apd.export import FORMATS
from apd.files import check_writable
from apd.models.classifier import PromptedClassifier

TOLERANCE = 1e-5  # largest difference of a cosine: of a logit, divided by CLIP's scale


@torch.no_grad()
def export(model: PromptedClassifier, target: str | os.PathLike, form: str) -> float:
    """Write a classifier, read the file again, and compare its logits with the model's.

    Args:
        model: of ``apd.load`` or ``apd.zero_shot``.
        target: a file with the format's suffix; for "openclip" a folder.
        form: a key of ``FORMATS``.

    Returns:
        The largest difference of a logit, on random images in batches of two sizes.

    Raises:
        UserError: the file exists, its suffix is wrong, a library is missing, the model is not in
            float32, or the format cannot represent it.
        ImpossibleResult: the written file gives other logits; it is removed.
    """
    target, (suffix, module, writer) = Path(target), FORMATS[form]
    if suffix and target.suffix != suffix:
        raise UserError(f"{target} must end in {suffix}, by which its readers know it")
    if target.exists():
        raise UserError(f"{target} exists: choose another name")
    if model.text_features().dtype != torch.float32:
        dtype = model.text_features().dtype
        raise UserError(f"the model is in {dtype}: load it again, and export that")
    check_writable(target.parent, "the folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu()
    # beside the target, so that the rename stays on one file system
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        logits_of_file = getattr(import_module(module), writer)(model, temporary)
        difference = max(_difference(logits_of_file, model, count) for count in (1, 3))
        scale = float(model.model.clip.logit_scale.exp())
        if not difference <= TOLERANCE * scale:
            raise ImpossibleResult(
                f"{target} is not written: its logits are {difference:.1e} off the model's, more "
                f"than {TOLERANCE} times the scale of {scale:.3g}"
            )
        os.replace(temporary, target)
    return difference


def _difference(
    logits_fn: Callable[[Tensor], Tensor], model: PromptedClassifier, count: int
) -> float:
    """The largest difference of a logit of ``count`` random images."""
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, model.resolution, model.resolution, generator=generator)
    return float((logits_fn(images) - model(images)).abs().max())
