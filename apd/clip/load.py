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

from apd.errors import UserError, listed, one_line
from apd.host.checkpoint import load_checkpoint

CACHE = os.path.expanduser("~/.cache/clip")  # as the clip package has it
MINI = Path(__file__).resolve().parent.parent / "assets" / "mini_clip.pt"


def load_clip(name: str, robust: str = "") -> nn.Module:
    """A frozen CLIP in float32 and eval mode, on the CPU.

    Args:
        name: ``mini`` (the small CLIP that comes with this package), an OpenAI name such as
            ``ViT-B/32`` (downloaded to the clip package's cache), or a local file: OpenAI's JIT
            archive or a state dict.
        robust: a file with an adversarially fine-tuned image encoder for it (see
            ``load_robust_encoder``).

    Raises:
        UserError: unknown name, unreadable file, a file that does not fit, or a download that
            fails.
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
    if robust:
        load_robust_encoder(model.visual, robust)
    return model.eval().requires_grad_(False)


def load_robust_encoder(visual: nn.Module, path: str) -> None:
    """Replace the weights of CLIP's image encoder by adversarially fine-tuned ones.

    Args:
        visual: ``clip_model.visual``.
        path: a training checkpoint of TeCoA (Mao 2023, arXiv 2212.07016), which has them as
            ``vision_encoder_state_dict``; or, as FARE is published (Schlarmann 2024, arXiv
            2402.12336), the state dict of an OpenCLIP image encoder or of a whole CLIP.

    Raises:
        UserError: no such file, an unreadable one, or one of another architecture; then it lists
            what is missing, unexpected or of another shape.
    """
    if not os.path.isfile(path):
        raise UserError(f"MODEL.BACKBONE.ROBUST: there is no file {path}")
    weights = load_checkpoint(path, inert=True)
    for key in ("vision_encoder_state_dict", "state_dict"):
        weights = weights.get(key, weights) if isinstance(weights, dict) else {}
    weights = {name.removeprefix("module."): w for name, w in weights.items()}
    if any(name.startswith("visual.") for name in weights):  # a whole CLIP
        weights = {
            name.removeprefix("visual."): w
            for name, w in weights.items()
            if name.startswith("visual.")
        }
    own = visual.state_dict()
    # counts of batches that older files lack; evaluation does not use them
    missing = [k for k in own.keys() - weights.keys() if not k.endswith("num_batches_tracked")]
    faults = {
        "missing": missing,
        "unexpected": weights.keys() - own.keys(),
        "of another shape": [
            f"{k} ({_shape(weights[k])}, not {_shape(own[k])})"
            for k in own.keys() & weights.keys()
            if _shape(weights[k]) != _shape(own[k])
        ],
    }
    if any(faults.values()):
        found = "; ".join(
            f"{what}: {listed(sorted(keys), most=8)}" for what, keys in faults.items() if keys
        )
        raise UserError(
            f"{path} does not fit the image encoder of MODEL.BACKBONE.NAME ({found}): choose the "
            "backbone that it was fine-tuned from"
        )
    visual.load_state_dict(weights, strict=False)
    print(f"Image encoder from {path}")


def _shape(value) -> tuple:
    return tuple(getattr(value, "shape", ()))


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
