"""CLIPs of OpenCLIP and of Hugging Face's transformers, for ``clip.model.CLIP``.

Both publish models of OpenAI's architecture with other weights. OpenCLIP
(github.com/mlfoundations/open_clip) has OpenAI's names for the weights, transformers
(``CLIPModel``) has names of its own. Their configs say what weights cannot (activation, heads,
preprocessing). Models that ``clip.model.CLIP`` cannot represent (SigLIP, CoCa, EVA, ConvNeXt, other
tokenizers, ...) are refused, because their configs have further keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from clip.model import QuickGELU
from torch import Tensor, nn

from apd.errors import UserError, listed, one_line, similar
from apd.files import read_json

# OpenAI's preprocessing constants, for images in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

OPENCLIP, HUB = "openclip:", "hf:"  # prefixes of MODEL.BACKBONE.NAME
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}


class Tower(NamedTuple):
    """Properties of one encoder that its weights do not show; the defaults are OpenAI's."""

    heads: int | None = None  # None: one head for each 64 channels
    activation: str = "quick_gelu"
    eps: float = 1e-5  # of the layer norms


class Design(NamedTuple):
    """Properties of a CLIP that its weights do not show; the defaults are OpenAI's."""

    image: Tower = Tower()
    text: Tower = Tower()
    mean: tuple[float, ...] = MEAN  # of pixels in [0, 1]
    std: tuple[float, ...] = STD


class Foreign(NamedTuple):
    """A CLIP of another library; ``convert`` makes OpenAI's weights of those in its ``files``."""

    files: list[Path]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    design: Design
    sizes: dict  # by the names of ``clip.model.CLIP``'s arguments


def find_foreign(name: str) -> Foreign | None:
    """The CLIP that ``MODEL.BACKBONE.NAME`` names, or None if it is OpenAI's or a file.

    Args:
        name: ``openclip:MODEL/TAG`` with a tag of OpenCLIP's or the path of a checkpoint;
            ``hf:OWNER/NAME`` on the Hugging Face hub; or a local folder as the hub has it, in
            the layout of transformers or of OpenCLIP.

    Raises:
        UserError: nothing of that name, a missing library, a failed download, files that are
            missing or cannot be read, or a model that ``clip.model.CLIP`` cannot hold.
    """
    if name.startswith(OPENCLIP):
        return _open_clip(name)
    if name.startswith(HUB):
        return _folder(_download(name.removeprefix(HUB)), name)
    if os.path.isdir(name):
        return _folder(Path(name), name)
    return None


# -- finding their files ----------------------------------------------------------------------


def _open_clip(name: str) -> Foreign:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"{name} needs OpenCLIP ({one_line(error)}): pip install 'apd-clip[openclip]'"
        ) from error
    model, _, tag = name.removeprefix(OPENCLIP).partition("/")
    for prefix, prefix_here in (("hf-hub:", HUB), ("local-dir:", "")):
        if model.startswith(prefix):
            name_here = f"{prefix_here}{name.partition(prefix)[2]}"
            raise UserError(f"{name}: what OpenCLIP calls so is {name_here} here: give that")
    config = None if ":" in model else open_clip.get_model_config(model)
    if config is None:
        raise UserError(f"OpenCLIP has no model {model}{_near(model, open_clip.list_models())}")
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    if os.path.isfile(tag):
        return openclip_model([Path(tag)], {"model_cfg": config}, name)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise UserError(
            f"OpenCLIP has no weights {tag or '(none named)'} of {model}, and there is no such "
            f"file{_near(tag, tags)}: use openclip:{model}/ and a tag or a path"
        )
    # a tag says its activation: ViT-B-32/openai has QuickGELU, which the model's config does not
    config = {**config, "quick_gelu": pretrained.get("quick_gelu", False)}
    settings = {"model_cfg": config, "preprocess_cfg": pretrained}
    foreign = openclip_model([], settings, name)  # refused before anything is downloaded
    try:
        file = open_clip.download_pretrained(pretrained)
    except Exception as error:  # whatever the network and its libraries raise
        raise UserError(f"{name} could not be downloaded ({one_line(error)})") from error
    return foreign._replace(files=[Path(file)])


def _near(name: str, names: Iterable[str]) -> str:
    near = similar(name, names, 0.3) or sorted(names)
    return f"; there are {listed(near, most=8)}" if near else ""


def _download(repository: str) -> Path:
    """The folder of a hub repository, with the files that we read."""
    try:
        from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
    except ImportError as error:
        raise UserError(
            f"{HUB}{repository} needs the hub's client ({one_line(error)}): pip install "
            "'apd-clip[hf]', or give the path of a folder that has its files"
        ) from error
    try:
        try:
            for file in _needed(list_repo_files(repository)):
                folder = Path(hf_hub_download(repository, file)).parent
        except OSError:  # no network: use the files that an earlier run downloaded
            folder = Path(snapshot_download(repository, local_files_only=True))
    except UserError as error:
        raise UserError(f"{HUB}{repository}: {error}") from error
    except Exception as error:
        raise UserError(f"{HUB}{repository} could not be downloaded ({one_line(error)})") from error
    return folder


