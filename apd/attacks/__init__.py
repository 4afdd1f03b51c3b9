"""Attacks on callables that map images to logits; nothing here knows CLIP or the toolbox."""

from apd.attacks.defended import DefendedModel
from apd.attacks.draws import Draws
from apd.attacks.pgd import PGD, pgd, seeded_start, surviving
from apd.attacks.registry import Attack, find_attack
from apd.attacks.threat import ThreatModel, threat_warnings

__all__ = [
    "PGD",
    "Attack",
    "DefendedModel",
    "Draws",
    "ThreatModel",
    "threat_warnings",
    "find_attack",
    "pgd",
    "seeded_start",
    "surviving",
]
