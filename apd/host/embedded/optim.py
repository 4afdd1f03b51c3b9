"""Optimisers by name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from apd.errors import UserError
from apd.host.embedded.registry import check_availability


def build_optimizer(model, optim_cfg, param_groups=None) -> torch.optim.Optimizer:
    """Build the optimiser that ``optim_cfg`` (the ``OPTIM`` section) asks for.

    Args:
        model: a module, or an iterable of parameters or parameter groups.
        optim_cfg: NAME is adam, amsgrad, sgd, rmsprop, radam or adamw. With STAGED_LR the
            children of ``model`` that NEW_LAYERS does not name learn at LR * BASE_LR_MULT.
        param_groups: takes the place of ``model``'s parameters; STAGED_LR does not apply.
    """
    c, optim = optim_cfg, torch.optim
    betas = {"betas": (c.ADAM_BETA1, c.ADAM_BETA2)}
    momentum = {"momentum": c.MOMENTUM}
    sgd = {**momentum, "dampening": c.SGD_DAMPNING, "nesterov": c.SGD_NESTEROV}
    choices: dict[str, tuple[Any, dict]] = {
        "adam": (optim.Adam, betas),
        "amsgrad": (optim.Adam, {**betas, "amsgrad": True}),
        "sgd": (optim.SGD, sgd),
        "rmsprop": (optim.RMSprop, {**momentum, "alpha": c.RMSPROP_ALPHA}),
        "radam": (optim.RAdam, {**betas, "decoupled_weight_decay": True}),
        "adamw": (optim.AdamW, betas),
    }
    check_availability(c.NAME, choices)
    cls, options = choices[c.NAME]
    if param_groups is None and c.STAGED_LR:
        param_groups = _staged(model, c)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    elif c.STAGED_LR:
        warnings.warn("OPTIM.STAGED_LR does not apply to parameter groups of your own")
    return cls(param_groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY, **options)


def _staged(model: nn.Module, optim_cfg) -> list[dict]:
    if not isinstance(model, nn.Module):
        raise UserError("OPTIM.STAGED_LR needs a model with named layers, not parameters")
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = optim_cfg.NEW_LAYERS
    names = [names] if isinstance(names, str) else names
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, layer in model.named_children():
        (new if name in names else base).extend(layer.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
