"""Loading CLIP's weights into the unmodified ``clip.model.CLIP``."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import MutableMapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from weakref import WeakKeyDictionary

import clip
import torch
import torch.nn.functional as F
from clip import clip as clip_module
from clip.model import build_model
from torch import nn

from apd.clip.foreign import ACTIVATIONS, Design, Tower, find_foreign
from apd.clip.visual import is_vit
from apd.errors import UserError, listed, one_line
from apd.host.checkpoint import load_checkpoint

CACHE = os.path.expanduser("~/.cache/clip")  # as the clip package has it
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.")
_BACKBONES: MutableMapping[nn.Module, str] = WeakKeyDictionary()  # their hashes
# small CLIPs that come with this package: of rendered characters, of photographs
SHIPPED = {"mini": _ASSETS / "mini_clip.pt", "mini-photo": _ASSETS / "mini_photo.pt"}


def load_clip(
    name: str, robust: str = "", resolution: int = 0, device: torch.device | str = "cpu"
) -> nn.Module:
    """A frozen CLIP in float32 and eval mode.

    Its ``mean`` and ``std`` are those of the pixels that it was trained on.

    Args:
        name: ``mini`` or ``mini-photo`` (small CLIPs that come with this package: of rendered
            characters, of photographs), an OpenAI name such as ``ViT-B/32`` (downloaded to the
            clip package's cache), a local file (OpenAI's JIT archive or a state dict), or a CLIP
            of OpenCLIP or transformers (see ``find_foreign``).
        robust: a file with an adversarially fine-tuned image encoder for it (see
            ``load_robust_encoder``).
        resolution: of the images, in pixels; 0: what the CLIP was trained on (see ``resize``).
        device: where it is put, in the memory format that is fast there.

    Raises:
        UserError: unknown name, unreadable file, a file that does not fit, or a download that
            fails.
    """
    if name in SHIPPED:
        model = _from_file(SHIPPED[name])
    elif name not in clip.available_models() and (foreign := find_foreign(name)):
        weights: dict = {}
        for file in foreign.files:
            weights |= _read(file)
        model = _model(name, foreign.convert(weights), foreign.design)
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
        names = [*SHIPPED, *clip.available_models()]
        near = get_close_matches(name, names, n=3, cutoff=0.3)
        raise UserError(
            f'no CLIP named "{name}" and no such file; '
            f"MODEL.BACKBONE.NAME is a path or one of {', '.join(near or names)}"
        )
    if robust:
        load_robust_encoder(model.visual, robust)
    if resolution:
        resize(model.visual, resolution)
    model = model.eval().requires_grad_(False).to(device)
    if torch.device(device).type == "cuda" and not is_vit(model.visual):
        model.visual.to(memory_format=torch.channels_last)  # what its convolutions run in
    return model


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's tensors and their names, in float32."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return found.hexdigest()


def backbone_sha256(clip_model: nn.Module) -> str:
    """SHA-256 of all that a frozen CLIP computes with, whatever kind of file it is from.

    That is its weights (``weights_sha256``) and what these do not tell: activations, heads, eps,
    and mean and std of the pixels. It is computed once for each CLIP.
    """
    if clip_model not in _BACKBONES:
        found = [weights_sha256(clip_model), *map(str, (clip_model.mean, clip_model.std))]
        for block in (*_blocks(clip_model), *_blocks(clip_model.visual)):
            found.append(f"{block.mlp.gelu} {block.attn.num_heads} {block.ln_1.eps}")
        _BACKBONES[clip_model] = hashlib.sha256("\n".join(found).encode()).hexdigest()
    return _BACKBONES[clip_model]


def _blocks(encoder: nn.Module) -> Sequence[nn.Module]:
    """Of a transformer; a ResNet has none."""
    return getattr(getattr(encoder, "transformer", None), "resblocks", ())


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
    weights = _read(path, "vision_encoder_state_dict")
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


def resize(visual: nn.Module, resolution: int) -> None:
    """Let a ViT read images of another resolution: its grid of positions is interpolated.

    Bicubic with antialiasing, as OpenCLIP's ``resize_pos_embed``.

    Raises:
        UserError: a ResNet, or a resolution that is no multiple of the patch size.
    """
    if resolution == visual.input_resolution:
        return
    if not hasattr(visual, "class_embedding"):
        raise UserError(
            f"MODEL.BACKBONE.RESOLUTION is {resolution}: a ResNet reads images of its own "
            f"resolution only, {visual.input_resolution}"
        )
    patch = visual.conv1.kernel_size[0]
    if resolution < 1 or resolution % patch:
        raise UserError(
            f"MODEL.BACKBONE.RESOLUTION is {resolution}: it must be a multiple of the patch size "
            f"of MODEL.BACKBONE.NAME, {patch}"
        )
    old, new = visual.input_resolution // patch, resolution // patch
    class_position, grid = visual.positional_embedding.detach().split([1, old * old])
    grid = grid.t().reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    positions = torch.cat([class_position, grid.flatten(2)[0].t()])
    visual.positional_embedding = nn.Parameter(positions, requires_grad=False)
    visual.input_resolution = resolution


def _from_file(path: str | os.PathLike) -> nn.Module:
    weights = _read(path)
    if "logit_scale" not in weights or "token_embedding.weight" not in weights:
        there = f"it has {listed(sorted(weights), 4)}" if weights else "it has no tensors"
        raise UserError(
            f"{path} does not hold the weights of a CLIP: {there}, where OpenAI's CLIP has "
            "visual.*, transformer.*, token_embedding.weight and logit_scale"
        )
    return _model(path, weights, Design())


def _read(path: str | os.PathLike, *wrappers: str) -> dict[str, torch.Tensor]:
    """The weights in a file, out of what is around them (``unwrapped``)."""
    weights = unwrapped(_load(path), *wrappers)
    _check_finite(weights, path)
    return weights


def _load(path: str | os.PathLike):
    """What is in safetensors, a state dict or a JIT archive."""
    if os.fspath(path).endswith(".safetensors"):
        return _load_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as not_a_state_dict:  # torch names no common type for a file it cannot read
        try:
            with warnings.catch_warnings():  # OpenAI's files are what they are
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        except Exception:
            try:  # what training programs keep beside the weights may be of any class
                return load_checkpoint(path, inert=True)
            except UserError:
                raise UserError(
                    f"{path} is neither a state dict nor a JIT archive of CLIP, or it is damaged: "
                    "fetch it again"
                ) from not_a_state_dict


def unwrapped(found, *more: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their names, out of what training programs put around them.

    That is a mapping with ``state_dict``, ``model``, ... in it (``more``: further names), and the
    prefixes of DataParallel (module.), torch.compile (_orig_mod.) and of a model in a model.
    """
    while isinstance(found, dict):
        inner = (found[k] for k in (*more, *_WRAPPERS) if isinstance(found.get(k), dict))
        if (inside := next(inner, None)) is None:
            break
        found = inside
    else:
        return {}
    weights = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    while weights and (prefix := next(iter(weights)).partition(".")[0] + ".") in _PREFIXES:
        if not all(name.startswith(prefix) for name in weights):
            break
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _check_finite(weights: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Raise UserError for NaN and infinite weights: later they would look like a wrong setting."""
    broken = [name for name, value in weights.items() if not _is_finite(value)]
    if broken:
        raise UserError(
            f"{path} has NaN or infinite weights ({listed(broken, 3)}): fetch or train it again"
        )


def _is_finite(value: torch.Tensor) -> bool:
    if value.is_floating_point() and value.numel():  # its extremes tell, and are found faster
        of_a_byte = value.dtype.itemsize == 1  # float8 can only be converted
        value = torch.stack(torch.aminmax(value.float() if of_a_byte else value))
    return bool(value.isfinite().all())


def _load_safetensors(path: str | os.PathLike) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            f"{path} needs safetensors ({one_line(error)}): pip install 'apd-clip[hf]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # a damaged header can raise anything
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from error


def _no_clip(name: str | os.PathLike, error: Exception) -> UserError:
    return UserError(f"{name} does not hold the weights of a CLIP: {one_line(error)}")


def _model(name: str | os.PathLike, weights: dict, design: Design) -> nn.Module:
    try:
        model = _build(weights)
    except (
        AttributeError,
        AssertionError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        raise _no_clip(name, error) from error
    model.mean, model.std = design.mean, design.std
    for encoder, tower in ((model, design.text), (model.visual, design.image)):
        _finish(encoder, tower)
    return model


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


def _finish(encoder: nn.Module, tower: Tower) -> None:
    """What ``build_model``, which takes every CLIP for one of OpenAI's, cannot read off weights."""
    for block in _blocks(encoder):
        block.mlp.gelu = ACTIVATIONS[tower.activation]()
        if tower.heads:
            block.attn.num_heads = tower.heads
            block.attn.head_dim = block.attn.embed_dim // tower.heads
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("visual."):
            module.eps = tower.eps