# config file -> files of weights, of which the first that exists is read
LAYOUTS = {
    "open_clip_config.json": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    "config.json": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


# files in which transformers has the mean and std: that of version 5, that of older versions
_PIXELS = ("processor_config.json", "preprocessor_config.json")


def _needed(names: Iterable[str]) -> list[str]:
    """The files in a folder that must be read, in this order: the config, the weights (or the index
    of their shards), the shards, and the configs of preprocessing."""
    names = set(names)
    for config, weights in LAYOUTS.items():
        first = next((file for file in weights if file in names), None)
        if config in names and first:
            kind = first.removesuffix(".index.json")
            stem, suffix = os.path.splitext(kind)
            shards = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
            found_shards = [file for file in names if first != kind and shards.fullmatch(file)]
            pixels = [file for file in _PIXELS if file in names]
            return [config, first, *sorted(found_shards), *pixels]
    raise UserError(
        "there is no CLIP in it: it needs config.json (transformers) or open_clip_config.json "
        "(OpenCLIP), and the weights in safetensors or bin"
    )


def _folder(folder: Path, name: str) -> Foreign:
    try:
        config, *files = _needed(os.listdir(folder))
        settings = _json(folder / config)
        if config == "open_clip_config.json":
            return openclip_model([folder / files[0]], settings, name)
        pixels = [_json(folder / file) for file in files if file in _PIXELS]
        files = [file for file in files if file not in _PIXELS]
        if files[0].endswith(".index.json"):
            shards = set(_json(folder / files[0])["weight_map"].values())
            if strange := shards.difference(os.listdir(folder)):  # a path leads elsewhere
                raise UserError(f"{folder} lacks {listed(sorted(map(one_line, strange)), 4)}")
            files = sorted(shards)
        candidates = [*(each.get("image_processor") for each in pixels), *pixels[-1:]]
        chosen: dict = next(filter(None, candidates), {})
        return transformers_model([folder / file for file in files], settings, chosen, name)
    except UserError as error:
        message = str(error)
        raise UserError(message if name in message else f"{name}: {message}") from error
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: {config} is not what its layout has ({one_line(error)})"
        ) from error


