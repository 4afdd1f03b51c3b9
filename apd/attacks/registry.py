"""Every attack by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from apd.attacks.library import Build, TorchAttack
from apd.attacks.pgd import PGD
from apd.attacks.stream import Stage
from apd.attacks.threat import ThreatModel
from apd.choices import ATTACKS, NORMS
from apd.errors import UserError

# AutoAttack (Croce and Hein 2020), and its version for models whose logits are random
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
RAND = ("apgd-ce", "apgd-dlr")


@dataclass(frozen=True)
class Attack:
    """An attack of an evaluation; it makes one record.

    Args:
        name: as the user writes it.
        stages: run one after another, each on the images that still stand after the ones before.
        conditions: norm, eps, alpha, steps, restarts, random_start, loss and last_iterate; None
            where the attack has no such parameter.
    """

    name: str
    stages: tuple[Stage, ...]
    conditions: dict

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Kind:
    steps: int  # the default; Square: queries
    norms: tuple[str, ...]
    loss: str
    random_start: bool
    build: Callable[[ThreatModel, int], Build]
    flags: tuple[str, ...] = ()


def _autoattack_part(
    attack: str, steps_name: str = "steps", targeted: bool = False, **options
) -> Callable[[ThreatModel, int], Build]:
    """How to make a part of AutoAttack: targeted ones take n_classes, APGD takes eot_iter."""
    takes = ("norm", "eps", "seed") + ("n_classes",) * targeted
    takes += ("eot_iter",) * attack.startswith("APGD")
    return lambda threat, steps: partial(
        _make_attack, attack, takes, {steps_name: steps, "n_restarts": threat.restarts, **options}
    )


def _difgsm(threat: ThreatModel, steps: int) -> Build:
    return partial(_make_attack, "DIFGSM", ("eps",), {"alpha": threat.step_size, "steps": steps})


def _cw_l2(threat: ThreatModel, steps: int) -> Build:
    return partial(_make_attack, "CW", (), {"steps": steps})


def _make_attack(
    attack: str, takes: tuple[str, ...], options: dict, model: nn.Module, settings: dict
):
    from apd.attacks import mended  # its import takes a second

    return getattr(mended, attack)(model, **options, **{key: settings[key] for key in takes})


_KINDS = {
    "difgsm": _Kind(10, ("linf",), "ce", False, _difgsm),
    "apgd-ce": _Kind(100, NORMS, "ce", True, _autoattack_part("APGD")),
    "apgd-dlr": _Kind(100, NORMS, "dlr", True, _autoattack_part("APGD", loss="dlr")),
    "apgd-t": _Kind(100, NORMS, "dlr, targeted", True, _autoattack_part("APGDT", targeted=True)),
    "fab-t": _Kind(
        100,
        NORMS,
        "distance, targeted",
        False,
        _autoattack_part("FAB", targeted=True, multi_targeted=True),
    ),
    "square": _Kind(
        5000, NORMS, "margin", True, _autoattack_part("Square", "n_queries"), ("black_box",)
    ),
    "cw-l2": _Kind(50, ("l2",), "distance + margin", False, _cw_l2, ("one_by_one",)),
}


def find_attack(name: str, threat: ThreatModel | None, last_iterate: bool = False) -> Attack:
    """The attack ``name`` with ``threat``'s norm and eps.

    ``-<steps>`` after a name sets its steps (Square's queries). autoattack-<k> has k/100 of the
    standard's budget in every part; autoattack-rand-<k> is the same of AutoAttack's version for
    randomised models, whose gradients are means over draws (``Draws.eot``; its authors use 20).
    pgd, fgsm and cw are ours (``PGD``): pgd has the threat model's alpha, restarts and loss; cw has
    its alpha, steps and restarts, and the margin loss. The others are torchattacks', which choose
    their step sizes themselves; only difgsm has the threat model's alpha.

    Raises:
        UserError: no such attack, or not in this norm, or no threat model (only clean needs none).
    """
    match = re.fullmatch(r"(.+?)(?:-(\d+))?", name.strip().lower())
    base, digits = (match[1], match[2]) if match else (name, None)
    steps = int(digits) if digits else None
    if base == "clean" and steps is None:
        return Attack("clean", (), {})
    if threat is None:
        raise UserError(f'attack "{name}" needs a threat model: give its eps')
    if base == "pgd" and steps is not None:
        return _pgd(name, replace(threat, steps=steps), last_iterate)
    if base == "fgsm" and steps is None:
        one_step = replace(threat, alpha=threat.eps, steps=1, restarts=1, random_start=False)
        return _pgd(name, replace(one_step, loss="ce"), last_iterate)
    if base == "cw":
        steps = threat.steps if steps is None else steps
        return _pgd(name, replace(threat, steps=steps, loss="margin"), last_iterate)
    if base in ("autoattack", "autoattack-rand"):
        parts = STANDARD if base == "autoattack" else RAND
        budget = 100 if steps is None else steps
        stages = [_library(p, budget * (50 if p == "square" else 1), threat) for p in parts]
        conditions = {"steps": budget, "random_start": True, "loss": ", ".join(parts)}
        return Attack(name, tuple(stages), _conditions(threat, **conditions))
    if base not in _KINDS:
        raise UserError(f'unknown attack "{name}": there are {", ".join(ATTACKS)}')
    kind = _KINDS[base]
    steps = kind.steps if steps is None else steps
    conditions = {"steps": steps, "random_start": kind.random_start, "loss": kind.loss}
    if base == "difgsm":
        conditions["alpha"] = threat.alpha
    return Attack(name, (_library(base, steps, threat),), _conditions(threat, **conditions))


def _conditions(threat: ThreatModel, **more) -> dict:
    return {**threat.asdict(), "alpha": None, "last_iterate": False, **more}


def _pgd(name: str, threat: ThreatModel, last_iterate: bool) -> Attack:
    conditions = {**threat.asdict(), "last_iterate": last_iterate}
    return Attack(name, (PGD(threat, last_iterate),), conditions)


def _library(base: str, steps: int, threat: ThreatModel) -> TorchAttack:
    kind = _KINDS[base]
    if threat.norm not in kind.norms:
        raise UserError(f"{base} is an {' or '.join(kind.norms)} attack, not {threat.norm}")
    if steps < 1:
        raise UserError(f"{base} needs 1 step or more, not {steps}")
    build = kind.build(threat, steps)
    return TorchAttack(base, threat.norm, threat.radius, build, **dict.fromkeys(kind.flags, True))
