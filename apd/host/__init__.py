"""The toolbox under these trainers and datasets: upstream Dassl, or the embedded host.

Dassl, where it imports; else the embedded host, which has the part of Dassl's interface that
CoOp-style code uses. The environment variable ``APD_HOST`` (``dassl`` or ``embedded``) forces
one. ``HOST`` names the choice and ``HOST_VERSION`` its version. ``build_lr_scheduler`` and the
checkpoint functions are the same on both, because Dassl's own fail on current torch.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from apd.checkpoint import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from apd.errors import UserError
from apd.host.schedule import build_lr_scheduler

if TYPE_CHECKING:  # for editors and type checkers, which do not see what is chosen at run time
    from apd.host.embedded import *  # noqa: F403

_TOOLBOX = [
    "HOST_VERSION",
    # trainers
    *"Registry TRAINER_REGISTRY build_trainer TrainerBase SimpleTrainer TrainerX".split(),
    # data
    *"DATASET_REGISTRY build_dataset Datum DatasetBase DataManager DatasetWrapper".split(),
    *"build_data_loader build_sampler build_transform INTERPOLATION_MODES".split(),
    # optimisation and evaluation
    *"build_optimizer EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification".split(),
    "compute_accuracy",
    # config and logging
    *"get_cfg_default clean_cfg setup_logger Logger AverageMeter MetricMeter".split(),
    # tools
    *"set_random_seed collect_env_info read_json write_json mkdir_if_missing".split(),
    *"check_isfile read_image listdir_nohidden check_availability tolist_if_not".split(),
    "count_num_param",
]


def _choose():
    """Return the name of the host and its module."""
    forced = os.environ.get("APD_HOST", "")
    if forced not in ("", "dassl", "embedded"):
        raise UserError(f"APD_HOST is '{forced}': it must be dassl or embedded, or not be set")
    if forced == "dassl" or (not forced and find_spec("dassl")):
        try:
            return "dassl", import_module("apd.host.upstream")
        except Exception as error:  # Dassl imports much, and an old one may fail in any way
            reason = f"Dassl does not import ({type(error).__name__}: {error})"
            if forced:
                raise UserError(
                    f"APD_HOST is dassl, but {reason}: install what is missing, or unset APD_HOST"
                ) from error
            warnings.warn(f"{reason}: using the embedded host", stacklevel=2)
    return "embedded", import_module("apd.host.embedded")


HOST, _module = _choose()
globals().update({name: getattr(_module, name) for name in _TOOLBOX})


def register(registry):
    """Return a class decorator that registers with ``registry`` under the class's name.

    A name that the toolbox has already stays the toolbox's, and the class is only returned.
    """

    def decorate(cls):
        if cls.__name__ not in registry.registered_names():
            registry.register(cls)
        return cls

    return decorate


def mend() -> None:
    """Mend what upstream Dassl's own trainers meet on current PyTorch, in memory.

    Its warm-up schedule (``OPTIM.WARMUP_EPOCH`` 1 or more, as in nearly all configs) passes an
    argument that PyTorch has dropped; in a checkpoint it is an object, which PyTorch no longer
    loads; and where it is loaded, the learning rate stays what it was. Mended, its learning rates
    are those that it had. The embedded host has nothing to mend.
    """
    if HOST == "dassl":
        _module.mend_warm_up()


__all__ = [
    *_TOOLBOX,
    "HOST",
    "build_lr_scheduler",
    "load_checkpoint",
    "load_pretrained_weights",
    "mend",
    "register",
    "resume_from_checkpoint",
    "save_checkpoint",
]