def _json(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({one_line(error)}): fetch it again") from error


# -- OpenCLIP ---------------------------------------------------------------------------------

# Keys of an OpenCLIP config that a model of OpenAI's architecture may have, with the values that
# they must have. Other keys are accepted only if they are off (None, False, 0); those of _READ may
# have any value, because they are read below or change nothing in evaluation.
_PLAIN = {
    "mlp_ratio": 4.0,
    "vocab_size": 49408,
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "block_type": "default",
    "custom_text": False,
}
_READ = """
    layers width heads head_width patch_size image_size context_length patch_dropout
    output_tokens pad_id eos_id attn_pooler_queries attn_pooler_heads embed_dim quick_gelu
    init_logit_scale vision_cfg text_cfg hf_model_pretrained hf_proj_type hf_pooler_type
    timm_pool timm_proj timm_model_pretrained
""".split()
_TOKENIZER = "openai/clip-vit-"  # the hub's copies of OpenAI's tokenizer


def openclip_model(files: list[Path], settings: dict, name: str) -> Foreign:
    """An OpenCLIP model by its ``open_clip_config.json``: model_cfg and preprocess_cfg.

    Raises:
        UserError: it is not OpenAI's architecture, in one line that names what is different.
    """
    config = settings["model_cfg"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    odd = []
    for section, pool, options in (
        ("", "", config),
        ("vision_cfg.", "tok", vision),
        ("text_cfg.", "argmax", text),
    ):
        for key, value in options.items():
            openais = key == "hf_tokenizer_name" and str(value).startswith(_TOKENIZER)
            plain = pool if key == "pool_type" else _PLAIN.get(key)
            if value and value != plain and key not in _READ and not openais:
                odd.append(f"{section}{key}")
    if odd:
        raise _refusal(name, odd)
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    vit = isinstance(vision["layers"], int)
    pixels = settings.get("preprocess_cfg", {})
    _check_resizing(name, pixels.get("interpolation", "bicubic"))
    return Foreign(
        files,
        lambda weights: weights,
        Design(
            Tower(vision["width"] // vision.get("head_width", 64) if vit else None, activation),
            Tower(text.get("heads"), activation),
            *_pixels(name, pixels.get("mean"), pixels.get("std")),
        ),
        {
            **_text_sizes(text, "context_length", "width", "heads", "layers"),
            "embed_dim": config["embed_dim"],
            "image_resolution": _side(vision.get("image_size", 224)),
            "vision_layers": vision["layers"],
            "vision_width": vision["width"],
            "vision_patch_size": vision.get("patch_size", 16),
        },
    )


def _side(size) -> int:
    """The side of square images, in pixels; ``size`` is it, or height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"images of {height}x{width}, where OpenAI's CLIP has square ones")
    return height


def _text_sizes(text: dict, context: str, width: str, heads: str, layers: str) -> dict:
    """The sizes of a text encoder, from a config with these keys; defaults are OpenAI's ViT-B's."""
    return {
        "context_length": text.get(context, 77),
        "vocab_size": text.get("vocab_size", 49408),
        "transformer_width": text.get(width, 512),
        "transformer_heads": text.get(heads, 8),
        "transformer_layers": text.get(layers, 12),
    }


def _refusal(name: str, odd: list[str]) -> UserError:
    return UserError(
        f"{name} is not of OpenAI's CLIP architecture and tokenizer, which is what can be prompted "
        f"here (it has {listed(odd)}): choose a plain ViT or ResNet CLIP"
    )


def _pixels(name: str, mean, std) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not (mean and std):
        print(f"note: {name} does not say the mean and std of its pixels: OpenAI's are taken")
    return tuple(map(float, mean or MEAN)), tuple(map(float, std or STD))


def _check_resizing(name: str, mode: str) -> None:
    if mode != "bicubic":
        print(f"note: {name} was trained on images resized by {mode}: see INPUT.INTERPOLATION")


# -- Hugging Face's transformers ---------------------------------------------------------------

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def transformers_model(files: list[Path], config: dict, pixels: dict, name: str) -> Foreign:
    """A transformers ``CLIPModel`` by its ``config.json`` and its image processor's config.

    Raises:
        UserError: it is another model (by its model_type), or of other parts than OpenAI's.
    """
    if (kind := config.get("model_type")) != "clip":
        raise _refusal(name, [f"model_type {kind}"])
    # in older configs ..._config_dict is right; absent keys have transformers' defaults
    vision, text = (
        {**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}
        for tower in ("vision", "text")
    )
    towers, odd = [], []
    for tower, own, defaults in (
        ("vision", vision, (768, 3072, 12)),
        ("text", text, (512, 2048, 8)),
    ):
        width, hidden, heads = (
            own.get(key, default)
            for key, default in zip(
                ("hidden_size", "intermediate_size", "num_attention_heads"), defaults
            )
        )
        activation = own.get("hidden_act", "quick_gelu")
        if activation not in ACTIVATIONS:
            odd.append(f"{tower} hidden_act {activation}")
        if hidden != 4 * width:
            odd.append(f"{tower} intermediate_size {hidden} of width {width}")
        towers.append(Tower(heads, activation, own.get("layer_norm_eps", 1e-5)))
    if text.get("vocab_size", 49408) != 49408:
        odd.append(f"vocab_size {text['vocab_size']}")
    if (
        not pixels.get("do_rescale", True)
        or abs(pixels.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6
    ):
        odd.append("pixels that are not scaled to [0, 1]")
    if odd:
        raise _refusal(name, odd)
    mean, std = pixels.get("image_mean"), pixels.get("image_std")
    if not pixels.get("do_normalize", True):
        mean, std = (0, 0, 0), (1, 1, 1)
    _check_resizing(name, _RESAMPLING.get(pixels.get("resample", 3), "another filter"))
    return Foreign(
        files,
        from_transformers,
        Design(towers[0], towers[1], *_pixels(name, mean, std)),
        {
            **_text_sizes(
                text,
                "max_position_embeddings",
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
            ),
            "embed_dim": config.get("projection_dim", 512),
            "image_resolution": vision.get("image_size", 224),
            "vision_layers": vision.get("num_hidden_layers", 12),
            "vision_width": vision.get("hidden_size", 768),
            "vision_patch_size": vision.get("patch_size", 32),
        },
    )


_NAMES = (
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # transformers spells it so
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ``CLIPModel``'s state dict under OpenAI's names and in its shapes.

    OpenAI has queries, keys and values in one matrix, and the projections transposed.
    """
    converted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.endswith("position_ids"):  # 0, 1, 2, ...: older versions saved them
            continue
        if name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = weight.t().contiguous()
            continue
        openais = name
        for pattern, replacement in _NAMES:
            openais = re.sub(pattern, replacement, openais)
        converted[openais] = weight
    for name in [name for name in converted if ".self_attn.q_proj." in name]:
        parts = [converted.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        stem, _, kind = name.partition("self_attn.q_proj.")
        converted[f"{stem}attn.in_proj_{kind}"] = torch.cat(parts)
    return converted
