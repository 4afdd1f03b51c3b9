"""Loading CLIP's weights into the unmodified ``clip.model.CLIP``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, MutableMapping, Sequence
from inspect import signature
from weakref import WeakKeyDictionary

import clip
import torch
import torch.nn.functional as F
from clip import clip as clip_module
from clip.model import (
    CLIP,
    ModifiedResNet,
    ResidualAttentionBlock,
    VisionTransformer,
    build_model,
)
from torch import nn

from apd.about import ASSETS
from apd.clip.foreign import ACTIVATIONS, OPENCLIP, Design, Foreign, Tower, find_foreign
from apd.clip.torchscript import Module
from apd.clip.visual import is_vit
from apd.clip.weights import read_weights
from apd.errors import UserError, listed, one_line, similar

CACHE = os.path.expanduser("~/.cache/clip")  # the clip package's default
_BACKBONES: MutableMapping[nn.Module, str] = WeakKeyDictionary()  # CLIP -> its hash
# small CLIPs that come with this package: of rendered characters, of photographs
SHIPPED = {"mini": ASSETS / "mini_clip.pt", "mini-photo": ASSETS / "mini_photo.pt"}


def load_clip(
    name: str, robust: str = "", resolution: int = 0, device: torch.device | str = "cpu"
) -> CLIP:
    """A frozen CLIP in float32 and eval mode.

    Its attributes ``mean`` and ``std`` are those with which its training images were normalised.

    Args:
        name: ``mini`` or ``mini-photo`` (small CLIPs that come with this package: of rendered
            characters, of photographs), an OpenAI name such as ``ViT-B/32`` (downloaded to the
            clip package's cache), a local file (OpenAI's JIT archive or a state dict), or a CLIP
            of OpenCLIP or transformers (see ``find_foreign``).
        robust: a file with an adversarially fine-tuned image encoder for it (see
            ``load_robust_encoder``).
        resolution: of the images, in pixels; 0: what the CLIP was trained on (see ``resize``).
        device: to which it is moved, in the memory format that is fast there.

    Raises:
        UserError: unknown name, unreadable file, a file that does not fit, or a download that
            fails.
    """
    if name in SHIPPED:
        model = _of_openai(SHIPPED[name], Design())
    elif name not in clip.available_models() and (foreign := find_foreign(name)):
        model = _of_others(name, foreign)
    elif os.path.isfile(name):
        model = _of_openai(name)
    elif name in clip.available_models():
        try:
            model = _of_openai(clip_module._download(clip_module._MODELS[name], CACHE), Design())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CLIP {name} could not be downloaded ({error}): give MODEL.BACKBONE.NAME the "
                "path of a local .pt file, or use mini"
            ) from error
    else:
        names = [*SHIPPED, *clip.available_models()]
        near = similar(name, names, 0.3)
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
        model.visual.to(memory_format=torch.channels_last)  # faster for convolutions on a GPU
    return model


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's tensors and their names, in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def backbone_sha256(clip_model: CLIP) -> str:
    """SHA-256 of a frozen CLIP's function; it does not depend on the kind of file.

    It is made of the weights (``weights_sha256``), activations, heads, eps of the layer norms, and
    mean and std of the pixels. It is computed once for each CLIP.
    """
    if clip_model not in _BACKBONES:
        lines = [weights_sha256(clip_model), *map(str, (clip_model.mean, clip_model.std))]
        for block in (*_blocks(clip_model), *_blocks(clip_model.visual)):
            lines.append(f"{block.mlp.gelu} {block.attn.num_heads} {block.ln_1.eps}")
        _BACKBONES[clip_model] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return _BACKBONES[clip_model]


def _blocks(encoder: nn.Module) -> Sequence[ResidualAttentionBlock]:
    """The blocks of a transformer; none for a ResNet."""
    return getattr(getattr(encoder, "transformer", None), "resblocks", ())


def load_robust_encoder(visual: VisionTransformer | ModifiedResNet, path: str) -> None:
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
    weights = read_weights(path, "vision_encoder_state_dict").tensors
    if any(name.startswith("visual.") for name in weights):  # a whole CLIP
        weights = {
            name.removeprefix("visual."): w
            for name, w in weights.items()
            if name.startswith("visual.")
        }
    # older files lack num_batches_tracked, which evaluation does not use
    if faults := _faults(visual, weights, optional="num_batches_tracked"):
        raise UserError(
            f"{path} does not fit the image encoder of MODEL.BACKBONE.NAME ({faults}): choose the "
            "backbone that it was fine-tuned from"
        )
    visual.load_state_dict(weights, strict=False)
    print(f"Image encoder from {path}")


def _faults(model: nn.Module, weights: dict[str, torch.Tensor], optional: str = "") -> str:
    """How the names and shapes of ``weights`` differ from those of ``model``; "": they do not.

    Args:
        optional: weights whose names end so may be missing.
    """
    own = model.state_dict()
    lacking = own.keys() - weights.keys()
    faults = {
        "missing": [name for name in lacking if not (optional and name.endswith(optional))],
        "unexpected": weights.keys() - own.keys(),
        "of another shape": [
            f"{k} ({_shape(weights[k])}, not {_shape(own[k])})"
            for k in own.keys() & weights.keys()
            if _shape(weights[k]) != _shape(own[k])
        ],
    }
    return "; ".join(
        f"{kind}: {listed(sorted(keys), most=8)}" for kind, keys in faults.items() if keys
    )


def _shape(value) -> tuple:
    return tuple(getattr(value, "shape", ()))


def resize(visual: VisionTransformer | ModifiedResNet, resolution: int) -> None:
    """Let a ViT read images of another resolution, by interpolating its positional embedding.

    The interpolation is bicubic with antialiasing, as in OpenCLIP's ``resize_pos_embed``.

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
    side, new_side = visual.input_resolution // patch, resolution // patch  # in patches
    class_position, grid = visual.positional_embedding.detach().split([1, side * side])
    grid = grid.t().reshape(1, -1, side, side)
    size = (new_side, new_side)
    grid = F.interpolate(grid, size, mode="bicubic", antialias=True, align_corners=False)
    positions = torch.cat([class_position, grid.flatten(2)[0].t()])
    visual.positional_embedding = nn.Parameter(positions, requires_grad=False)
    visual.input_resolution = resolution


