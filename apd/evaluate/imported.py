"""A model of the user's own, which ``apd-eval --model`` imports from their module."""

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
    """What a process needs to import the model and to read its data.

    Attributes:
        folder: stores evaluations.
        spec: "package.module:function"; see ``import_model``.
        data: a folder of class folders.
        about: as of ``EvaluatedModel``.
        classes: names in the order of the logits; empty: the model's ``class_names``.
        size: in pixels: images are resized and cropped to it; 0: the model's ``preprocess`` makes
            them, or they stay as they are.
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
        model = import_model(self.spec)
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


def import_model(spec: str) -> LogitsFn:
    """Import the model that "package.module:function" names.

    The module is looked for in the working folder, then among what is installed. The function is
    called without arguments and returns the model; the name may also be that of an ``nn.Module``.

    Raises:
        UserError: the module cannot be imported, has no such name, or the function fails or
            returns no callable.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UserError(f"--model {spec}: use package.module:function")
    if (working_folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, working_folder)
    try:
        module = import_module(module_name)
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"--model {spec}: cannot import {module_name} ({_with_line(error)})"
        ) from error
    if not hasattr(module, name):
        similar_names = similar(name, vars(module))
        hint = f": did you mean {either(similar_names)}?" if similar_names else ""
        raise UserError(f"--model {spec}: {module_name} has no {name}{hint}")
    factory = getattr(module, name)
    if isinstance(factory, nn.Module):
        return factory
    try:
        model = factory()
    except Exception as error:
        raise UserError(
            f"--model {spec}: called without arguments, it fails ({_with_line(error)})"
        ) from error
    if not callable(model):
        raise UserError(
            f"--model {spec}: it returns a {type(model).__name__}, but must return the model: a "
            "callable from images to logits"
        )
    return model


def _with_line(error: Exception) -> str:
    """The error in one line, with the file and line of the user's code that raised it."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    place = f", {Path(last.tb_frame.f_code.co_filename).name} line {last.tb_lineno}" if last else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"
