"""Weights are read from files of safetensors, ``torch.save`` and TorchScript.

No code in a file is ever run.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from apd.checkpoint import is_placeholder, load_checkpoint
from apd.clip.torchscript import Module, Refused, is_torchscript, read_torchscript, tensors
from apd.errors import UserError, listed, one_line

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.")
# tensors in TorchScript archives of OpenAI and OpenCLIP that are no weights
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}


class Weights(NamedTuple):
    """The weights in a file.

    Attributes:
        tensors: by their names.
        modules: of a TorchScript archive, by their dotted names; else empty.
    """

    tensors: dict[str, torch.Tensor]
    modules: dict[str, Module]


def read_weights(path: str | os.PathLike, *wrappers: str) -> Weights:
    """The weights in a file, without the containers around them (``unwrapped``).

    Raises:
        UserError: the file cannot be read, holds objects in place of weights, or has NaN or
            infinite weights.
    """
    modules: dict[str, Module] = {}
    if os.fspath(path).endswith(".safetensors"):
        content = _load_safetensors(path)
    elif is_torchscript(path):
        modules = _load_torchscript(path)
        content = tensors(modules)
    else:
        content = _load_saved(path)
    if (kind := _object_in(content, *wrappers)) is not None:
        raise UserError(
            f"{path} holds a pickled {kind}, and no object's code is run to read a file: write its "
            "weights alone, torch.save(model.state_dict(), ...)"
        )
    weights = unwrapped(content, *wrappers)
    _check_finite(weights, path)
    return Weights(weights, modules)


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


def _load_torchscript(path: str | os.PathLike) -> dict[str, Module]:
    try:
        return read_torchscript(path)
    except Refused as error:
        raise UserError(
            f"{path} is a TorchScript archive that cannot be read: {one_line(error)}; fetch it "
            "again, or give a state dict"
        ) from error


def _load_saved(path: str | os.PathLike):
    try:  # inert: other objects that training programs save become placeholders
        return load_checkpoint(path, inert=True)
    except UserError as error:
        raise UserError(
            f"{path} is neither a state dict nor a JIT archive of CLIP, or it is damaged: "
            "fetch it again"
        ) from error


def _object_in(content, *more: str) -> str | None:
    """The class of a pickled object where there should be a state dict; None: there is none."""
    while isinstance(content, dict):
        inner = [content[k] for k in (*more, *_WRAPPERS) if k in content]
        content = next((v for v in inner if isinstance(v, dict) or is_placeholder(v)), None)
    return type(content).__name__ if is_placeholder(content) else None


def unwrapped(content, *more: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their names, without containers and prefixes.

    Containers are mappings with ``state_dict``, ``model``, ... in them (``more``: further names).
    Prefixes are those of DataParallel (module.), torch.compile (_orig_mod.) and of a model that is
    a part of another one.
    """
    while isinstance(content, dict):
        inner = (content[k] for k in (*more, *_WRAPPERS) if isinstance(content.get(k), dict))
        if (inside := next(inner, None)) is None:
            break
        content = inside
    else:
        return {}
    weights = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor) and name not in _NO_WEIGHTS
    }
    while weights and (prefix := next(iter(weights)).partition(".")[0] + ".") in _PREFIXES:
        if not all(name.startswith(prefix) for name in weights):
            break
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _check_finite(weights: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Raise UserError for NaN and infinite weights, which would cause puzzling errors later."""
    broken = [name for name, value in weights.items() if not _is_finite(value)]
    if broken:
        raise UserError(
            f"{path} has NaN or infinite weights ({listed(broken, 3)}): fetch or train it again"
        )


def _is_finite(value: torch.Tensor) -> bool:
    if value.is_floating_point() and value.numel():  # to look at minimum and maximum is faster
        of_a_byte = value.dtype.itemsize == 1  # float8 has no such operations
        value = torch.stack(torch.aminmax(value.float() if of_a_byte else value))
    return bool(value.isfinite().all())