# -- from weights to a model ------------------------------------------------------------------

_MISFITS = (  # errors that clip.model raises for sizes that no CLIP has
    AttributeError,
    AssertionError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
_ACTIVATIONS_OF = {"QuickGELU": "quick_gelu", "GELU": "gelu"}  # class name -> ACTIVATIONS' name
_OF_ANY_CLIP = {
    "logit_scale",
    "token_embedding.weight",
    "positional_embedding",
    "text_projection",
    "visual.conv1.weight",
}


def _of_openai(path: str | os.PathLike, design: Design | None = None) -> CLIP:
    """A CLIP from a file with OpenAI's names. Properties that it does not tell are OpenAI's."""
    weights, modules = read_weights(path)
    _check_names(path, weights)
    if design is None:
        described = [_described(modules, encoder) for encoder in ("visual.", "")]
        design = Design(Tower(**described[0]), Tower(**described[1]))
        _note_assumed(path, described[1])
    return _model(path, weights, design)


def _note_assumed(path: str | os.PathLike, described: dict) -> None:
    if described.get("activation") == "quick_gelu":  # one of OpenAI's archives
        return
    assumed = [] if "activation" in described else ["QuickGELU"]
    assumed += [] if "heads" in described else ["a head for every 64 channels"]
    assumed += ["their mean and std"]
    print(
        f"note: {path} does not say all of its design and is read as OpenAI's are: "
        f"{', '.join(assumed)} (OpenCLIP's are read by {OPENCLIP}MODEL/FILE)"
    )


def _described(modules: dict[str, Module], encoder: str) -> dict:
    """The properties of an encoder that a TorchScript archive tells, by the names of ``Tower``."""
    block = f"{encoder}transformer.resblocks.0."
    described = {}
    if (activation := modules.get(f"{block}mlp.gelu")) and activation.kind in _ACTIVATIONS_OF:
        described["activation"] = _ACTIVATIONS_OF[activation.kind]
    if (attention := modules.get(f"{block}attn")) and "num_heads" in attention.attributes:
        described["heads"] = attention.attributes["num_heads"]
    return described


def _check_names(path: str | os.PathLike, weights: dict[str, torch.Tensor]) -> None:
    """Raise UserError if names that every CLIP has are missing; it says what the file is then."""
    image = (
        "visual.proj" if "visual.class_embedding" in weights else "visual.attnpool.c_proj.weight"
    )
    lacking = sorted({*_OF_ANY_CLIP, image} - weights.keys())
    if any(name.startswith("text.") for name in weights) and "logit_scale" in weights:
        raise _no_clip(
            path,
            "it is a CustomTextCLIP of OpenCLIP (its text encoder is apart, as text.*): choose a "
            "CLIP of OpenAI's architecture",
        )
    if {"logit_scale", "token_embedding.weight"} <= {*lacking}:
        content = f"it has {listed(sorted(weights), 4)}" if weights else "it has no tensors"
        raise _no_clip(
            path,
            f"{content}, where OpenAI's CLIP has visual.*, transformer.*, token_embedding.weight "
            "and logit_scale",
        )
    if lacking:
        raise _no_clip(path, f"it lacks {listed(lacking)}")


def _of_others(name: str, foreign: Foreign) -> nn.Module:
    """A CLIP of another library; UserError if its weights do not fit its config."""
    weights: dict[str, torch.Tensor] = {}
    modules: dict[str, Module] = {}
    for file in foreign.files:
        contents = read_weights(file)
        weights |= contents.tensors
        modules |= contents.modules
    weights = foreign.convert(weights)
    _check_described(name, weights, modules, foreign)
    return _model(name, weights, foreign.design)


def _check_described(name: str, weights: dict, modules: dict[str, Module], foreign: Foreign):
    """Raise UserError unless the weights are of the model that a name or a config describes."""
    try:
        with torch.device("meta"):
            described = CLIP(**foreign.sizes, **_plain(CLIP))
    except _MISFITS as error:
        raise UserError(f"{name}: its config is of no CLIP ({one_line(error)})") from error
    faults = _faults(described, weights)
    for encoder, tower in (("visual.", foreign.design.image), ("", foreign.design.text)):
        for key, value in _described(modules, encoder).items():
            if value != (own := getattr(tower, key)) and own is not None:
                faults = f"{encoder}transformer has {key} {value}, not {own}"
    if faults:
        raise UserError(
            f"{name}: its weights are not of the model that its name or config describes "
            f"({faults}): name the model that they were trained as"
        )


def _no_clip(name: str | os.PathLike, why: object) -> UserError:
    return UserError(f"{name} does not hold the weights of a CLIP: {one_line(why)}")


def _model(name: str | os.PathLike, weights: dict, design: Design) -> CLIP:
    try:
        model = build_model(dict(weights), **_plain(build_model)).float()
        # build_model rounds the weights to float16: load the exact ones again
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        for encoder, tower in ((model, design.text), (model.visual, design.image)):
            _finish(encoder, tower)
    except _MISFITS as error:
        raise _no_clip(name, error) from error
    model.mean, model.std = design.mean, design.std
    return model


def _plain(make: Callable) -> dict:
    """Arguments for a CLIP without prompts, if clip/model.py is that of a MaPLe checkout.

    In such a checkout it takes the place of the package's.
    """
    if "design_details" not in signature(make).parameters:
        return {}
    depths = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
    return {"design_details": {"trainer": "CoOp", **depths}}


def _finish(encoder: nn.Module, tower: Tower) -> None:
    """Set what ``build_model`` assumes to be as in OpenAI's: activation, heads and eps."""
    for block in _blocks(encoder):
        block.mlp.gelu = ACTIVATIONS[tower.activation]()
        if tower.heads:
            if block.attn.embed_dim % tower.heads:
                raise ValueError(f"{tower.heads} heads of width {block.attn.embed_dim}")
            block.attn.num_heads = tower.heads
            block.attn.head_dim = block.attn.embed_dim // tower.heads
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("visual."):
            module.eps = tower.eps
