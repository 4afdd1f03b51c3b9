"""Clean and robust accuracy of a model on a data loader."""

from apd.evaluate.loop import Source, evaluate
from apd.evaluate.state import fingerprint

__all__ = ["Source", "evaluate", "fingerprint"]
