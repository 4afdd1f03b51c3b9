"""The folder that ``save`` writes: a classifier without its CLIP, which it names with a hash.

It has ``config.json``, ``prompts.safetensors`` and ``README.md``, a model card. Fields of
config.json (schema 1):
    library_name: apd-clip.
    schema: version of this list.
    method: the trainer's name.
    modality: of the prompts: "none", "text", "visual" or "text + visual".
    class_names: in the order of the logits.
    prompts: arguments of ``apd.clip.build_prompted_clip``: number, depth and place of the context
        vectors, hand-written templates.
    prompts_sha256: of the learned vectors (``apd.clip.weights_sha256``).
    backbone: name, robust, resolution and sha256 (``apd.models.description.Backbone``).
    input: size (height, width) and interpolation of the images, and the mean and std that the
        model normalises them with.
    threat_model: "train" and "test", each the threat model as in results.json, or None.
    results: the fields of results.json that are not about the machine.
    versions: of the packages that wrote the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor

from apd.clip import PromptedCLIP, build_prompted_clip, weights_sha256
from apd.clip.weights import read_weights
from apd.errors import UserError, listed, one_line
from apd.files import read_json, temporary_folder, write_bytes, write_json
from apd.models.card import card
from apd.models.description import CONFIG, LIBRARY, Backbone, Description
from apd.results.schema import environment, kind_faults, record_faults

PROMPTS, CARD = "prompts.safetensors", "README.md"
SCHEMA = 1
_RESULTS = (
    *("dataset", "subsample", "shots", "seed", "epochs", "host", "modality"),
    *("trainable_parameters", "train_seconds", "trained_on", "evaluations"),
    *("versions", "git_commit"),
)
_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("method", "modality", "prompts_sha256"), (str,)),
    "class_names": (list,),
    **dict.fromkeys(("prompts", "backbone", "input", "threat_model", "results"), (dict,)),
}
_BACKBONE = {"name": (str,), "robust": (str,), "resolution": (int,), "sha256": (str,)}
_OF_RESULTS = {
    **dict.fromkeys(("dataset", "subsample"), (str,)),
    **dict.fromkeys(("shots", "seed"), (int,)),
    "evaluations": (list,),
}
_THREAT = {
    **dict.fromkeys(("norm", "loss"), (str,)),
    **dict.fromkeys(("eps", "alpha"), (int, float)),
    "steps": (int,),
}
_LARGEST = 1000  # number of vectors, layers or experts; a larger one is a damaged file


def is_saved(folder: Path) -> bool:
    """Whether ``write_folder`` wrote it.

    config.json alone does not tell: a CLIP of transformers has such a file too.
    """
    if (folder / PROMPTS).exists():  # even if config.json is missing or damaged
        return True
    try:
        return read_json(folder / CONFIG).get("library_name") == LIBRARY
    except (AttributeError, OSError, ValueError):
        return False


def write_folder(model: PromptedCLIP, description: Description, folder: str | os.PathLike) -> Path:
    """Write a classifier, whole or not at all.

    Raises:
        UserError: the folder has something in it, or the weights are not in float32.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: choose another folder")
    if model.mean.dtype != torch.float32:
        raise UserError(f"the model is in {model.mean.dtype}: load it again, and save that")
    config = to_config(model, description)
    with temporary_folder(folder) as temporary:
        state = model.prompt_learner.state_dict()
        tensors = {name: value.cpu().contiguous() for name, value in state.items()}
        write_bytes(temporary / PROMPTS, save(tensors, metadata={"format": "pt"}))
        write_json(temporary / CONFIG, config)
        write_bytes(temporary / CARD, card(config).encode())
    return folder


def to_config(model: PromptedCLIP, description: Description) -> dict:
    """The contents of config.json."""
    size = model.clip.visual.input_resolution
    return {
        "library_name": LIBRARY,
        "schema": SCHEMA,
        "method": description.method,
        "modality": model.modality,
        "class_names": list(description.class_names),
        "prompts": description.prompts,
        "prompts_sha256": weights_sha256(model.prompt_learner),
        "backbone": asdict(description.backbone),
        "input": {
            "size": [size, size],
            "interpolation": description.interpolation,
            "mean": list(model.clip.mean),
            "std": list(model.clip.std),
        },
        "threat_model": description.threat_model,
        "results": {
            key: description.results[key] for key in _RESULTS if key in description.results
        },
        "versions": environment()["versions"],
    }


def read_folder(folder: Path) -> tuple[Description, dict[str, Tensor], str]:
    """Read what ``write_folder`` wrote: the description, the learned vectors and their hash.

    Raises:
        UserError: a file is missing or damaged, or of another version.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({one_line(error)}): save it again") from error
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        version = config.get("schema") if isinstance(config, dict) else "none"
        raise UserError(f"{path} has schema {version}, this version reads {SCHEMA}")
    if faults := _faults(config):
        raise UserError(f"{path} {listed(faults, 4)}: save it again")
    tensors = read_weights(folder / PROMPTS).tensors
    description = Description(
        method=config["method"],
        class_names=tuple(config["class_names"]),
        prompts=config["prompts"],
        backbone=Backbone(**config["backbone"]),
        interpolation=config["input"]["interpolation"],
        threat_model=config["threat_model"],
        results=config["results"],
    )
    return description, tensors, config["prompts_sha256"]


def _faults(config: dict) -> list[str]:
    """What is wrong with a config: a phrase for each fault, such as "lacks method"."""
    if faults := kind_faults(config, _FIELDS, {}):
        return faults
    faults = [f"backbone {fault}" for fault in kind_faults(config["backbone"], _BACKBONE, {})]
    if unknown := config["backbone"].keys() - _BACKBONE:
        faults.append(f"has backbone {listed(sorted(unknown))}")
    if config["input"].get("interpolation") not in ("bicubic", "bilinear", "nearest"):
        faults.append("has no interpolation that is known")
    if not all(isinstance(name, str) for name in config["class_names"]):
        faults.append("has class names that are no texts")
    for use in ("train", "test"):
        if (threat := config["threat_model"].get(use)) is not None:
            faults += kind_faults(threat, _THREAT, {}) if isinstance(threat, dict) else [use]
    if results := config["results"]:
        faults += kind_faults(results, _OF_RESULTS, {})
        records = results.get("evaluations")
        faults += [
            f for r in (records if isinstance(records, list) else ()) for f in record_faults(r)
        ]
    return faults + _prompt_faults(config["prompts"])


def _prompt_faults(prompts: Mapping) -> list[str]:
    """What is wrong with arguments of ``build_prompted_clip``."""
    defaults = {
        name: parameter.default
        for name, parameter in signature(build_prompted_clip).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    faults = []
    for name, value in prompts.items():
        default = defaults.get(name)
        if isinstance(default, tuple):
            valid = isinstance(value, list) and all(isinstance(text, str) for text in value)
        else:
            valid = name in defaults and type(value) is type(default)
        if name == "position":
            valid = value in ("end", "middle", "front")
        if valid and type(value) is int and name != "text_chunk":
            valid = 0 <= value <= _LARGEST
        if not valid:
            faults.append(f"has prompts with {name} {one_line(value, 20)}")
    return faults
