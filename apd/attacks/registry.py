"""Every attack by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from apd.attack_catalog import ATTACKS, STANDARD_STEPS, LibraryAttack, attack_names
from apd.attacks.library import Attacker, TorchAttack
from apd.attacks.pgd import PGD
from apd.attacks.stream import Stage
from apd.attacks.threat import ThreatModel
from apd.errors import UserError


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


def find_attack(name: str, threat: ThreatModel | None, last_iterate: bool = False) -> Attack:
    """The attack ``name`` with ``threat``'s norm and eps.

    ``-<steps>`` after a name sets its steps (Square's queries). autoattack-<k> has k/100 of the
    standard's budget in every part; autoattack-rand-<k> is the same of AutoAttack's version for
    randomised models, whose gradients are means over draws (``Draws.eot``; its authors use 20).
    pgd, fgsm and cw are ours (``PGD``): pgd has the threat model's alpha, restarts and loss; cw has
    its alpha, steps and restarts, and the margin loss. The others are torchattacks', and choose
    their step sizes themselves where their class takes no alpha.

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
    attack = ATTACKS.get(base)
    if attack is None or attack.steps_in_name == ("required" if steps is None else "never"):
        raise UserError(f'unknown attack "{name}": there are {", ".join(attack_names())}')
    if isinstance(attack, LibraryAttack):
        return _library(name, base, threat, steps)
    if attack.parts:
        return _in_parts(name, attack.parts, threat, STANDARD_STEPS if steps is None else steps)
    threat = _own(base, threat, steps)
    conditions = {**threat.asdict(), "last_iterate": last_iterate}
    return Attack(name, (PGD(threat, last_iterate),), conditions)


def _own(name: str, threat: ThreatModel, steps: int | None) -> ThreatModel:
    """The threat model of an attack that is our PGD."""
    if name == "fgsm":
        one_step = replace(threat, alpha=threat.eps, steps=1, restarts=1, random_start=False)
        return replace(one_step, loss="ce")
    threat = replace(threat, steps=threat.steps if steps is None else steps)
    return replace(threat, loss="margin") if name == "cw" else threat


def _conditions(threat: ThreatModel, **more) -> dict:
    return {**threat.asdict(), "alpha": None, "last_iterate": False, **more}


def _in_parts(name: str, parts: tuple[str, ...], threat: ThreatModel, budget: int) -> Attack:
    """Attacks one after another, each with ``budget`` % of its own steps."""
    stages = []
    for part in parts:
        attack = ATTACKS[part]
        assert isinstance(attack, LibraryAttack)
        stages.append(_stage(part, attack, threat, budget * attack.steps // STANDARD_STEPS))
    conditions = {"steps": budget, "random_start": True, "loss": ", ".join(parts)}
    return Attack(name, tuple(stages), _conditions(threat, **conditions))


def _library(name: str, base: str, threat: ThreatModel, steps: int | None) -> Attack:
    attack = ATTACKS[base]
    assert isinstance(attack, LibraryAttack)
    steps = attack.steps if steps is None else steps
    conditions = {"steps": steps, "random_start": attack.random_start, "loss": attack.loss}
    if "alpha" in attack.arguments:
        conditions["alpha"] = threat.alpha
    stage = _stage(base, attack, threat, steps)
    return Attack(name, (stage,), _conditions(threat, **conditions))


def _stage(base: str, attack: LibraryAttack, threat: ThreatModel, steps: int) -> TorchAttack:
    if threat.norm not in attack.norms:
        raise UserError(f"{base} is an {' or '.join(attack.norms)} attack, not {threat.norm}")
    if steps < 1:
        raise UserError(f"{base} needs 1 step or more, not {steps}")
    values = {
        **{"alpha": threat.step_size, "steps": steps, "n_queries": steps},
        "n_restarts": threat.restarts,
    }
    options = attack.options | {k: v for k, v in values.items() if k in attack.arguments}
    return TorchAttack(
        base,
        threat.norm,
        threat.radius,
        partial(_make_attack, attack, options),
        black_box=not attack.gradients,
        one_by_one=attack.one_by_one,
    )


def _make_attack(
    attack: LibraryAttack, options: dict, model: nn.Module, settings: dict
) -> Attacker:
    from apd.attacks.mended import attack_class  # its import takes a second

    arguments = {name: value for name, value in settings.items() if name in attack.arguments}
    return attack_class(attack.name)(model, **options, **arguments)
