"""Adversarially robust prompt learning of CLIP, as a plugin for the Dassl / CoOp toolbox."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; PyTorch is imported at first use
    from apd.evaluate.robustness import RobustnessReport, robustness
    from apd.models.classifier import Prediction, PromptedClassifier
    from apd.models.sources import load, zero_shot

from apd.about import CLONE, VERSION

__version__ = VERSION

if CLONE:
    # Run from a clone: trainers/, datasets/ and configs/ lie beside this folder, as in CoOp.
    # An installation has them inside it (setup.py, package_dir).
    __path__.append(str(CLONE))

from apd.config import extend_cfg  # noqa: E402
from apd.errors import UserError, report_uncaught  # noqa: E402

_NEEDS_PYTORCH = {  # name: its module
    "Prediction": "apd.models.classifier",
    "PromptedClassifier": "apd.models.classifier",
    "RobustnessReport": "apd.evaluate.robustness",
    "load": "apd.models.sources",
    "robustness": "apd.evaluate.robustness",
    "zero_shot": "apd.models.sources",
}


def __getattr__(name: str):
    if name not in _NEEDS_PYTORCH:
        raise AttributeError(f"module 'apd' has no attribute '{name}'")
    return getattr(import_module(_NEEDS_PYTORCH[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register(mend_host: bool = False) -> None:
    """Register these trainers and datasets with the toolbox (Dassl, or the embedded host).

    A name that the toolbox has already stays the toolbox's: in a CoOp checkout, call this after
    its own imports, and ``--trainer CoOp`` is its CoOp. From then on, errors that are the user's to
    mend end the program with one line and exit code 2, as in ``train.py`` here.

    Args:
        mend_host: also make the toolbox's own trainers train and resume on current PyTorch, where
            it is upstream Dassl (see ``apd.host.mend``). Only in this process: no file changes.
    """
    import apd.datasets  # noqa: F401  registers on import
    import apd.host
    import apd.trainers  # noqa: F401

    report_uncaught()
    if mend_host:
        apd.host.mend()


__all__ = [
    "Prediction",
    "PromptedClassifier",
    "RobustnessReport",
    "UserError",
    "__version__",
    "extend_cfg",
    "load",
    "register",
    "robustness",
    "zero_shot",
]
