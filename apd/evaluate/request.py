"""The request of an evaluation: attacks, images, precision, seed and folders, in one object."""

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
        logits_fns: models whose losses are summed; the evaluated model, if it is one of them, is
            the first. Empty for "white-box", and as long as ``apd.evaluate.run.Run.source`` has
            not loaded the models.
        fingerprint: of these models; verdicts made with others are not taken for these.
    """

    name: str
    logits_fns: tuple[LogitsFn, ...] = ()
    fingerprint: str = ""


WHITE_BOX = Source("white-box")  # attacks are made on the evaluated model alone


class Shard(NamedTuple):
    """One of ``count`` parts of the images: every ``count``-th image, from the ``number``-th on.

    Numbers are from 1 to ``count``.
    """

    number: int
    count: int  # type: ignore[assignment]  # in place of tuple's method

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def rows(self) -> slice:
        """Which rows of all images, in the order of the data set, this shard has."""
        return slice(self.number - 1, None, self.count)

    @property
    def folder(self) -> str:
        """Where it stores states, relative to the folder of evaluations."""
        return f"{SHARDS}/{self.number}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that ``text`` names, "i/N".

        Raises:
            UserError: ``text`` has another form, or i is not from 1 to N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text}: use i/N, with i from 1 to N")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def all(cls, count: int) -> list[Shard]:
        """The ``count`` shards that all images are divided into."""
        return [cls(number, count) for number in range(1, count + 1)]


@dataclass(frozen=True)
class EvaluationRequest:
    """What ``apd.evaluate.evaluate`` is to measure, of any model; by default clean accuracy only.

    ``within`` makes a request from names of attacks, ``from_config`` from a run's config.

    Args:
        attacks: each gets a record; those without stages ("clean") are dropped.
        source: the models that adversarial images are made on.
        split: "test" or "val": the split whose images the loader has. Records state it.
        subset: how many images, drawn with a fixed seed, the same for all models; 0: all.
        precision: of the attacks' passes: fp32, bf16, amp. Verdicts are always in float32.
        seed: of the attacks' random starts.
        checks: also test whether logits are random, and whether images survive an attack without
            a bound; only if there are attacks.
        draws: numbers of draws, of a gradient and of a verdict, for a model with random logits.
        defence: the model's description of its test-time defence (``DefendedModel.asdict``), which
            ``evaluate`` fills in; None: there is no defence.
        store: folder for unfinished states and for verdicts. An attack whose verdicts are there is
            not run again.
        save_adv: folder for the images that decided the verdicts, one npz file per batch.
        shard: evaluate this part of the images only, and leave its state in ``store`` until
            ``apd.evaluate.shards.Merger`` makes one evaluation of all shards.

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
        **fields,
    ) -> EvaluationRequest:
        """A request for ``attacks`` by name within ``threat``.

        Args:
            threat: None: no attacks.
            attacks: names (see ``apd.attacks.find_attack``) or ``Attack`` objects; default: the
                threat model's PGD.
            last_iterate: count PGD's last iterate only (see ``apd.attacks.surviving``).
            fields: further arguments of the class.

        Raises:
            UserError: unknown attacks.
        """
        names = list(attacks) or ([threat.name] if threat else [])
        return cls(
            tuple(
                attack if isinstance(attack, Attack) else find_attack(attack, threat, last_iterate)
                for attack in names
            ),
            **fields,
        )

    @classmethod
    def from_config(cls, cfg, **fields) -> EvaluationRequest:
        """The request that TEST.SPLIT and AT.TEST of a run's config state.

        Without a radius (AT.TEST.EPS) there are no attacks. ``fields`` replace what the config
        states.

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
        return cls.within(threat, test.ATTACKS, **{**options, **fields})

    def of(self, model: LogitsFn) -> EvaluationRequest:
        """This request with the description of ``model``'s test-time defence, if it has one."""
        return replace(self, defence=model.asdict()) if isinstance(model, DefendedModel) else self

    def conditions(self, attack: Attack) -> dict:
        """The threat model that the record of ``attack`` states.

        The source of white-box attacks on a model with a test-time defence is "adaptive", because
        their gradients go through the defence.
        """
        adaptive = self.defence is not None and self.source == WHITE_BOX
        conditions = {
            **attack.conditions,
            "units": "1/255",
            "source": "adaptive" if adaptive else self.source.name,
            "precision": self.precision,
            "seed": self.seed,
        }
        if self.defence is not None:
            conditions |= self.defence
        if self.defence is not None and self.defence["randomised"]:
            conditions |= {
                "eot": self.draws.eot if adaptive else None,
                "draws": self.draws.verdict,
                "rule": self.draws.rule,
            }
        return conditions


def threat_model(cfg, use: str) -> ThreatModel:
    """The threat model of cfg.AT.TRAIN or cfg.AT.TEST.

    Args:
        use: "TRAIN" or "TEST".

    Raises:
        UserError: its EPS or ALPHA is not set.
    """
    section = cfg.AT[use]
    for key in ("EPS", "ALPHA"):
        if section[key] is None:
            raise UserError(
                f"AT.{use}.{key} is not set (unit: 1/255): choose a config of configs/trainers "
                f"(apd-configs says where), or add AT.{use}.EPS 1.0 AT.{use}.ALPHA 1.0"
            )
    restarts, loss = section.get("RESTARTS", 1), section.get("LOSS", "ce")
    return ThreatModel(section.NORM, section.EPS, section.ALPHA, section.STEPS, restarts, loss=loss)


def attack_seed(cfg) -> int:
    """The seed of a run's attacks: SEED, or 0 for a run that is not seeded (SEED -1)."""
    return max(cfg.SEED, 0)
