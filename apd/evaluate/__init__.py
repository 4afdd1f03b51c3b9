"""Clean and robust accuracy of a model on a data loader."""

from apd.evaluate.loop import evaluate
from apd.evaluate.plan import Shard, Source
from apd.evaluate.state import fingerprint

__all__ = ["Shard", "Source", "evaluate", "fingerprint"]
