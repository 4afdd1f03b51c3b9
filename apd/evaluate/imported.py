"""A model that a user's own module makes: what ``apd-eval --model`` names."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torch import nn

from apd.errors import UserError, either, one_line, similar
from apd.evaluate.data import labelled_images
from apd.evaluate.model import About, EvaluatedModel
from apd.evaluate.request import LogitsFn
from apd.images import as_tensor


class ImportedModel(NamedTuple):
    """What a process needs to make the model and to read its data.

    Attributes:
        folder: where evaluations are kept.
        spec: package.module:function; see ``made_by``.
        data: a folder of class folders.
        about: as of ``EvaluatedModel``.
        classes: names in the order of the logits; empty: the model's ``class_names``.
        size: images are brought to so many pixels; 0: the model's ``preprocess``, or as they are.
        batch_size: of the loader.
        device: where the model is moved to; "": it stays where the function has put it.
    """

    folder: Path
    spec: str
    data: str
    about: About
    classes: tuple[str, ...] = ()
    size: int = 0
    batch_size: int = 64
    device: str = ""

    def load(self) -> EvaluatedModel:
        model = made_by(self.spec)
        if self.device and isinstance(model, nn.Module):
            model.to(self.device)
        resize = partial(as_tensor, size=self.size) if self.size else None
        data = labelled_images(
            self.data,
            batch_size=self.batch_size,
            preprocess=resize or getattr(model, "preprocess", None),
            class_names=self.classes or getattr(model, "class_names", ()),
        )
        device = self.device or None
        evaluated = EvaluatedModel(model, data, self.folder, self.about, device=device)
        evaluated.saved = self
        return evaluated


def made_by(spec: str) -> LogitsFn:
    """The model that package.module:function names, imported from here or from what is installed.

    It is a module of PyTorch, or what the function, called without arguments, returns.

    Raises:
        UserError: it cannot be imported, is not there, fails, or returns no callable.
    """
    where, _, name = spec.partition(":")
    if not where or not name:
        raise UserError(f"--model {spec}: use package.module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(where)
    except Exception as error:  # anything, for it is the user's code
        raise UserError(f"--model {spec}: cannot import {where} ({_said(error)})") from error
    if not hasattr(module, name):
        near = similar(name, vars(module))
        hint = f": did you mean {either(near)}?" if near else ""
        raise UserError(f"--model {spec}: {where} has no {name}{hint}")
    made = getattr(module, name)
    if isinstance(made, nn.Module):
        return made
    try:
        model = made()
    except Exception as error:
        raise UserError(
            f"--model {spec}: called without arguments, it fails ({_said(error)})"
        ) from error
    if not callable(model):
        raise UserError(
            f"--model {spec}: it returns a {type(model).__name__}, but must return the model: a "
            "callable from images to logits"
        )
    return model


def _said(error: Exception) -> str:
    """The error, and the line of the user's code that it comes from."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    place = f", {Path(last.tb_frame.f_code.co_filename).name} line {last.tb_lineno}" if last else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"
