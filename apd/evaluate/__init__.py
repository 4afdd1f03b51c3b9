"""Clean and robust accuracy of any model on labelled images."""

from apd.evaluate.loop import evaluate
from apd.evaluate.request import EvaluationRequest, Shard, Source
from apd.evaluate.state import fingerprint

__all__ = ["EvaluationRequest", "Shard", "Source", "evaluate", "fingerprint"]
