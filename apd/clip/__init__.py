"""Frozen CLIP with prompts, on the unmodified ``clip`` package (no fork of ``clip/model.py``)."""

import warnings

with warnings.catch_warnings():  # clip imports pkg_resources, whose deprecation is known (setup.py)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    import clip  # noqa: F401

from apd.clip.contexts import CoupledPrompts, IndependentPrompts
from apd.clip.load import backbone_sha256, load_clip, weights_sha256
from apd.clip.model import PromptedCLIP, build_prompted_clip
from apd.clip.text import ClassPrompts, encode_text
from apd.clip.visual import encode_image

__all__ = [
    "ClassPrompts",
    "CoupledPrompts",
    "IndependentPrompts",
    "PromptedCLIP",
    "backbone_sha256",
    "build_prompted_clip",
    "encode_image",
    "encode_text",
    "load_clip",
    "weights_sha256",
]
