"""Formats for classifiers without visual prompts: a plain CLIP and a matrix of text features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from clip.model import CLIP, ModifiedResNet, QuickGELU, VisionTransformer
from torch import Tensor, nn

from apd.clip.load import load_clip
from apd.clip.visual import is_vit
from apd.clip.weights import read_weights
from apd.errors import UserError, listed
from apd.export.metadata import metadata
from apd.files import write_json
from apd.models.classifier import PromptedClassifier

MATRIX = "classifier.safetensors"  # name of the matrix's file in the folder of an OpenCLIP model


def write_weights(classifier: PromptedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    """Write safetensors with ``weight`` (C, D), rows of unit length, and ``scale``, a number.

    Logits are scale * f @ weight.T, for image features f (B, D) of unit length.

    Returns:
        From images to the logits that the file gives.

    Raises:
        UserError: the model has visual prompts.
    """
    _check_text_only(classifier, "a matrix")
    scale = classifier.model.clip.logit_scale.detach().exp()
    _save(path, {"weight": classifier.text, "scale": scale}, metadata(classifier))
    tensors = read_weights(path).tensors
    features = classifier.model.image_features
    return lambda images: tensors["scale"] * features(images) @ tensors["weight"].t()


def write_openclip(classifier: PromptedClassifier, folder: Path) -> Callable[[Tensor], Tensor]:
    """Write a folder that OpenCLIP reads as ``local-dir:FOLDER``.

    It also has ``classifier.safetensors`` (``write_weights``), the matrix of the prompted classes.

    Returns:
        From images to the logits that the files give.

    Raises:
        UserError: the model has visual prompts, or OpenCLIP has no such CLIP.
    """
    _check_text_only(classifier, "an OpenCLIP model")
    clip_model = classifier.model.clip
    config = openclip_config(clip_model, classifier)
    folder.mkdir(exist_ok=True)
    write_json(folder / "open_clip_config.json", config)
    _save(folder / "open_clip_model.safetensors", clip_model.state_dict(), {"format": "pt"})
    write_weights(classifier, folder / MATRIX)
    tensors, model = read_weights(folder / MATRIX).tensors, load_clip(str(folder))

    def logits(images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
        features = F.normalize(model.encode_image((images - mean) / std), dim=-1)
        return tensors["scale"] * features @ tensors["weight"].t()

    return logits


def _check_text_only(classifier: PromptedClassifier, target: str) -> None:
    """Raise UserError if the classifier has visual prompts, which the ``target`` cannot hold."""
    if "visual" in classifier.model.modality:
        raise UserError(
            f"{classifier.description.method} prompts the image encoder too, which {target} "
            "cannot hold: use --format onnx or exported"
        )


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    path.write_bytes(save(contiguous, metadata=metadata))


def openclip_config(clip_model: CLIP, classifier: PromptedClassifier) -> dict:
    """``open_clip_config.json`` of a CLIP.

    Raises:
        UserError: OpenCLIP has no such model; the message says why.
    """
    visual, text = clip_model.visual, clip_model.transformer.resblocks
    vit = is_vit(visual)
    blocks = [*text, *(visual.transformer.resblocks if vit else ())]
    norms = [module for module in clip_model.modules() if isinstance(module, nn.LayerNorm)]
    activations = {(type(b.mlp.gelu), getattr(b.mlp.gelu, "approximate", "none")) for b in blocks}
    unsupported = [f"layer norms with eps {norm.eps}" for norm in norms if norm.eps != 1e-5][:1]
    if activations not in ({(QuickGELU, "none")}, {(nn.GELU, "none")}):
        unsupported.append("activations other than QuickGELU or GELU throughout")
    if unsupported:
        raise UserError(
            f"{classifier.description.backbone.name} is no model of OpenCLIP's (it has "
            f"{listed(unsupported)}): use --format onnx or exported"
        )
    return {
        "model_cfg": {
            "embed_dim": clip_model.text_projection.shape[1],
            "quick_gelu": (QuickGELU, "none") in activations,
            "vision_cfg": _vision(visual),
            "text_cfg": {
                "context_length": clip_model.positional_embedding.shape[0],
                "vocab_size": clip_model.token_embedding.num_embeddings,
                "width": clip_model.token_embedding.embedding_dim,
                "heads": text[0].attn.num_heads,
                "layers": len(text),
            },
        },
        "preprocess_cfg": {
            "mean": list(clip_model.mean),
            "std": list(clip_model.std),
            "interpolation": classifier.description.interpolation,
            "resize_mode": "shortest",
        },
    }


def _vision(visual: VisionTransformer | ModifiedResNet) -> dict:
    """The vision_cfg of ``open_clip_config.json``."""
    if not is_vit(visual):
        layers = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        return {
            "image_size": visual.input_resolution,
            "layers": [len(layer) for layer in layers],
            "width": visual.layer1[0].conv1.out_channels,
            "patch_size": None,
        }
    blocks = visual.transformer.resblocks
    width = visual.conv1.out_channels
    return {
        "image_size": visual.input_resolution,
        "layers": len(blocks),
        "width": width,
        "patch_size": visual.conv1.kernel_size[0],
        "head_width": width // blocks[0].attn.num_heads,
    }
