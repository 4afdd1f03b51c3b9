"""What an evaluation is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from apd.attacks import Attack, DefendedModel, Draws, ThreatModel, find_attack
from apd.choices import PRECISIONS
from apd.errors import UserError

LogitsFn = Callable[[Tensor], Tensor]

SHARDS = "shards"  # folder of the shards that are not merged yet, in the folder of evaluations


@dataclass(frozen=True)
class Source:
    """The models that attacks are made on.

    Args:
        name: as the record states it: "white-box", "transfer:...", "adaptive", "static".
        logits_fns: models whose losses are summed; the target among them must be the first. None
            for "white-box", and for a name that ``apd.evaluate.run.Run.source`` has yet to load.
        fingerprint: of all that made them.
    """

    name: str
    logits_fns: tuple[LogitsFn, ...] = ()
    fingerprint: str = ""


WHITE_BOX = Source("white-box")  # attacks are made on the evaluated model alone


class Shard(NamedTuple):
    """One of ``count`` parts of the images: the ``number``-th (from 1) and each ``count``-th on."""

    number: int
    count: int  # type: ignore[assignment]  # in place of tuple's method

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def rows(self) -> slice:
        """Of all images, in their order."""
        return slice(self.number - 1, None, self.count)

    @property
    def folder(self) -> str:
        return f"{SHARDS}/{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From i/N."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text}: use i/N, with i from 1 to N")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def all(cls, count: int) -> list[Shard]:
        return [cls(number, count) for number in range(1, count + 1)]


@dataclass(frozen=True)
class EvaluationRequest:
    """What ``apd.evaluate.evaluate`` is asked for, whatever the model; by default clean accuracy.

    ``within`` makes one from names of attacks, ``from_config`` the one of a run's config.

    Args:
        attacks: each becomes a record; those without stages ("clean") are left out.
        source: where the attacks are made.
        split: "test" or "val": the images that the loader has; it is only stated in the records.
        subset: how many images, drawn with a fixed seed, the same for all models; 0: all.
        precision: of the attacks' passes: fp32, bf16, amp. Verdicts are always in float32.
        seed: of the attacks' random starts.
        checks: with attacks, also look for random logits, and for images that an attack which may
            do anything does not fool.
        store: folder where states and verdicts are kept, and looked for before an attack.
        save_adv: folder for the images that decided the verdicts, as npz files of a batch each.
        draws: how often a model whose logits are random is asked.
        defence: what the model says of its test-time defence (``DefendedModel.asdict``); None: it
            has none. ``evaluate`` fills it in.
        shard: evaluate this part of the images only, and leave what was found in ``store`` for
            ``apd.evaluate.shards.Merger``.

    Raises:
        UserError: no such precision.
    """

    attacks: tuple[Attack, ...] = ()
    source: Source = WHITE_BOX
    split: str = "test"
    subset: int = 0
    precision: str = "fp32"
    seed: int = 0
    checks: bool = True
    draws: Draws = Draws()
    defence: dict | None = None
    store: Path | None = None
    save_adv: Path | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"attack precision is {self.precision}: use {', '.join(PRECISIONS)}")
        attacks = tuple(attack for attack in self.attacks if attack.stages)
        object.__setattr__(self, "attacks", attacks)
        for name in ("store", "save_adv"):
            if (folder := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(folder))

    @classmethod
    def within(
        cls,
        threat: ThreatModel | None,
        attacks: Sequence[str | Attack] = (),
        *,
        last_iterate: bool = False,
        **more,
    ) -> EvaluationRequest:
        """A request for ``attacks`` by name within ``threat``.

        Args:
            threat: None: no attacks.
            attacks: names (see ``apd.attacks.find_attack``), or attacks that are made already;
                default: the threat model's PGD.
            last_iterate: count PGD's last iterate only (see ``apd.attacks.surviving``).
            more: as of the class.

        Raises:
            UserError: unknown attacks.
        """
        wanted = list(attacks) or ([threat.name] if threat else [])
        made = (
            a if isinstance(a, Attack) else find_attack(a, threat, last_iterate) for a in wanted
        )
        return cls(tuple(made), **more)

    @classmethod
    def from_config(cls, cfg, **more) -> EvaluationRequest:
        """What TEST.SPLIT and AT.TEST of a run's config ask for; without a radius no attacks.

        Raises:
            UserError: unknown attacks, or attacks without a radius.
        """
        test = cfg.AT.TEST
        if test.ATTACKS and test.EPS is None:
            raise UserError("AT.TEST.EPS is not set (unit: 1/255): attacks need it")
        options = {
            "last_iterate": test.LAST_ITERATE,
            "split": cfg.TEST.SPLIT,
            "subset": test.SUBSET,
            "precision": test.PREC,
            "seed": attack_seed(cfg),
            "draws": Draws(test.EOT, test.DRAWS, test.RULE),
        }
        threat = None if test.EPS is None else threat_model(cfg, "TEST")
        return cls.within(threat, test.ATTACKS, **{**options, **more})

    def of(self, model: LogitsFn) -> EvaluationRequest:
        """The request, with what ``model`` says of its defence."""
        return replace(self, defence=model.asdict()) if isinstance(model, DefendedModel) else self

    def conditions(self, attack: Attack) -> dict:
        """What the record of ``attack`` states as its threat model.

        White-box attacks of a model with a test-time defence go through it: "adaptive".
        """
        adaptive = self.defence is not None and self.source == WHITE_BOX
        stated = {
            **attack.conditions,
            "units": "1/255",
            "source": "adaptive" if adaptive else self.source.name,
            "precision": self.precision,
            "seed": self.seed,
        }
        if self.defence is not None:
            stated |= self.defence
        if self.defence is not None and self.defence["randomised"]:
            stated |= {
                "eot": self.draws.eot if adaptive else None,
                "draws": self.draws.verdict,
                "rule": self.draws.rule,
            }
        return stated


def threat_model(cfg, use: str) -> ThreatModel:
    """The threat model of cfg.AT.TRAIN or cfg.AT.TEST: ``use`` is TRAIN or TEST."""
    part = cfg.AT[use]
    for key in ("EPS", "ALPHA"):
        if part[key] is None:
            raise UserError(
                f"AT.{use}.{key} is not set (unit: 1/255): choose a config of configs/trainers "
                f"(apd-configs says where), or add AT.{use}.EPS 1.0 AT.{use}.ALPHA 1.0"
            )
    restarts, loss = part.get("RESTARTS", 1), part.get("LOSS", "ce")
    return ThreatModel(part.NORM, part.EPS, part.ALPHA, part.STEPS, restarts, loss=loss)


def attack_seed(cfg) -> int:
    """Of a run's attacks; a run that is not seeded (-1) attacks with seed 0."""
    return max(cfg.SEED, 0)
