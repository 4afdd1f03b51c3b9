"""Whether saved prompts fit a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apd.clip import PromptedCLIP
from apd.clip.text import outside_slots
from apd.errors import UserError, either
from apd.interchange.layouts import SavedPrompts
from apd.methods import METHODS


def check_fit(
    saved: SavedPrompts, model: PromptedCLIP, section: str, options: Mapping, where
) -> bool:
    """Raise unless the saved prompts give ``model`` the logits of the model that they come from.

    Args:
        section: ``options`` is cfg.TRAINER.<section>, to say which keys to set.
        where: what to call the checkpoint in an error.

    Returns:
        Whether the prompts were trained with other class names, or with other fixed words around
        these. That is no error where all classes share one context.

    Raises:
        UserError: prompts of another kind, number or width; of another CLIP; or class-specific
            ones of other classes.
    """
    own = SavedPrompts(model.prompt_learner.state_dict())
    if _shapes(saved) != _shapes(own):
        raise UserError(
            f"{where} does not fit this configuration's prompts: it has {saved}; the "
            f"configuration has {own}: {_remedy(saved, own, section, options)}"
        )
    backbone = "set MODEL.BACKBONE.NAME and MODEL.BACKBONE.ROBUST to the one it was trained on"
    clip_weights = model.clip.state_dict()
    for name, weight in saved.frozen.items():
        if name not in clip_weights or not _close(weight, clip_weights[name]):
            raise UserError(f"{where} was trained on another CLIP ({name} differs): {backbone}")
    if saved.tokens is None or not saved.context("text"):
        return False
    prompts = model.class_prompts[0]
    tokens = outside_slots(prompts.embedding, prompts.slots)
    if not _close(saved.tokens[0, 0], tokens[0, 0]):
        raise UserError(
            f"{where} was trained on another CLIP (the start token's vector differs): {backbone}"
        )
    if _close(saved.tokens[:, : tokens.shape[1]], tokens):
        return False
    if saved.context("text")[0].dim() == 3:
        raise UserError(
            f"{where} holds class-specific prompts of another class list, or with other words "
            f"(TRAINER.{section}.CTX_INIT)"
        )
    return True


def _shapes(saved: SavedPrompts) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in saved.prompts.items()}


def _remedy(saved: SavedPrompts, own: SavedPrompts, section: str, options: Mapping) -> str:
    text = saved.context("text")
    kinds = {name: method.prompts for name, method in METHODS.items() if method.prompts}
    trainers = [name for name, kind in kinds.items() if kind == saved.kind]
    if not trainers:
        return "no trainer here has such prompts"
    if saved.kind == "text-to-visual":
        trainers.append("APD with TRAINER.APD.COUPLED True")
    # coupled prompts of one layer are the same whichever way they are coupled
    alike = "-to-" in saved.kind and "-to-" in own.kind and 1 in (saved.depth, own.depth)
    if saved.kind != own.kind and not alike:
        return f"use --trainer {either(trainers)}"
    fitting = fitting_options(saved)
    keys = [f"TRAINER.{section}.{k} {v}" for k, v in fitting.items() if options.get(k, v) != v]
    if keys:
        return f"set {' '.join(keys)}"
    widths = [
        {name: value.shape[-1] for name, value in prompts.items()}
        for prompts in (saved.prompts, own.prompts)
    ]
    if widths[0] != widths[1]:
        return "set MODEL.BACKBONE.NAME to the CLIP it was trained on"
    if fitting.get("CSC") and text[0].shape[1:] == own.context("text")[0].shape[1:]:
        return "class-specific prompts need the classes they were trained on"
    return f"set TRAINER.{section}.CTX_INIT to the words it was trained with"


def fitting_options(saved: SavedPrompts) -> dict:
    """Keys of cfg.TRAINER.<section>, and their values that make prompts of this size.

    They are those of all trainers; each trainer has some of them.
    """
    text, visual = saved.context("text"), saved.context("visual")
    options: dict = {"PROMPT_DEPTH": saved.depth}
    if text:
        options["N_CTX"] = options["N_CTX_TEXT"] = text[0].shape[-2]
        options |= {"PROMPT_DEPTH_TEXT": saved.depth, "CSC": text[0].dim() == 3}
    if saved.kind.endswith("mixtures") and "text.1.experts" in saved.prompts:
        options["NUM_EXPERTS"] = len(saved.prompts["text.1.experts"])
    if visual and saved.kind != "visual-to-text":
        options |= {"N_CTX_VISION": visual[0].shape[-2], "PROMPT_DEPTH_VISION": len(visual)}
    return options


def _close(theirs: Tensor, ours: Tensor) -> bool:
    """Whether both are equal up to rounding to float16, in which CLIP's weights are published."""
    if theirs.shape != ours.shape:
        return False
    return torch.allclose(theirs.to(ours), ours, rtol=1e-3, atol=1e-6)
