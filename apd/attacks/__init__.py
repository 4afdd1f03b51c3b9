"""Attacks on callables that map images to logits; nothing here knows CLIP or the toolbox."""

from apd.attacks.pgd import pgd, surviving
from apd.attacks.threat import ThreatModel

__all__ = ["ThreatModel", "pgd", "surviving"]
