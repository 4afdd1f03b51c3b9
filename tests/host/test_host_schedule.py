"""Learning rates at every epoch against a closed form; saved, loaded, resumed."""

import io
import math

import pytest
import torch

from apd.errors import UserError
from apd.host import build_lr_scheduler, get_cfg_default

EPOCHS = 12


def make_cfg(**options):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["LR_SCHEDULER", "cosine", "MAX_EPOCH", EPOCHS, "WARMUP_TYPE", "constant"])
    for key, value in options.items():
        cfg[key] = value
    return cfg


def build(cfg, *rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def rates_by_epoch(optimizer, scheduler, epochs):
    rates = []
    for _ in range(epochs):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def decay(cfg, epoch):
    if cfg.LR_SCHEDULER == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / cfg.MAX_EPOCH))
    if cfg.LR_SCHEDULER == "single_step":
        step = cfg.STEPSIZE[-1]
        return cfg.GAMMA ** (epoch // (step if step > 0 else cfg.MAX_EPOCH))
    return cfg.GAMMA ** len([m for m in cfg.STEPSIZE if m <= epoch])


def expected_rate(cfg, base, epoch):
    warmup = cfg.WARMUP_EPOCH
    if warmup <= 0:
        return base * decay(cfg, epoch)
    if epoch < warmup and cfg.WARMUP_TYPE == "constant":
        return cfg.WARMUP_CONS_LR
    if epoch < warmup:
        return cfg.WARMUP_MIN_LR if epoch == 0 else base * epoch / warmup
    if cfg.WARMUP_RECOUNT:
        return base * decay(cfg, epoch - warmup)
    return base * decay(cfg, epoch) / decay(cfg, warmup)


CASES = {
    "plain cosine": {"WARMUP_EPOCH": 0},
    "CoOp's": {"WARMUP_EPOCH": 1},
    "CoOp's, warm-up counted": {"WARMUP_EPOCH": 1, "WARMUP_RECOUNT": False},
    "long constant": {"WARMUP_EPOCH": 3, "WARMUP_CONS_LR": 1e-4},
    "linear": {"WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear"},
    "linear, counted": {"WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear", "WARMUP_RECOUNT": False},
    "single step": {"LR_SCHEDULER": "single_step", "STEPSIZE": (5,), "GAMMA": 0.3},
    "single step, counted": {
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (5,),
        "WARMUP_EPOCH": 2,
        "WARMUP_RECOUNT": False,
    },
    "single step at the end": {"LR_SCHEDULER": "single_step"},
    "multi step": {"LR_SCHEDULER": "multi_step", "STEPSIZE": (3, 7), "WARMUP_EPOCH": 1},
    "multi step, counted": {
        "LR_SCHEDULER": "multi_step",
        "STEPSIZE": (3, 7),
        "WARMUP_EPOCH": 4,
        "WARMUP_RECOUNT": False,
    },
}
cases = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


@cases
def test_rate_at_every_epoch(options):
    cfg = make_cfg(**options)
    rates = rates_by_epoch(*build(cfg, 0.002, 0.05), EPOCHS + 1)
    expected = [[expected_rate(cfg, b, e) for b in (0.002, 0.05)] for e in range(EPOCHS + 1)]
    assert torch.allclose(
        torch.tensor(rates, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-15,
    )


def test_coops_rates_in_figures():
    cfg = make_cfg(MAX_EPOCH=4, WARMUP_EPOCH=1)
    rates = [rate for (rate,) in rates_by_epoch(*build(cfg, 0.002), 5)]
    half = 0.001 * math.sqrt(0.5)
    assert rates == pytest.approx([1e-5, 0.002, 0.001 + half, 0.001, 0.001 - half], rel=1e-9)


@cases
def test_resuming_at_any_epoch_continues_the_sequence(options):
    cfg = make_cfg(**options)
    whole = rates_by_epoch(*build(cfg, 0.002), EPOCHS)
    for stop in range(EPOCHS):
        optimizer, scheduler = build(cfg, 0.002)
        rates_by_epoch(optimizer, scheduler, stop)
        file = io.BytesIO()
        torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        optimizer, scheduler = build(cfg, 0.002)
        optimizer.load_state_dict(saved[0])
        scheduler.load_state_dict(saved[1])
        assert scheduler.get_last_lr() == whole[stop]
        assert rates_by_epoch(optimizer, scheduler, EPOCHS - stop) == whole[stop:]


def test_a_loaded_scheduler_sets_the_rate_of_its_optimizer():
    cfg = make_cfg(WARMUP_EPOCH=1)
    optimizer, scheduler = build(cfg, 0.002)
    rates = rates_by_epoch(optimizer, scheduler, 5)
    fresh, restored = build(cfg, 0.002)
    restored.load_state_dict(scheduler.state_dict())
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != rates[0][0]


@pytest.mark.parametrize(
    "options",
    [
        {"LR_SCHEDULER": "cosin"},
        {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "quadratic"},
        {"LR_SCHEDULER": "single_step", "STEPSIZE": 2.5},
        {"LR_SCHEDULER": "multi_step", "STEPSIZE": 3},
    ],
)
def test_bad_settings_are_user_errors(options):
    with pytest.raises(UserError, match="OPTIM"):
        build(make_cfg(**options), 0.1)
