"""How many draws of a randomised model an attack and a verdict use."""

from __future__ import annotations

from dataclasses import dataclass

from apd.choices import RULES
from apd.errors import UserError


@dataclass(frozen=True)
class Draws:
    """Draws of a randomised model: logits with other random numbers. Other models have one draw.

    Args:
        eot: draws over which an attack averages the gradient at each step (expectation over
            transformation, Athalye et al. 2018).
        verdict: draws of a verdict. All iterates of an image have the same ones.
        rule: an image counts as right if it is classified correctly in "all" draws, in the
            "majority" (more than half), or in the first "one".

    Raises:
        UserError: a value out of range.
    """

    eot: int = 1
    verdict: int = 1
    rule: str = "majority"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"the rule of verdicts is {self.rule!r}: use {', '.join(RULES)}")
        for name in ("eot", "verdict"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} draws are {getattr(self, name)}: use 1 or more")
