"""How often a model whose logits are random is asked."""

from __future__ import annotations

from dataclasses import dataclass

from apd.choices import RULES
from apd.errors import UserError


@dataclass(frozen=True)
class Draws:
    """How often a randomised model is asked; other models are asked once.

    Args:
        eot: draws that an attack averages the gradient over at each step (expectation over
            transformation, Athalye et al. 2018).
        verdict: draws of a verdict, the same for every image that an attack comes by.
        rule: when an image is right: "all": in all draws; "majority": in more than half of them;
            "one": in the first.

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
