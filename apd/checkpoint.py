"""Checkpoints in Dassl's layout, written whole or not at all, read as plain data."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from apd.errors import UserError
from apd.files import atomic_write, write_tensors

BEST = "model-best.pth.tar"


def save_checkpoint(
    state: dict,
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write ``state`` to ``save_dir`` and its file name to ``save_dir/checkpoint``.

    Args:
        state: has ``state_dict`` and ``epoch``; all of it tensors and plain data.
        is_best: write it as ``model-best.pth.tar`` too.
        remove_module_from_keys: take DataParallel's prefix off the names of the weights.
        model_name: file name (default: ``model.pth.tar-<epoch>``).
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    path = Path(save_dir) / (model_name or f"model.pth.tar-{state['epoch']}")
    write_tensors(path, state)
    with atomic_write(path.parent / "checkpoint") as temporary:
        temporary.write_text(f"{path.name}\n", encoding="utf-8")
    print(f"Saved {path}")
    if is_best:
        with atomic_write(path.parent / BEST) as temporary:
            shutil.copyfile(path, temporary)


def load_checkpoint(fpath: str | os.PathLike, inert: bool = False) -> dict:
    """Read a checkpoint, with its tensors on the CPU. Nothing in the file is ever run.

    Args:
        inert: accept pickled objects, as placeholders that hold nothing and do nothing. Dassl's
            own checkpoints have some: with warm-up, a whole scheduler and its optimiser.

    Raises:
        UserError: no such file, a truncated or damaged one, or one with pickled objects that are
            not accepted.
    """
    path = Path(fpath)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: check the folder and the epoch")
    objects: list[str] = []
    try:
        if inert and zipfile.is_zipfile(path):
            objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with torch.serialization.safe_globals([_placeholder(name) for name in objects]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        named = f" ({', '.join(objects[:4])})" if objects else ""
        raise UserError(
            f"cannot read checkpoint {path}: it is truncated or damaged, or holds more than "
            f"tensors and plain data{named}; choose another epoch or train again"
        ) from error


class _Inert:
    """Stands in for a pickled object: accepts its arguments and its state, and does nothing."""

    def __new__(cls, *args, **kwargs):
        # the unpickler sets a defaultdict's items one by one, which it allows for plain dicts only
        return {} if cls.__name__ == "defaultdict" else super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def is_placeholder(value) -> bool:
    """Whether it is a placeholder of ``load_checkpoint`` (``inert``) for a pickled object."""
    return isinstance(value, _Inert)


def _placeholder(name: str) -> type:
    """A class that the unpickler uses in place of the class or function of that full name."""
    module, _, last = name.rpartition(".")
    return type(last, (_Inert,), {"__module__": module})


def resume_from_checkpoint(
    fdir: str | os.PathLike, model: nn.Module, optimizer=None, scheduler=None
) -> int:
    """Load the checkpoint that ``fdir/checkpoint`` names; return how many epochs it has trained.

    Raises:
        UserError: no checkpoint, or one that cannot be read.
    """
    pointer = Path(fdir) / "checkpoint"
    if not pointer.is_file():
        raise UserError(f"no checkpoint to resume in {fdir}")
    path = pointer.parent / pointer.read_text(encoding="utf-8").strip()
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    for key, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is not None and checkpoint.get(key) is not None:
            target.load_state_dict(checkpoint[key])
    print(f"Resumed {path} after epoch {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Load those weights of a file that fit ``model`` by name and shape; print the others."""
    checkpoint = load_checkpoint(weight_path)
    weights = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict({**own, **fitting})
    if not fitting:
        warnings.warn(f"no weight in {weight_path} fits this model by name and shape")
    print(f"Loaded {len(fitting)} of {len(weights)} weights from {weight_path}")
    if unused := [key for key in weights if key not in fitting]:
        print(f"Not used: {', '.join(unused)}")


def _without_module(state_dict: dict) -> dict:
    return {key.removeprefix("module."): value for key, value in state_dict.items()}
