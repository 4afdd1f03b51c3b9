"""The weights in a file: safetensors, what ``torch.save`` writes, TorchScript archives.

Nothing in a file is ever run.
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
# what TorchScript archives hold beside weights: OpenAI's and OpenCLIP's
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: the weights by their names.
        modules: what a TorchScript archive says of its modules, by their dotted names.
    """

    tensors: dict[str, torch.Tensor]
    modules: dict[str, Module]


def read_weights(path: str | os.PathLike, *wrappers: str) -> Weights:
    """The weights in a file, out of what is around them (``unwrapped``).

    Raises:
        UserError: the file cannot be read, holds objects in place of weights, or has NaN or
            infinite weights.
    """
    modules: dict[str, Module] = {}
    if os.fspath(path).endswith(".safetensors"):
        found = _load_safetensors(path)
    elif is_torchscript(path):
        modules = _load_torchscript(path)
        found = tensors(modules)
    else:
        found = _load_saved(path)
    if (kind := _object_in(found, *wrappers)) is not None:
        raise UserError(
            f"{path} holds a pickled {kind}, and no object's code is run to read a file: write its "
            "weights alone, torch.save(model.state_dict(), ...)"
        )
    weights = unwrapped(found, *wrappers)
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
    try:  # what training programs keep beside the weights may be of any class
        return load_checkpoint(path, inert=True)
    except UserError as error:
        raise UserError(
            f"{path} is neither a state dict nor a JIT archive of CLIP, or it is damaged: "
            "fetch it again"
        ) from error


def _object_in(found, *more: str) -> str | None:
    """The class of a pickled object that stands where a state dict should."""
    while isinstance(found, dict):
        inner = [found[k] for k in (*more, *_WRAPPERS) if k in found]
        found = next((v for v in inner if isinstance(v, dict) or is_placeholder(v)), None)
    return type(found).__name__ if is_placeholder(found) else None


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
    weights = {
        str(name): value
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and name not in _NO_WEIGHTS
    }
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
