"""Loading CLIP's weights into the unmodified ``clip.model.CLIP``."""

from __future__ import annotations

import os
import warnings
from difflib import get_close_matches
from inspect import signature
from pathlib import Path

import clip
import torch
from clip import clip as clip_module
from clip.model import build_model
from torch import nn

from apd.errors import UserError, one_line

CACHE = os.path.expanduser("~/.cache/clip")  # as the clip package has it
MINI = Path(__file__).resolve().parent.parent / "assets" / "mini_clip.pt"


def load_clip(name: str) -> nn.Module:
    """A frozen CLIP in float32 and eval mode, on the CPU.

    Args:
        name: ``mini`` (the small CLIP that comes with this package), an OpenAI name such as
            ``ViT-B/32`` (downloaded to the clip package's cache), or a local file: OpenAI's JIT
            archive or a state dict.

    Raises:
        UserError: unknown name, unreadable file, or a download that fails.
    """
    if name == "mini":
        model = _from_file(MINI)
    elif os.path.isfile(name):
        model = _from_file(name)
    elif name in clip.available_models():
        try:
            model = _from_file(clip_module._download(clip_module._MODELS[name], CACHE))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CLIP {name} could not be downloaded ({error}): give MODEL.BACKBONE.NAME the "
                "path of a local .pt file, or use mini"
            ) from error
    else:
        names = ["mini", *clip.available_models()]
        near = get_close_matches(name, names, n=3, cutoff=0.3)
        raise UserError(
            f'no CLIP named "{name}" and no such file; '
            f"MODEL.BACKBONE.NAME is a path or one of {', '.join(near or names)}"
        )
    return model.eval().requires_grad_(False)


def _from_file(path: str | os.PathLike) -> nn.Module:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as not_a_state_dict:  # torch names no common type for a file it cannot read
        try:
            with warnings.catch_warnings():  # OpenAI's files are what they are
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
                weights = torch.jit.load(str(path), map_location="cpu").state_dict()
        except Exception:
            raise UserError(
                f"{path} is neither a state dict nor a JIT archive of CLIP, or it is damaged: "
                "fetch it again"
            ) from not_a_state_dict
    try:
        return _build(dict(weights.get("state_dict", weights)))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights of a CLIP: {one_line(error)}") from error


def _build(weights: dict) -> nn.Module:
    options = {}
    if "design_details" in signature(build_model).parameters:
        # a MaPLe checkout's clip/model.py, which shadows the package: ask it for the plain model
        depths = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
        options["design_details"] = {"trainer": "CoOp", **depths}
    model = build_model(dict(weights), **options).float()
    # build_model rounds to float16 on the way
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model
