"""Learning rates by epoch, with warm-up: Dassl's sequence, in a scheduler that can be resumed."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from apd.errors import UserError


class EpochSchedule(LRScheduler):
    """A learning rate that is a function of the epoch only; its state is the epoch.

    With base rate b, warm-up of W epochs and decay g (``_decay``), epoch e has

    - e < W, constant warm-up: ``WARMUP_CONS_LR``
    - e < W, linear warm-up: b e / W, and ``WARMUP_MIN_LR`` at e = 0
    - e >= W: b g(e - W) when warm-up is not counted (``WARMUP_RECOUNT``), else b g(e) / g(W)

    Args:
        optimizer: its param groups' rates are the base rates.
        optim_cfg: the ``OPTIM`` section of a config.

    Raises:
        UserError: a scheduler or warm-up of unknown name, or a STEPSIZE that does not fit.
    """

    def __init__(self, optimizer: Optimizer, optim_cfg) -> None:
        self._decay = _decay(optim_cfg)
        self._warmup = max(optim_cfg.WARMUP_EPOCH, 0)
        if self._warmup and optim_cfg.WARMUP_TYPE not in ("constant", "linear"):
            raise UserError(
                f"OPTIM.WARMUP_TYPE is {optim_cfg.WARMUP_TYPE}: it must be constant or linear"
            )
        self._cfg = optim_cfg
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [self._rate(base, self.last_epoch) for base in self.base_lrs]

    def _rate(self, base: float | Tensor, epoch: int) -> float | Tensor:
        if epoch >= self._warmup:
            if self._cfg.WARMUP_RECOUNT:
                return base * self._decay(epoch - self._warmup)
            if epoch == self._warmup:  # g(W) may be 0
                return base
            return base * self._decay(epoch) / self._decay(self._warmup)
        if self._cfg.WARMUP_TYPE == "constant":
            return self._cfg.WARMUP_CONS_LR
        return base * epoch / self._warmup if epoch else self._cfg.WARMUP_MIN_LR

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = rate


def _decay(optim_cfg):
    """The factor on the base rate as a function of the epoch."""
    name, stepsize = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE
    gamma, max_epoch = optim_cfg.GAMMA, optim_cfg.MAX_EPOCH
    if name == "cosine":
        return lambda epoch: (1 + math.cos(math.pi * epoch / max_epoch)) / 2
    if name == "single_step":
        step = stepsize[-1] if isinstance(stepsize, (list, tuple)) else stepsize
        if not isinstance(step, int):
            raise UserError(f"OPTIM.STEPSIZE is {stepsize}: single_step needs a whole number")
        step = step if step > 0 else max_epoch
        return lambda epoch: gamma ** (epoch // step)
    if name == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise UserError(f"OPTIM.STEPSIZE is {stepsize}: multi_step needs a list of epochs")
        return lambda epoch: gamma ** sum(0 < milestone <= epoch for milestone in stepsize)
    raise UserError(f"OPTIM.LR_SCHEDULER is {name}: it must be single_step, multi_step or cosine")


def build_lr_scheduler(optimizer: Optimizer, optim_cfg) -> EpochSchedule:
    """Build the scheduler that the ``OPTIM`` section asks for; it steps once an epoch."""
    return EpochSchedule(optimizer, optim_cfg)
