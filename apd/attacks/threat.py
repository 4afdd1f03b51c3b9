"""The threat model: what an attacker may change, and how PGD searches for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from apd.choices import LOSSES, NORMS
from apd.errors import UserError

UNITS = 255  # of eps and alpha to a pixel value of 1


@dataclass(frozen=True)
class ThreatModel:
    """Images x' in [0, 1] with ||x' - x|| <= eps, and how PGD searches (arXiv 1706.06083).

    Args:
        norm: "linf" or "l2" (of all the values of an image).
        eps: radius of the ball, in units of 1/255.
        alpha: step size, in units of 1/255.
        steps: gradient steps; 0 leaves the start point.
        restarts: independent attacks on each image.
        random_start: begin at a random point of the ball, not at the image.
        loss: what the attacker maximises, one of ``apd.attacks.losses``: "ce" against the label,
            "kl" from reference logits, ...

    Raises:
        UserError: a value out of range.
    """

    norm: str
    eps: float
    alpha: float
    steps: int
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        for name, choices in (("norm", NORMS), ("loss", LOSSES)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"attack {name} is {value!r}: use {', '.join(choices)}")
        for name in ("eps", "alpha"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise UserError(f"attack {name} is {value!r}: use a number >= 0, in 1/255")
        for name, least in (("steps", 0), ("restarts", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least):
                raise UserError(f"attack {name} is {value!r}: use a whole number >= {least}")

    @property
    def name(self) -> str:
        return f"pgd-{self.steps}"

    @property
    def radius(self) -> float:
        """``eps`` as a difference of pixel values, which lie in [0, 1]."""
        return self.eps / UNITS

    @property
    def step_size(self) -> float:
        """``alpha`` as a difference of pixel values."""
        return self.alpha / UNITS

    def scaled(self, factor: float) -> ThreatModel:
        """The same attack with ``factor`` times the radius and ``factor`` times the step size."""
        return dataclasses.replace(self, eps=factor * self.eps, alpha=factor * self.alpha)

    def asdict(self) -> dict:
        return dataclasses.asdict(self)


def threat_warnings(eps: float, steps: int | None) -> Iterator[tuple[str, str]]:
    """Names and sentences of flags for a radius or a number of steps that is likely a mistake.

    Args:
        eps: radius in units of 1/255.
        steps: None: the attack has none.
    """
    if 0 < eps < 1:
        yield "tiny-eps", f"eps {eps:g} is {eps:g}/255: its unit is 1/255, so that 4/255 is 4"
    if eps == 0:
        yield "unmoved", "with eps 0 the attack may change nothing"
    elif steps == 0:
        yield "unmoved", "with 0 steps the attack only draws random points"
